//! Tasks on executors of this process: each runs its fragment as a query of its own, whose rows go into its output.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Wake, Waker},
};

use datafusion::{
    common::{
        internal_datafusion_err,
        tree_node::{Transformed, TreeNode},
    },
    error::Result as PlanResult,
    execution::TaskContext,
    physical_plan::{ExecutionPlan, sorts::sort::SortExec},
};
use gatework_operators::{
    OrFail, exchange_source::ExchangeSource, local_exchange::Routing, task_output::TaskOutput,
};
use gatework_runtime::{
    Error, Executor, Result,
    pipeline::{Held, Outside, QueryContext},
};
use gatework_shared_state::{
    Budget, Gate,
    output::{ExchangeClient, LocationId, Output, OutputKind},
    splits::{SplitLoad, SplitQueue},
};
use gatework_sql::{
    RemoteFilters, SourceExec, run_into,
    splits::{Split, table_of_splits},
};
use parking_lot::Mutex;

use crate::{
    Inbox, NodeId, PartitioningHandle as Handle, PartitioningScheme, PlanFragment,
    RemoteSourceExec, SplitScanExec, StageTask, StateMachine, TaskFactory, TaskId, TaskSpec,
    TaskState, fragment::remote_sources,
};

/// The tasks of a query, for those who look on.
pub(crate) type Roster = Arc<Mutex<Vec<Arc<dyn StageTask>>>>;

/// Makes tasks on executors.
pub(crate) struct LocalTasks {
    pub(crate) nodes: Vec<Executor>,
    pub(crate) context: Arc<TaskContext>,
    pub(crate) buffer_bytes: usize,
    pub(crate) queued_splits: usize,
    /// All that were made.
    pub(crate) roster: Roster,
    /// As long as a task runs, its query has not ended.
    pub(crate) presence: Box<dyn Fn() -> Outside + Send + Sync>,
}

impl TaskFactory for LocalTasks {
    fn create(&self, spec: &TaskSpec<'_>, inbox: &Arc<Inbox>) -> Result<Arc<dyn StageTask>> {
        let Some(executor) = self.nodes.get(spec.node) else {
            let most = self.nodes.len();
            return Err(Error::Setup(format!("a task on node {} of {most}", spec.node)));
        };
        let name = format!("stage {} task {}", spec.id.stage, spec.id.number);
        let inputs = Inputs::new(&name, spec.fragment, self.queued_splits);
        let plan = plan_of(spec.fragment, &inputs).or_fail()?;
        let mut output = None;
        // What readers of other stages get has an order only if they merge it; the result has the plan's.
        let ordered = spec.id.stage == 0;
        let running = run_into(plan, executor, &self.context, &name, ordered, |tasks| {
            let budget = Budget::new(self.buffer_bytes);
            let (made, writers) = Output::new(&name, spec.buffers.clone(), budget, tasks)
                .map_err(|misuse| internal_datafusion_err!("{misuse}"))?;
            output = Some(made);
            let scheme = &spec.fragment.output;
            let (kind, routing) = (spec.buffers.kind(), routing(scheme));
            let sink = TaskOutput::new(writers, kind, routing, partitions(scheme, kind))
                .map_err(|error| internal_datafusion_err!("{error}"))?;
            Ok(Arc::new(sink))
        })
        .or_fail()?;
        let Some(output) = output else {
            return Err(Error::Setup(format!("{name} has no output")));
        };
        let task = Arc::new(LocalTask {
            id: spec.id,
            node: spec.node,
            inputs,
            output,
            filters: self.context.session_config().get_extension(),
            query: running.query().clone(),
            state: StateMachine::new("task", TaskState::Running),
            presence: Mutex::new(Some((self.presence)())),
            told: AtomicBool::new(false),
            inbox: inbox.clone(),
        });
        self.roster.lock().push(task.clone());
        Arc::new(Watch(task.clone())).look();
        Ok(task)
    }
}

/// What a task runs: its fragment, with sources for the rows of other stages and queues of splits for tables.
fn plan_of(fragment: &PlanFragment, inputs: &Inputs) -> PlanResult<Arc<dyn ExecutionPlan>> {
    let whole = fragment.root.clone().transform_up(|node| {
        if let Some(source) = node.downcast_ref::<RemoteSourceExec>() {
            return Ok(Transformed::yes(inputs.exchange(source)?));
        }
        if let Some(scan) = node.downcast_ref::<SplitScanExec>() {
            return Ok(Transformed::yes(inputs.table(fragment, scan)?));
        }
        Ok(Transformed::no(node))
    })?;
    Ok(whole.data)
}

fn routing(scheme: &PartitioningScheme) -> Routing {
    match scheme.handle {
        Handle::FixedHash => Routing::Hash(scheme.keys.clone()),
        Handle::FixedBroadcast => Routing::Broadcast,
        Handle::Single | Handle::Source | Handle::FixedArbitrary | Handle::ScaledWriter => {
            Routing::PassToOne
        }
    }
}

fn partitions(scheme: &PartitioningScheme, kind: OutputKind) -> usize {
    if kind == OutputKind::Partitioned { scheme.partitions.max(1) } else { 1 }
}

/// Where a task's rows come from.
#[derive(Debug)]
struct Inputs {
    /// One for each remote source, in the order of the plan.
    exchanges: Vec<(Vec<usize>, ExchangeClient<Held>)>,
    /// One for each table of the fragment.
    tables: Vec<SplitQueue<Split>>,
}

