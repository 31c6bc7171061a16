//! A session whose leftovers can be counted, and its tables.

use std::{
    fs::{DirEntry, read_dir},
    future::poll_fn,
    io::ErrorKind,
    path::Path,
    sync::{Arc, atomic::Ordering},
    task::Poll,
};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use datafusion::{
    datasource::MemTable,
    error::Result,
    execution::{
        memory_pool::{GreedyMemoryPool, MemoryPool},
        runtime_env::RuntimeEnvBuilder,
        session_state::SessionStateBuilder,
    },
    prelude::{SessionConfig, SessionContext},
};
use futures::StreamExt;
use gatework::{Executor, SessionStateBuilderExt, runtime::pipeline::QueryContext};
use tempfile::TempDir;

use crate::{
    query_end::fault_udf::{FaultKind, FaultUdf, mute_expected_panics, register_fault_udf},
    support::{Case, Expected, Planned, executor, plan, rows, settle},
};

/// Rows per batch; small, so that the tables have many batches.
const BATCH_ROWS: usize = 64;

/// `t`: 2000 rows; `u`: 500; `texts`: numbers as text, one of which is invalid; `nothing`: no rows.
pub(crate) fn register_tables(session: &SessionContext) {
    let ints = |values: Vec<i64>| Arc::new(Int64Array::from(values)) as ArrayRef;
    let texts = (0..200).map(|n| if n == 77 { "seventy".to_owned() } else { n.to_string() });
    let texts = Arc::new(StringArray::from_iter_values(texts)) as ArrayRef;
    let tables = [
        (
            "t",
            vec![
                ("a", ints((0..2000).collect())),
                ("b", ints((0..2000).map(|n| n % 50).collect())),
            ],
        ),
        (
            "u",
            vec![("c", ints((0..500).map(|n| n % 70).collect())), ("d", ints((0..500).collect()))],
        ),
        ("texts", vec![("n", ints((0..200).collect())), ("text", texts)]),
        ("nothing", vec![("e", ints(Vec::new()))]),
    ];
    for (name, columns) in tables {
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let table = MemTable::try_new(batch.schema(), vec![vec![batch]]).unwrap();
        session.register_table(name, Arc::new(table)).unwrap();
    }
}

/// An executor and a session whose leftovers can be counted.
pub(crate) struct Fixture {
    pub(crate) executor: Executor,
    pub(crate) session: SessionContext,
    /// A plain DataFusion session with the same tables and functions.
    pub(crate) reference: SessionContext,
    pub(crate) pool: Arc<dyn MemoryPool>,
    pub(crate) folder: TempDir,
    pub(crate) fault_udf: Arc<FaultUdf>,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::on(executor(2), 1)
    }

    /// With more than one partition, DataFusion's own planner plans for them.
    pub(crate) fn on(executor: Executor, partitions: usize) -> Self {
        mute_expected_panics();
        let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(1 << 30));
        let folder = TempDir::new().unwrap();
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(pool.clone())
            .with_temp_file_path(folder.path())
            .build_arc()
            .unwrap();
        let config =
            SessionConfig::new().with_batch_size(BATCH_ROWS).with_target_partitions(partitions);
        let builder = || SessionStateBuilder::new().with_config(config.clone());
        let mut ours =
            builder().with_runtime_env(runtime).with_default_features().with_gatework(&executor);
        if partitions > 1 {
            *ours.query_planner() = None;
        }
        let session = SessionContext::new_with_state(ours.build());
        let reference = SessionContext::new_with_state(builder().with_default_features().build());
        let fault_udf = FaultUdf::new();
        for session in [&session, &reference] {
            register_tables(session);
            register_fault_udf(session, &fault_udf);
        }
        Self { executor, session, reference, pool, folder, fault_udf }
    }

    pub(crate) async fn plan(&self, case: &Case, sql: &str) -> Planned {
        plan(case, &self.session, sql).await.unwrap()
    }

    pub(crate) async fn expected(&self, sql: &str) -> Expected {
        self.fault_udf.set(FaultKind::Error, 0);
        Expected::of(&self.reference, sql).await.unwrap()
    }

    /// Number of calls of `fuse` in an undisturbed run of `sql`.
    pub(crate) async fn count_calls(&self, case: &Case, sql: &str) -> usize {
        self.fault_udf.set(FaultKind::Error, 0);
        self.plan(case, sql).await.collect().await.unwrap();
        self.fault_udf.calls()
    }

    /// Asserts that nothing is left of the queries that have ended.
    pub(crate) fn assert_clean(&self, name: &str) {
        settle(&self.executor);
        assert_eq!(self.pool.reserved(), 0, "{name}: reserved bytes");
        assert_eq!(files_below(self.folder.path()), 0, "{name}: temporary files");
    }

    /// Like `assert_clean`, but waits for the guard's thread to drop its references.
    pub(crate) fn assert_clean_soon(&self, name: &str) {
        while self.executor.live_tasks() > 0 || self.pool.reserved() > 0 {
            std::thread::yield_now();
        }
        self.assert_clean(name);
    }

    /// Asserts that the executor still runs queries.
    pub(crate) async fn assert_works(&self, case: &Case, name: &str) {
        let at = self.fault_udf.at.swap(0, Ordering::SeqCst);
        let sql = "SELECT b, count(*) AS n FROM t GROUP BY b";
        assert_eq!(rows(&self.plan(case, sql).await.collect().await.unwrap()), 50, "{name}");
        self.fault_udf.at.store(at, Ordering::SeqCst);
    }
}

pub(crate) fn files_below(folder: &Path) -> usize {
    read_dir(folder).unwrap().map(|entry| files_of(&entry.unwrap())).sum()
}

fn files_of(entry: &DirEntry) -> usize {
    if !entry.file_type().unwrap().is_dir() {
        return 1;
    }
    match read_dir(entry.path()) {
        // That of an earlier session may be removed meanwhile.
        Err(error) if error.kind() == ErrorKind::NotFound => 0,
        entries => entries.unwrap().map(|entry| files_of(&entry.unwrap())).sum(),
    }
}

/// Waits until no task of the query is live.
pub(crate) async fn idle(query: &QueryContext) {
    let gate = query.idle().clone();
    poll_fn(|context| match gate.poll_ready(context.waker()) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}

/// Reads the rest of a stream: the rows or the error. Asserts that nothing is left of the query at
/// its end, although the stream still exists.
pub(crate) async fn read_to_end(
    fixture: &Fixture,
    name: &str,
    planned: &Planned,
) -> Result<Vec<RecordBatch>> {
    let mut stream = planned.stream()?;
    let query = gatework::query(&planned.plan).unwrap();
    let mut batches = Vec::new();
    let result = loop {
        match stream.next().await {
            Some(Ok(batch)) => batches.push(batch),
            Some(Err(error)) => break Err(error),
            None => break Ok(batches),
        }
    };
    // Regions below a fallback node may end a moment later.
    if !gatework::fallbacks(&planned.plan).is_empty() {
        idle(&query).await;
    }
    assert_eq!(query.live_tasks(), 0, "{name}: {}", query.dump());
    assert_eq!(query.reserved_bytes(), 0, "{name}");
    assert_eq!(fixture.pool.reserved(), 0, "{name}: reserved bytes at the end");
    if result.is_err() {
        assert!(stream.next().await.is_none(), "{name}: the stream goes on after the error");
    }
    result
}
