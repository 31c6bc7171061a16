//! A region: the wrapped nodes that one execution turns into pipelines.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use datafusion::{
    common::internal_err,
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_plan::{ExecutionPlan, ExecutionPlanProperties, Partitioning},
    prelude::SessionConfig,
};
use gatework_operators::SharedDataFusionError;
use gatework_runtime::{
    Error, Executor,
    pipeline::{BufferedBatch, GraphHandle, Profile, QueryContext, QueryOptions, RowStream, Sink},
};
use gatework_shared_state::{BufferLimit, result::ResultReader};
use parking_lot::Mutex;
use tokio::task::AbortHandle;

use crate::{
    lower::{self, Bindings, Lowered, is_ordered},
    plan::{
        Settings,
        exec::{GateworkExec, as_gatework_exec, wrap},
    },
    run::{
        engine::{Engine, TokioSliceScope},
        memory::QueryMemoryPool,
        region_stream::{NodeMetrics, PendingStream, RegionStream, UnclaimedStreams},
        scope::CancellationScope,
        spill::TempFiles,
    },
};

/// The executions of a topmost [`GateworkExec`].
#[derive(Debug, Default)]
pub(crate) struct Region {
    /// Executions with unclaimed partitions.
    executions: Mutex<Vec<Execution>>,
    /// The query of the latest execution.
    latest: Mutex<Weak<QueryContext>>,
    /// Whether the region starts without admission, because another region of the same plan is
    /// admitted for all of them.
    bypass_admission: AtomicBool,
}

/// One execution of a region; kept while it has unclaimed partitions.
#[derive(Debug)]
struct Execution {
    key: ExecutionKey,
    partitions: Arc<Mutex<UnclaimedStreams>>,
}

/// What the `execute` calls for the partitions of one execution have in common.
#[derive(Debug)]
enum ExecutionKey {
    /// The calls belong to the query with this id.
    Query(u64),
    /// The calls share a cancellation scope.
    Scope(Weak<CancellationScope>),
    /// The calls share a task context.
    Context(Weak<TaskContext>),
}

impl ExecutionKey {
    fn of(context: &Arc<TaskContext>) -> Self {
        let config = context.session_config();
        if let Some(current) = config.get_extension::<CurrentQuery>() {
            return Self::Query(current.query.id());
        }
        match config.get_extension::<CancellationScope>() {
            Some(scope) => Self::Scope(Arc::downgrade(&scope)),
            None => Self::Context(Arc::downgrade(context)),
        }
    }

    /// Returns whether no further call with this key is possible.
    fn is_expired(&self) -> bool {
        match self {
            Self::Query(_) => false,
            Self::Scope(scope) => scope.strong_count() == 0,
            Self::Context(context) => context.strong_count() == 0,
        }
    }
}

impl PartialEq for ExecutionKey {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Query(one), Self::Query(other)) => one == other,
            (Self::Scope(one), Self::Scope(other)) => one.ptr_eq(other),
            (Self::Context(one), Self::Context(other)) => one.ptr_eq(other),
            _ => false,
        }
    }
}

/// The query that the regions of a plan belong to, and the bindings of the plan's expressions.
/// Passed down through fallback nodes as a session extension.
#[derive(Debug)]
struct CurrentQuery {
    query: Arc<QueryContext>,
    bindings: Bindings,
}

/// Returns the query of the latest execution of `plan` while one of its streams exists. Callers use
/// it to cancel the query and to inspect what its tasks wait for. If the root is a fallback node,
/// the query is that of the first region below.
pub fn query(plan: &Arc<dyn ExecutionPlan>) -> Option<Arc<QueryContext>> {
    let own =
        as_gatework_exec(plan.as_ref()).and_then(|exec| exec.region().latest.lock().upgrade());
    own.or_else(|| plan.children().into_iter().find_map(query))
}

/// Returns the profile of the latest execution of `plan` while one of its streams exists.
pub fn profile(plan: &Arc<dyn ExecutionPlan>) -> Option<Profile> {
    Some(query(plan)?.profile())
}

impl Region {
    /// Lets the queries of this region start without admission.
    pub(crate) fn set_bypass_admission(&self) {
        self.bypass_admission.store(true, Ordering::Relaxed);
    }

    /// Returns the stream of `partition`. Calls with equal [`ExecutionKey`]s claim the partitions
    /// of one execution, each once; the first call starts it.
    pub(crate) fn execute(
        &self,
        exec: &GateworkExec,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let (schema, count) = (exec.schema(), exec.properties().partitioning.partition_count());
        if partition >= count {
            return internal_err!("partition {partition} of {} does not exist", exec.name());
        }
        let mut executions = self.executions.lock();
        executions.retain(|execution| !execution.is_exhausted());
        let key = ExecutionKey::of(&context);
        let known = executions.iter().find_map(|execution| execution.claim(partition, &key));
        let (pending, unclaimed) = match known {
            Some(claimed) => claimed,
            None => {
                let mut streams: UnclaimedStreams =
                    self.start(exec, &context)?.into_iter().map(Some).collect();
                let Some(pending) = streams.get_mut(partition).and_then(Option::take) else {
                    return internal_err!("partition {partition} of {} has no stream", exec.name());
                };
                let partitions = Arc::new(Mutex::new(streams));
                if count > 1 {
                    executions.push(Execution { key, partitions: partitions.clone() });
                }
                (pending, partitions)
            }
        };
        let (rows, metrics) = pending;
        let (metrics, unclaimed) = (Some(metrics), Some(unclaimed));
        let engine = exec.engine().clone();
        Ok(Box::pin(RegionStream { rows, schema, metrics, unclaimed, engine }))
    }

