//! The states between the calls of a driver.

use super::Batch;
use crate::scheduler::Gates;

/// The next call of a driver.
#[derive(Debug)]
pub(super) enum DriverState {
    /// No local state has been created.
    Create,
    /// Waits until all local states have started.
    Start,
    /// Calls the source for a batch.
    Source,
    /// Calls operator `.0`, with a batch or to continue.
    Operator(usize, Option<Batch>),
    /// Calls the sink, with a batch or to continue.
    Sink(Option<Batch>),
    /// Calls operator `.0` to emit its remaining output.
    Flush(usize),
    /// Calls the sink to reclaim memory; the task then continues in state `.0`.
    Reclaim(Box<DriverState>),
    /// Calls the sink to finish.
    Finish,
}

impl DriverState {
    /// Returns the index of the metrics of the called operator: the source's is 0.
    pub(super) fn metrics_index(&self, sink_index: usize) -> usize {
        match self {
            Self::Create | Self::Start | Self::Source => 0,
            Self::Operator(index, _) | Self::Flush(index) => index + 1,
            Self::Sink(_) | Self::Reclaim(_) | Self::Finish => sink_index + 1,
        }
    }
}

/// The result of one driver call.
pub(super) enum Step {
    Next(DriverState),
    Blocked(DriverState, Gates),
    Yield(DriverState),
    Done,
}
