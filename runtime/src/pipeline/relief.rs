//! A task's place among those that hold memory which they could give back.
//!
//! The protocol is [`gatework_shared_state::memory`]. The place is taken when it is first needed, so that a
//! task that never holds much costs nothing.

use std::sync::OnceLock;

use gatework_shared_state::{Gate, memory::Holder};

use super::QueryContext;

/// One task's place, shared by its parts.
#[derive(Debug, Default)]
pub(super) struct Place {
    holder: OnceLock<Holder>,
}

impl Place {
    fn holder(&self, query: &QueryContext) -> &Holder {
        self.holder.get_or_init(|| query.memory_holder())
    }

    /// Says how much the task could give back.
    pub(super) fn set_bytes(&self, bytes: usize, query: &QueryContext) {
        if bytes > 0 || self.holder.get().is_some() {
            self.holder(query).set_bytes(bytes);
        }
    }

    /// Asks another task that could give back at least `least` bytes; where to wait for that.
    pub(super) fn ask(&self, least: usize, query: &QueryContext) -> Option<Gate> {
        self.holder(query).ask(least)
    }

    /// Whether the task was asked since.
    pub(super) fn take_question(&self) -> bool {
        self.holder.get().is_some_and(Holder::take_question)
    }

    /// The task has nothing to give back any more, or at the moment.
    pub(super) fn gave_nothing(&self) {
        if let Some(holder) = self.holder.get() {
            holder.gave_nothing();
        }
    }

    /// The gate that opens when the task is asked, if that can be.
    pub(super) fn asked(&self) -> Option<&Gate> {
        let holder = self.holder.get()?;
        (holder.bytes() > 0 || holder.asked().is_ready()).then(|| holder.asked())
    }
}
