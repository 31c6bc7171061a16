//! Support for unit tests: hand-built graphs on a real executor, and their rows in comparable form.

mod dictionary_scan;

use std::{
    sync::{Arc, LazyLock, mpsc},
    task::{Wake, Waker},
    thread::{self, Thread},
    time::{Duration, Instant},
};

use arrow::{
    array::{ArrayRef, Int32Array, RecordBatch},
    util::display::{ArrayFormatter, FormatOptions},
};
use gatework_runtime::{
    Error, Executor, Result,
    pipeline::{
        Batch, BufferedBatch, DriverContext, FinishResult, Graph, LocalSink, LocalSource, Operator,
        OperatorContext, QueryContext, QueryOptions, RowStream, Sink, SinkResult, Source,
        SourceResult,
    },
};
use gatework_shared_state::{BufferLimit, result::ResultReader};

pub(crate) use self::dictionary_scan::dictionary_scan;
pub(crate) use crate::harness::{InMemorySpill, RandomDenialPool};
use crate::{apply_selection, memory_scan::MemoryScan, result::ResultSink};

/// Time after which an unfinished query counts as hanging.
const TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) static EXECUTOR: LazyLock<Executor> =
    LazyLock::new(|| Executor::builder().threads(2).build().unwrap());

pub(crate) type Readers = Vec<ResultReader<BufferedBatch>>;

/// Runs the graph that `build` creates; returns the batches of each reader.
pub(crate) fn run_all(build: impl FnOnce(&mut Graph) -> Readers) -> Result<Vec<Vec<RecordBatch>>> {
    run_with(QueryOptions::default(), build)
}

pub(crate) fn run_with(
    options: QueryOptions,
    build: impl FnOnce(&mut Graph) -> Readers,
) -> Result<Vec<Vec<RecordBatch>>> {
    run_on(&EXECUTOR, options, build)
}

fn run_on(
    executor: &Executor,
    options: QueryOptions,
    build: impl FnOnce(&mut Graph) -> Readers,
) -> Result<Vec<Vec<RecordBatch>>> {
    let query = QueryContext::new(executor, options);
    let mut graph = Graph::new();
    let readers = build(&mut graph);
    let running = graph.start(&query)?;
    let collectors: Vec<_> = RowStream::of_query(&running, readers)
        .into_iter()
        .map(|stream| {
            let (sender, receiver) = mpsc::channel();
            thread::spawn(move || {
                let rows = stream.into_blocking_iter().map(|batch| apply_selection(batch?));
                let _receiver_gone = sender.send(rows.collect::<Result<Vec<_>>>());
            });
            receiver
        })
        .collect();
    let batches = collectors
        .into_iter()
        .map(|collector| match collector.recv_timeout(TIMEOUT) {
            Ok(batches) => batches,
            Err(_) => panic!("the query hangs\n{}", query.dump()),
        })
        .collect();
    wait_idle(&query);
    batches
}

/// Runs a graph with one reader; returns its batches.
pub(crate) fn run(build: impl FnOnce(&mut Graph) -> Readers) -> Result<Vec<RecordBatch>> {
    Ok(run_all(build)?.remove(0))
}

struct ThreadWaker(Thread);

impl Wake for ThreadWaker {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for the end of all tasks; afterwards the query must have no task and no reservation.
pub(crate) fn wait_idle(query: &QueryContext) {
    let waker = Waker::from(Arc::new(ThreadWaker(thread::current())));
    let end = Instant::now() + TIMEOUT;
    while !query.idle().poll_ready(&waker) {
        assert!(Instant::now() < end, "the query does not end\n{}", query.dump());
        thread::park_timeout(TIMEOUT);
    }
    assert_eq!((query.live_tasks(), query.reserved_bytes()), (0, 0));
}

/// Adds a pipeline that ends in a result with `readers` readers.
pub(crate) fn result_of(
    graph: &mut Graph,
    num_tasks: usize,
    readers: usize,
    source: Arc<dyn Source>,
    operators: Vec<Arc<dyn Operator>>,
) -> Readers {
    let (output, readers) = ResultSink::new(num_tasks, readers, vec![], BufferLimit::new(100));
    graph.add_pipeline("result", num_tasks, source, operators, Arc::new(output.by_task())).unwrap();
    readers
}

/// Creates a scan of `table` in morsels of `rows` rows.
pub(crate) fn scan(table: &RecordBatch, rows: usize) -> Arc<MemoryScan> {
    Arc::new(MemoryScan::new([table.clone()], None, rows))
}

pub(crate) fn ints(values: impl IntoIterator<Item = Option<i32>>) -> ArrayRef {
    Arc::new(values.into_iter().collect::<Int32Array>())
}

/// Creates a table of nullable columns from name and column pairs.
pub(crate) fn table<const N: usize>(columns: [(&str, ArrayRef); N]) -> RecordBatch {
    let columns = columns.into_iter().map(|(name, column)| (name, column, true));
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}

/// Formats every row as text, in the order of the batches.
pub(crate) fn rows(batches: &[RecordBatch]) -> Vec<String> {
    let options = FormatOptions::default().with_null("NULL");
    let mut rows = Vec::new();
    for batch in batches {
        let columns: Vec<_> = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column.as_ref(), &options).unwrap())
            .collect();
        for row in 0..batch.num_rows() {
            let values: Vec<_> =
                columns.iter().map(|column| column.value(row).to_string()).collect();
            rows.push(values.join("|"));
        }
    }
    rows
}

