//! Tasks on executors of this process: each runs its fragment as a query of its own, whose rows go into its output.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Wake, Waker},
};

use datafusion::{
    common::{
        internal_datafusion_err, internal_err,
        tree_node::{Transformed, TreeNode},
    },
    error::Result as PlanResult,
    execution::TaskContext,
    physical_plan::{ExecutionPlan, sorts::sort::SortExec},
};
use gatework_operators::{
    Failure, OrFail,
    exchange_source::ExchangeSource,
    local_exchange::Routing,
    sort::{OrderedExchange, SortConfig},
    task_output::TaskOutput,
};
use gatework_runtime::{
    Error, Executor, Result,
    pipeline::{Held, Outside, QueryContext},
};
use gatework_shared_state::{
    Budget, Gate,
    output::{ExchangeClient, LocationId, Output, OutputKind, OutputWriter},
    splits::{SplitLoad, SplitQueue},
};
use gatework_sql::{
    RemoteFilters, SourceExec, run_into,
    splits::{Split, table_of_splits},
};
use parking_lot::Mutex;

use crate::{
    Inbox, Lifespan, NodeId, PartitioningHandle as Handle, PartitioningScheme, PlanFragment,
    RemoteSourceExec, SplitScanExec, StageTask, StateMachine, TaskFactory, TaskId, TaskSpec,
    TaskState, filters::JoinFilters, fragment::remote_sources,
};

/// The tasks of a query, for those who look on.
pub(crate) type Roster = Arc<Mutex<Vec<Arc<dyn StageTask>>>>;

/// Makes tasks on executors.
pub(crate) struct LocalTasks {
    pub(crate) nodes: Vec<Executor>,
    /// What tasks of all nodes have in common.
    pub(crate) setting: Arc<Setting>,
    /// All that were made.
    pub(crate) roster: Roster,
    /// As long as a task runs, the query that it is of, if it is of one, has not ended.
    pub(crate) presence: Box<dyn Fn() -> Option<Outside> + Send + Sync>,
}

/// What all tasks of a query know.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) context: Arc<TaskContext>,
    pub(crate) buffer_bytes: usize,
    pub(crate) queued_splits: usize,
    /// Brings runtime filters to the tables of a group.
    pub(crate) filters: Option<JoinFilters>,
}

impl TaskFactory for LocalTasks {
    fn create(&self, spec: &TaskSpec<'_>, inbox: &Arc<Inbox>) -> Result<Arc<dyn StageTask>> {
        let Some(executor) = self.nodes.get(spec.node) else {
            let most = self.nodes.len();
            return Err(Error::Setup(format!("a task on node {} of {most}", spec.node)));
        };
        let name = format!("stage {} task {}", spec.id.stage, spec.id.number);
        let budget = Budget::new(self.setting.buffer_bytes);
        let output = Output::new(&name, spec.buffers.clone(), budget, 1);
        let (output, mut writers) = output.map_err(Error::operator)?;
        let task = Arc::new_cyclic(|this| LocalTask {
            this: this.clone(),
            id: spec.id,
            node: spec.node,
            name,
            fragment: spec.fragment.clone(),
            kind: spec.buffers.kind(),
            executor: executor.clone(),
            setting: self.setting.clone(),
            output,
            lives: Mutex::new(Lives { writer: writers.pop(), ..Lives::default() }),
            state: StateMachine::new("task", TaskState::Running),
            presence: Mutex::new((self.presence)()),
            told: AtomicBool::new(false),
            inbox: inbox.clone(),
        });
        if !spec.fragment.grouped {
            // Nobody else knows of it yet, and would end it.
            task.begin(Lifespan::Task).inspect_err(|_| task.abort())?;
            task.no_more_groups();
        }
        self.roster.lock().push(task.clone());
        Ok(task)
    }
}

