//! The only module that calls the library: an executor, its sessions, and plain DataFusion sessions
//! as reference.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use std::{fmt, fs};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::config::ExtensionOptions;
use datafusion::common::{DataFusionError, Result};
use datafusion::dataframe::DataFrame;
use datafusion::execution::RecordBatchStream;
use datafusion::execution::cache::cache_manager::CacheManagerConfig;
use datafusion::execution::disk_manager::DiskManager;
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::physical_plan::display::DisplayableExecutionPlan;
use datafusion::physical_plan::{
    ExecutionPlan, SendableRecordBatchStream, displayable, execute_stream,
};
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::{DFParser, ResetStatement, Statement};

use futures::TryStreamExt;
use gatework::stages::cluster::{
    self, AllowedLocations, ClusterAuth, ClusterOptions, ClusterSession, Connections, Worker,
    WorkerList, WorkerOptions,
};
use gatework::stages::{ExecutionPolicy, Nodes, StageOptions, StageStream};
use gatework::{SessionStateBuilderExt, Settings};
use tokio::runtime::Handle;
use tokio::task::yield_now;

use crate::args::{AuthArgs, EngineArgs, ExecutionPolicyArg};
use crate::error::{Error, one_line};
use crate::formats;
use crate::store;
use crate::tables;

/// An executor of this process. Its threads end when it is dropped.
pub(crate) struct Engine {
    executor: gatework::Executor,
    /// Shared by all sessions: footer caches, object stores, memory.
    shared: Arc<RuntimeEnv>,
    settings: Settings,
    nodes: Option<Arc<StageConfig>>,
    cluster: Option<Cluster>,
}

/// Workers that queries run on.
struct Cluster {
    workers: WorkerList,
    options: ClusterOptions,
}

/// Nodes of this process that run queries as stages.
pub(crate) struct StageConfig {
    nodes: Nodes,
    options: StageOptions,
}

impl StageConfig {
    fn start(args: &EngineArgs, count: usize) -> gatework::runtime::Result<Self> {
        let threads = (threads(args.resources.threads).get() / count).max(1);
        let policy = match args.execution_policy {
            ExecutionPolicyArg::AllAtOnce => ExecutionPolicy::AllAtOnce,
            ExecutionPolicyArg::Phased => ExecutionPolicy::Phased,
        };
        let options = StageOptions { policy, ..StageOptions::with_nodes(count) };
        Ok(Self { nodes: Nodes::in_process(count, threads)?, options })
    }
}

impl Engine {
    /// Starts an executor with these resources.
    pub(crate) fn start(engine: &EngineArgs) -> Result<Self, Error> {
        let args = &engine.resources;
        let failed =
            |error: &dyn fmt::Display| Error::failed(format!("the executor cannot start: {error}"));
        let threads = threads(args.threads).get();
        let executor = gatework::Executor::builder().threads(threads).build();
        let executor = executor.map_err(|error| failed(&error))?;
        let mut shared = RuntimeEnvBuilder::new().with_object_store_registry(store::registry());
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
        if let Some(limit) = args.max_temp_size {
            shared = shared.with_max_temp_directory_size(limit.as_u64());
        }
        // File lists are not cached: files change between statements, also by statements of this
        // process.
        let caches = CacheManagerConfig::default().with_list_files_cache_limit(0);
        let shared = shared.with_cache_manager(caches).build_arc();
        let shared = shared.map_err(|error| failed(&error))?;
        store::register(&shared);
        *temporary() = Some(shared.disk_manager.clone());
        let settings = Settings { timeout: engine.timeout, ..Settings::default() };
        let nodes = engine.nodes.map(|count| StageConfig::start(engine, count.get())).transpose();
        let nodes = nodes.map_err(|error| failed(&error))?.map(Arc::new);
        let cluster = match engine.workers.is_empty() {
            true if engine.auth != AuthArgs::default() => {
                return Err(Error::failed("--token-file and --tls-* need --workers"));
            }
            true => None,
            false => Some(Cluster::of(engine)?),
        };
        Ok(Self { executor, shared, settings, nodes, cluster })
    }

    /// Creates a worker for queries of other processes. The runtime of the caller reads its files.
    pub(crate) fn worker(&self, auth: ClusterAuth, locations: AllowedLocations) -> Result<Worker> {
        let options = WorkerOptions {
            runtime: self.shared.clone(),
            settings: self.settings.clone(),
            connections: Connections::new(auth),
            locations,
            io: Handle::try_current().ok(),
            codecs: Vec::new(),
        };
        cluster::worker(&self.executor, options)
    }

