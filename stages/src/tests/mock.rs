//! Mock tasks and tables that record the calls they receive.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arrow::{
    array::{Int64Array, RecordBatch},
    datatypes::{DataType, Field, Schema},
};
use datafusion::{
    error::Result as PlanResult,
    physical_expr::expressions::Column,
    physical_plan::{ExecutionPlan, empty::EmptyExec, union::UnionExec},
};
use gatework_runtime::{
    Error, Result,
    pipeline::{Batch, BufferedBatch},
};
use gatework_shared_state::{
    BufferLimit, Gate, PopResult,
    output::{ExchangeClient, LocationId, OutputBuffer, OutputWriter},
    splits::{SplitLoad, SplitQueue},
};
use gatework_sql::splits::{Split, SplitSource, Splits};
use parking_lot::Mutex;

use crate::{
    ExchangeExec, ExchangeKind, ExecutionPolicy, FixedCountScheduler, Lifespan, NodeId,
    PartitioningHandle as Handle, PartitioningScheme, QueryScheduler, Scope,
    SourcePartitionedScheduler, SplitLimits, SplitScanExec, StageExecution, StageScheduler,
    StageTask, StateMachine, StepResult, SubPlan, TaskEvents, TaskFactory, TaskId, TaskSpec,
    TaskState, fragment_plan,
};

#[derive(Debug)]
pub(super) struct MockTask {
    id: TaskId,
    node: NodeId,
    state: StateMachine<TaskState>,
    error: Mutex<Option<Error>>,
    output: OutputBuffer<BufferedBatch>,
    writer: Mutex<Option<OutputWriter<BufferedBatch>>>,
    pub(super) queue: SplitQueue<Split>,
    groups: Mutex<BTreeMap<usize, SplitQueue<Split>>>,
    /// Recorded calls, in order.
    log: Mutex<Vec<String>>,
    events: Arc<TaskEvents>,
}

impl MockTask {
    pub(super) fn log(&self) -> Vec<String> {
        self.log.lock().clone()
    }

    fn record(&self, what: impl Into<String>) {
        self.log.lock().push(what.into());
    }

    fn end(&self, state: TaskState) {
        if self.state.compare_and_set(state, |_| true) {
            self.events.task_ended(self.id);
        }
    }

    /// Finishes the output, as after its last page was read.
    pub(super) fn finish(&self) {
        if let Some(writer) = self.writer.lock().take() {
            writer.finish();
        }
        self.output.destroy();
        self.end(TaskState::Finished);
    }

    pub(super) fn fail(&self, why: &str) {
        *self.error.lock() = Some(Error::operator(why.to_owned()));
        self.output.fail();
        self.end(TaskState::Failed);
    }

    fn queue_of(&self, lifespan: Lifespan) -> Option<SplitQueue<Split>> {
        match lifespan {
            Lifespan::Task => Some(self.queue.clone()),
            Lifespan::Group(group) => self.groups.lock().get(&group).cloned(),
        }
    }

    /// Ends a group.
    pub(super) fn end_group(&self, group: usize) {
        if let Some(queue) = self.groups.lock().remove(&group) {
            queue.close();
        }
        self.events.task_progressed();
    }

    /// Reads all splits of a group.
    pub(super) fn read_group(&self, group: usize) {
        if let Some(queue) = self.queue_of(Lifespan::Group(group)) {
            while let PopResult::Item(_) = queue.take() {}
        }
    }

    /// Reads at most `max` splits, and returns their number.
    pub(super) fn read_splits(&self, max: usize) -> usize {
        let mut read = 0;
        while read < max
            && let PopResult::Item(_) = self.queue.take()
        {
            read += 1;
        }
        read
    }
}

fn in_lifespan(lifespan: Lifespan) -> String {
    match lifespan {
        Lifespan::Task => String::new(),
        Lifespan::Group(group) => format!(" in group {group}"),
    }
}

