//! Functions that wait for a service, nodes that block their threads, and slow readers. None waits
//! longer for another than in plain DataFusion, and none makes a query reserve more memory.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::{Arc, Barrier, LazyLock};

use arrow::{array::RecordBatch, datatypes::DataType};
use async_trait::async_trait;
use datafusion::{
    datasource::MemTable,
    error::Result,
    execution::{SendableRecordBatchStream, runtime_env::RuntimeEnvBuilder},
    logical_expr::{
        ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
        async_udf::{AsyncScalarUDF, AsyncScalarUDFImpl},
    },
    physical_plan::{ExecutionPlan, stream::RecordBatchStreamAdapter},
    prelude::{SessionConfig, SessionContext},
};
use futures::{StreamExt, stream};
use gatework::{Executor, SessionStateBuilderExt};
use tokio::sync::watch;

use crate::support::{
    Case, executor, guarded,
    leaf::{self, Leaf, number, numbers, register, schema, session, stream_of},
};

/// Started calls of [`Together`].
static CALLS: LazyLock<watch::Sender<usize>> = LazyLock::new(|| watch::Sender::new(0));
/// Number of calls in progress before one of them ends.
const AT_ONCE: usize = 4;

/// A service's function that answers once [`AT_ONCE`] calls are in progress.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Together(Signature);

impl ScalarUDFImpl for Together {
    fn name(&self) -> &str {
        "together"
    }

    fn signature(&self) -> &Signature {
        &self.0
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Int64)
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        datafusion::common::internal_err!("the function is asynchronous")
    }
}

#[async_trait]
impl AsyncScalarUDFImpl for Together {
    async fn invoke_async_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        CALLS.send_modify(|calls| *calls += 1);
        CALLS.subscribe().wait_for(|calls| *calls >= AT_ONCE).await.unwrap();
        Ok(args.args[0].clone())
    }
}

/// With one call in progress at a time, the query would wait for the service once per batch.
#[test]
fn async_functions_have_as_many_calls_under_way_as_there_are_partitions() {
    guarded(|case| async move {
        let executor = executor(1);
        let session = session(&executor, AT_ONCE);
        let signature = Signature::exact(vec![DataType::Int64], Volatility::Volatile);
        let function = AsyncScalarUDF::new(Arc::new(Together(signature)));
        session.register_udf(function.into_scalar_udf());
        register(&session, "t", |count| {
            Leaf::new(count, |partition| stream_of(vec![numbers(vec![partition as i64])]))
        });
        assert_eq!(number(&case, &session, "SELECT sum(together(k)) FROM t").await, 6);
    });
}

/// A stream that blocks a thread until all streams of `barrier` do.
fn blocking(barrier: Arc<Barrier>) -> SendableRecordBatchStream {
    let rows = async move {
        tokio::task::spawn_blocking(move || barrier.wait()).await.unwrap();
        Ok(numbers(vec![1]))
    };
    Box::pin(RecordBatchStreamAdapter::new(schema(), stream::once(rows)))
}

#[test]
fn nodes_that_block_threads_do_not_starve_each_other() {
    guarded(|case| async move {
        for threads in [1, 2] {
            let executor = executor(threads);
            let session = session(&executor, 24);
            register(&session, "t", |count| {
                let barrier = Arc::new(Barrier::new(count));
                Leaf::new(count, move |_| blocking(barrier.clone()))
            });
            let sql = "SELECT sum(k) FROM t";
            assert_eq!(number(&case, &session, sql).await, 24);
        }
    });
}

/// Maximum bytes of a result in flight, read or not.
const IN_FLIGHT: usize = 48 << 20;

/// Waits until `query` takes no more steps while other queries do.
async fn wait_until_blocked(case: &Case, query: &Arc<dyn ExecutionPlan>, session: &SessionContext) {
    let (mut before, mut still) = (0, 0);
    while still < 3 {
        number(case, session, "SELECT count(*) FROM generate_series(1, 1000)").await;
        let profile = gatework::profile(query).unwrap();
        let runs: u64 = profile.tasks.iter().map(|task| task.runs).sum();
        still = if runs == before { still + 1 } else { 0 };
        before = runs;
    }
}

/// A session with a memory pool, and a table `t` of four partitions whose join is 250 MB.
async fn session_of_large_join(executor: &Executor) -> SessionContext {
    let runtime = RuntimeEnvBuilder::new().with_memory_limit(512 << 20, 1.0).build_arc().unwrap();
    let state = datafusion::execution::SessionStateBuilder::new()
        .with_config(SessionConfig::new().with_target_partitions(4))
        .with_runtime_env(runtime)
        .with_default_features()
        .with_gatework(executor)
        .build();
    let session = SessionContext::new_with_state(state);
    let batch = |part: i64| numbers((0..8192).map(|row| part * 8192 + row).collect());
    let parts: Vec<Vec<RecordBatch>> =
        (0..4).map(|part| (0..40).map(|number| batch(part * 40 + number)).collect()).collect();
    let table = MemTable::try_new(schema(), parts).unwrap();
    session.register_table("t", Arc::new(table)).unwrap();
    session
}