/// Formats every row as text, sorted.
pub(crate) fn sorted_rows(batches: &[RecordBatch]) -> Vec<String> {
    let mut rows = rows(batches);
    rows.sort_unstable();
    rows
}

/// Source and sink of a task that requests reclaim several times without needing memory.
#[derive(Debug)]
struct ReclaimRequester;

/// Number of reclaim requests.
const NUM_REQUESTS: usize = 20;

/// Source that yields as long as other tasks of the query live.
struct LocalYieldingSource(OperatorContext, usize);

struct LocalReclaimRequester {
    context: OperatorContext,
    remaining: usize,
}

impl Source for ReclaimRequester {
    fn name(&self) -> &str {
        "yielding source"
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSource>> {
        Ok(Box::new(LocalYieldingSource(context, 0)))
    }
}

impl LocalSource for LocalYieldingSource {
    fn next(&mut self, _: &DriverContext) -> Result<SourceResult> {
        self.1 += 1;
        Ok(match self.1 {
            _ if self.0.query().live_tasks() == 1 => SourceResult::Finished,
            call if call % 3 == 0 => {
                SourceResult::Batch(Batch::new(table([("n", ints([Some(1)]))])))
            }
            _ => SourceResult::Yield,
        })
    }
}

impl Sink for ReclaimRequester {
    fn name(&self) -> &str {
        "reclaim requester"
    }

    fn can_reclaim(&self) -> bool {
        true
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSink>> {
        Ok(Box::new(LocalReclaimRequester { context, remaining: NUM_REQUESTS }))
    }
}

impl LocalSink for LocalReclaimRequester {
    fn sink(&mut self, batch: Option<Batch>, _: &DriverContext) -> Result<SinkResult> {
        if batch.is_none() {
            return Ok(SinkResult::NeedInput);
        }
        if self.remaining == 0 {
            return Ok(SinkResult::Finished);
        }
        let Some(gate) = self.context.request_reclaim(1) else { return Ok(SinkResult::NeedInput) };
        self.remaining -= 1;
        Ok(SinkResult::Blocked(gate.into()))
    }

    fn finish(&mut self, _: &DriverContext) -> Result<FinishResult> {
        Ok(FinishResult::Done)
    }
}

/// Runs like [`run_with`], beside a task that requests reclaim from the other tasks. The queries of
/// other tests do not delay that task: it has an executor with a thread for each of three tasks.
pub(crate) fn run_with_reclaim_requests(
    options: QueryOptions,
    build: impl FnOnce(&mut Graph) -> Readers,
) -> Result<Vec<Vec<RecordBatch>>> {
    let executor = Executor::builder().threads(3).build()?;
    run_on(&executor, options, |graph| {
        graph
            .add_pipeline(
                "reclaim requester",
                1,
                Arc::new(ReclaimRequester),
                vec![],
                Arc::new(ReclaimRequester),
            )
            .unwrap();
        build(graph)
    })
}

/// Returns the options of a query that may spill and gets all memory it requests.
pub(crate) fn unlimited() -> (Arc<InMemorySpill>, QueryOptions) {
    let spill_space = Arc::new(InMemorySpill { eager: true, ..InMemorySpill::default() });
    let options = QueryOptions { spill: Some(spill_space.clone()), ..QueryOptions::default() };
    (spill_space, options)
}

/// Returns the options of a query whose pool denies reservations at random, and that may spill.
pub(crate) fn random_refusals(
    seed: u64,
) -> (Arc<RandomDenialPool>, Arc<InMemorySpill>, QueryOptions) {
    let pool = Arc::new(RandomDenialPool::new(seed));
    let spill_space = Arc::new(InMemorySpill { eager: true, ..InMemorySpill::default() });
    let options = QueryOptions {
        memory: pool.clone(),
        spill: Some(spill_space.clone()),
        ..QueryOptions::default()
    };
    (pool, spill_space, options)
}

/// Source that fails at the first call.
#[derive(Debug)]
pub(crate) struct FailingScan;

impl Source for FailingScan {
    fn name(&self) -> &str {
        "failing scan"
    }

    fn local(&self, _context: OperatorContext) -> Result<Box<dyn LocalSource>> {
        Ok(Box::new(Self))
    }
}

impl LocalSource for FailingScan {
    fn next(&mut self, _task: &DriverContext) -> Result<SourceResult> {
        Err(Error::operator("the scan failed"))
    }
}