impl StageTask for MockTask {
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
        self.error.lock().clone()
    }
    fn output(&self) -> &OutputBuffer<BufferedBatch> {
        &self.output
    }
    fn add_splits(&self, lifespan: Lifespan, table: usize, splits: Vec<Split>) {
        self.record(format!("{} splits of {table}{}", splits.len(), in_lifespan(lifespan)));
        let weighed = splits.into_iter().map(|split| {
            let weight = split.weight();
            (split, weight)
        });
        if let Some(queue) = self.queue_of(lifespan) {
            queue.add(weighed);
        }
    }
    fn set_no_more_splits(&self, lifespan: Lifespan, table: usize) {
        self.record(format!("no more splits of {table}{}", in_lifespan(lifespan)));
        if lifespan == Lifespan::Task {
            self.queue.set_no_more_splits();
        }
    }
    fn load(&self) -> SplitLoad {
        let groups = self.groups.lock();
        groups.values().chain([&self.queue]).map(SplitQueue::load).sum()
    }
    fn capacity_gate(&self, lifespan: Lifespan, _: usize) -> Option<Gate> {
        self.queue_of(lifespan).map(|queue| queue.capacity().clone())
    }
    fn start_lifespan(&self, group: usize) -> Result<()> {
        self.record(format!("group {group}"));
        self.groups
            .lock()
            .insert(group, SplitQueue::new("mock group", LIMITS.max_pending_splits_per_task));
        Ok(())
    }
    fn running_lifespans(&self) -> usize {
        self.groups.lock().len()
    }
    fn set_no_more_lifespans(&self) {
        self.record("no more groups");
    }
    fn add_location(
        &self,
        source: usize,
        id: LocationId,
        _: &OutputBuffer<BufferedBatch>,
    ) -> Result<()> {
        self.record(format!("source {source} reads {}.{}", id >> 32, id & 0xffff));
        Ok(())
    }
    fn set_no_more_locations(&self, source: usize) {
        self.record(format!("source {source} is complete"));
    }
    fn cancel(&self) {
        self.output.destroy();
        self.end(TaskState::Cancelled);
    }
    fn abort(&self) {
        self.output.fail();
        self.end(TaskState::Aborted);
    }
}

#[derive(Debug)]
pub(super) struct MockFactory {
    tasks: Mutex<Vec<Arc<MockTask>>>,
    max_queued: usize,
}

impl MockFactory {
    pub(super) fn new(max_queued: usize) -> Arc<Self> {
        Arc::new(Self { tasks: Mutex::default(), max_queued })
    }

    pub(super) fn tasks(&self) -> Vec<Arc<MockTask>> {
        self.tasks.lock().clone()
    }

    pub(super) fn tasks_of(&self, stage: usize) -> Vec<Arc<MockTask>> {
        self.tasks().into_iter().filter(|task| task.id.stage == stage).collect()
    }
}

impl TaskFactory for MockFactory {
    fn create(&self, spec: &TaskSpec<'_>, events: &Arc<TaskEvents>) -> Result<Arc<dyn StageTask>> {
        let budget = BufferLimit::new(1000);
        let (output, mut writers) =
            OutputBuffer::new("mock", spec.buffers.clone(), budget, 1).map_err(Error::operator)?;
        let task = Arc::new(MockTask {
            id: spec.id,
            node: spec.node,
            state: StateMachine::new("task", TaskState::Running),
            error: Mutex::default(),
            output,
            writer: Mutex::new(writers.pop()),
            queue: SplitQueue::new("mock", self.max_queued),
            groups: Mutex::default(),
            log: Mutex::default(),
            events: events.clone(),
        });
        self.tasks.lock().push(task.clone());
        Ok(task)
    }
}

/// Splits of these weights, some of which are blocked at first.
pub(super) struct MockSplits {
    pub(super) weights: VecDeque<u64>,
    /// Set ready by the test.
    pub(super) unknown: Option<Gate>,
    /// The `max` of each request.
    pub(super) requests: Arc<Mutex<Vec<usize>>>,
    pub(super) closed: Arc<AtomicBool>,
    pub(super) fails: bool,
}

impl MockSplits {
    pub(super) fn new(weights: impl IntoIterator<Item = u64>) -> Self {
        Self {
            weights: weights.into_iter().collect(),
            unknown: None,
            requests: Arc::default(),
            closed: Arc::default(),
            fails: false,
        }
    }
}

impl SplitSource for MockSplits {
    fn next(&mut self, max: usize) -> PlanResult<Splits> {
        assert!(!self.closed.load(Ordering::Relaxed), "requested after its end");
        if self.fails {
            return datafusion::common::exec_err!("the table was dropped");
        }
        self.requests.lock().push(max);
        if let Some(gate) = self.unknown.take_if(|gate| !gate.is_ready()) {
            self.unknown = Some(gate.clone());
            return Ok(Splits::Blocked(gate));
        }
        let count = max.min(self.weights.len());
        let splits = self.weights.drain(..count);
        let splits = splits.map(|weight| Split::empty().with_weight(weight)).collect();
        Ok(Splits::Batch(splits, self.weights.is_empty()))
    }

    fn close(&mut self) {
        assert!(!self.closed.swap(true, Ordering::Relaxed), "closed twice");
    }
}

fn rows() -> Arc<dyn ExecutionPlan> {
    let fields = vec![Field::new("k", DataType::Int64, true)];
    Arc::new(EmptyExec::new(Arc::new(Schema::new(fields))))
}

