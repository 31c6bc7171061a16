//! A task's participation in memory arbitration.
//!
//! [`gatework_shared_state::memory`] describes the protocol. The task registers on first use, so
//! that a task that never reserves much memory costs nothing.

use std::sync::OnceLock;

use gatework_shared_state::{Gate, memory::ArbitrationParticipant};

use super::QueryContext;

/// One task's participation, shared by its operators.
#[derive(Debug, Default)]
pub(super) struct ReclaimHandle {
    participant: OnceLock<ArbitrationParticipant>,
}

impl ReclaimHandle {
    fn participant(&self, query: &QueryContext) -> &ArbitrationParticipant {
        self.participant.get_or_init(|| query.register_for_reclaim())
    }

    /// Announces how many bytes the task could release.
    pub(super) fn set_reclaimable_bytes(&self, bytes: usize, query: &QueryContext) {
        if bytes > 0 || self.participant.get().is_some() {
            self.participant(query).set_reclaimable_bytes(bytes);
        }
    }

    /// Requests reclaim from a task with at least `min_bytes` reclaimable bytes. Returns the gate
    /// to wait for.
    pub(super) fn request(&self, min_bytes: usize, query: &QueryContext) -> Option<Gate> {
        self.participant(query).request_reclaim(min_bytes)
    }

    /// Takes the request to reclaim, if one has arrived since the last call.
    pub(super) fn take_request(&self) -> bool {
        self.participant.get().is_some_and(ArbitrationParticipant::take_reclaim_request)
    }

    /// Declines a request: the task has nothing to release, now or until its end.
    pub(super) fn decline(&self) {
        if let Some(participant) = self.participant.get() {
            participant.decline_reclaim();
        }
    }

    /// Returns the gate that becomes ready on a request to reclaim, if a request is possible.
    pub(super) fn requested(&self) -> Option<&Gate> {
        let participant = self.participant.get()?;
        (participant.reclaimable_bytes() > 0 || participant.reclaim_requested().is_ready())
            .then(|| participant.reclaim_requested())
    }
}
