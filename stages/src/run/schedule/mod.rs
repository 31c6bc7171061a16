//! Schedulers of one stage each: they create its tasks and assign their splits. (Presto's
//! `StageScheduler`s; rules J and K.)

mod fixed_count;
mod fixed_source;
mod scaled_writer;
mod source_partitioned;

use gatework_runtime::Result;
use gatework_shared_state::{Gate, splits::SplitLoad};

pub use fixed_count::FixedCountScheduler;
pub use fixed_source::{BucketSplits, FixedSourceScheduler};
pub use scaled_writer::ScaledWriterScheduler;
pub use source_partitioned::SourcePartitionedScheduler;

use crate::{StageExecution, run::stage::Tasks};

/// Number of splits requested from a source at a time.
const SPLIT_BATCH: usize = 1000;

/// What a stage waits for before it can be scheduled further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockedReason {
    /// The splits of a table are not known yet.
    WaitingForSource,
    /// The tasks' split queues are full.
    SplitQueuesFull,
    /// The maximum number of lifespans runs.
    LifespansRunning,
    /// Too few bytes are written for another writer.
    WriterScaling,
}

/// Result of a scheduling step.
#[derive(Debug, Default)]
pub struct Scheduled {
    /// All tasks are created and all splits assigned.
    pub finished: bool,
    /// New tasks.
    pub new: Tasks,
    /// Why the stage is blocked, with gates of which any one resumes it.
    pub blocked: Option<(BlockedReason, Vec<Gate>)>,
}

/// Schedules one stage, a step at a time.
pub trait StageScheduler: Send {
    /// Continues with `stage`. `nodes` is the load of each node from all stages.
    ///
    /// # Errors
    /// If a task cannot be created, or the splits of a table cannot be found.
    fn schedule(&mut self, stage: &mut StageExecution, nodes: &[SplitLoad]) -> Result<Scheduled>;

    /// Schedules nothing more, and closes split sources.
    fn close(&mut self) {}
}
