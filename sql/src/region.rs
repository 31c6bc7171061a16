//! A region: the shells that one execution turns into pipelines, and its result as streams.

use std::{
    borrow::Cow,
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use arrow::{
    array::{RecordBatch, RecordBatchOptions},
    datatypes::SchemaRef,
};
use datafusion::{
    common::{exec_err, internal_err},
    error::Result,
    execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext},
    physical_plan::{
        ExecutionPlan, ExecutionPlanProperties, Partitioning,
        metrics::{ExecutionPlanMetricsSet, MetricBuilder, MetricValue, Time},
    },
    prelude::SessionConfig,
};
use futures::{Stream, StreamExt};
use gatework_operators::{SharedDataFusionError, stream_scan::is_polling};
use gatework_runtime::{
    Error, Executor,
    pipeline::{BufferedBatch, GraphHandle, Profile, QueryContext, QueryOptions, RowStream, Sink},
};
use gatework_shared_state::{BufferLimit, result::ResultReader};
use parking_lot::Mutex;
use tokio::task::AbortHandle;

use crate::{
    engine::{Engine, TokioSliceScope},
    exec::{GateworkExec, as_gatework_exec, wrap},
    lower::{self, Bindings, Lowered, is_ordered},
    memory::QueryMemoryPool,
    scope::CancellationScope,
    settings::Settings,
    spill::TempFiles,
};

/// The executions of a topmost shell.
#[derive(Debug, Default)]
pub(crate) struct Region {
    /// Executions with partitions that have not been asked for yet.
    executions: Mutex<Vec<Execution>>,
    /// The query of the latest execution.
    latest: Mutex<Weak<QueryContext>>,
    /// It runs as soon as it is asked for, as a part of what another region has been admitted for.
    bypass_admission: AtomicBool,
}

/// One execution of a region, as long as there are partitions that nobody has asked for.
#[derive(Debug)]
struct Execution {
    key: ExecutionKey,
    partitions: Arc<Mutex<UnclaimedStreams>>,
}

/// What the calls have in common that ask for the partitions of one execution.
#[derive(Debug)]
enum ExecutionKey {
    /// They are part of this query.
    Query(u64),
    /// They run on behalf of one request.
    Scope(Weak<CancellationScope>),
    /// They have one context.
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

    /// Whether there is nothing left that could ask.
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

/// The streams that nobody has asked for yet, by partition.
type UnclaimedStreams = Vec<Option<PendingStream>>;

/// The query that the regions of a plan belong to, handed down through nodes that DataFusion executes,
/// and what the plan's expressions refer to there.
#[derive(Debug)]
struct CurrentQuery {
    query: Arc<QueryContext>,
    bindings: Bindings,
}

/// The query of the latest execution of `plan`, as long as somebody holds its stream: who has it can
/// cancel it, and see what its tasks wait for. Above a foreign root, that of the first region below.
pub fn query(plan: &Arc<dyn ExecutionPlan>) -> Option<Arc<QueryContext>> {
    let own =
        as_gatework_exec(plan.as_ref()).and_then(|exec| exec.region().latest.lock().upgrade());
    own.or_else(|| plan.children().into_iter().find_map(query))
}

/// The profile of the latest execution of `plan`, as long as somebody holds its stream.
pub fn profile(plan: &Arc<dyn ExecutionPlan>) -> Option<Profile> {
    Some(query(plan)?.profile())
}

impl Region {
    /// Lets its queries begin without waiting for their turn.
    pub(crate) fn set_bypass_admission(&self) {
        self.bypass_admission.store(true, Ordering::Relaxed);
    }

    /// The stream of `partition`. Calls that belong together ([`ExecutionKey`]) get the partitions of one
    /// execution, each once; the first of them starts it.
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
        let settings = Settings::of(context);
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
    /// Whether there is no partition left that could be asked for.
    fn is_exhausted(&self) -> bool {
        self.key.is_expired() || self.partitions.lock().iter().all(Option::is_none)
    }