    fn start(&self, exec: &GateworkExec, context: &Arc<TaskContext>) -> Result<Vec<PendingStream>> {
        let inherited = context.session_config().get_extension::<CurrentQuery>();
        let settings = Settings::of(context.session_config());
        let query = match &inherited {
            Some(current) => current.query.clone(),
            None => {
                let bypass_admission =
                    settings.bypass_admission || self.bypass_admission.load(Ordering::Relaxed);
                new_query(exec.engine(), context, bypass_admission, None)?
            }
        };
        *self.latest.lock() = Arc::downgrade(&query);
        let requirement = OutputRequirement::of(exec);
        let bindings = inherited.as_ref().map(|current| current.bindings.clone());
        let fallback_context = FallbackContext::new(context, &query, bindings.unwrap_or_default());
        let (lowered, readers) = lower::lower(exec, fallback_context, &requirement)?;
        let Lowered { graph, fallbacks, nodes } = lowered;
        for fallback in fallbacks {
            query.record_fallback(fallback);
        }
        let graph_handle =
            graph.start(&query).map_err(|error| SharedDataFusionError::to_datafusion(&error))?;
        let streams = match inherited {
            Some(_) => RowStream::of_region(&graph_handle, readers),
            None => RowStream::of_query(&graph_handle, readers),
        };
        let timeout = settings.timeout.filter(|_| inherited.is_none());
        let _timeout = timeout
            .map(|timeout| QueryTimeout::new(&exec.engine().executor, &query, timeout))
            .transpose()?;
        let root = inherited.is_none().then(|| exec.own_metrics().clone());
        let metrics = Arc::new(NodeMetrics { graph_handle, root, nodes, _timeout });
        Ok(streams.into_iter().map(|stream| (stream, metrics.clone())).collect())
    }
}

impl Execution {
    /// Returns whether no partition can be claimed any more.
    fn is_exhausted(&self) -> bool {
        self.key.is_expired() || self.partitions.lock().iter().all(Option::is_none)
    }

    /// Claims the stream of `partition` if it belongs to this execution and is unclaimed.
    fn claim(
        &self,
        partition: usize,
        key: &ExecutionKey,
    ) -> Option<(PendingStream, Arc<Mutex<UnclaimedStreams>>)> {
        if self.key != *key {
            return None;
        }
        let pending = self.partitions.lock().get_mut(partition)?.take()?;
        Some((pending, self.partitions.clone()))
    }
}

/// Creates a query on `engine` with the memory pool, the disk manager and the settings of
/// `context`.
fn new_query(
    engine: &Engine,
    context: &Arc<TaskContext>,
    bypass_admission: bool,
    name: Option<String>,
) -> Result<Arc<QueryContext>> {
    let settings = Settings::of(context.session_config());
    let disk = &context.runtime_env().disk_manager;
    let resource_group = settings.resource_group.as_ref().map(|name| engine.executor.group(name));
    let options = QueryOptions {
        bypass_admission,
        name: name.map_or_else(|| QueryOptions::default().name, Into::into),
        memory: QueryMemoryPool::new(
            &context.session_id(),
            context.memory_pool(),
            disk.tmp_files_enabled(),
        ),
        spill: TempFiles::of(disk, engine),
        time_slice: settings.time_slice,
        slice_scope: Some(TokioSliceScope::of(engine)?),
        group: resource_group,
        chaos: settings.chaos.clone(),
    };
    let query = QueryContext::new(&engine.executor, options);
    CancellationScope::register(context, &query);
    Ok(query)
}

