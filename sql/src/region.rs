//! A region: the shells that one execution turns into pipelines, and its result as streams.

use std::{
    borrow::Cow,
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, OnceLock, Weak,
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
    common::internal_err,
    error::Result,
    execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext},
    physical_plan::{
        ExecutionPlan, ExecutionPlanProperties, Partitioning,
        metrics::{ExecutionPlanMetricsSet, MetricBuilder, MetricValue, Time},
    },
    prelude::SessionConfig,
};
use futures::{Stream, StreamExt};
use gatework_operators::Failure;
use gatework_runtime::{
    Error, Executor,
    pipeline::{Held, Profile, QueryContext, QueryOptions, RowStream, Running, Sink},
};
use gatework_shared_state::{Budget, result::ResultReader};
use parking_lot::Mutex;
use tokio::task::AbortHandle;

use crate::{
    engine::Engine,
    lower::{self, Lowered},
    memory::PoolShare,
    scope::QueryScope,
    settings::Settings,
    shell::{Shell, as_shell, cover},
    spill::TempFiles,
};

/// The execution state of a topmost shell.
#[derive(Debug, Default)]
pub(crate) struct Region {
    /// Streams of the running execution that nobody has asked for yet.
    waiting: Mutex<Vec<Option<Waiting>>>,
    /// The query of the latest execution.
    latest: Mutex<Weak<QueryContext>>,
    /// It runs as soon as it is asked for, as a part of what another region has been admitted for.
    admitted: AtomicBool,
}

/// The query that the regions of a plan belong to, handed down through foreign nodes.
#[derive(Debug)]
struct CurrentQuery(Arc<QueryContext>);

/// The query of the latest execution of `plan`, as long as somebody holds its stream: who has it can
/// cancel it, and see what its tasks wait for. Above a foreign root, that of the first region below.
pub fn query(plan: &Arc<dyn ExecutionPlan>) -> Option<Arc<QueryContext>> {
    let own = as_shell(plan.as_ref()).and_then(|shell| shell.region().latest.lock().upgrade());
    own.or_else(|| plan.children().into_iter().find_map(query))
}

/// The profile of the latest execution of `plan`, as long as somebody holds its stream.
pub fn profile(plan: &Arc<dyn ExecutionPlan>) -> Option<Profile> {
    Some(query(plan)?.profile())
}

impl Region {
    /// Lets its queries begin without waiting for their turn.
    pub(crate) fn admit(&self) {
        self.admitted.store(true, Ordering::Relaxed);
    }

    /// The stream of `partition`. The first partition that is asked for starts the execution; asking
    /// for a partition again starts another one.
    pub(crate) fn execute(
        &self,
        shell: &Shell,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let schema = shell.schema();
        let mut waiting = self.waiting.lock();
        let mut stream = waiting.get_mut(partition).and_then(Option::take);
        if stream.is_none() {
            *waiting = self.start(shell, &context)?.into_iter().map(Some).collect();
            stream = waiting.get_mut(partition).and_then(Option::take);
        }
        if waiting.iter().all(Option::is_none) {
            waiting.clear();
        }
        let Some((rows, metrics)) = stream else {
            let name = shell.name();
            return internal_err!("partition {partition} of {name} does not exist");
        };
        Ok(Box::pin(RegionStream { rows, schema, metrics: Some(metrics) }))
    }

    fn start(&self, shell: &Shell, context: &Arc<TaskContext>) -> Result<Vec<Waiting>> {
        let inherited = context.session_config().get_extension::<CurrentQuery>();
        let settings = Settings::of(context);
        let query = match &inherited {
            Some(current) => current.0.clone(),
            None => {
                let admitted = settings.admitted || self.admitted.load(Ordering::Relaxed);
                new_query(shell.engine(), context, admitted, None)
            }
        };
        *self.latest.lock() = Arc::downgrade(&query);
        let contract = Contract::of(shell);
        let inner = ForeignContext::new(context, &query);
        let (lowered, readers) = lower::lower(shell, inner, &contract)?;
        let Lowered { graph, fallbacks, nodes } = lowered;
        for fallback in fallbacks {
            query.note_fallback(fallback);
        }
        let running = graph.start(&query).map_err(|error| Failure::to_datafusion(&error))?;
        let streams = match inherited {
            Some(_) => RowStream::of_region(&running, readers),
            None => RowStream::of_query(&running, readers),
        };
        let limit = settings.timeout.filter(|_| inherited.is_none());
        let _deadline = limit
            .map(|limit| Deadline::new(&shell.engine().executor, &query, limit))
            .transpose()?;
        let root = inherited.is_none().then(|| shell.own_metrics().clone());
        let metrics = Arc::new(NodeMetrics { query, root, nodes, _deadline });
        Ok(streams.into_iter().map(|stream| (stream, metrics.clone())).collect())
    }
}