    /// The stream of `partition`, if it is one of this execution and has not been asked for.
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

/// A query on `engine` with the memory, the disk and the settings of `context`.
fn new_query(
    engine: &Engine,
    context: &Arc<TaskContext>,
    bypass_admission: bool,
    name: Option<String>,
) -> Result<Arc<QueryContext>> {
    let settings = Settings::of(context);
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

/// Runs `plan` on `executor` as a part of a query, called `name`; what it gives goes, in the order that the plan
/// promises if that is wanted, to the sink that `sink` makes for so many tasks. The plan has no shells yet. The
/// settings' time limit is the caller's to keep, and so are the limits of their resource group: a part does not
/// count against them.
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
/// let running = gatework_sql::run_plan_into_sink(plan, &executor, &context, "demo", false, |tasks| {
///     let (sink, ends) = ResultSink::new(tasks, 1, vec![], BufferLimit::new(1 << 20));
///     readers = ends;
///     Ok(Arc::new(sink))
/// })?;
/// let rows = RowStream::of_query(&running, readers).remove(0).into_blocking_iter();
/// assert_eq!(rows.map(|batch| Ok::<_, gatework_runtime::Error>(batch?.num_rows())).next().unwrap()?, 1);
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

/// A stream of the result, and where its region's counters go.
type PendingStream = (RowStream, Arc<NodeMetrics>);

/// The metric sets of a region's nodes, by the tags of their operators. The counters of a finished
/// region are written there when its last stream ends.
#[derive(Debug)]
struct NodeMetrics {
    graph_handle: GraphHandle,
    /// Of the topmost node of the query: what its tasks waited for.
    root: Option<ExecutionPlanMetricsSet>,
    nodes: HashMap<usize, ExecutionPlanMetricsSet>,
    _timeout: Option<QueryTimeout>,
}

/// Ends a query when its time is over, unless this is dropped before.
#[derive(Debug)]
pub struct QueryTimeout(AbortHandle);

impl QueryTimeout {
    /// Gives `query`, which runs on `executor`, so much time from now on.
    ///
    /// # Errors
    /// If the I/O runtime, which has the timer, does not start.
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

impl Drop for NodeMetrics {
    fn drop(&mut self) {
        for operator in &self.graph_handle.operators() {
            let Some(metrics) = operator.tag.and_then(|tag| self.nodes.get(&tag)) else { continue };
            let builder = || MetricBuilder::new(metrics);
            // Sinks give no rows; what a node puts out is what its last part gave.
            builder().output_rows(0).add(operator.rows_out as usize);
            let time = Time::new();
            time.add_duration(operator.busy);
            builder().elapsed_compute(0).add(&time);
            for (name, amount) in &operator.counters {
                builder().counter(*name, 0).add(*amount as usize);
            }
        }
        let Some(root) = &self.root else { return };
        let waited = self
            .graph_handle
            .query()
            .profile()
            .gates
            .into_iter()
            .filter(|gate| gate.blocked >= MIN_REPORTED_WAIT);
        for gate in waited.take(MAX_REPORTED_WAITS) {
            let (name, time) = (
                Cow::Owned(format!("blocked_on_{}_time", gate.name.replace(' ', "_"))),
                Time::new(),
            );
            time.add_duration(gate.blocked);
            MetricBuilder::new(root).build(MetricValue::Time { name, time });
        }
    }
}

/// Which waits the topmost node of a query tells of: so many, the longest first, and none shorter than that.
const MAX_REPORTED_WAITS: usize = 8;
const MIN_REPORTED_WAIT: Duration = Duration::from_millis(1);

/// One partition of a region's result.
struct RegionStream {
    rows: RowStream,
    schema: SchemaRef,
    /// Dropped at the end, so that the counters are there when the end is seen.
    metrics: Option<Arc<NodeMetrics>>,
    /// The partitions of its execution that nobody has asked for. A reader that leaves before the end
    /// takes them along: nothing else would ever end them.
    unclaimed: Option<Arc<Mutex<UnclaimedStreams>>>,
    /// Its threads last as long as the stream, whatever else holds the executor. Dropped last.
    engine: Engine,
}

impl RegionStream {
    /// Whether a function that a worker of the same executor runs blocks until there are rows.
    fn blocks_its_own_worker(&self) -> bool {
        self.engine.executor.is_worker_thread() && !is_polling()
    }
}

impl Drop for RegionStream {
    fn drop(&mut self) {
        if let Some(unclaimed) = self.unclaimed.take() {
            // Not under the lock: streams cancel what is behind them.
            let streams = std::mem::take(&mut *unclaimed.lock());
            drop(streams);
        }
    }
}

impl Stream for RegionStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.rows.poll_next_unpin(context);
        if polled.is_pending() && self.blocks_its_own_worker() {
            let reason = "it was waited for on a worker of its executor";
            self.rows.query().fail(Error::Cancelled { reason });
            return Poll::Ready(Some(exec_err!(
                "a query of this executor was waited for on one of its own workers, which it may need: \
                 wait for it on another thread, or start it with another executor"
            )));
        }
        let batch = match ready!(polled) {
            Some(Ok(batch)) => with_schema(batch.into_parts().0, &self.schema),
            Some(Err(error)) => Err(SharedDataFusionError::to_datafusion(&error)),
            None => {
                (self.metrics, self.unclaimed) = (None, None);
                return Poll::Ready(None);
            }
        };
        Poll::Ready(Some(batch))
    }
}

impl RecordBatchStream for RegionStream {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
}

/// What the readers of a region were promised.
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