/// Runs `plan` on `executor` as a task of a query, called `name`, and sends the output to a sink.
/// `sink` is called once with the number of tasks. If `ordered`, the plan's output ordering is
/// preserved.
///
/// The plan must not be wrapped yet. The caller enforces the settings' timeout and the limits of
/// their resource group: the task bypasses admission.
///
/// ```
/// # use std::sync::Arc;
/// use datafusion::prelude::*;
/// use gatework_operators::result::ResultSink;
/// use gatework_runtime::{Executor, pipeline::RowStream};
/// use gatework_shared_state::BufferLimit;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let session = SessionContext::new();
/// let query = session.sql("SELECT 6 * 7 AS answer").await?;
/// let (context, plan) = (Arc::new(query.task_ctx()), query.create_physical_plan().await?);
/// let executor = Executor::builder().threads(2).build()?;
/// let mut readers = Vec::new();
/// let graph = gatework_sql::run_plan_into_sink(plan, &executor, &context, "demo", false, |tasks| {
///     let (sink, ends) = ResultSink::new(tasks, 1, vec![], BufferLimit::new(1 << 20));
///     readers = ends;
///     Ok(Arc::new(sink))
/// })?;
/// let mut rows = RowStream::of_query(&graph, readers).remove(0).into_blocking_iter();
/// assert_eq!(rows.next().expect("one batch")?.num_rows(), 1);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// If the plan cannot be turned into pipelines, or the executor is shut down.
pub fn run_plan_into_sink(
    plan: Arc<dyn ExecutionPlan>,
    executor: &Executor,
    context: &Arc<TaskContext>,
    name: &str,
    ordered: bool,
    sink: impl FnOnce(usize) -> Result<Arc<dyn Sink>>,
) -> Result<GraphHandle> {
    let engine = Engine::new(executor.clone());
    let query = new_query(&engine, context, true, Some(name.to_owned()))?;
    let plan = wrap(plan, &engine)?;
    let fallback_context = FallbackContext::new(context, &query, Bindings::default());
    let Lowered { graph, fallbacks, .. } =
        lower::lower_into(&plan, &engine, fallback_context, ordered, sink)?;
    for fallback in fallbacks {
        query.record_fallback(fallback);
    }
    graph.start(&query).map_err(|error| SharedDataFusionError::to_datafusion(&error))
}

/// Fails a query when its timeout expires; dropping this value cancels the timer.
#[derive(Debug)]
pub struct QueryTimeout(AbortHandle);

impl QueryTimeout {
    /// Starts a timer that fails `query`, which runs on `executor`, after `limit`.
    ///
    /// # Errors
    /// If the I/O runtime, which runs the timer, does not start.
    pub fn new(executor: &Executor, query: &Arc<QueryContext>, limit: Duration) -> Result<Self> {
        let engine = Engine::new(executor.clone());
        let query = Arc::downgrade(query);
        let timer = engine.io()?.spawn(async move {
            tokio::time::sleep(limit).await;
            if let Some(query) = query.upgrade() {
                query.fail(Error::TimedOut { limit });
            }
        });
        Ok(Self(timer.abort_handle()))
    }
}

impl Drop for QueryTimeout {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The partitioning and ordering that the readers of a region rely on.
#[derive(Debug)]
pub(crate) struct OutputRequirement {
    pub(crate) partitioning: Partitioning,
    pub(crate) ordered: bool,
}

impl OutputRequirement {
    fn of(exec: &GateworkExec) -> Self {
        let inner = exec.inner();
        Self { partitioning: inner.output_partitioning().clone(), ordered: is_ordered(inner) }
    }

    /// Returns the buffer limit of the result. A reader may read partitions one after another: a
    /// full partition does not block an empty one. DataFusion's repartition likewise continues
    /// while one of its outputs is empty.
    pub(crate) fn buffer_limit(&self, settings: &Settings) -> BufferLimit {
        let limit = BufferLimit::new(settings.result_buffer_bytes);
        if self.partitioning.partition_count() > 1 { limit.unless_starved() } else { limit }
    }
}

/// The contexts of a region: its own, and that of the fallback nodes below it. The second one names
/// the query to the regions below those nodes.
#[derive(Debug)]
pub(crate) struct FallbackContext {
    task_context: Arc<TaskContext>,
    query: Arc<QueryContext>,
    /// The bindings of the regions above.
    bindings: Bindings,
}

impl FallbackContext {
    fn new(task_context: &Arc<TaskContext>, query: &Arc<QueryContext>, bindings: Bindings) -> Self {
        Self { task_context: task_context.clone(), query: query.clone(), bindings }
    }

    /// Returns the bindings of expressions in the regions above.
    pub(crate) fn bindings(&self) -> Bindings {
        self.bindings.clone()
    }

    /// Returns the id of the query, unique in the process.
    pub(crate) fn query_id(&self) -> u64 {
        self.query.id()
    }

    /// Returns the context that the region itself was executed with.
    pub(crate) fn task_context(&self) -> &Arc<TaskContext> {
        &self.task_context
    }

    /// Returns the context for a fallback node, below which expressions refer to `bindings`.
    pub(crate) fn fallback_task_context(&self, bindings: &Bindings) -> Arc<TaskContext> {
        let (query, bindings) = (self.query.clone(), bindings.clone());
        let current = Arc::new(CurrentQuery { query, bindings });
        task_context_with(&self.task_context, |config| config.with_extension(current))
    }
}

/// Returns a copy of `context` with the configuration that `change` derives from its own. Used to
/// pass extensions down to the nodes that run with the copy.
pub fn task_context_with(
    context: &TaskContext,
    change: impl FnOnce(SessionConfig) -> SessionConfig,
) -> Arc<TaskContext> {
    Arc::new(TaskContext::new(
        context.task_id(),
        context.session_id(),
        change(context.session_config().clone()),
        context.scalar_functions().clone(),
        context.higher_order_functions().clone(),
        context.aggregate_functions().clone(),
        context.window_functions().clone(),
        context.runtime_env(),
    ))
}

/// The readers of a region's result, by partition.
pub(crate) type Readers = Vec<ResultReader<BufferedBatch>>;
