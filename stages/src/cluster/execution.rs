//! A query on workers that ends as soon as one of them is lost, and runs again on the others if it may.

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
use gatework_sql::{Settings, with_config};
use parking_lot::Mutex;
use tokio::{sync::mpsc, time::timeout};
use url::Url;

use super::{
    access::SILENCE,
    connections::{Connections, blamed, is_loss},
    parts::UNWANTED,
    session::{HeadPlanner, WorkerList},
};

/// So much of a result is held back until it is whole, as long as the query may run again; when there is more, its
/// rows go out, and then it does not run again.
const HELD_BACK: usize = 16 << 20;

/// The worker of each task: of which stage, and which of its tasks.
pub(super) type Placed = BTreeMap<(usize, usize), Url>;

/// Where connections tell a query what becomes of its tasks.
#[derive(Debug)]
pub(super) struct Watch {
    lost: mpsc::UnboundedSender<Arc<DataFusionError>>,
    progress: Arc<Mutex<Progress>>,
}

impl Watch {
    /// That of the query that a context is of; on workers, there is none.
    pub(super) fn of(context: &TaskContext) -> Option<Arc<Self>> {
        context.session_config().get_extension()
    }

    /// A task is sent to this worker.
    pub(super) fn placed(&self, task: TaskKey, worker: &Url) {
        let task = (task.stage_id, task.task_number);
        self.progress.lock().placed.insert(task, worker.clone());
    }

    /// A worker is lost.
    pub(super) fn lost(&self, error: Arc<DataFusionError>) {
        // Nobody listens to what is said of a query that has ended.
        let _ended = self.lost.send(error);
    }
}

/// How a query is run again.
#[derive(Debug, Clone)]
pub(super) struct Again {
    pub(super) query: LogicalPlan,
    pub(super) session: Arc<SessionState>,
    pub(super) planner: HeadPlanner,
}

/// What [`DistributedExec`] does, and an end as soon as a worker is lost, even one of which nobody waits for rows.
#[derive(Debug)]
pub(super) struct ClusterExec {
    distributed: Arc<dyn ExecutionPlan>,
    again: Option<Again>,
    progress: Arc<Mutex<Progress>>,
}

impl ClusterExec {
    fn new(distributed: Arc<dyn ExecutionPlan>, again: Option<Again>) -> Self {
        Self { distributed, again, progress: Arc::default() }
    }

    /// `plan`, if it is one.
    pub(super) fn of(plan: &dyn ExecutionPlan) -> Option<&Self> {
        // Not `downcast_ref`, which sees what it stands for.
        let plan: &dyn Any = plan;
        plan.downcast_ref()
    }

    /// What it runs, or ran last, and where its tasks are, or were.
    pub(super) fn progress(&self) -> (Arc<dyn ExecutionPlan>, Placed) {
        let progress = self.progress.lock();
        let plan = progress.plan.as_ref().unwrap_or(&self.distributed);
        (plan.clone(), progress.placed.clone())
    }

