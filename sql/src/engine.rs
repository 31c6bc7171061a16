//! What plans run on: an executor for compute, and one small runtime for I/O.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use datafusion::error::{DataFusionError, Result};
use gatework_runtime::Executor;
use tokio::runtime::{Builder, Handle, Runtime};

/// An executor and its I/O runtime, which starts when the first plan needs it.
#[derive(Clone)]
pub(crate) struct Engine {
    pub(crate) executor: Executor,
    io: Arc<OnceLock<IoRuntime>>,
}

/// Two threads: one to drive sockets and timers, one more so that a task that another one waits for
/// can run beside it. File reads go to the runtime's own pool of blocking threads.
const IO_THREADS: usize = 2;
/// Reads of local files under way at a time.
const IO_BLOCKING_THREADS: usize = 16;

struct IoRuntime(Option<Runtime>);

impl Drop for IoRuntime {
    fn drop(&mut self) {
        // Waiting for its threads is forbidden in async code, where a session may well be dropped.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("executor", &self.executor).finish_non_exhaustive()
    }
}

impl Engine {
    pub(crate) fn new(executor: Executor) -> Self {
        Self { executor, io: Arc::default() }
    }

    /// The I/O runtime.
    pub(crate) fn io(&self) -> Result<Handle> {
        if self.io.get().is_none() {
            let runtime = Builder::new_multi_thread()
                .worker_threads(IO_THREADS)
                .max_blocking_threads(IO_BLOCKING_THREADS)
                .thread_name("gatework-io")
                .enable_all()
                .build()
                .map_err(|error| DataFusionError::IoError(error).context("starting I/O threads"))?;
            // Another thread may have been first; then this one is dropped.
            let _first = self.io.set(IoRuntime(Some(runtime)));
        }
        match self.io.get() {
            Some(IoRuntime(Some(runtime))) => Ok(runtime.handle().clone()),
            _ => Err(DataFusionError::Internal("the I/O runtime is gone".into())),
        }
    }
}
