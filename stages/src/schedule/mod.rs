//! Schedulers of one stage each: which tasks it has, where, and what they read. (Presto's `StageScheduler`s;
//! rules J and K.)

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

use crate::{StageExecution, stage::Tasks};

/// Splits that are asked for at a time.
const SPLIT_BATCH: usize = 1000;

/// What a stage waits for before it can be scheduled any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockedReason {
    /// The splits of a table are not known.
    WaitingForSource,
    /// Tasks have more splits than they can read soon.
    SplitQueuesFull,
    /// As many groups run as may at a time.
    LifespansRunning,
    /// There is not enough to be written for one more writer.
    WriterScaling,
}

/// How far a stage was scheduled.
#[derive(Debug, Default)]
pub struct Scheduled {
    /// All tasks are made and all splits given out.
    pub finished: bool,
    /// Tasks that were made.
    pub new: Tasks,
    /// Why it cannot go on, and gates of which any lets it.
    pub blocked: Option<(BlockedReason, Vec<Gate>)>,
}

/// Schedules one stage, a step at a time.
pub trait StageScheduler: Send {
    /// Goes on with `stage`; `nodes` is what each node has to read, of all stages.
    ///
    /// # Errors
    /// If a task cannot be made, or the splits of a table cannot be found.
    fn schedule(&mut self, stage: &mut StageExecution, nodes: &[SplitLoad]) -> Result<Scheduled>;

    /// Nothing more is scheduled.
    fn close(&mut self) {}
}
