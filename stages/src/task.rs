//! What the scheduler knows of a stage's task, and asks of it.

use std::{collections::VecDeque, fmt, sync::Arc};

use gatework_runtime::{Error, Result, pipeline::BufferedBatch};
use gatework_shared_state::{
    Dependency, DependencyKind, Gate, Wakeups,
    output::{LocationId, OutputBuffer, OutputBuffers},
    splits::SplitLoad,
};
use gatework_sql::splits::Split;
use parking_lot::Mutex;

use crate::{FragmentId, PlanFragment, TaskState};

/// The number of a node.
pub type NodeId = usize;

/// Which task of which stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId {
    /// The stage, by its fragment.
    pub stage: FragmentId,
    /// Its number in the stage: it reads the buffers of that number.
    pub index: usize,
}

impl TaskId {
    /// Its output, for those who read it.
    pub(crate) fn location(self) -> LocationId {
        (self.stage as u64) << 32 | self.index as u64
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.stage, self.index)
    }
}

/// How long splits are read together: as long as the task runs, or for one of its groups, which have pipelines and
/// hash tables of their own. (Presto's term.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lifespan {
    /// All of the task.
    Task,
    /// What its tables have in the bucket of this number.
    Group(usize),
}

/// A task on a node: of this process, or of a test.
pub trait StageTask: Send + Sync + fmt::Debug {
    /// Its name.
    fn id(&self) -> TaskId;
    /// Where it runs.
    fn node(&self) -> NodeId;
    /// How far it has come.
    fn state(&self) -> TaskState;
    /// Why it failed.
    fn error(&self) -> Option<Error>;
    /// Nodes of its plan that another engine runs on its behalf.
    fn fallbacks(&self) -> Vec<String> {
        Vec::new()
    }
    /// What it does at the moment, in words.
    fn dump(&self) -> String {
        format!("{self:?}")
    }
    /// What it writes.
    fn output(&self) -> &OutputBuffer<BufferedBatch>;
    /// Gives it splits of table number `table` of its fragment. What is for a lifespan that is over is dropped.
    fn add_splits(&self, lifespan: Lifespan, table: usize, splits: Vec<Split>);
    /// That table has no others for it.
    fn set_no_more_splits(&self, lifespan: Lifespan, table: usize);
    /// What it has of all its tables and not read.
    fn load(&self) -> SplitLoad;
    /// Open when more splits of that table are welcome; none if they never will be.
    fn capacity_gate(&self, lifespan: Lifespan, table: usize) -> Option<Gate>;
    /// Begins a group of a task that has groups.
    ///
    /// # Errors
    /// If it cannot be started.
    fn start_lifespan(&self, group: usize) -> Result<()>;
    /// How many groups have begun and not ended. The [`TaskEvents`] is told when there are less.
    fn running_lifespans(&self) -> usize;
    /// Those that have begun are all.
    fn set_no_more_lifespans(&self);
    /// Gives remote source number `source` of its fragment one more output to read.
    ///
    /// # Errors
    /// If there were to be no others.
    fn add_location(
        &self,
        source: usize,
        id: LocationId,
        output: &OutputBuffer<BufferedBatch>,
    ) -> Result<()>;
    /// That remote source will get no others.
    fn set_no_more_locations(&self, source: usize);
    /// Nobody wants the rest: it ends at once, and well.
    fn cancel(&self);
    /// The query has failed: it ends at once, and those who read it do not take it for finished.
    fn abort(&self);
}

/// What a task is made of.
#[derive(Debug)]
pub struct TaskSpec<'a> {
    /// Its name.
    pub id: TaskId,
    /// Where it is to run.
    pub node: NodeId,
    /// What it is to run.
    pub fragment: &'a PlanFragment,
    /// Who reads it, as far as that is known.
    pub buffers: &'a OutputBuffers,
}

/// Makes tasks. They run from the start, and wait for what they need.
pub trait TaskFactory: Send + Sync {
    /// A task, which says in `events` that it has ended, once.
    ///
    /// # Errors
    /// If it cannot be made.
    fn create(&self, spec: &TaskSpec<'_>, events: &Arc<TaskEvents>) -> Result<Arc<dyn StageTask>>;
}

/// What happens to a query's tasks, for its scheduler. Nobody is called back: the scheduler is woken, and sees.
#[derive(Debug)]
pub struct TaskEvents {
    ended: Mutex<VecDeque<TaskId>>,
    gate: Gate,
}

impl Default for TaskEvents {
    fn default() -> Self {
        let gate = Dependency::blocked("tasks of stages", DependencyKind::External);
        Self { ended: Mutex::default(), gate }
    }
}

impl TaskEvents {
    /// `task` has ended, in whatever way.
    pub fn task_ended(&self, task: TaskId) {
        let mut wakeups = Wakeups::new();
        let mut ended = self.ended.lock();
        ended.push_back(task);
        self.gate.set_ready_deferred(&mut wakeups);
    }

    /// A task has room for something new: look at it.
    pub fn task_progressed(&self) {
        self.gate.set_ready();
    }

    /// A task that has ended. Without one, the gate is shut until there is.
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