/// What a task runs: its fragment, with sources for the rows of other stages and queues of splits for tables.
fn plan_of(
    fragment: &PlanFragment,
    inputs: &Inputs,
    batch_rows: usize,
) -> PlanResult<Arc<dyn ExecutionPlan>> {
    let whole = fragment.root.clone().transform_up(|node| {
        if let Some(source) = node.downcast_ref::<RemoteSourceExec>() {
            return Ok(Transformed::yes(inputs.exchange(source, batch_rows)?));
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
        Handle::Single
        | Handle::Source
        | Handle::Buckets
        | Handle::FixedArbitrary
        | Handle::ScaledWriter => Routing::PassToOne,
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

    fn exchange(
        &self,
        exec: &RemoteSourceExec,
        batch_rows: usize,
    ) -> PlanResult<Arc<dyn ExecutionPlan>> {
        let found = self.exchanges.iter().find(|(fragments, _)| fragments == exec.fragments());
        let Some((_, client)) = found else {
            let fragments = exec.fragments();
            return Err(internal_datafusion_err!("stages {fragments:?} are read by nobody"));
        };
        let scheme = exec.scheme();
        if exec.is_merged()
            && let Some(ordering) = scheme.ordering.clone()
        {
            let config = SortConfig {
                ordering: ordering.clone(),
                fetch: None,
                schema: exec.schema(),
                batch_rows,
            };
            let source = OrderedExchange::new(client.clone(), config);
            let source = source.map_err(|error| Failure::to_datafusion(&error))?;
            let rows = SourceExec::in_order(Arc::new(source), exec.schema(), &ordering);
            return Ok(Arc::new(rows));
        }
        let source = ExchangeSource::new(client.clone(), exec.schema());
        let rows: Arc<dyn ExecutionPlan> =
            Arc::new(SourceExec::new(Arc::new(source), exec.schema()));
        Ok(match &scheme.ordering {
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

/// A task that runs: as one query, or as one after the other for its groups.
#[derive(Debug)]
struct LocalTask {
    this: Weak<Self>,
    id: TaskId,
    node: NodeId,
    name: String,
    fragment: PlanFragment,
    kind: OutputKind,
    executor: Executor,
    setting: Arc<Setting>,
    output: Output<Held>,
    lives: Mutex<Lives>,
    state: StateMachine<TaskState>,
    presence: Mutex<Option<Outside>>,
    told: AtomicBool,
    inbox: Arc<Inbox>,
}

/// A query of a task.
#[derive(Debug)]
struct Life {
    span: Lifespan,
    inputs: Inputs,
    query: Arc<QueryContext>,
}

#[derive(Debug, Default)]
struct Lives {
    running: Vec<Life>,
    /// The right to let others write; none, if there will be no others.
    writer: Option<OutputWriter<Held>>,
    /// Why one of them failed, the first.
    failure: Option<Error>,
    fallbacks: BTreeSet<String>,
}

impl LocalTask {
    /// Starts the query of a lifespan.
    fn begin(&self, span: Lifespan) -> Result<()> {
        let name = match span {
            Lifespan::Task => self.name.clone(),
            Lifespan::Group(group) => format!("{} group {group}", self.name),
        };
        let inputs = Inputs::new(&name, &self.fragment, self.setting.queued_splits);
        let context = &self.setting.context;
        let batch_rows = context.session_config().batch_size();
        let mut plan = plan_of(&self.fragment, &inputs, batch_rows).or_fail()?;
        if let (Lifespan::Group(_), Some(filters)) = (span, &self.setting.filters) {
            plan = filters.renew(plan).or_fail()?;
        }
        let scheme = &self.fragment.output;
        // What readers of other stages get has an order only if they merge it; the result has the plan's.
        let ordered = self.id.stage == 0 || scheme.is_merged();
        let running = run_into(plan, &self.executor, context, &name, ordered, |tasks| {
            let writers = match &self.lives.lock().writer {
                Some(writer) => (0..tasks).map(|_| writer.another()).collect(),
                None => return internal_err!("{name} begins after the end"),
            };
            let sink =
                TaskOutput::new(writers, self.kind, routing(scheme), partitions(scheme, self.kind));
            Ok(Arc::new(sink.map_err(|error| internal_datafusion_err!("{error}"))?))
        });
        let mut lives = self.lives.lock();
        let over = lives.writer.is_none();
        let query = match running {
            Ok(running) => running.query().clone(),
            // It has an end already, and that has a cause.
            Err(_) if over => return Ok(()),
            Err(error) => return Err(error).or_fail(),
        };
        lives.running.push(Life { span, inputs, query: query.clone() });
        drop(lives);
        if over {
            query.cancel();
        }
        if let Some(task) = self.this.upgrade() {
            Arc::new(Watch { task, query: Some(query) }).look();
        }
        Ok(())
    }

    /// What `ask` answers for the inputs of a lifespan that is not over.
    fn of<R>(&self, span: Lifespan, ask: impl FnOnce(&Inputs) -> R) -> Option<R> {
        let lives = self.lives.lock();
        lives.running.iter().find(|life| life.span == span).map(|life| ask(&life.inputs))
    }

    /// `query` has ended.
    fn ended(&self, query: &Arc<QueryContext>) {
        let mut lives = self.lives.lock();
        let found = lives.running.iter().position(|life| Arc::ptr_eq(&life.query, query));
        let Some(life) = found.map(|place| lives.running.swap_remove(place)) else { return };
        lives.fallbacks.extend(query.profile().fallbacks);
        let failure = query.error();
        let failed = failure.is_some();
        lives.failure = lives.failure.take().or(failure);
        // From here on nothing begins.
        let writer = if failed { lives.writer.take() } else { None };
        drop(lives);
        drop(writer);
        life.inputs.tables.iter().for_each(SplitQueue::close);
        let filters = self.setting.context.session_config().get_extension::<RemoteFilters>();
        if let Some(filters) = filters {
            filters.ended(self.id.stage, query.id());
        }
        if failed {
            self.end_all();
        }
        self.inbox.stirred();
    }

    /// Nothing else begins, and what runs is cancelled.
    fn end_all(&self) {
        let mut lives = self.lives.lock();
        let (writer, queries) = (lives.writer.take(), lives.queries());
        drop(lives);
        // Dropped like this, it fails the output, unless that has another end.
        drop(writer);
        queries.iter().for_each(|query| query.cancel());
    }

    /// Looks whether all is over.
    fn look(&self) {
        if let Some(task) = self.this.upgrade() {
            Arc::new(Watch { task, query: None }).look();
        }
    }

    /// Whether nothing of it runs any more or ever will; and, if so, whether it has failed.
    fn is_over(&self) -> Option<bool> {
        let lives = self.lives.lock();
        let over = lives.running.is_empty() && lives.writer.is_none();
        over.then(|| lives.failure.is_some())
    }
}

impl Lives {
    fn queries(&self) -> Vec<Arc<QueryContext>> {
        self.running.iter().map(|life| life.query.clone()).collect()
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
        let lives = self.lives.lock();
        let of_running = || lives.running.iter().find_map(|life| life.query.error());
        let error = lives.failure.clone().or_else(of_running)?;
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
        let queries = self.lives.lock().queries();
        let queries: String = queries.iter().map(|query| query.dump()).collect();
        format!("task {} on node {}, {:?}: {queries}", self.id, self.node, self.output)
    }

    fn fallbacks(&self) -> Vec<String> {
        let lives = self.lives.lock();
        let mut all = lives.fallbacks.clone();
        all.extend(lives.running.iter().flat_map(|life| life.query.profile().fallbacks));
        all.into_iter().collect()
    }

    fn output(&self) -> &Output<Held> {
        &self.output
    }

    fn add_splits(&self, lifespan: Lifespan, table: usize, splits: Vec<Split>) {
        let weighed = splits.into_iter().map(|split| {
            let weight = split.weight();
            (split, weight)
        });
        self.of(lifespan, |inputs| inputs.tables[table].add(weighed));
    }

    fn no_more_splits(&self, lifespan: Lifespan, table: usize) {
        self.of(lifespan, |inputs| inputs.tables[table].no_more());
    }

    fn load(&self) -> SplitLoad {
        let lives = self.lives.lock();
        lives.running.iter().flat_map(|life| &life.inputs.tables).map(SplitQueue::load).sum()
    }

    fn room(&self, lifespan: Lifespan, table: usize) -> Option<Gate> {
        self.of(lifespan, |inputs| inputs.tables.get(table).map(|queue| queue.room().clone()))?
    }

    fn begin_group(&self, group: usize) -> Result<()> {
        match self.state.get() {
            TaskState::Running if !self.output.state().is_final() => {
                self.begin(Lifespan::Group(group))
            }
            // Nobody wants it.
            _ => Ok(()),
        }
    }

    fn running_groups(&self) -> usize {
        self.lives.lock().running.len()
    }

    fn no_more_groups(&self) {
        let writer = self.lives.lock().writer.take();
        if let Some(writer) = writer {
            writer.finish();
        }
        self.look();
    }

    fn add_location(&self, source: usize, id: LocationId, output: &Output<Held>) -> Result<()> {
        let buffer = self.id.number;
        let client = self.of(Lifespan::Task, |inputs| inputs.exchanges[source].1.clone());
        let Some(client) = client else {
            // One that has ended reads nothing, and who writes for it is not to wait for that.
            output.abort(buffer);
            return Ok(());
        };
        client.add(id, output.clone(), buffer).map_err(Error::operator)
    }

    fn no_more_locations(&self, source: usize) {
        if let Some(client) = self.of(Lifespan::Task, |inputs| inputs.exchanges[source].1.clone()) {
            client.no_more();
        }
    }

    fn cancel(&self) {
        if self.state.set_if(TaskState::Cancelled, |_| true) {
            self.output.destroy();
            self.end_all();
            self.look();
        }
    }

    fn abort(&self) {
        if self.state.set_if(TaskState::Aborted, |_| true) {
            self.output.fail();
            self.end_all();
            self.look();
        }
    }
}

/// Woken when a query of a task has ended, and again when the task's output has.
struct Watch {
    task: Arc<LocalTask>,
    query: Option<Arc<QueryContext>>,
}

impl Watch {
    fn look(self: Arc<Self>) {
        let waker = Waker::from(self.clone());
        let task = &self.task;
        if let Some(query) = &self.query {
            if !query.idle().poll_ready(&waker) {
                return;
            }
            task.ended(query);
        }
        let Some(failed) = task.is_over() else { return };
        drop(task.presence.lock().take());
        // What failed is not read to its end.
        if !failed && !task.output.ended().poll_ready(&waker) {
            return;
        }
        let end = if failed { TaskState::Failed } else { TaskState::Finished };
        // One that was ended by its scheduler has its end.
        task.state.set_if(end, |_| true);
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
