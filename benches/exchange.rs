//! A hash exchange from 4 to 4 tasks, compared with DataFusion's `RepartitionExec` and with threads
//! over crossbeam channels.
//!
//! Four producers and four consumers, which count rows, on two workers. `narrow`: two integers per
//! row; `wide`: eight columns, three of them strings; `one key`: every row goes to the same
//! consumer.

use std::{hint::black_box, sync::Arc, thread};

use arrow::{
    array::{ArrayRef, Int64Array, RecordBatch, StringViewArray},
    util::bit_util::ceil,
};
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use datafusion::{
    datasource::memory::MemorySourceConfig,
    execution::TaskContext,
    physical_expr::{PhysicalExpr, expressions::Column},
    physical_plan::{ExecutionPlan, Partitioning, repartition::RepartitionExec},
};
use futures::StreamExt;
use gatework::{
    Executor,
    operators::{
        keys::partition_rows,
        local_exchange::{self, Routing},
        memory_scan::MemoryScan,
    },
    runtime::pipeline::Graph,
    shared_state::BufferLimit,
};
use support::{Count, CountSink, finish};

#[allow(dead_code, reason = "this bench uses only a part of the shared support")]
mod support;

const THREADS: usize = 2;
const TASKS: usize = 4;
const BATCH_ROWS: usize = 8192;
/// Limit of gatework's exchange. DataFusion's repartitioning has no byte limit, only a gate over
/// all channels.
const BUDGET_BYTES: usize = 64 << 20;

fn mix(row: usize) -> i64 {
    (row as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) as i64
}

fn table(rows: usize, columns: usize, keys: impl Fn(usize) -> i64) -> Vec<RecordBatch> {
    let batch = |number: usize| {
        let rows = number * BATCH_ROWS..rows.min((number + 1) * BATCH_ROWS);
        let numbers = |column: usize| -> ArrayRef {
            let values = rows.clone().map(|row| if column == 0 { keys(row) } else { mix(row) });
            Arc::new(values.collect::<Int64Array>())
        };
        let strings = |column: usize| -> ArrayRef {
            let text = |row: usize| format!("row {row} of a column with number {column}");
            Arc::new(StringViewArray::from_iter_values(rows.clone().map(text)))
        };
        let column = |column: usize| {
            let number = column < 2 || column.is_multiple_of(2);
            (format!("c{column}"), if number { numbers(column) } else { strings(column) })
        };
        RecordBatch::try_from_iter((0..columns).map(column)).expect("columns of equal length")
    };
    (0..ceil(rows, BATCH_ROWS)).map(batch).collect()
}

fn key() -> Arc<dyn PhysicalExpr> {
    Arc::new(Column::new("c0", 0))
}

fn ours(executor: &Executor, batches: &[RecordBatch]) -> usize {
    let mut graph = Graph::new();
    let budget = BufferLimit::new(BUDGET_BYTES);
    let (mut sinks, source) =
        local_exchange::new(Routing::Hash(vec![key()]), &[TASKS], TASKS, budget).expect("tasks");
    let scan = Arc::new(MemoryScan::new(batches.iter().cloned(), None, BATCH_ROWS));
    graph.add_pipeline("rows", TASKS, scan, vec![], Arc::new(sinks.remove(0))).expect("tasks");
    let count = Count::new();
    graph
        .add_pipeline("count", TASKS, Arc::new(source), vec![], Arc::new(CountSink(count.clone())))
        .expect("tasks");
    finish(executor, graph);
    count.rows()
}

fn datafusion(runtime: &tokio::runtime::Runtime, batches: &[RecordBatch]) -> usize {
    let mut partitions = vec![Vec::new(); TASKS];
    for (number, batch) in batches.iter().enumerate() {
        partitions[number % TASKS].push(batch.clone());
    }
    let schema = batches[0].schema();
    let scan = MemorySourceConfig::try_new_exec(&partitions, schema, None).expect("a table");
    let hash = Partitioning::Hash(vec![key()], TASKS);
    let exchange = Arc::new(RepartitionExec::try_new(scan, hash).expect("an exchange"));
    let context = Arc::new(TaskContext::default());
    runtime.block_on(async move {
        let partitions = exchange.partitioning().partition_count();
        let consumers: Vec<_> = (0..partitions)
            .map(|partition| {
                let mut stream = exchange.execute(partition, context.clone()).expect("a stream");
                tokio::spawn(async move {
                    let mut rows = 0;
                    while let Some(batch) = stream.next().await {
                        rows += black_box(batch.expect("rows")).num_rows();
                    }
                    rows
                })
            })
            .collect();
        let mut rows = 0;
        for consumer in consumers {
            rows += consumer.await.expect("no panic");
        }
        rows
    })
}

fn channels(batches: &[RecordBatch]) -> usize {
    thread::scope(|scope| {
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..TASKS).map(|_| crossbeam::channel::bounded(64)).unzip();
        for producer in 0..TASKS {
            let senders = senders.clone();
            scope.spawn(move || {
                for batch in batches.iter().skip(producer).step_by(TASKS) {
                    for (channel, part) in partition_rows(batch, &[key()], TASKS).expect("parts") {
                        senders[channel].send(part).expect("a consumer");
                    }
                }
            });
        }
        drop(senders);
        let count = |receiver: crossbeam::channel::Receiver<RecordBatch>| {
            scope.spawn(move || {
                receiver.iter().map(|batch| black_box(batch).num_rows()).sum::<usize>()
            })
        };
        let consumers: Vec<_> = receivers.into_iter().map(count).collect();
        consumers.into_iter().map(|consumer| consumer.join().expect("no panic")).sum()
    })
}

fn compare(
    group: &mut BenchmarkGroup<'_, criterion::measurement::WallTime>,
    name: &str,
    batches: &[RecordBatch],
) {
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    group.throughput(Throughput::Elements(rows as u64));
    let executor = Executor::builder().threads(THREADS).build().expect("threads");
    group.bench_function(format!("{name}/gatework"), |bencher| {
        bencher.iter(|| assert_eq!(ours(&executor, batches), rows));
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).build();
    let runtime = runtime.expect("threads");
    group.bench_function(format!("{name}/datafusion RepartitionExec"), |bencher| {
        bencher.iter(|| assert_eq!(datafusion(&runtime, batches), rows));
    });
    group.bench_function(format!("{name}/crossbeam channels"), |bencher| {
        bencher.iter(|| assert_eq!(channels(batches), rows));
    });
}

fn hash_exchange(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hash-exchange-4-4");
    group.sample_size(10);
    compare(&mut group, "narrow", &table(2_000_000, 2, mix));
    compare(&mut group, "wide", &table(500_000, 8, mix));
    compare(&mut group, "one key", &table(2_000_000, 2, |_| 7));
    group.finish();
}

criterion_group!(benches, hash_exchange);
criterion_main!(benches);
