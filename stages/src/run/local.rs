//! Tasks on executors of this process: each task runs its fragment as a query that writes into the
//! task's output.

mod inputs;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Wake, Waker},
};

use datafusion::{
    common::{internal_datafusion_err, internal_err},
    execution::TaskContext,
};
use gatework_operators::{ResultExt, local_exchange::Routing, task_output::TaskOutputSink};
use gatework_runtime::{
    Error, Executor, Result,
    pipeline::{BufferedBatch, ExternalWork, QueryContext},
};
use gatework_shared_state::{
    BufferLimit, Gate,
    output::{LocationId, OutputBuffer, OutputKind, OutputWriter},
    splits::{SplitLoad, SplitQueue},
};
use gatework_sql::{RemoteRuntimeFilters, run_plan_into_sink, splits::Split};
use parking_lot::Mutex;

use crate::{
    Lifespan, NodeId, PartitioningHandle as Handle, PartitioningScheme, PlanFragment, StageTask,
    StateMachine, TaskEvents, TaskFactory, TaskId, TaskSpec, TaskState, run::filters::JoinFilters,
};
use inputs::{Inputs, task_plan};

/// The tasks of a query, for observers.
pub(crate) type TaskList = Arc<Mutex<Vec<Arc<dyn StageTask>>>>;

/// Creates tasks on executors.
pub(crate) struct LocalTaskFactory {
    pub(crate) nodes: Vec<Executor>,
    /// Environment that tasks of all nodes share.
    pub(crate) environment: Arc<TaskEnvironment>,
    /// All tasks created so far.
    pub(crate) tasks: TaskList,
    /// Returns a guard that keeps the surrounding query, if there is one, running as long as a task
    /// runs.
    pub(crate) external_work: Box<dyn Fn() -> Option<ExternalWork> + Send + Sync>,
}

/// Environment of all tasks of a query.
#[derive(Debug)]
pub(crate) struct TaskEnvironment {
    pub(crate) context: Arc<TaskContext>,
    pub(crate) output_buffer_bytes: usize,
    pub(crate) max_queued_splits: usize,
    /// Pushes runtime filters to the tables of a group.
    pub(crate) filters: Option<JoinFilters>,
}

impl TaskFactory for LocalTaskFactory {
    fn create(&self, spec: &TaskSpec<'_>, events: &Arc<TaskEvents>) -> Result<Arc<dyn StageTask>> {
        let Some(executor) = self.nodes.get(spec.node) else {
            let num_nodes = self.nodes.len();
            return Err(Error::InvalidConfiguration(format!(
                "a task is on node {}, but there are {num_nodes} nodes",
                spec.node
            )));
        };
        let name = format!("stage {} task {}", spec.id.stage, spec.id.index);
        let budget = BufferLimit::new(self.environment.output_buffer_bytes);
        let output = OutputBuffer::new(&name, spec.buffers.clone(), budget, 1);
        let (output, mut writers) = output.map_err(Error::operator)?;
        let task = Arc::new_cyclic(|this| LocalTask {
            this: this.clone(),
            id: spec.id,
            node: spec.node,
            name,
            fragment: spec.fragment.clone(),
            kind: spec.buffers.kind(),
            executor: executor.clone(),
            environment: self.environment.clone(),
            output,
            lifespans: Mutex::new(Lifespans { writer: writers.pop(), ..Lifespans::default() }),
            state: StateMachine::new("task", TaskState::Running),
            external_work: Mutex::new((self.external_work)()),
            end_notified: AtomicBool::new(false),
            events: events.clone(),
        });
        if !spec.fragment.grouped_execution {
            // The task is not registered yet, so only this code can end it.
            task.start_query(Lifespan::Task).inspect_err(|_| task.abort())?;
            task.set_no_more_lifespans();
        }
        self.tasks.lock().push(task.clone());
        Ok(task)
    }
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

/// A running task: one query, or in grouped execution one query per lifespan.
#[derive(Debug)]
struct LocalTask {
    this: Weak<Self>,
    id: TaskId,
    node: NodeId,
    name: String,
    fragment: PlanFragment,
    kind: OutputKind,
    executor: Executor,
    environment: Arc<TaskEnvironment>,
    output: OutputBuffer<BufferedBatch>,
    lifespans: Mutex<Lifespans>,
    state: StateMachine<TaskState>,
    external_work: Mutex<Option<ExternalWork>>,
    end_notified: AtomicBool,
    events: Arc<TaskEvents>,
}

/// A query of a task.
#[derive(Debug)]
struct LifespanQuery {
    span: Lifespan,
    inputs: Inputs,
    query: Arc<QueryContext>,
}

#[derive(Debug, Default)]
struct Lifespans {
    running: Vec<LifespanQuery>,
    /// Creates the writers of new queries; none once no more queries can start.
    writer: Option<OutputWriter<BufferedBatch>>,
    /// Error of the first failed query.
    failure: Option<Error>,
    fallbacks: BTreeSet<String>,
}

impl LocalTask {
    /// Starts the query of a lifespan.
    fn start_query(&self, span: Lifespan) -> Result<()> {
        let name = match span {
            Lifespan::Task => self.name.clone(),
            Lifespan::Group(group) => format!("{} group {group}", self.name),
        };
        let inputs = Inputs::new(&name, &self.fragment, self.environment.max_queued_splits);
        let context = &self.environment.context;
        let batch_rows = context.session_config().batch_size();
        let mut plan = task_plan(&self.fragment, &inputs, batch_rows).query_err()?;
        if let (Lifespan::Group(_), Some(filters)) = (span, &self.environment.filters) {
            plan = filters.renew(plan).query_err()?;
        }
        let scheme = &self.fragment.output;
        // Readers see an order only if they merge it; the result has the plan's order.
        let ordered = self.id.stage == 0 || scheme.is_merged();
        let running = run_plan_into_sink(plan, &self.executor, context, &name, ordered, |tasks| {
            let writers = match &self.lifespans.lock().writer {
                Some(writer) => (0..tasks).map(|_| writer.add_writer()).collect(),
                None => return internal_err!("{name} starts after its task has ended"),
            };
            let sink = TaskOutputSink::new(
                writers,
                self.kind,
                routing(scheme),
                partitions(scheme, self.kind),
            );
            Ok(Arc::new(sink.map_err(|error| internal_datafusion_err!("{error}"))?))
        });
        let mut lifespans = self.lifespans.lock();
        let ended = lifespans.writer.is_none();
        let query = match running {
            Ok(running) => running.query().clone(),
            // The task has ended already, with a cause of its own.
            Err(_) if ended => return Ok(()),
            Err(error) => return Err(error).query_err(),
        };
        lifespans.running.push(LifespanQuery { span, inputs, query: query.clone() });
        drop(lifespans);
        if ended {
            query.cancel();
        }
        if let Some(task) = self.this.upgrade() {
            Arc::new(EndWatcher { task, query: Some(query) }).check_finished();
        }
        Ok(())
    }

