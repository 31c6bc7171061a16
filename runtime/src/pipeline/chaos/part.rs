//! What the wrappers of the three roles have in common: when to block, when to ask again.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, atomic::Ordering},
};

use gatework_shared_state::{Dependency, DependencyKind};

use super::{Call, Chaos, Role, TaskContext};
use crate::{
    Result,
    pipeline::Setup,
    scheduler::{Dice, Gates},
};

/// One wrapped local state.
pub(super) struct Part {
    chaos: Arc<Chaos>,
    role: Role,
    name: String,
    /// Of its own, so that its choices do not depend on the order in which tasks run.
    dice: Dice,
    /// Kinds of call that have been blocked already.
    blocked_before: [bool; 3],
    /// It has been called too soon already.
    recalled_before: bool,
    /// The call that is blocked by us, to be made when it comes again.
    waiting: Option<Call>,
}

impl Part {
    pub(super) fn new(chaos: Arc<Chaos>, role: Role, setup: &Setup) -> Self {
        let mut hasher = DefaultHasher::new();
        (chaos.seed, role as u8, setup.operator.as_ref(), setup.instance).hash(&mut hasher);
        Self {
            dice: Dice::new(hasher.finish()),
            name: format!("chaos before {} [{}]", setup.operator, setup.instance),
            chaos,
            role,
            blocked_before: [false; 3],
            recalled_before: false,
            waiting: None,
        }
    }

    /// Before `call` is made: the gates to wait for first, or the fault of this step.
    pub(super) fn before(&mut self, call: Call, task: &TaskContext) -> Result<Option<Gates>> {
        self.chaos.step(task.query())?;
        let Some(every) = self.chaos.block_every else { return Ok(None) };
        // Another call may come than the one that was blocked: its input was not wanted any more.
        if self.waiting.take() == Some(call) {
            return Ok(None);
        }
        let first = !std::mem::replace(&mut self.blocked_before[call as usize], true);
        if !first && self.dice.below(every) > 0 {
            return Ok(None);
        }
        self.waiting = Some(call);
        self.chaos.count_block(self.role, call);
        Ok(Some(self.chaos.shut_gate(self.name.clone()).into()))
    }

    /// The gates that the local state waits for, and at times one that is open already.
    pub(super) fn or_recall(&mut self, gates: Gates) -> Gates {
        let Some(every) = self.chaos.recall_every else { return gates };
        let first = !std::mem::replace(&mut self.recalled_before, true);
        match first || self.dice.below(every) == 0 {
            true => {
                self.chaos.tally.recalls.fetch_add(1, Ordering::Relaxed);
                gates.or(Dependency::ready("chaos wakes too soon", DependencyKind::External))
            }
            false => gates,
        }
    }

    pub(super) fn batch_rows(&self) -> Option<usize> {
        self.chaos.batch_rows
    }

    pub(super) fn count_cuts(&self, cuts: usize) {
        self.chaos.tally.cuts.fetch_add(cuts as u64, Ordering::Relaxed);
    }
}
