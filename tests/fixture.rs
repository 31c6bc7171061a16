//! TPC-H, the expected results of its queries, and a pool and a folder that must be empty
//! afterwards.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::sync::Arc;

use datafusion::execution::{
    memory_pool::{GreedyMemoryPool, MemoryPool},
    runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
};
use gatework::Executor;
use tempfile::TempDir;

use crate::{
    query_end::fixture::files_below,
    support::{Expected, QUERIES, Storage, Tpch, reference_session, settle},
};

/// In thousandths of scale factor 1.
const SCALE: usize = 10;

pub(crate) struct TpchFixture {
    pub(crate) data: Arc<Tpch>,
    /// Expected results by query.
    pub(crate) expected: Vec<Expected>,
    pool: Arc<dyn MemoryPool>,
    folder: TempDir,
}

impl TpchFixture {
    pub(crate) async fn new() -> Self {
        let data = Tpch::new(SCALE);
        let reference = reference_session();
        data.register(&reference, Storage::Memory).await;
        let mut expected = Vec::new();
        for sql in QUERIES {
            expected.push(Expected::of(&reference, sql).await.unwrap());
        }
        let pool = Arc::new(GreedyMemoryPool::new(4 << 30));
        Self { data, expected, pool, folder: TempDir::new().unwrap() }
    }

    /// The runtime environment of its sessions.
    pub(crate) fn runtime(&self) -> Arc<RuntimeEnv> {
        RuntimeEnvBuilder::new()
            .with_memory_pool(self.pool.clone())
            .with_temp_file_path(self.folder.path())
            .build_arc()
            .unwrap()
    }

    /// Asserts that nothing of a query is left on `executors`.
    pub(crate) fn assert_clean(&self, executors: &[Executor], name: &str) {
        executors.iter().for_each(settle);
        assert_eq!(self.pool.reserved(), 0, "{name}: reserved bytes");
        assert_eq!(files_below(self.folder.path()), 0, "{name}: temporary files");
    }
}
