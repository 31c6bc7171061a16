//! Runs a query as stages.

pub(crate) mod filters;
mod linkage;
pub(crate) mod local;
mod nodes;
pub(crate) mod policy;
mod schedule;
mod scheduler;
mod split_placement;
mod stage;
mod state;
mod task;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use datafusion::{
    arrow::{array::RecordBatch, datatypes::SchemaRef},
    dataframe::DataFrame,
    error::Result as PlanResult,
    execution::{RecordBatchStream, TaskContext},
    physical_plan::ExecutionPlan,
};
use futures::{Stream, StreamExt};
use gatework_operators::{
    ResultExt, SharedDataFusionError, apply_selection, exchange_source::RemoteExchangeSource,
    result::ResultSink,
};
use gatework_runtime::{
    Error, Executor, Result,
    pipeline::{
        Batch, BufferedBatch, DriverContext as Task, FinishResult, Graph, LocalSink, LocalSource,
        OperatorContext, QueryContext, QueryOptions, RowStream, Sink, SinkResult, Source,
        SourceResult,
    },
};
use gatework_shared_state::{BufferLimit, output::ExchangeClient};
use gatework_sql::{
    QueryTimeout, RemoteRuntimeFilters, Settings, WriteProgress,
    buckets::BucketedScan,
    splits::{SplitSource, split_source},
    task_context_with,
};

use crate::{PartitioningHandle as Handle, StageOptions, SubPlan, plan_stages};
use filters::{JoinFilters, between_stages};
use local::{LocalTaskFactory, TaskEnvironment, TaskList};

pub use linkage::BufferManager;
pub use nodes::Nodes;
pub use policy::{ExecutionPolicy, ExecutionSchedule};
pub use schedule::{
    BlockedReason, BucketSplits, FixedCountScheduler, FixedSourceScheduler, ScaledWriterScheduler,
    Scheduled, SourcePartitionedScheduler, StageScheduler,
};
pub use scheduler::{QueryScheduler, StepResult};
pub use split_placement::SplitLimits;
pub use stage::StageExecution;
pub use state::{StageState, State, StateMachine, TaskState};
pub use task::{Lifespan, NodeId, StageTask, TaskEvents, TaskFactory, TaskId, TaskSpec};

/// Runs `query` as stages on `nodes`.
///
/// ```
/// use datafusion::prelude::SessionContext;
/// use futures::TryStreamExt;
/// use gatework_stages::{Nodes, StageOptions, execute};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let session = SessionContext::new();
/// let query = session.sql("SELECT 6 * 7 AS answer").await?;
/// let nodes = Nodes::in_process(2, 1)?;
/// let rows = execute(query, &nodes, &StageOptions::with_nodes(2)).await?;
/// let batches: Vec<_> = rows.try_collect().await?;
/// assert_eq!(batches[0].num_rows(), 1);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// If the query cannot be planned or started.
pub async fn execute(
    query: DataFrame,
    nodes: &Nodes,
    options: &StageOptions,
) -> PlanResult<StageStream> {
    let context = query.task_ctx();
    let (state, plan) = query.into_parts();
    let options = StageOptions { nodes: nodes.count(), ..options.clone() };
    let plan = plan_stages(&state, &plan, &options).await?;
    let filters = JoinFilters::of(&state);
    run(plan, &context, filters, nodes, &options)
        .map_err(|error| SharedDataFusionError::to_datafusion(&error))
}

/// Runs the stages of a query that was planned for these nodes.
fn run(
    plan: SubPlan,
    context: &TaskContext,
    group_filters: Option<JoinFilters>,
    nodes: &Nodes,
    options: &StageOptions,
) -> Result<StageStream> {
    options.splits.check()?;
    let settings = Settings::of(context.session_config());
    let executor = &nodes.executors()[0];
    let query_options = QueryOptions {
        name: "stages".into(),
        time_slice: settings.time_slice,
        group: settings.resource_group.as_ref().map(|name| executor.group(name)),
        ..QueryOptions::default()
    };
    let query = QueryContext::new(executor, query_options);
    let schema = plan.fragment.root.schema();
    let result = ExchangeClient::new("result of the stages");
    let (tasks, progress) = (TaskList::default(), Arc::<WriteProgress>::default());
    let filters = between_stages(&plan, nodes.count()).query_err()?;
    let spec = SchedulerSpec {
        plan: Arc::new(plan),
        nodes: nodes.clone(),
        options: options.clone(),
        environment: Arc::new(TaskEnvironment {
            context: task_context(context, filters, progress.clone()),
            output_buffer_bytes: options.output_buffer_bytes,
            max_queued_splits: options.splits.max_pending_splits_per_task,
            filters: group_filters,
        }),
        progress,
        result: result.clone(),
        tasks: tasks.clone(),
    };
    let mut graph = Graph::new();
    let scheduler = Arc::new(SchedulerSource(spec));
    graph.add_pipeline("stage scheduler", 1, scheduler, vec![], Arc::new(EmptySink))?;
    let (output, readers) =
        ResultSink::new(1, 1, Vec::new(), BufferLimit::new(settings.result_buffer_bytes));
    let rows = Arc::new(RemoteExchangeSource::new(result, schema.clone()));
    graph.add_pipeline("result of the stages", 1, rows, vec![], Arc::new(output))?;
    let running = graph.start(&query)?;
    // If the timer cannot be created, dropping the streams cancels the query.
    let mut streams = RowStream::of_query(&running, readers);
    let limit = |limit| QueryTimeout::new(executor, &query, limit);
    let deadline = settings.timeout.map(limit).transpose().query_err()?;
    match streams.pop() {
        Some(rows) => Ok(StageStream { rows, schema, tasks, _deadline: deadline }),
        None => Err(Error::InvalidConfiguration("the result has no reader".into())),
    }
}