/// A query on `engine` with the memory, the disk and the settings of `context`.
fn new_query(
    engine: &Engine,
    context: &Arc<TaskContext>,
    admitted: bool,
    name: Option<String>,
) -> Arc<QueryContext> {
    let settings = Settings::of(context);
    let group = settings.group.as_ref().map(|name| engine.executor.group(name));
    let options = QueryOptions {
        admitted,
        name: name.map_or_else(|| QueryOptions::default().name, Into::into),
        memory: PoolShare::new(&context.session_id(), context.memory_pool()),
        spill: TempFiles::of(&context.runtime_env().disk_manager, engine),
        time_slice: settings.time_slice,
        group,
        chaos: settings.chaos.clone(),
    };
    let query = QueryContext::new(&engine.executor, options);
    QueryScope::enter(context, &query);
    query
}

/// Runs `plan` on `executor` as a part of a query, called `name`; what it gives goes, in the order that the plan
/// promises if that is wanted, to the sink that `sink` makes for so many tasks. The plan has no shells yet. The
/// settings' time limit is the caller's to keep, and so are the limits of their resource group: a part does not
/// count against them.
///
/// ```
/// # use std::sync::Arc;
/// use datafusion::prelude::*;
/// use gatework_operators::result::ResultOutput;
/// use gatework_runtime::{Executor, pipeline::RowStream};
/// use gatework_shared_state::Budget;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let session = SessionContext::new();
/// let query = session.sql("SELECT 6 * 7 AS answer").await?;
/// let (context, plan) = (Arc::new(query.task_ctx()), query.create_physical_plan().await?);
/// let executor = Executor::builder().threads(2).build()?;
/// let mut readers = Vec::new();
/// let running = gatework_sql::run_into(plan, &executor, &context, "demo", false, |tasks| {
///     let (sink, ends) = ResultOutput::new(tasks, 1, vec![], Budget::new(1 << 20));
///     readers = ends;
///     Ok(Arc::new(sink))
/// })?;
/// let rows = RowStream::of_query(&running, readers).remove(0).into_blocking();
/// assert_eq!(rows.map(|batch| Ok::<_, gatework_runtime::Error>(batch?.rows())).next().unwrap()?, 1);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// If the plan cannot be turned into pipelines, or the executor is shut down.
pub fn run_into(
    plan: Arc<dyn ExecutionPlan>,
    executor: &Executor,
    context: &Arc<TaskContext>,
    name: &str,
    ordered: bool,
    sink: impl FnOnce(usize) -> Result<Arc<dyn Sink>>,
) -> Result<Running> {
    let engine = Engine::new(executor.clone());
    let query = new_query(&engine, context, true, Some(name.to_owned()));
    let plan = cover(plan, &engine)?;
    let inner = ForeignContext::new(context, &query);
    let Lowered { graph, fallbacks, .. } = lower::lower_into(&plan, &engine, inner, ordered, sink)?;
    for fallback in fallbacks {
        query.note_fallback(fallback);
    }
    graph.start(&query).map_err(|error| Failure::to_datafusion(&error))
}

/// A stream of the result, and where its region's counters go.
type Waiting = (RowStream, Arc<NodeMetrics>);

/// The metric sets of a region's nodes, by the tags of their operators. The counters of a finished
/// region are written there when its last stream ends.
#[derive(Debug)]
struct NodeMetrics {
    query: Arc<QueryContext>,
    /// Of the topmost node of the query: what its tasks waited for.
    root: Option<ExecutionPlanMetricsSet>,
    nodes: HashMap<usize, ExecutionPlanMetricsSet>,
    _deadline: Option<Deadline>,
}