const LARGE_JOIN: &str = "SELECT a.k, concat(repeat('x', 190), a.k::varchar) AS s
    FROM t a JOIN (VALUES (0), (1), (2), (3), (4), (5), (6)) AS b(m) ON a.k % 7 = b.m";

/// A client that reads the first rows and then pauses.
#[test]
fn a_result_that_is_not_read_waits() {
    guarded(|case| async move {
        for threads in [1, 2] {
            let executor = executor(threads);
            let session = session_of_large_join(&executor).await;
            let frame = session.sql(LARGE_JOIN).await.unwrap();
            let context = Arc::new(frame.task_ctx());
            let plan = frame.create_physical_plan().await.unwrap();
            let mut rows = plan.execute(0, context).unwrap();
            assert!(rows.next().await.unwrap().unwrap().num_rows() > 0);
            wait_until_blocked(&case, &plan, &session).await;
            let reserved = session.runtime_env().memory_pool.reserved();
            assert!((1..IN_FLIGHT).contains(&reserved), "{reserved} bytes with {threads} threads");
        }
    });
}

/// The same for a caller with one stream per partition, as DataFusion's nodes have.
#[test]
fn partitions_that_are_not_read_wait() {
    guarded(|case| async move {
        let executor = executor(2);
        let session = session_of_large_join(&executor).await;
        let config = SessionConfig::new().with_target_partitions(4);
        let plain = SessionContext::new_with_config(config);
        plain.register_table("t", session.table_provider("t").await.unwrap()).unwrap();
        let plan = plain.sql(LARGE_JOIN).await.unwrap().create_physical_plan().await.unwrap();
        let plan = gatework::sql::wrap_until(plan, &executor, &|_| false).unwrap();
        let partitions = plan.properties().partitioning.partition_count();
        assert!(partitions > 1, "a plan of several partitions");
        let context = session.task_ctx();
        let mut streams: Vec<_> =
            (0..partitions).map(|part| plan.execute(part, context.clone()).unwrap()).collect();
        assert!(streams[0].next().await.unwrap().unwrap().num_rows() > 0);
        wait_until_blocked(&case, &plan, &session).await;
        let reserved = session.runtime_env().memory_pool.reserved();
        assert!((1..IN_FLIGHT).contains(&reserved), "{reserved} bytes");
    });
}

/// A session caches lists of files, which its own statements and other processes invalidate.
#[test]
fn files_that_were_written_between_two_queries_are_seen() {
    guarded(|case| async move {
        let (executor, folder) = (executor(2), tempfile::tempdir().unwrap());
        let (session, path) = (session(&executor, 2), folder.path().to_str().unwrap().to_owned());
        let copy = async |rows: &str, file: &str| {
            let sql = format!("COPY (SELECT {rows} AS k) TO '{path}/t/{file}' STORED AS PARQUET");
            session.sql(&sql).await.unwrap().collect().await.unwrap();
        };
        copy("1", "a.parquet").await;
        let table = format!("CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '{path}/t/'");
        session.sql(&table).await.unwrap().collect().await.unwrap();
        let sum = "SELECT sum(k) FROM t";
        assert_eq!(number(&case, &session, sum).await, 1);
        copy("20", "b.parquet").await;
        assert_eq!(number(&case, &session, sum).await, 21, "a new file");
        copy("300", "a.parquet").await;
        assert_eq!(number(&case, &session, sum).await, 320, "a file that was replaced");

        // After a write of another process, the first query of a reading session fails, and the
        // next one sees the file.
        let reader = leaf::session(&executor, 2);
        reader.sql(&table).await.unwrap().collect().await.unwrap();
        assert_eq!(number(&case, &reader, sum).await, 320);
        let refused = async || {
            let error = reader.sql(sum).await.unwrap().collect().await.unwrap_err().to_string();
            assert!(error.contains("has changed since the query began: run it again"), "{error}");
        };
        replaced_elsewhere(&path).await;
        refused().await;
        assert_eq!(number(&case, &reader, sum).await, 4020);
        std::fs::remove_file(folder.path().join("t/b.parquet")).unwrap();
        assert!(reader.sql(sum).await.unwrap().collect().await.is_err(), "a file was removed");
        assert_eq!(number(&case, &reader, sum).await, 4000);
    });
}

/// Replaces `a.parquet` as another process would, in a separate session.
async fn replaced_elsewhere(path: &str) {
    let rows = "SELECT k FROM (VALUES (4000), (0)) AS v(k)";
    let sql = format!("COPY ({rows}) TO '{path}/t/a.parquet' STORED AS PARQUET");
    SessionContext::new().sql(&sql).await.unwrap().collect().await.unwrap();
}
