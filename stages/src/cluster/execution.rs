//! Runs a query on workers, ends it as soon as a worker is lost, and retries it on the others if
//! allowed.

use std::{any::Any, collections::BTreeMap, fmt, sync::Arc};

use datafusion::{
    arrow::record_batch::RecordBatch,
    common::{
        internal_err,
        tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion},
    },
    error::{DataFusionError, Result},
    execution::{
        SendableRecordBatchStream, SessionState, TaskContext,
        memory_pool::{MemoryConsumer, MemoryReservation},
    },
    logical_expr::LogicalPlan,
    physical_expr::PhysicalExpr,
    physical_plan::{
        ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties,
        ReplaceChildrenOptions, execute_stream, metrics::MetricsSet,
        stream::RecordBatchReceiverStreamBuilder,
    },
};
use datafusion_distributed::{
    DistributedExec, DistributedExt, TaskKey, get_distributed_worker_resolver,
};
use futures::{TryStreamExt, future::join_all};
use gatework_runtime::Executor;
use gatework_sql::{Settings, task_context_with};
use parking_lot::Mutex;
use tokio::{sync::mpsc, time::timeout};
use url::Url;

use super::{
    active_tasks::CANCELLED_BY_COORDINATOR,
    auth::FAILURE_DETECTION,
    connections::{Connections, failed_worker_url, is_worker_failure},
    session::{HeadPlanner, WorkerList},
};

/// Maximum size of the retry buffer. It holds back a result until that is complete. When the result
/// exceeds it, its rows are emitted and the query is not retried.
const RETRY_BUFFER_BYTES: usize = 16 << 20;

/// The worker of each task, by stage and task number.
pub(super) type TaskAssignments = BTreeMap<(usize, usize), Url>;

/// Receives the assignments and losses of a query's tasks from its connections.
#[derive(Debug)]
pub(super) struct FailureListener {
    failures: mpsc::UnboundedSender<Arc<DataFusionError>>,
    progress: Arc<Mutex<Progress>>,
}

impl FailureListener {
    /// The listener of the query that `context` belongs to; none on workers.
    pub(super) fn of(context: &TaskContext) -> Option<Arc<Self>> {
        context.session_config().get_extension()
    }

    /// Called by a connection that sends a task to this worker.
    pub(super) fn task_assigned(&self, task: TaskKey, worker: &Url) {
        let task = (task.stage_id, task.task_number);
        self.progress.lock().assignments.insert(task, worker.clone());
    }

    /// Called by a connection whose worker is lost.
    pub(super) fn worker_lost(&self, error: Arc<DataFusionError>) {
        // A query that has ended has no receiver.
        let _ended = self.failures.send(error);
    }
}

/// What a retry needs to plan a query again.
#[derive(Debug, Clone)]
pub(super) struct RetryPlan {
    pub(super) query: LogicalPlan,
    pub(super) session: Arc<SessionState>,
    pub(super) planner: HeadPlanner,
}

/// A [`DistributedExec`] that fails as soon as a worker is lost, even one without a waiting reader.
#[derive(Debug)]
pub(super) struct ClusterExec {
    distributed: Arc<dyn ExecutionPlan>,
    /// The session's executor, with the node types that workers are taken to have as well.
    executor: Executor,
    retry: Option<RetryPlan>,
    progress: Arc<Mutex<Progress>>,
}

impl ClusterExec {
    fn new(
        distributed: Arc<dyn ExecutionPlan>,
        executor: &Executor,
        retry: Option<RetryPlan>,
    ) -> Self {
        Self { distributed, executor: executor.clone(), retry, progress: Arc::default() }
    }

    /// The session's executor.
    pub(super) fn executor(&self) -> &Executor {
        &self.executor
    }

    /// `plan`, if it is a [`ClusterExec`].
    pub(super) fn of(plan: &dyn ExecutionPlan) -> Option<&Self> {
        // `downcast_ref` of a plan would see the delegate.
        let plan: &dyn Any = plan;
        plan.downcast_ref()
    }

    /// The plan of the current or last attempt, and the assignments of its tasks.
    pub(super) fn progress(&self) -> (Arc<dyn ExecutionPlan>, TaskAssignments) {
        let progress = self.progress.lock();
        let plan = progress.plan.as_ref().unwrap_or(&self.distributed);
        (plan.clone(), progress.assignments.clone())
    }