/// Returns the context of a query's tasks, with the remote runtime filters and the progress of all
/// writers.
fn task_context(
    context: &TaskContext,
    filters: RemoteRuntimeFilters,
    progress: Arc<WriteProgress>,
) -> Arc<TaskContext> {
    task_context_with(context, |config| {
        config.with_extension(Arc::new(filters)).with_extension(progress)
    })
}

/// Statistics of a task.
#[derive(Debug, Clone)]
pub struct TaskStats {
    /// The task.
    pub id: TaskId,
    /// Node of the task.
    pub node: usize,
    /// State of the task.
    pub state: TaskState,
    /// Rows written.
    pub rows_written: u64,
    /// Rows read by other tasks, counted once per reader.
    pub rows_read: u64,
    /// Rows dropped because their reader had finished.
    pub rows_dropped: u64,
    /// Peak of the bytes buffered in the task's output.
    pub peak_output_bytes: usize,
    /// Fallback nodes of the task's plan.
    pub fallbacks: Vec<String>,
}

impl TaskStats {
    fn of(task: &dyn StageTask) -> Self {
        let stats = task.output().stats();
        Self {
            id: task.id(),
            node: task.node(),
            state: task.state(),
            rows_written: stats.rows_in,
            rows_read: stats.rows_out,
            rows_dropped: stats.rows_dropped,
            peak_output_bytes: stats.peak_bytes,
            fallbacks: task.fallbacks(),
        }
    }
}

/// The rows of a query that runs as stages. Dropping the stream cancels the query.
pub struct StageStream {
    rows: RowStream,
    schema: SchemaRef,
    tasks: TaskList,
    _deadline: Option<QueryTimeout>,
}

impl StageStream {
    /// The query, for cancelling it or inspecting it.
    pub fn query(&self) -> &Arc<QueryContext> {
        self.rows.query()
    }

    /// Statistics of all tasks created so far.
    pub fn task_stats(&self) -> Vec<TaskStats> {
        self.tasks.lock().iter().map(|task| TaskStats::of(task.as_ref())).collect()
    }

    /// Returns an observer of the query.
    pub fn watch(&self) -> StageWatch {
        StageWatch { query: self.query().clone(), tasks: self.tasks.clone() }
    }
}

/// Observes a query that runs as stages, without keeping it alive.
#[derive(Debug, Clone)]
pub struct StageWatch {
    query: Arc<QueryContext>,
    tasks: TaskList,
}

impl StageWatch {
    /// Describes what every task does now, and which gates blocked tasks wait for.
    pub fn dump(&self) -> String {
        let mut text = self.query.dump();
        self.tasks.lock().iter().for_each(|task| text.push_str(&task.dump()));
        text
    }
}

impl std::fmt::Debug for StageStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StageStream").field("query", self.query()).finish_non_exhaustive()
    }
}

impl Stream for StageStream {
    type Item = PlanResult<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(ready!(self.rows.poll_next_unpin(context)).map(|batch| {
            batch
                .and_then(apply_selection)
                .map_err(|error| SharedDataFusionError::to_datafusion(&error))
        }))
    }
}

impl RecordBatchStream for StageStream {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
}

/// Everything a scheduler is created from.
#[derive(Clone)]
struct SchedulerSpec {
    plan: Arc<SubPlan>,
    nodes: Nodes,
    options: StageOptions,
    environment: Arc<TaskEnvironment>,
    result: ExchangeClient<BufferedBatch>,
    progress: Arc<WriteProgress>,
    tasks: TaskList,
}

impl SchedulerSpec {
    fn scheduler(&self, context: &OperatorContext) -> Result<QueryScheduler> {
        let operator_context = context.clone();
        let tasks: Arc<dyn TaskFactory> = Arc::new(LocalTaskFactory {
            nodes: self.nodes.executors().to_vec(),
            environment: self.environment.clone(),
            tasks: self.tasks.clone(),
            external_work: Box::new(move || Some(operator_context.external_work())),
        });
        let (count, policy) = (self.nodes.count(), self.options.policy);
        let scheduler = |stage: &StageExecution| self.scheduler_of(stage);
        QueryScheduler::new(&self.plan, policy, count, tasks, scheduler, self.result.clone())
    }