    /// The budget of the result: partitions that are read one after another do not block each other, as
    /// in DataFusion, where a repartition goes on while one of its outputs is empty.
    pub(crate) fn buffer_limit(&self, settings: &Settings) -> BufferLimit {
        let limit = BufferLimit::new(settings.result_buffer_bytes);
        if self.partitioning.partition_count() > 1 { limit.unless_starved() } else { limit }
    }
}

/// The contexts of a region: its own, and that of the nodes below it which DataFusion executes. That one
/// tells regions below which query they belong to.
#[derive(Debug)]
pub(crate) struct FallbackContext {
    task_context: Arc<TaskContext>,
    query: Arc<QueryContext>,
    /// Those of the regions above.
    bindings: Bindings,
}

impl FallbackContext {
    fn new(task_context: &Arc<TaskContext>, query: &Arc<QueryContext>, bindings: Bindings) -> Self {
        Self { task_context: task_context.clone(), query: query.clone(), bindings }
    }

    /// What expressions refer to in the regions above.
    pub(crate) fn bindings(&self) -> Bindings {
        self.bindings.clone()
    }

    /// The number of the query, which no other of the process has.
    pub(crate) fn query_id(&self) -> u64 {
        self.query.id()
    }

    /// The context the region itself was executed with.
    pub(crate) fn task_context(&self) -> &Arc<TaskContext> {
        &self.task_context
    }

    /// The context for a node that DataFusion executes, below which expressions refer to `bindings`.
    pub(crate) fn fallback_task_context(&self, bindings: &Bindings) -> Arc<TaskContext> {
        let (query, bindings) = (self.query.clone(), bindings.clone());
        let current = Arc::new(CurrentQuery { query, bindings });
        task_context_with(&self.task_context, |config| config.with_extension(current))
    }
}

/// `context` with the configuration that `change` makes of its own: to hand something down to whoever runs with it.
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

/// `batch` under the schema that the plan promised (its metadata, nullability and names).
fn with_schema(batch: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    if batch.schema_ref() == schema {
        return Ok(batch);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let (_, columns, _) = batch.into_parts();
    Ok(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?)
}

/// The readers of a region's result, by partition.
pub(crate) type Readers = Vec<ResultReader<BufferedBatch>>;