    /// Wraps every [`DistributedExec`] of a plan. Only a plan that is one itself can be retried, by
    /// `retry`.
    pub(super) fn wrap(
        plan: Arc<dyn ExecutionPlan>,
        executor: &Executor,
        retry: impl FnOnce() -> Result<Option<RetryPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if plan.is::<DistributedExec>() {
            return Ok(Arc::new(Self::new(plan, executor, retry()?)));
        }
        let wrapped = plan.transform_down(|node| {
            if !node.is::<DistributedExec>() {
                return Ok(Transformed::no(node));
            }
            let node: Arc<dyn ExecutionPlan> = Arc::new(Self::new(node, executor, None));
            Ok(Transformed::new(node, true, TreeNodeRecursion::Jump))
        });
        wrapped.data()
    }
}

impl DisplayAs for ClusterExec {
    fn fmt_as(&self, format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.distributed.fmt_as(format, f)
    }
}

/// Other code sees a [`DistributedExec`]: see `downcast_delegate`.
impl ExecutionPlan for ClusterExec {
    fn name(&self) -> &str {
        self.distributed.name()
    }

    fn downcast_delegate(&self) -> Option<&dyn ExecutionPlan> {
        Some(self.distributed.as_ref())
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.distributed.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        self.distributed.children()
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        self.distributed.apply_expressions(f)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(
            children,
            ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute),
        )
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let distributed = self.distributed.clone().replace_children(children, options)?;
        Ok(Arc::new(Self::new(distributed, &self.executor, None)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        self.distributed.metrics()
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        if partition > 0 {
            return internal_err!(
                "a query on workers has one partition, not partition {partition}"
            );
        }
        let mut builder = RecordBatchReceiverStreamBuilder::new(self.schema(), 1);
        let rows = builder.tx();
        let (plan, retry) = (self.distributed.clone(), self.retry.clone());
        let progress = self.progress.clone();
        progress.lock().plan = None;
        builder.spawn(async move {
            match retry {
                Some(retry) => run_with_retries(plan, retry, context, progress, &rows).await,
                None => {
                    attempt(&plan, &context, &progress, &mut RetryBuffer::disabled(), &rows).await
                }
            }
        });
        Ok(builder.build())
    }
}

type Rows = mpsc::Sender<Result<RecordBatch>>;

/// Progress of a running query.
#[derive(Debug, Default)]
pub(super) struct Progress {
    assignments: TaskAssignments,
    /// The plan of a retry; none for the first attempt.
    plan: Option<Arc<dyn ExecutionPlan>>,
}

/// Runs a query within its time limit. Retries it on the reachable workers after a loss.
async fn run_with_retries(
    plan: Arc<dyn ExecutionPlan>,
    retry: RetryPlan,
    context: Arc<TaskContext>,
    progress: Arc<Mutex<Progress>>,
    rows: &Rows,
) -> Result<()> {
    let Some(limit) = Settings::of(context.session_config()).timeout else {
        return run_attempts(plan, retry, &context, &progress, rows).await;
    };
    match timeout(limit, run_attempts(plan, retry, &context, &progress, rows)).await {
        Ok(done) => done,
        Err(_elapsed) => {
            let what = format!("the query was ended after {limit:?}, its time limit");
            Err(DataFusionError::Execution(what))
        }
    }
}

async fn run_attempts(
    mut plan: Arc<dyn ExecutionPlan>,
    retry: RetryPlan,
    first: &Arc<TaskContext>,
    progress: &Arc<Mutex<Progress>>,
    rows: &Rows,
) -> Result<()> {
    let mut context = first.clone();
    let mut retries_left = retry.planner.retries;
    let mut failed_workers = Vec::new();
    loop {
        let mut buffer = match retries_left {
            0 => RetryBuffer::disabled(),
            _ => RetryBuffer::with_limit(RETRY_BUFFER_BYTES, &context),
        };
        let error = match attempt(&plan, &context, progress, &mut buffer, rows).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if retries_left == 0 || !buffer.is_complete() || !is_worker_failure(&error) {
            return Err(error);
        }
        drop(buffer);
        retries_left -= 1;
        failed_workers.extend(failed_worker_url(&error));
        let workers = reachable_workers(first, &retry.planner.connections, &failed_workers).await?;
        if workers.is_empty() {
            return Err(error.context("no other worker answers"));
        }
        let mut session = retry.session.as_ref().clone();
        session.config_mut().set_distributed_worker_resolver(workers.clone());
        plan = retry.planner.plan(&retry.query, &session).await?;
        progress.lock().plan = Some(plan.clone());
        context =
            task_context_with(first, |config| config.with_distributed_worker_resolver(workers));
    }
}

/// Runs a query once, until it ends or a worker is lost.
async fn attempt(
    plan: &Arc<dyn ExecutionPlan>,
    context: &TaskContext,
    progress: &Arc<Mutex<Progress>>,
    buffer: &mut RetryBuffer,
    rows: &Rows,
) -> Result<()> {
    let (loss, mut lost) = mpsc::unbounded_channel();
    progress.lock().assignments.clear();
    let listener = Arc::new(FailureListener { failures: loss, progress: progress.clone() });
    let context = task_context_with(context, |config| config.with_extension(listener));
    // A plan that runs in this process may have several partitions.
    let mut batches = execute_stream(plan.clone(), context)?;
    loop {
        let next = tokio::select! {
            biased;
            Some(error) = lost.recv() => return Err(DataFusionError::Shared(error)),
            next = batches.try_next() => match next {
                Err(error) if is_secondary(&error) => {
                    let loss = timeout(2 * FAILURE_DETECTION, lost.recv()).await.ok().flatten();
                    return Err(loss.map_or(error, DataFusionError::Shared));
                }
                next => next?,
            },
        };
        let Some(batch) = next else { break };
        for batch in buffer.push(batch) {
            if rows.send(Ok(batch)).await.is_err() {
                return Ok(());
            }
        }
    }
    for batch in buffer.take() {
        if rows.send(Ok(batch)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Whether the error is only the consequence of a loss: another worker noticed that a worker lost
/// its connection to this process. The loss itself is reported soon.
fn is_secondary(error: &DataFusionError) -> bool {
    error.to_string().contains(CANCELLED_BY_COORDINATOR)
}

/// Result rows that no reader has received yet.
struct RetryBuffer {
    batches: Vec<RecordBatch>,
    bytes: usize,
    limit: usize,
    reservation: Option<MemoryReservation>,
}

impl RetryBuffer {
    fn disabled() -> Self {
        Self { batches: Vec::new(), bytes: 0, limit: 0, reservation: None }
    }

    fn with_limit(limit: usize, context: &TaskContext) -> Self {
        let reservation = MemoryConsumer::new("retry buffer").register(context.memory_pool());
        Self { limit, reservation: Some(reservation), ..Self::disabled() }
    }

    /// Whether no row was emitted.
    fn is_complete(&self) -> bool {
        self.reservation.is_some()
    }

    /// Takes a batch, and returns the batches to emit now.
    fn push(&mut self, batch: RecordBatch) -> Vec<RecordBatch> {
        self.bytes += batch.get_array_memory_size();
        self.batches.push(batch);
        let fits = self.bytes <= self.limit
            && self
                .reservation
                .as_ref()
                .is_some_and(|memory| memory.try_resize(self.bytes).is_ok());
        if fits { Vec::new() } else { self.take() }
    }

    fn take(&mut self) -> Vec<RecordBatch> {
        self.reservation = None;
        self.limit = 0;
        std::mem::take(&mut self.batches)
    }
}

/// The workers of a query that answer now, without `failed_workers`.
async fn reachable_workers(
    context: &TaskContext,
    connections: &Connections,
    failed_workers: &[String],
) -> Result<WorkerList> {
    let mut urls = get_distributed_worker_resolver(context.session_config())?.get_urls()?;
    urls.retain(|url| !failed_workers.iter().any(|failed| failed == url.as_str()));
    let answers = join_all(urls.iter().map(|url| connections.check(url))).await;
    let reachable = urls.iter().zip(answers).filter(|(_, answer)| answer.is_ok());
    Ok(WorkerList::from(reachable.map(|(url, _)| url.clone()).collect::<Vec<_>>()))
}