    /// Calls `f` with the inputs of a lifespan; none if the lifespan has ended.
    fn with_inputs<R>(&self, span: Lifespan, f: impl FnOnce(&Inputs) -> R) -> Option<R> {
        let lifespans = self.lifespans.lock();
        lifespans
            .running
            .iter()
            .find(|lifespan| lifespan.span == span)
            .map(|lifespan| f(&lifespan.inputs))
    }

    /// Removes a query that has ended.
    fn query_ended(&self, query: &Arc<QueryContext>) {
        let mut lifespans = self.lifespans.lock();
        let found =
            lifespans.running.iter().position(|lifespan| Arc::ptr_eq(&lifespan.query, query));
        let Some(lifespan) = found.map(|index| lifespans.running.swap_remove(index)) else {
            return;
        };
        lifespans.fallbacks.extend(query.profile().fallbacks);
        let failure = query.error();
        let failed = failure.is_some();
        lifespans.failure = lifespans.failure.take().or(failure);
        // After a failure no further query starts.
        let writer = if failed { lifespans.writer.take() } else { None };
        drop(lifespans);
        drop(writer);
        lifespan.inputs.tables.iter().for_each(SplitQueue::close);
        let filters =
            self.environment.context.session_config().get_extension::<RemoteRuntimeFilters>();
        if let Some(filters) = filters {
            filters.task_ended(self.id.stage, query.id());
        }
        if failed {
            self.cancel_all();
        }
        self.events.task_progressed();
    }

    /// Starts no further query, and cancels the running ones.
    fn cancel_all(&self) {
        let mut lifespans = self.lifespans.lock();
        let (writer, queries) = (lifespans.writer.take(), lifespans.queries());
        drop(lifespans);
        // Dropping the writer fails the output, unless the output has ended otherwise.
        drop(writer);
        queries.iter().for_each(|query| query.cancel());
    }

    /// Checks whether the task has ended.
    fn check_finished(&self) {
        if let Some(task) = self.this.upgrade() {
            Arc::new(EndWatcher { task, query: None }).check_finished();
        }
    }

    /// Whether the task has failed, once no query runs and none can start; none before.
    fn final_outcome(&self) -> Option<bool> {
        let lifespans = self.lifespans.lock();
        let finished = lifespans.running.is_empty() && lifespans.writer.is_none();
        finished.then(|| lifespans.failure.is_some())
    }
}

impl Lifespans {
    fn queries(&self) -> Vec<Arc<QueryContext>> {
        self.running.iter().map(|lifespan| lifespan.query.clone()).collect()
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
        let lifespans = self.lifespans.lock();
        let of_running = || lifespans.running.iter().find_map(|lifespan| lifespan.query.error());
        let error = lifespans.failure.clone().or_else(of_running)?;
        let cancelled = matches!(error, Error::Cancelled { .. });
        match self.state.get() {
            // The task was not cancelled by its scheduler, so the cancellation is a failure.
            TaskState::Running | TaskState::Failed if cancelled => {
                Some(Error::operator(format!("task {} of a stage: {error}", self.id)))
            }
            _ => Some(error),
        }
    }

