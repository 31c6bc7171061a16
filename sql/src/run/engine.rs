//! The engine that plans run on: an executor for compute, and one small tokio runtime for I/O.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use datafusion::error::{DataFusionError, Result};
use gatework_runtime::{Executor, pipeline::SliceScope};
use tokio::runtime::{Builder, Handle, Runtime};

use crate::nodes::NodeRegistry;

/// An executor and its I/O runtime, which all sessions on the executor share.
#[derive(Clone)]
pub(crate) struct Engine {
    pub(crate) executor: Executor,
    pub(crate) io: Arc<IoRuntime>,
    /// The node types that are native beside DataFusion's.
    pub(crate) nodes: Arc<NodeRegistry>,
}

/// Two threads: one drives sockets and timers, the other runs a task that the first one waits for.
/// File reads go to the runtime's pool of blocking threads.
const IO_THREADS: usize = 2;
/// Maximum number of blocking threads: tokio's default. Reads of local files need at most one
/// thread per task. Fallback nodes may block without limit and wait for each other.
const IO_BLOCKING_THREADS: usize = 512;

/// The I/O runtime: an external one, or an own one that starts with the first plan that needs it.
#[derive(Default)]
pub(crate) struct IoRuntime {
    external: OnceLock<Handle>,
    owned: OnceLock<Runtime>,
}

/// Sets the tokio runtime for the I/O of all queries of `executor` that start later, in place of
/// threads of the executor's own. Use it where a runtime exists anyway, such as in a server. The
/// runtime must outlive those queries. Only the first call has an effect.
pub fn set_io_runtime(executor: &Executor, runtime: Handle) {
    // Only the first call sets it.
    let _second = executor.extension(IoRuntime::default).external.set(runtime);
}

impl Drop for IoRuntime {
    fn drop(&mut self) {
        // Async code may drop an executor, and must not block on the runtime's threads.
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
                // Another thread set its runtime first.
                second.shutdown_background();
            }
        }
        match self.owned.get() {
            Some(runtime) => Ok(runtime.handle().clone()),
            None => Err(DataFusionError::Internal("the I/O runtime was not created".into())),
        }
    }
}

/// Runs the time slices of a query's tasks inside a tokio runtime. Functions that ask for the
/// current runtime find it on gatework's workers, as they do in DataFusion.
#[derive(Debug)]
pub(crate) struct TokioSliceScope(Handle);

impl TokioSliceScope {
    /// Uses the runtime of the calling thread, or the I/O runtime if there is none.
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
        let nodes = NodeRegistry::of(&executor);
        Self { executor, io, nodes }
    }

    /// Returns the I/O runtime, and starts it on first use.
    pub(crate) fn io(&self) -> Result<Handle> {
        self.io.handle()
    }
}