/// Ends a query when its time is over, unless this is dropped before.
#[derive(Debug)]
pub struct Deadline(AbortHandle);

impl Deadline {
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

impl Drop for Deadline {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Drop for NodeMetrics {
    fn drop(&mut self) {
        let profile = self.query.profile();
        for operator in &profile.operators {
            let Some(metrics) = operator.tag.and_then(|tag| self.nodes.get(&tag)) else { continue };
            let builder = || MetricBuilder::new(metrics);
            // Sinks give no rows; what a node puts out is what its last part gave.
            builder().output_rows(0).add(operator.rows_out as usize);
            let time = Time::new();
            time.add_duration(operator.busy);
            builder().elapsed_compute(0).add(&time);
            for (name, amount) in &operator.named {
                builder().counter(*name, 0).add(*amount as usize);
            }
        }
        let Some(root) = &self.root else { return };
        let waited = profile.dependencies.into_iter().filter(|gate| gate.blocked >= LEAST_WAIT);
        for gate in waited.take(MOST_WAITS) {
            let (name, time) = (Cow::Owned(format!("waited for {}", gate.name)), Time::new());
            time.add_duration(gate.blocked);
            MetricBuilder::new(root).build(MetricValue::Time { name, time });
        }
    }
}

/// Which waits the topmost node of a query tells of: so many, the longest first, and none shorter than that.
const MOST_WAITS: usize = 8;
const LEAST_WAIT: Duration = Duration::from_millis(1);

/// One partition of a region's result.
struct RegionStream {
    rows: RowStream,
    schema: SchemaRef,
    /// Dropped at the end, so that the counters are there when the end is seen.
    metrics: Option<Arc<NodeMetrics>>,
}

impl Stream for RegionStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let batch = match ready!(self.rows.poll_next_unpin(context)) {
            Some(Ok(batch)) => with_schema(batch.into_parts().0, &self.schema),
            Some(Err(error)) => Err(Failure::to_datafusion(&error)),
            None => {
                self.metrics = None;
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
pub(crate) struct Contract {
    pub(crate) partitioning: Partitioning,
    pub(crate) ordered: bool,
}

impl Contract {
    fn of(shell: &Shell) -> Self {
        let original = shell.original();
        Self {
            partitioning: original.output_partitioning().clone(),
            ordered: original.output_ordering().is_some(),
        }
    }

    /// The budget of the result: partitions that are read one after another must not block each
    /// other.
    pub(crate) fn budget(&self, settings: &Settings) -> Budget {
        let budget = Budget::new(settings.result_bytes);
        if self.partitioning.partition_count() > 1 {
            budget.overflow();
        }
        budget
    }
}

/// The context in which foreign nodes run: it tells regions below which query they belong to. Made
/// when the first foreign node needs it, since most regions have none.
#[derive(Debug)]
pub(crate) struct ForeignContext {
    outer: Arc<TaskContext>,
    query: Arc<QueryContext>,
    inner: OnceLock<Arc<TaskContext>>,
}

impl ForeignContext {
    fn new(outer: &Arc<TaskContext>, query: &Arc<QueryContext>) -> Self {
        Self { outer: outer.clone(), query: query.clone(), inner: OnceLock::new() }
    }

    /// The number of the query, which no other of the process has.
    pub(crate) fn query_id(&self) -> u64 {
        self.query.id()
    }

    /// The context the region itself was executed with.
    pub(crate) fn outer(&self) -> &Arc<TaskContext> {
        &self.outer
    }

    /// The context for foreign nodes.
    pub(crate) fn inner(&self) -> Arc<TaskContext> {
        let make = || {
            let current = Arc::new(CurrentQuery(self.query.clone()));
            with_config(&self.outer, |config| config.with_extension(current))
        };
        self.inner.get_or_init(make).clone()
    }
}

/// `context` with the configuration that `change` makes of its own: to hand something down to whoever runs with it.
pub fn with_config(
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
pub(crate) type Readers = Vec<ResultReader<Held>>;