impl Inputs {
    fn new(name: &str, fragment: &PlanFragment, queued_splits: usize) -> Self {
        let mut sources = Vec::new();
        remote_sources(&fragment.root, &mut sources);
        let exchange =
            |source: &RemoteSourceExec| (source.fragments().to_vec(), ExchangeClient::new(name));
        let tables = fragment.tables.iter();
        Self {
            exchanges: sources.into_iter().map(exchange).collect(),
            tables: tables.map(|_| SplitQueue::new(name, queued_splits)).collect(),
        }
    }

    fn exchange(&self, exec: &RemoteSourceExec) -> PlanResult<Arc<dyn ExecutionPlan>> {
        let found = self.exchanges.iter().find(|(fragments, _)| fragments == exec.fragments());
        let Some((_, client)) = found else {
            let fragments = exec.fragments();
            return Err(internal_datafusion_err!("stages {fragments:?} are read by nobody"));
        };
        let source = ExchangeSource::new(client.clone(), exec.schema());
        let rows: Arc<dyn ExecutionPlan> =
            Arc::new(SourceExec::new(Arc::new(source), exec.schema()));
        Ok(match &exec.scheme().ordering {
            Some(ordering) => Arc::new(SortExec::new(ordering.clone(), rows)),
            None => rows,
        })
    }

    fn table(
        &self,
        fragment: &PlanFragment,
        scan: &SplitScanExec,
    ) -> PlanResult<Arc<dyn ExecutionPlan>> {
        let mut tables = fragment.tables.iter().zip(&self.tables);
        match tables.find(|(table, _)| Arc::ptr_eq(table, scan.table())) {
            Some((table, queue)) => table_of_splits(table, queue.clone()),
            None => Err(internal_datafusion_err!("a table that its fragment does not know")),
        }
    }
}

/// A task that runs.
#[derive(Debug)]
struct LocalTask {
    id: TaskId,
    node: NodeId,
    inputs: Inputs,
    output: Output<Held>,
    filters: Option<Arc<RemoteFilters>>,
    query: Arc<QueryContext>,
    state: StateMachine<TaskState>,
    presence: Mutex<Option<Outside>>,
    told: AtomicBool,
    inbox: Arc<Inbox>,
}

impl LocalTask {
    /// What it has come to, if its query has ended and its output has been read.
    fn end(&self) {
        let failed = self.query.error().is_some();
        let end = if failed { TaskState::Failed } else { TaskState::Finished };
        // One that was ended by its scheduler has its end.
        self.state.set_if(end, |_| true);
    }

    /// Nothing of it runs any more.
    fn leave(&self) {
        self.inputs.tables.iter().for_each(SplitQueue::close);
        if let Some(filters) = &self.filters {
            filters.ended(self.id.stage, self.query.id());
        }
        drop(self.presence.lock().take());
    }
}

impl StageTask for LocalTask {
    fn id(&self) -> TaskId {
        self.id
    }

    fn node(&self) -> NodeId {
        self.node
    }

    fn state(&self) -> TaskState {
        self.state.get()
    }

    fn error(&self) -> Option<Error> {
        let error = self.query.error()?;
        let cancelled = matches!(error, Error::Cancelled { .. });
        match self.state.get() {
            // Not by its scheduler: it is a failure like others.
            TaskState::Running | TaskState::Failed if cancelled => {
                Some(Error::operator(format!("task {} of a stage: {error}", self.id)))
            }
            _ => Some(error),
        }
    }

    fn dump(&self) -> String {
        format!("task {} on node {}, {:?}: {}", self.id, self.node, self.output, self.query.dump())
    }

    fn fallbacks(&self) -> Vec<String> {
        self.query.profile().fallbacks
    }

    fn output(&self) -> &Output<Held> {
        &self.output
    }

    fn add_splits(&self, table: usize, splits: Vec<Split>) {
        let weighed = splits.into_iter().map(|split| {
            let weight = split.weight();
            (split, weight)
        });
        self.inputs.tables[table].add(weighed);
    }

    fn no_more_splits(&self, table: usize) {
        self.inputs.tables[table].no_more();
    }

    fn load(&self) -> SplitLoad {
        self.inputs.tables.iter().map(SplitQueue::load).sum()
    }

    fn room(&self) -> Gate {
        match self.inputs.tables.first() {
            Some(queue) => queue.room().clone(),
            None => self.output.ended().clone(),
        }
    }

    fn add_location(&self, source: usize, id: LocationId, output: &Output<Held>) -> Result<()> {
        let (_, client) = &self.inputs.exchanges[source];
        let buffer = self.id.number;
        client.add(id, output.clone(), buffer).map_err(Error::operator)
    }

    fn no_more_locations(&self, source: usize) {
        self.inputs.exchanges[source].1.no_more();
    }

    fn cancel(&self) {
        if self.state.set_if(TaskState::Cancelled, |_| true) {
            self.output.destroy();
            self.query.cancel();
        }
    }

    fn abort(&self) {
        if self.state.set_if(TaskState::Aborted, |_| true) {
            self.output.fail();
            self.query.cancel();
        }
    }
}

/// Woken when a task's query has ended, and again when its output has.
struct Watch(Arc<LocalTask>);

impl Watch {
    fn look(self: Arc<Self>) {
        let waker = Waker::from(self.clone());
        let task = &self.0;
        if !task.query.idle().poll_ready(&waker) {
            return;
        }
        task.leave();
        // What failed is not read to its end.
        let failed = task.query.error().is_some();
        if !failed && !task.output.ended().poll_ready(&waker) {
            return;
        }
        task.end();
        // Relaxed: the swap alone decides who tells.
        if !task.told.swap(true, Ordering::Relaxed) {
            task.inbox.ended(task.id);
        }
    }
}

impl Wake for Watch {
    fn wake(self: Arc<Self>) {
        self.look();
    }
}