/// A table on `nodes` nodes.
pub(super) fn scan(nodes: usize) -> Arc<dyn ExecutionPlan> {
    Arc::new(SplitScanExec::new(rows(), nodes))
}

/// An exchange of `sources` to `partitions` tasks.
pub(super) fn send(
    handle: Handle,
    partitions: usize,
    sources: Vec<Arc<dyn ExecutionPlan>>,
) -> Arc<dyn ExecutionPlan> {
    let kind = match handle {
        Handle::Single => ExchangeKind::Gather,
        Handle::FixedBroadcast => ExchangeKind::Replicate,
        _ => ExchangeKind::Repartition,
    };
    let keys = match handle {
        Handle::FixedHash => vec![Arc::new(Column::new("k", 0)) as _],
        _ => Vec::new(),
    };
    let scheme = PartitioningScheme { handle, keys, partitions, ordering: None };
    Arc::new(ExchangeExec::try_new(Scope::Remote, kind, scheme, sources).unwrap())
}

/// All of `inputs` in one fragment.
pub(super) fn together(inputs: Vec<Arc<dyn ExecutionPlan>>) -> Arc<dyn ExecutionPlan> {
    UnionExec::try_new(inputs).unwrap()
}

/// `0: gathers, 1: by hash, 2: a table`.
pub(super) fn chain(nodes: usize) -> SubPlan {
    let hashed = send(Handle::FixedHash, nodes, vec![scan(nodes)]);
    fragmented(&send(Handle::Single, 1, vec![hashed]))
}

/// `0: gathers, 1: a table, and the broadcast of 2: another table`.
pub(super) fn broadcast(nodes: usize) -> SubPlan {
    let replicated = send(Handle::FixedBroadcast, nodes, vec![scan(nodes)]);
    fragmented(&send(Handle::Single, 1, vec![together(vec![replicated, scan(nodes)])]))
}

pub(super) fn fragmented(plan: &Arc<dyn ExecutionPlan>) -> SubPlan {
    fragment_plan(plan, 100).unwrap()
}

/// A query of mock tasks.
pub(super) struct Query {
    pub(super) scheduler: QueryScheduler,
    pub(super) factory: Arc<MockFactory>,
    pub(super) result: ExchangeClient<BufferedBatch>,
}

pub(super) const LIMITS: SplitLimits =
    SplitLimits { max_splits_per_node: 4, max_pending_splits_per_task: 2 };

impl Query {
    pub(super) fn new(
        plan: &SubPlan,
        policy: ExecutionPolicy,
        nodes: usize,
        mut splits_of: impl FnMut(usize) -> MockSplits,
    ) -> Self {
        let (factory, result) =
            (MockFactory::new(LIMITS.max_pending_splits_per_task), ExchangeClient::new("result"));
        let scheduler_of = |stage: &StageExecution| -> Result<Box<dyn StageScheduler>> {
            let fragment = stage.fragment();
            Ok(if !fragment.tables.is_empty() {
                let splits = Box::new(splits_of(fragment.id));
                Box::new(SourcePartitionedScheduler::new(splits, LIMITS))
            } else if fragment.partitioning == Handle::Single {
                Box::new(FixedCountScheduler::new(vec![0]))
            } else {
                Box::new(FixedCountScheduler::new((0..nodes).collect()))
            })
        };
        let made: Arc<dyn TaskFactory> = factory.clone();
        let scheduler =
            QueryScheduler::new(plan, policy, nodes, made, scheduler_of, result.clone()).unwrap();
        Self { scheduler, factory, result }
    }

    /// Steps until the scheduler is blocked or finished; returns whether it is finished.
    pub(super) fn run_until_blocked(&mut self) -> Result<bool> {
        loop {
            match self.scheduler.step()? {
                StepResult::Again => {}
                StepResult::Finished => return Ok(true),
                StepResult::Blocked(gates) => {
                    if !gates.iter().any(|gate| gate.is_ready()) {
                        return Ok(false);
                    }
                }
            }
        }
    }

    pub(super) fn states(&self) -> Vec<crate::StageState> {
        self.scheduler.stages().iter().map(StageExecution::state).collect()
    }
}

/// A page of `rows` rows of eight bytes.
fn page(rows: usize) -> BufferedBatch {
    let schema = Arc::new(Schema::new(vec![Field::new("k", DataType::Int64, true)]));
    let column = Arc::new(Int64Array::from(vec![1; rows]));
    Batch::new(RecordBatch::try_new(schema, vec![column]).unwrap()).into()
}

impl MockTask {
    /// Writes a page of `rows` rows.
    pub(super) fn write(&self, partition: usize, rows: usize) {
        let mut writer = self.writer.lock();
        let _answer = writer.as_mut().unwrap().push(partition, page(rows));
    }
}
