//! A plan is a value: it may be executed again, twice at once, and partition by partition in any
//! order, and executions are independent. Code on gatework finds DataFusion's environment: the
//! session's partitions, a current runtime, and all streams of a node open at once.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    task::Poll,
};

use arrow::{
    array::{AsArray, Int64Array, RecordBatch},
    datatypes::{DataType, Int64Type},
};
use datafusion::{
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext},
    logical_expr::{ColumnarValue, Volatility, create_udf},
    physical_plan::stream::RecordBatchStreamAdapter,
};
use futures::{StreamExt, TryStreamExt, future::try_join_all, stream};

use crate::{
    fixture::TpchFixture,
    query_end::fixture::Fixture,
    support::{
        Planned, QUERIES, Storage, executor, guarded,
        leaf::{Leaf, number, numbers, register, schema, session, stream_of},
        plan,
    },
};

async fn partitions(planned: &Planned, context: &Arc<TaskContext>) -> Vec<RecordBatch> {
    let streams = (0..planned.partitions()).map(|partition| {
        let stream = planned.plan.execute(partition, context.clone()).unwrap();
        stream.try_collect::<Vec<_>>()
    });
    try_join_all(streams).await.unwrap().concat()
}

/// Polls the partitions of two executions alternately, those of the second in the opposite order.
async fn interleaved(planned: &Planned, contexts: [Arc<TaskContext>; 2]) -> [Vec<RecordBatch>; 2] {
    let count = planned.partitions();
    let (mut one, mut other) = (Vec::new(), Vec::new());
    for partition in 0..count {
        one.push(planned.plan.execute(partition, contexts[0].clone()).unwrap());
        other.push(planned.plan.execute(count - 1 - partition, contexts[1].clone()).unwrap());
    }
    let read = |streams: Vec<SendableRecordBatchStream>| async {
        try_join_all(streams.into_iter().map(TryStreamExt::try_collect::<Vec<_>>)).await.unwrap()
    };
    let (one, other) = futures::join!(read(one), read(other));
    [one.concat(), other.concat()]
}

async fn half_of(planned: &Planned, context: Arc<TaskContext>) {
    let mut stream = planned.plan.execute(0, context).unwrap();
    let _first = stream.next().await;
}

/// Every query of TPC-H, planned once, by gatework and by DataFusion for four partitions.
#[test]
fn a_plan_runs_again_and_twice_at_once() {
    guarded(|case| async move {
        let tpch = TpchFixture::new().await;
        for serial in [true, false] {
            let fixture = Fixture::on(executor(2), if serial { 1 } else { 4 });
            tpch.data.register(&fixture.session, Storage::Parquet).await;
            for (index, (sql, expected)) in QUERIES.iter().zip(&tpch.expected).enumerate() {
                case.begin(format!("query {}, {serial}", index + 1));
                let planned = fixture.plan(&case, sql).await;
                let context = || fixture.session.task_ctx();
                let first = partitions(&planned, &context()).await;
                expected.check("the first execution", &first);
                half_of(&planned, context()).await;
                let [one, other] = interleaved(&planned, [context(), context()]).await;
                expected.check("one of two at once", &one);
                expected.check("the other of two at once", &other);
                // One after the other, with one context.
                let shared = context();
                for time in ["first", "second"] {
                    let rows = partitions(&planned, &shared).await;
                    expected.check(&format!("{time} with a shared context"), &rows);
                }
                drop(planned);
                fixture.assert_clean(sql);
            }
        }
    });
}

/// The build side has another key each time, so a runtime filter of an earlier execution would drop
/// all rows.
#[test]
fn runtime_filters_and_subqueries_belong_to_an_execution() {
    static TIME: AtomicI64 = AtomicI64::new(0);
    guarded(|case| async move {
        let (executor, folder) = (executor(2), tempfile::tempdir().unwrap());
        let session = session(&executor, 2);
        let file = folder.path().join("p.parquet").to_str().unwrap().to_owned();
        for statement in [
            format!("COPY (SELECT value AS k FROM generate_series(1, 1000)) TO '{file}'"),
            format!("CREATE EXTERNAL TABLE p(k BIGINT) STORED AS PARQUET LOCATION '{file}'"),
        ] {
            session.sql(&statement).await.unwrap().collect().await.unwrap();
        }
        register(&session, "b", |_| {
            Leaf::new(1, |_| stream_of(vec![numbers(vec![TIME.fetch_add(1, Ordering::Relaxed)])]))
        });
        for sql in [
            "SELECT p.k FROM b JOIN p ON b.k = p.k",
            "SELECT k FROM p WHERE k = (SELECT k FROM b)",
            "SELECT max(k) FROM p WHERE k <= (SELECT max(k) FROM b)",
        ] {
            case.begin(sql);
            let planned = plan(&case, &session, sql).await.unwrap();
            TIME.store(5, Ordering::Relaxed);
            for time in 5..8 {
                let rows = partitions(&planned, &session.task_ctx()).await;
                let keys: Vec<i64> = rows
                    .iter()
                    .flat_map(|rows| rows.column(0).as_primitive::<Int64Type>().values().to_vec())
                    .collect();
                assert_eq!(keys, [time], "{sql}");
            }
            let [one, other] =
                interleaved(&planned, [session.task_ctx(), session.task_ctx()]).await;
            let keys = |rows: &[RecordBatch]| rows.iter().map(RecordBatch::num_rows).sum::<usize>();
            assert_eq!((keys(&one), keys(&other)), (1, 1), "{sql}");
        }
    });
}

