//! What plans run on: an executor for compute, and one small runtime for I/O.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use datafusion::error::{DataFusionError, Result};
use gatework_runtime::{Executor, pipeline::SliceScope};
use tokio::runtime::{Builder, Handle, Runtime};

/// An executor and its I/O runtime, which all sessions on the executor share.
#[derive(Clone)]
pub(crate) struct Engine {
    pub(crate) executor: Executor,
    pub(crate) io: Arc<IoRuntime>,
}

/// Two threads: one to drive sockets and timers, one more so that a task that another one waits for
/// can run beside it. File reads go to the runtime's own pool of blocking threads.
const IO_THREADS: usize = 2;
/// Threads for what blocks, at most: tokio's own default. Reads of local files are as many as tasks, so
/// they need few; nodes that DataFusion executes may block as they like, and wait for each other.
const IO_BLOCKING_THREADS: usize = 512;

/// Starts when the first plan needs it, unless one is given.
#[derive(Default)]
pub(crate) struct IoRuntime {
    external: OnceLock<Handle>,
    owned: OnceLock<Runtime>,
}

/// Lets the queries of `executor` that begin from now on read files, and be woken by streams, on a runtime of tokio's
/// that is there anyway, such as a server's, in place of threads of the executor's own. It has to last as long as they do.
/// Once there is one, it stays.
pub fn set_io_runtime(executor: &Executor, runtime: Handle) {
    // The first one stays.
    let _second = executor.extension(IoRuntime::default).external.set(runtime);
}

impl Drop for IoRuntime {
    fn drop(&mut self) {
        // Waiting for its threads is forbidden in async code, where an executor may well be dropped.
        if let Some(runtime) = self.owned.take() {
            runtime.shutdown_background();
        }
    }
}

impl IoRuntime {
    pub(crate) fn handle(&self) -> Result<Handle> {
        if let Some(external) = self.external.get() {
            return Ok(external.clone());
        }
        if self.owned.get().is_none() {
            let runtime = Builder::new_multi_thread()
                .worker_threads(IO_THREADS)
                .max_blocking_threads(IO_BLOCKING_THREADS)
                .thread_name("gatework-io")
                .enable_all()
                .build()
                .map_err(|error| DataFusionError::IoError(error).context("starting I/O threads"))?;
            if let Err(second) = self.owned.set(runtime) {
                // Another thread was first.
                second.shutdown_background();
            }
        }
        match self.owned.get() {
            Some(runtime) => Ok(runtime.handle().clone()),
            None => Err(DataFusionError::Internal("the I/O runtime is gone".into())),
        }
    }
}

/// Runs the slices of a query's tasks in a runtime of tokio's, so that functions which ask for the current
/// one find it on our workers, as they do in DataFusion.
#[derive(Debug)]
pub(crate) struct TokioSliceScope(Handle);

impl TokioSliceScope {
    /// In the runtime that starts the query; where there is none, in the I/O runtime.
    pub(crate) fn of(engine: &Engine) -> Result<Arc<dyn SliceScope>> {
        let current = Handle::try_current().map_or_else(|_| engine.io(), Ok)?;
        Ok(Arc::new(Self(current)))
    }
}

impl SliceScope for TokioSliceScope {
    fn run(&self, slice: &mut dyn FnMut()) {
        let _entered = self.0.enter();
        slice();
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("executor", &self.executor).finish_non_exhaustive()
    }
}

impl Engine {
    pub(crate) fn new(executor: Executor) -> Self {
        let io = executor.extension(IoRuntime::default);
        Self { executor, io }
    }

    /// The I/O runtime.
    pub(crate) fn io(&self) -> Result<Handle> {
        self.io.handle()
    }
}