    /// Returns the scheduler of a stage, by the stage's distribution (D-4).
    fn scheduler_of(&self, stage: &StageExecution) -> Result<Box<dyn StageScheduler>> {
        let fragment = stage.fragment();
        let count = self.nodes.count();
        match (fragment.partitioning, fragment.tables.as_slice()) {
            (Handle::Source, [table]) => {
                let executor = &self.nodes.executors()[0];
                let splits =
                    split_source(table, executor, &self.environment.context).query_err()?;
                Ok(Box::new(SourcePartitionedScheduler::new(splits, self.options.splits)))
            }
            (Handle::Buckets, tables) => {
                let splits = Box::new(Buckets {
                    tables: tables.to_vec(),
                    executor: self.nodes.executors()[0].clone(),
                    context: self.environment.context.clone(),
                });
                let buckets = fragment.buckets.unwrap_or(1);
                let groups = fragment
                    .grouped_execution
                    .then_some(self.options.concurrent_lifespans_per_task);
                Ok(Box::new(FixedSourceScheduler::new(
                    splits,
                    self.options.splits,
                    (tables.len(), buckets),
                    fragment.tasks(count),
                    groups,
                )))
            }
            (Handle::FixedHash | Handle::FixedArbitrary, []) => {
                Ok(Box::new(FixedCountScheduler::new((0..count).collect())))
            }
            (Handle::ScaledWriter, []) => {
                let (progress, bytes) = (self.progress.clone(), self.options.writer_min_bytes);
                Ok(Box::new(ScaledWriterScheduler::new((0..count).collect(), progress, bytes)))
            }
            // Single-task stages are spread over the nodes.
            (Handle::Single, []) => {
                Ok(Box::new(FixedCountScheduler::new(vec![fragment.id % count])))
            }
            (handle, tables) => {
                let (id, tables) = (fragment.id, tables.len());
                Err(Error::InvalidConfiguration(format!(
                    "stage {id} cannot be scheduled: its distribution is {handle}, and it reads \
                     {tables} tables"
                )))
            }
        }
    }
}

/// The buckets of a fragment's tables.
struct Buckets {
    tables: Vec<Arc<dyn ExecutionPlan>>,
    executor: Executor,
    context: Arc<TaskContext>,
}

impl BucketSplits for Buckets {
    fn open(&mut self, bucket: usize, table: usize) -> Result<Box<dyn SplitSource>> {
        let table = self
            .tables
            .get(table)
            .and_then(|table| BucketedScan::restrict_to_bucket(table, bucket));
        let Some(table) = table else {
            return Err(Error::InvalidConfiguration("the table has no buckets".into()));
        };
        split_source(&table, &self.executor, &self.context).query_err()
    }
}

/// The scheduler as a source without rows; it finishes when all stages have ended.
struct SchedulerSource(SchedulerSpec);

impl std::fmt::Debug for SchedulerSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stage scheduler")
    }
}

impl Source for SchedulerSource {
    fn name(&self) -> &str {
        "stage scheduler"
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSource>> {
        let scheduler = self.0.scheduler(&context)?;
        Ok(Box::new(LocalScheduler { scheduler, context }))
    }
}

struct LocalScheduler {
    scheduler: QueryScheduler,
    context: OperatorContext,
}

impl LocalSource for LocalScheduler {
    fn next(&mut self, task: &Task) -> Result<SourceResult> {
        loop {
            task.check_cancelled()?;
            match self.scheduler.step()? {
                StepResult::Finished => return Ok(SourceResult::Finished),
                StepResult::Blocked(gates) => return Ok(SourceResult::Blocked(gates)),
                StepResult::Again if task.should_yield() => return Ok(SourceResult::Yield),
                StepResult::Again => {}
            }
        }
    }

    fn abort(&mut self) {
        // The end of a stage may arrive before its cause.
        if let Some(cause) = self.scheduler.abort() {
            self.context.query().fail(cause);
        }
    }
}

/// A sink without input.
#[derive(Debug)]
struct EmptySink;

impl Sink for EmptySink {
    fn name(&self) -> &str {
        "empty sink"
    }

    fn local(&self, _: OperatorContext) -> Result<Box<dyn LocalSink>> {
        Ok(Box::new(Self))
    }
}

impl LocalSink for EmptySink {
    fn sink(&mut self, _: Option<Batch>, _: &Task) -> Result<SinkResult> {
        Ok(SinkResult::NeedInput)
    }

    fn finish(&mut self, _: &Task) -> Result<FinishResult> {
        Ok(FinishResult::Done)
    }
}