    /// The nodes that run queries as stages, if there are any.
    pub(crate) fn nodes(&self) -> Option<Arc<StageConfig>> {
        self.nodes.clone()
    }

    /// Time limit of a query of `session`, including opening tables and planning.
    pub(crate) fn limit(session: &SessionContext) -> Option<Duration> {
        Settings::of(session.state_ref().read().config()).timeout
    }

    /// Why a query does not run on workers; none if it does, or if there are no workers.
    pub(crate) fn local_execution_reason(
        &self,
        plan: &Arc<dyn ExecutionPlan>,
        session: &SessionContext,
    ) -> Option<String> {
        self.cluster.as_ref()?;
        cluster::local_execution_reason(plan, session.state().config())
    }

    /// Replaces RESET of a setting of gatework by a SET of the value that sessions start with;
    /// DataFusion resets none but its own settings.
    pub(crate) fn set_start_value(&self, statement: Statement) -> Result<Statement, Error> {
        let Statement::Reset(ResetStatement::Variable(name)) = &statement else {
            return Ok(statement);
        };
        let name = name.to_string().to_lowercase();
        let entries = self.settings.entries();
        let Some(entry) = entries.iter().find(|entry| entry.key == name) else {
            return Ok(statement);
        };
        let sql = format!("SET {name} = '{}'", entry.value.as_deref().unwrap_or_default());
        let parsed = DFParser::parse_sql(&sql).map_err(|error| usage_error(&error))?;
        Ok(parsed.into_iter().next().unwrap_or(statement))
    }

    /// Creates an empty session whose queries run on this executor.
    pub(crate) fn session(&self) -> SessionContext {
        let config = self.settings.clone().into_config(SessionConfig::new());
        let builder = SessionStateBuilder::new()
            // Errors know their place in the text.
            .with_config(config.set_bool("datafusion.sql_parser.collect_spans", true))
            .with_runtime_env(self.shared.clone())
            .with_default_features();
        let builder = tables::external::with_store_options(builder);
        let builder = match &self.cluster {
            Some(Cluster { workers, options }) => {
                builder.with_gatework_workers(&self.executor, workers.clone(), options)
            }
            None => builder.with_gatework(&self.executor),
        };
        let session = with_information_schema(SessionContext::new_with_state(builder.build()));
        formats::register(&session);
        tables::by_path::enable(&session);
        session
    }
}

impl Cluster {
    fn of(args: &EngineArgs) -> Result<Self, Error> {
        let workers = WorkerList::new(args.workers.iter().map(String::as_str));
        let workers = workers.map_err(|error| usage_error(&error))?;
        let bytes = args.bytes_per_partition.map(|size| size.as_u64().max(1));
        let options = ClusterOptions {
            bytes_per_partition: bytes.map(|size| usize::try_from(size).unwrap_or(usize::MAX)),
            retries: args.retries,
            connections: Connections::new(cluster_auth(&args.auth)?),
            ..ClusterOptions::default()
        };
        Ok(Self { workers, options })
    }
}

/// The credentials of this member of a cluster.
pub(crate) fn cluster_auth(args: &AuthArgs) -> Result<ClusterAuth, Error> {
    let read = |option: &str, path: &Path| {
        let failed = |error| Error::failed(format!("{option} {}: {error}", path.display()));
        fs::read(path).map_err(failed)
    };
    let mut auth = ClusterAuth::default();
    if let Some(path) = &args.token_file {
        let token = read("--token-file", path)?;
        let token = String::from_utf8_lossy(&token);
        auth = auth.with_token(&token).map_err(|error| usage_error(&error).and("--token-file"))?;
    }
    if let (Some(certificate), Some(key), Some(authority)) =
        (&args.tls_cert, &args.tls_key, &args.tls_ca)
    {
        let certificate = read("--tls-cert", certificate)?;
        let (key, authority) = (read("--tls-key", key)?, read("--tls-ca", authority)?);
        auth = auth.with_tls(certificate, key, authority).map_err(|error| usage_error(&error))?;
    }
    Ok(auth)
}

/// The error of an invalid argument.
pub(crate) fn usage_error(error: &DataFusionError) -> Error {
    Error::failed(one_line(&error.message()))
}

/// The process's temporary files. The last owner removes them, and that must be
/// [`wait_for_temp_files`]: files that another thread is removing when the process ends would stay.
static TEMPORARY: Mutex<Option<Arc<DiskManager>>> = Mutex::new(None);

fn temporary() -> MutexGuard<'static, Option<Arc<DiskManager>>> {
    TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long a thread may still be about to create a temporary file after the last one was seen.
