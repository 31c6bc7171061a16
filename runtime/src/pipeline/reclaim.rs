//! A task's place among those that hold memory which they could give back.
//!
//! The protocol is [`gatework_shared_state::memory`]. The place is taken when it is first needed, so that a
//! task that never holds much costs nothing.

use std::sync::OnceLock;

use gatework_shared_state::{Gate, memory::ArbitrationParticipant};

use super::QueryContext;

/// One task's place, shared by its parts.
#[derive(Debug, Default)]
pub(super) struct ReclaimHandle {
    participant: OnceLock<ArbitrationParticipant>,
}

impl ReclaimHandle {
    fn participant(&self, query: &QueryContext) -> &ArbitrationParticipant {
        self.participant.get_or_init(|| query.register_for_reclaim())
    }

    /// Says how much the task could give back.
    pub(super) fn set_reclaimable_bytes(&self, bytes: usize, query: &QueryContext) {
        if bytes > 0 || self.participant.get().is_some() {
            self.participant(query).set_reclaimable_bytes(bytes);
        }
    }

    /// Asks another task that could give back at least `min_bytes` bytes; where to wait for that.
    pub(super) fn request(&self, min_bytes: usize, query: &QueryContext) -> Option<Gate> {
        self.participant(query).request_reclaim(min_bytes)
    }

    /// Whether the task was asked since.
    pub(super) fn take_request(&self) -> bool {
        self.participant.get().is_some_and(ArbitrationParticipant::take_reclaim_request)
    }

    /// The task has nothing to give back any more, or at the moment.
    pub(super) fn decline(&self) {
        if let Some(participant) = self.participant.get() {
            participant.decline_reclaim();
        }
    }

    /// The gate that opens when the task is asked, if that can be.
    pub(super) fn requested(&self) -> Option<&Gate> {
        let participant = self.participant.get()?;
        (participant.reclaimable_bytes() > 0 || participant.reclaim_requested().is_ready())
            .then(|| participant.reclaim_requested())
    }
}
