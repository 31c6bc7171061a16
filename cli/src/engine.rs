//! The only place that calls the library: an executor, its sessions, and plain DataFusion sessions to compare with.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread;

use datafusion::common::Result;
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::physical_plan::{ExecutionPlan, SendableRecordBatchStream, execute_stream};
use datafusion::prelude::{SessionConfig, SessionContext};

use gatework::{SessionStateBuilderExt, Settings};

use crate::args::EngineArgs;
use crate::error::Error;

/// An executor of this process. Its threads end when it is dropped.
pub(crate) struct Engine {
    executor: gatework::Executor,
    /// What sessions share: caches of footers, object stores, memory.
    shared: Arc<RuntimeEnv>,
    settings: Settings,
}

impl Engine {
    /// Starts an executor for queries that may use so much.
    pub(crate) fn start(args: &EngineArgs) -> Result<Self, Error> {
        let failed =
            |error: &dyn fmt::Display| Error::failed(format!("the executor cannot start: {error}"));
        let threads = threads(args.threads).get();
        let executor = gatework::Executor::builder().threads(threads).build();
        let executor = executor.map_err(|error| failed(&error))?;
        let mut shared = RuntimeEnvBuilder::new();
        if let Some(limit) = args.memory_limit {
            let limit = usize::try_from(limit.as_u64()).unwrap_or(usize::MAX);
            shared = shared.with_memory_pool(Arc::new(GreedyMemoryPool::new(limit)));
        }
        if let Some(folder) = &args.temp_dir {
            if !folder.is_dir() {
                let folder = folder.display();
                return Err(Error::failed(format!("--temp-dir: {folder} is not a folder")));
            }
            shared = shared.with_temp_file_path(folder);
        }
        if let Some(limit) = args.temp_limit {
            shared = shared.with_max_temp_directory_size(limit.as_u64());
        }
        let shared = shared.build_arc().map_err(|error| failed(&error))?;
        let settings = Settings { timeout: args.timeout, ..Settings::default() };
        Ok(Self { executor, shared, settings })
    }

    /// A new, empty session whose queries run on this executor.
    pub(crate) fn session(&self) -> SessionContext {
        let builder = SessionStateBuilder::new()
            .with_config(self.settings.clone().into_config(SessionConfig::new()))
            .with_runtime_env(self.shared.clone())
            .with_default_features()
            .with_gatework(&self.executor);
        with_information_schema(SessionContext::new_with_state(builder.build()))
    }
}

/// The number of threads to use.
pub(crate) fn threads(wanted: Option<NonZeroUsize>) -> NonZeroUsize {
    wanted.or_else(|| thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN)
}

/// A new, empty session of plain DataFusion, which knows nothing of gatework.
pub(crate) fn reference_session(wanted: Option<NonZeroUsize>) -> SessionContext {
    let config = SessionConfig::new().with_target_partitions(threads(wanted).get());
    with_information_schema(SessionContext::new_with_config(config))
}

/// The nodes of a planned query that do not run on gatework's own operators.
pub(crate) fn fallbacks(plan: &Arc<dyn ExecutionPlan>) -> Vec<String> {
    gatework::fallbacks(plan)
}

/// Starts a planned query. Dropping the stream cancels it.
pub(crate) fn execute(
    plan: &Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
) -> Result<SendableRecordBatchStream> {
    execute_stream(Arc::clone(plan), context)
}

/// Lets `SHOW TABLES` and `information_schema` work, which a person at a prompt asks for first.
fn with_information_schema(session: SessionContext) -> SessionContext {
    session.state_ref().write().config_mut().options_mut().catalog.information_schema = true;
    session
}