const NEXT_FILE: Duration = Duration::from_millis(200);

/// Waits until no thread writes temporary files: a file that is being written when the process ends
/// would stay. Removes the files that still exist after `max_wait`.
pub(crate) fn wait_for_temp_files(max_wait: Duration) {
    let Some(disk) = temporary().take() else { return };
    let begun = Instant::now();
    let mut seen = begun;
    let has_files = |folder: &PathBuf| folder.read_dir().is_ok_and(|files| files.count() > 0);
    while Arc::strong_count(&disk) > 1 && seen.elapsed() < NEXT_FILE && begun.elapsed() < max_wait {
        if disk.temp_dir_paths().iter().any(has_files) {
            seen = Instant::now();
        }
        thread::sleep(Duration::from_millis(1));
    }
    let folders = disk.temp_dir_paths();
    drop(disk);
    for folder in folders {
        // Another thread may remove the same folder. A folder that cannot be removed stays.
        while folder.exists() && fs::remove_dir_all(&folder).is_err() && begun.elapsed() < max_wait
        {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The number of threads to use.
pub(crate) fn threads(wanted: Option<NonZeroUsize>) -> NonZeroUsize {
    wanted.or_else(|| thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN)
}

/// Creates an empty session of plain DataFusion.
pub(crate) fn reference_session(wanted: Option<NonZeroUsize>) -> SessionContext {
    let config = SessionConfig::new().with_target_partitions(threads(wanted).get());
    with_information_schema(SessionContext::new_with_config(config))
}

/// The fallback nodes of a physical plan.
pub(crate) fn fallbacks(plan: &Arc<dyn ExecutionPlan>) -> Vec<String> {
    match cluster::is_distributed(plan) {
        true => cluster::fallbacks(plan),
        false => gatework::fallbacks(plan),
    }
}

/// The text of a plan, with its stages if workers run some.
pub(crate) fn plan_text(plan: &Arc<dyn ExecutionPlan>) -> String {
    match cluster::is_distributed(plan) {
        true => cluster::plan_text(plan),
        false => displayable(plan.as_ref()).indent(false).to_string(),
    }
}

/// A running query. Dropping it cancels the query.
pub(crate) enum ResultStream {
    Unstaged(SendableRecordBatchStream, Arc<dyn ExecutionPlan>),
    Stages(Box<StageStream>),
}

impl ResultStream {
    /// Plans and starts a query, as stages if there are nodes.
    pub(crate) async fn start(frame: DataFrame, nodes: Option<&StageConfig>) -> Result<Self> {
        if let Some(StageConfig { nodes, options }) = nodes {
            let stream = gatework::stages::execute(frame, nodes, options).await?;
            return Ok(Self::Stages(Box::new(stream)));
        }
        let context = frame.task_ctx();
        let plan = frame.create_physical_plan().await?;
        let stream = execute_stream(Arc::clone(&plan), context.into())?;
        Ok(Self::Unstaged(stream, plan))
    }

    pub(crate) fn schema(&self) -> SchemaRef {
        match self {
            Self::Unstaged(stream, _) => stream.schema(),
            Self::Stages(stream) => stream.schema(),
        }
    }

    /// Returns the next rows. The yield lets Ctrl-C take effect between the batches of a stream
    /// that is always ready.
    pub(crate) async fn next(&mut self) -> Result<Option<RecordBatch>> {
        yield_now().await;
        match self {
            Self::Unstaged(stream, _) => stream.try_next().await,
            Self::Stages(stream) => stream.try_next().await,
        }
    }

    /// The plan with the metrics of its operators, once the rows have ended.
    pub(crate) fn profile(&self) -> String {
        match self {
            Self::Unstaged(_, plan) => {
                DisplayableExecutionPlan::with_metrics(plan.as_ref()).indent(false).to_string()
            }
            Self::Stages(stream) => {
                let tasks = stream.task_stats();
                tasks.iter().map(|task| format!("{task:?}\n")).collect()
            }
        }
    }

    /// The fallback nodes of the plan. With stages, complete once the rows have ended.
    pub(crate) fn fallbacks(&self) -> Vec<String> {
        match self {
            Self::Unstaged(_, plan) => fallbacks(plan),
            Self::Stages(stream) => {
                let tasks = stream.task_stats();
                tasks.into_iter().flat_map(|task| task.fallbacks).collect()
            }
        }
    }
}

/// Enables `SHOW TABLES` and `information_schema`.
fn with_information_schema(session: SessionContext) -> SessionContext {
    session.state_ref().write().config_mut().options_mut().catalog.information_schema = true;
    session
}