/// Like a shuffle or a tee: no partition returns a row before all of them have been polled.
#[test]
fn streams_of_a_node_that_need_each_other() {
    guarded(|case| async move {
        for threads in [1, 2] {
            let executor = executor(threads);
            let session = session(&executor, 8);
            register(&session, "t", |count| {
                let polled = Arc::new(AtomicUsize::new(0));
                Leaf::new(count, move |_| {
                    let (polled, mut first) = (polled.clone(), true);
                    let waits = stream::poll_fn(move |context| {
                        polled
                            .fetch_add(usize::from(std::mem::take(&mut first)), Ordering::Relaxed);
                        if polled.load(Ordering::Relaxed) >= count {
                            return Poll::Ready(None);
                        }
                        context.waker().wake_by_ref();
                        Poll::<Option<Result<RecordBatch>>>::Pending
                    });
                    let rows = waits.chain(stream_of(vec![numbers(vec![1])]));
                    Box::pin(RecordBatchStreamAdapter::new(schema(), rows))
                })
            });
            assert_eq!(number(&case, &session, "SELECT sum(k) FROM t").await, 8);
        }
    });
}

#[test]
fn table_providers_see_the_sessions_partitions() {
    guarded(|case| async move {
        let executor = executor(1);
        for partitions in [2, 7] {
            let session = session(&executor, partitions);
            let table = register(&session, "t", |count| {
                Leaf::new(count, |partition| stream_of(vec![numbers(vec![partition as i64])]))
            });
            let sum = (0..partitions as i64).sum::<i64>();
            assert_eq!(number(&case, &session, "SELECT sum(k) FROM t").await, sum);
            assert_eq!(table.partitions.load(Ordering::Relaxed), partitions);
        }
    });
}

/// A function that uses the current runtime, spawns on it, and waits.
#[test]
fn functions_find_a_runtime() {
    guarded(|case| async move {
        let executor = executor(2);
        let session = session(&executor, 2);
        let double = |values: &[ColumnarValue]| {
            let runtime = tokio::runtime::Handle::current();
            let values = ColumnarValue::values_to_arrays(values)?;
            let doubled: Int64Array = values[0].as_primitive::<Int64Type>().unary(|n| 2 * n);
            let doubled = runtime.block_on(async { runtime.spawn(async { doubled }).await });
            Ok(ColumnarValue::Array(Arc::new(doubled.unwrap())))
        };
        session.register_udf(create_udf(
            "double",
            vec![DataType::Int64],
            DataType::Int64,
            Volatility::Immutable,
            Arc::new(double),
        ));
        let sql =
            "SELECT sum(double(value)) FROM generate_series(1, 1000) WHERE double(value) > 10";
        assert_eq!(number(&case, &session, sql).await, 1_000_970);
    });
}

#[test]
fn a_stream_keeps_its_executor() {
    guarded(|case| async move {
        case.begin("a stream without executor or session");
        let executor = executor(2);
        let session = session(&executor, 2);
        let sql = "SELECT value FROM generate_series(1, 100000) WHERE value % 2 = 0";
        let mut stream = session.sql(sql).await.unwrap().execute_stream().await.unwrap();
        let first = stream.next().await.unwrap().unwrap().num_rows();
        drop((session, executor));
        let rest: Vec<_> = stream.try_collect().await.unwrap();
        assert_eq!(first + rest.iter().map(RecordBatch::num_rows).sum::<usize>(), 50_000);
    });
}

/// A function that runs a query on the executor whose worker it blocks.
#[test]
fn a_query_that_waits_for_its_own_worker_says_so() {
    guarded(|case| async move {
        let executor = executor(1);
        let session = session(&executor, 2);
        let inner = session.clone();
        let nested = move |_: &[ColumnarValue]| {
            let runtime = tokio::runtime::Handle::current();
            let rows = runtime.block_on(async {
                inner.sql("SELECT count(*) FROM generate_series(1, 9)").await?.collect().await
            })?;
            Ok(ColumnarValue::Array(rows[0].column(0).clone()))
        };
        session.register_udf(create_udf(
            "nested",
            vec![DataType::Int64],
            DataType::Int64,
            Volatility::Volatile,
            Arc::new(nested),
        ));
        case.begin("a function with a query in it");
        let query = session.sql("SELECT nested(value) FROM generate_series(1, 1)").await.unwrap();
        let error = query.collect().await.unwrap_err().to_string();
        assert!(error.contains("one of its own workers"), "{error}");
        assert_eq!(number(&case, &session, "SELECT count(*) FROM generate_series(1, 9)").await, 9);
    });
}