    fn dump(&self) -> String {
        let queries = self.lifespans.lock().queries();
        let queries: String = queries.iter().map(|query| query.dump()).collect();
        format!("task {} on node {}, {:?}: {queries}", self.id, self.node, self.output)
    }

    fn fallbacks(&self) -> Vec<String> {
        let lifespans = self.lifespans.lock();
        let mut all = lifespans.fallbacks.clone();
        all.extend(
            lifespans.running.iter().flat_map(|lifespan| lifespan.query.profile().fallbacks),
        );
        all.into_iter().collect()
    }

    fn output(&self) -> &OutputBuffer<BufferedBatch> {
        &self.output
    }

    fn add_splits(&self, lifespan: Lifespan, table: usize, splits: Vec<Split>) {
        let weighed = splits.into_iter().map(|split| {
            let weight = split.weight();
            (split, weight)
        });
        self.with_inputs(lifespan, |inputs| inputs.tables[table].add(weighed));
    }

    fn set_no_more_splits(&self, lifespan: Lifespan, table: usize) {
        self.with_inputs(lifespan, |inputs| inputs.tables[table].set_no_more_splits());
    }

    fn load(&self) -> SplitLoad {
        let lifespans = self.lifespans.lock();
        lifespans
            .running
            .iter()
            .flat_map(|lifespan| &lifespan.inputs.tables)
            .map(SplitQueue::load)
            .sum()
    }

    fn capacity_gate(&self, lifespan: Lifespan, table: usize) -> Option<Gate> {
        self.with_inputs(lifespan, |inputs| {
            inputs.tables.get(table).map(|queue| queue.capacity().clone())
        })?
    }

    fn start_lifespan(&self, group: usize) -> Result<()> {
        match self.state.get() {
            TaskState::Running if !self.output.state().is_final() => {
                self.start_query(Lifespan::Group(group))
            }
            // The output has no reader left.
            _ => Ok(()),
        }
    }

    fn running_lifespans(&self) -> usize {
        self.lifespans.lock().running.len()
    }

    fn set_no_more_lifespans(&self) {
        let writer = self.lifespans.lock().writer.take();
        if let Some(writer) = writer {
            writer.finish();
        }
        self.check_finished();
    }

    fn add_location(
        &self,
        source: usize,
        id: LocationId,
        output: &OutputBuffer<BufferedBatch>,
    ) -> Result<()> {
        let buffer = self.id.index;
        let client = self.with_inputs(Lifespan::Task, |inputs| inputs.exchanges[source].1.clone());
        let Some(client) = client else {
            // A lifespan that has ended reads nothing; its producer must not wait for it.
            output.abort(buffer);
            return Ok(());
        };
        client.add_location(id, output.clone(), buffer).map_err(Error::operator)
    }

    fn set_no_more_locations(&self, source: usize) {
        if let Some(client) =
            self.with_inputs(Lifespan::Task, |inputs| inputs.exchanges[source].1.clone())
        {
            client.set_no_more_locations();
        }
    }

    fn cancel(&self) {
        if self.state.compare_and_set(TaskState::Cancelled, |_| true) {
            self.output.destroy();
            self.cancel_all();
            self.check_finished();
        }
    }

    fn abort(&self) {
        if self.state.compare_and_set(TaskState::Aborted, |_| true) {
            self.output.fail();
            self.cancel_all();
            self.check_finished();
        }
    }
}

/// Woken when a query of a task has ended, and again when the task's output has.
struct EndWatcher {
    task: Arc<LocalTask>,
    query: Option<Arc<QueryContext>>,
}

impl EndWatcher {
    fn check_finished(self: Arc<Self>) {
        let waker = Waker::from(self.clone());
        let task = &self.task;
        if let Some(query) = &self.query {
            if !query.idle().poll_ready(&waker) {
                return;
            }
            task.query_ended(query);
        }
        let Some(failed) = task.final_outcome() else { return };
        drop(task.external_work.lock().take());
        // The output of a failed task is not read to its end.
        if !failed && !task.output.finished_gate().poll_ready(&waker) {
            return;
        }
        let end = if failed { TaskState::Failed } else { TaskState::Finished };
        // A task that its scheduler ended keeps that state.
        task.state.compare_and_set(end, |_| true);
        // Relaxed: only the swap's result decides which thread notifies.
        if !task.end_notified.swap(true, Ordering::Relaxed) {
            task.events.task_ended(task.id);
        }
    }
}

impl Wake for EndWatcher {
    fn wake(self: Arc<Self>) {
        self.check_finished();
    }
}
