//! The scheduler's interface to a stage's tasks.

use std::{collections::VecDeque, fmt, sync::Arc};

use gatework_runtime::{Error, Result, pipeline::BufferedBatch};
use gatework_shared_state::{
    Dependency, DependencyKind, Gate, StateLock,
    output::{LocationId, OutputBuffer, OutputBuffers},
    splits::SplitLoad,
};
use gatework_sql::splits::Split;

use crate::{FragmentId, PlanFragment, TaskState};

/// Number of a node.
pub type NodeId = usize;

/// Identity of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId {
    /// The stage, by its fragment.
    pub stage: FragmentId,
    /// Index in the stage: the task reads the buffers of this number.
    pub index: usize,
}

impl TaskId {
    /// Location of the task's output, for its readers.
    pub(crate) fn location(self) -> LocationId {
        (self.stage as u64) << 32 | self.index as u64
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.stage, self.index)
    }
}

/// How long splits are read together: for the whole task, or for one of its groups. Each group has
/// its own pipelines and hash tables. (Presto's term.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lifespan {
    /// The whole task.
    Task,
    /// The bucket of this number, of all tables.
    Group(usize),
}

/// A task on a node of this process or of a test.
pub trait StageTask: Send + Sync + fmt::Debug {
    /// Identity of the task.
    fn id(&self) -> TaskId;
    /// Node of the task.
    fn node(&self) -> NodeId;
    /// State of the task.
    fn state(&self) -> TaskState;
    /// Error of the task, if it failed.
    fn error(&self) -> Option<Error>;
    /// Fallback nodes of the task's plan.
    fn fallbacks(&self) -> Vec<String> {
        Vec::new()
    }
    /// Describes what the task does now.
    fn dump(&self) -> String {
        format!("{self:?}")
    }
    /// Output of the task.
    fn output(&self) -> &OutputBuffer<BufferedBatch>;
    /// Adds splits of table number `table` of the fragment. Splits for a lifespan that has ended
    /// are dropped.
    fn add_splits(&self, lifespan: Lifespan, table: usize, splits: Vec<Split>);
    /// Marks the end of the table's splits for this lifespan.
    fn set_no_more_splits(&self, lifespan: Lifespan, table: usize);
    /// Load of the task: splits queued and being read, of all tables.
    fn load(&self) -> SplitLoad;
    /// A gate that is ready when the table's queue has room; none if it needs no more splits.
    fn capacity_gate(&self, lifespan: Lifespan, table: usize) -> Option<Gate>;
    /// Starts a group of a task with grouped execution.
    ///
    /// # Errors
    /// If it cannot be started.
    fn start_lifespan(&self, group: usize) -> Result<()>;
    /// Number of groups that run. The task notifies [`TaskEvents`] when it decreases.
    fn running_lifespans(&self) -> usize;
    /// Marks the end of the groups.
    fn set_no_more_lifespans(&self);
    /// Adds an output to remote source number `source` of the fragment.
    ///
    /// # Errors
    /// If the source was marked complete.
    fn add_location(
        &self,
        source: usize,
        id: LocationId,
        output: &OutputBuffer<BufferedBatch>,
    ) -> Result<()>;
    /// Marks the remote source complete.
    fn set_no_more_locations(&self, source: usize);
    /// Ends the task at once without an error, because its rows have no reader any more.
    fn cancel(&self);
    /// Ends the task at once because the query has failed; its readers do not take it for finished.
    fn abort(&self);
}

/// What a task is created from.
#[derive(Debug)]
pub struct TaskSpec<'a> {
    /// Identity of the task.
    pub id: TaskId,
    /// Node of the task.
    pub node: NodeId,
    /// Fragment that the task runs.
    pub fragment: &'a PlanFragment,
    /// Buffers of its readers, as far as they are known.
    pub buffers: &'a OutputBuffers,
}

/// Creates tasks. A task runs from the start, and waits for its inputs.
pub trait TaskFactory: Send + Sync {
    /// Creates a task that reports its end to `events` exactly once.
    ///
    /// # Errors
    /// If the task cannot be created.
    fn create(&self, spec: &TaskSpec<'_>, events: &Arc<TaskEvents>) -> Result<Arc<dyn StageTask>>;
}

/// Events of a query's tasks. They make no callbacks: the scheduler is woken and reads them.
#[derive(Debug)]
pub struct TaskEvents {
    ended: StateLock<VecDeque<TaskId>>,
    gate: Gate,
}

impl Default for TaskEvents {
    fn default() -> Self {
        let gate = Dependency::blocked("tasks of stages", DependencyKind::External);
        Self { ended: StateLock::default(), gate }
    }
}

impl TaskEvents {
    /// Records that `task` has ended, with or without an error. Called by the task.
    pub fn task_ended(&self, task: TaskId) {
        let mut ended = self.ended.lock();
        ended.push_back(task);
        ended.set_ready(&self.gate);
    }

    /// Wakes the scheduler because a task has capacity for a new lifespan.
    pub fn task_progressed(&self) {
        self.gate.set_ready();
    }

    /// Returns a task that has ended. If there is none, blocks the gate until there is one.
    pub(crate) fn take(&self) -> Option<TaskId> {
        let mut ended = self.ended.lock();
        let next = ended.pop_front();
        if next.is_none() {
            self.gate.block();
        }
        next
    }

    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }
}