    /// Puts one around every [`DistributedExec`] of a plan. If the plan is one, `again` says how it is run again.
    pub(super) fn around(
        plan: Arc<dyn ExecutionPlan>,
        again: impl FnOnce() -> Result<Option<Again>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if plan.is::<DistributedExec>() {
            return Ok(Arc::new(Self::new(plan, again()?)));
        }
        let wrapped = plan.transform_down(|node| {
            if !node.is::<DistributedExec>() {
                return Ok(Transformed::no(node));
            }
            let node: Arc<dyn ExecutionPlan> = Arc::new(Self::new(node, None));
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

/// To everybody else it is a [`DistributedExec`].
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
        Ok(Arc::new(Self::new(distributed, None)))
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
            return internal_err!("a query on workers has one partition, and not {partition}");
        }
        let mut builder = RecordBatchReceiverStreamBuilder::new(self.schema(), 1);
        let rows = builder.tx();
        let (plan, again) = (self.distributed.clone(), self.again.clone());
        let progress = self.progress.clone();
        progress.lock().plan = None;
        builder.spawn(async move {
            match again {
                Some(again) => attempts(plan, again, context, progress, &rows).await,
                None => attempt(&plan, &context, &progress, &mut Held::none(), &rows).await,
            }
        });
        Ok(builder.build())
    }
}

type Rows = mpsc::Sender<Result<RecordBatch>>;

/// What is known of a query that runs.
#[derive(Debug, Default)]
pub(super) struct Progress {
    placed: Placed,
    /// What it runs, if that is not what was planned first.
    plan: Option<Arc<dyn ExecutionPlan>>,
}

/// Runs a query, and runs it again on the workers that answer when some were lost; all of it within its time limit.
async fn attempts(
    plan: Arc<dyn ExecutionPlan>,
    again: Again,
    context: Arc<TaskContext>,
    progress: Arc<Mutex<Progress>>,
    rows: &Rows,
) -> Result<()> {
    let settings = context.session_config().get_extension::<Settings>();
    let Some(limit) = settings.and_then(|settings| settings.timeout) else {
        return attempts_in_time(plan, again, &context, &progress, rows).await;
    };
    match timeout(limit, attempts_in_time(plan, again, &context, &progress, rows)).await {
        Ok(done) => done,
        Err(_elapsed) => {
            let what = format!("the query was ended after {limit:?}, its time limit");
            Err(DataFusionError::Execution(what))
        }
    }
}

async fn attempts_in_time(
    mut plan: Arc<dyn ExecutionPlan>,
    again: Again,
    first: &Arc<TaskContext>,
    progress: &Arc<Mutex<Progress>>,
    rows: &Rows,
) -> Result<()> {
    let mut context = first.clone();
    let mut left = again.planner.retries;
    let mut to_blame = Vec::new();
    loop {
        let mut held = match left {
            0 => Held::none(),
            _ => Held::up_to(HELD_BACK, &context),
        };
        let error = match attempt(&plan, &context, progress, &mut held, rows).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if left == 0 || !held.is_all() || !is_loss(&error) {
            return Err(error);
        }
        drop(held);
        left -= 1;
        to_blame.extend(blamed(&error));
        let workers = answering(first, &again.planner.connections, &to_blame).await?;
        if workers.is_empty() {
            return Err(error.context("no other worker answers"));
        }
        let mut session = again.session.as_ref().clone();
        session.config_mut().set_distributed_worker_resolver(workers.clone());
        plan = again.planner.plan(&again.query, &session).await?;
        progress.lock().plan = Some(plan.clone());
        context = with_config(first, |config| config.with_distributed_worker_resolver(workers));
    }
}

/// Runs a query once, to its end or until a worker is lost.
async fn attempt(
    plan: &Arc<dyn ExecutionPlan>,
    context: &TaskContext,
    progress: &Arc<Mutex<Progress>>,
    held: &mut Held,
    rows: &Rows,
) -> Result<()> {
    let (loss, mut lost) = mpsc::unbounded_channel();
    progress.lock().placed.clear();
    let watch = Arc::new(Watch { lost: loss, progress: progress.clone() });
    let context = with_config(context, |config| config.with_extension(watch));
    // One that is left to this process may have several partitions.
    let mut batches = execute_stream(plan.clone(), context)?;
    loop {
        let next = tokio::select! {
            biased;
            Some(error) = lost.recv() => return Err(DataFusionError::Shared(error)),
            next = batches.try_next() => match next {
                Err(error) if is_echo(&error) => {
                    let loss = timeout(2 * SILENCE, lost.recv()).await.ok().flatten();
                    return Err(loss.map_or(error, DataFusionError::Shared));
                }
                next => next?,
            },
        };
        let Some(batch) = next else { break };
        for batch in held.push(batch) {
            if rows.send(Ok(batch)).await.is_err() {
                return Ok(());
            }
        }
    }
    for batch in held.take() {
        if rows.send(Ok(batch)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Whether a worker has lost its connection to us, and another has heard that of it: so we shall lose it as well.
fn is_echo(error: &DataFusionError) -> bool {
    error.to_string().contains(UNWANTED)
}

/// Rows that nobody has seen yet.
struct Held {
    batches: Vec<RecordBatch>,
    bytes: usize,
    limit: usize,
    reservation: Option<MemoryReservation>,
}

impl Held {
    fn none() -> Self {
        Self { batches: Vec::new(), bytes: 0, limit: 0, reservation: None }
    }

    fn up_to(limit: usize, context: &TaskContext) -> Self {
        let reservation = MemoryConsumer::new("rows held back").register(context.memory_pool());
        Self { limit, reservation: Some(reservation), ..Self::none() }
    }

    /// Whether nothing went out.
    fn is_all(&self) -> bool {
        self.reservation.is_some()
    }

    /// Takes a batch, and gives what is to go out now.
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

/// The workers of a query that answer now, but for those because of which it failed.
async fn answering(
    context: &TaskContext,
    connections: &Connections,
    to_blame: &[String],
) -> Result<WorkerList> {
    let mut urls = get_distributed_worker_resolver(context.session_config())?.get_urls()?;
    urls.retain(|url| !to_blame.iter().any(|blamed| blamed == url.as_str()));
    let answers = join_all(urls.iter().map(|url| connections.check(url))).await;
    let answering = urls.iter().zip(answers).filter(|(_, answer)| answer.is_ok());
    Ok(WorkerList::from(answering.map(|(url, _)| url.clone()).collect::<Vec<_>>()))
}
