//! The state that the wrappers of all roles share: when to block and when to wake spuriously.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, atomic::Ordering},
};

use gatework_shared_state::{Dependency, DependencyKind};

use super::{Call, Chaos, DriverContext, Role, call_clock::CallClock};
use crate::{
    Result,
    pipeline::{Batch, OperatorContext},
    scheduler::{Gates, SplitMix64},
};

/// The state of one wrapped local state.
pub(super) struct WrapperState {
    chaos: Arc<Chaos>,
    role: Role,
    operator: Arc<str>,
    task_index: usize,
    /// Separate per local state, so that its choices do not depend on the order in which tasks run.
    rng: SplitMix64,
    /// Whether each kind of call has been blocked before.
    blocked_before: [bool; 3],
    /// Whether the local state has been woken spuriously before.
    woken_before: bool,
    /// The call that the wrapper blocked; it is made when it comes again.
    waiting: Option<Call>,
}

impl WrapperState {
    pub(super) fn new(chaos: Arc<Chaos>, role: Role, context: &OperatorContext) -> Self {
        let mut hasher = DefaultHasher::new();
        (chaos.seed, role as u8, context.operator.as_ref(), context.task_index).hash(&mut hasher);
        Self {
            rng: SplitMix64::new(hasher.finish()),
            operator: context.operator.clone(),
            task_index: context.task_index,
            chaos,
            role,
            blocked_before: [false; 3],
            woken_before: false,
            waiting: None,
        }
    }

    /// Called before `call` is made. Returns the gates to wait for first, or this step's fault.
    pub(super) fn before(&mut self, call: Call, task: &DriverContext) -> Result<Option<Gates>> {
        self.chaos.step(task.query(), true)?;
        let Some(every) = self.chaos.block_every else { return Ok(None) };
        // A different call may follow the blocked one when the blocked call's input is no longer
        // wanted.
        if self.waiting.take() == Some(call) {
            return Ok(None);
        }
        let first = !std::mem::replace(&mut self.blocked_before[call as usize], true);
        if !first && self.rng.next_below(every) > 0 {
            return Ok(None);
        }
        self.waiting = Some(call);
        self.chaos.count_block(self.role, call);
        let name = format!("chaos before {} [{}]", self.operator, self.task_index);
        Ok(Some(self.chaos.blocked_gate(name).into()))
    }

    /// Adds a ready gate to the gates that the local state waits for, at random.
    pub(super) fn with_spurious_wakeup(&mut self, gates: Gates) -> Gates {
        let Some(every) = self.chaos.spurious_wakeups_every else { return gates };
        let first = !std::mem::replace(&mut self.woken_before, true);
        match first || self.rng.next_below(every) == 0 {
            true => {
                self.chaos.tally.spurious_wakeups.fetch_add(1, Ordering::Relaxed);
                gates.or(Dependency::ready("chaos: spurious wake-up", DependencyKind::External))
            }
            false => gates,
        }
    }

    /// Makes a call of the wrapped local state, and records it if it is slow.
    pub(super) fn call<T>(&self, call: impl FnOnce() -> T) -> T {
        let _in_call = self.chaos.unlocks.as_ref().map(|unlocks| unlocks.enter());
        let Some(limit) = self.chaos.call_limit else { return call() };
        let clock = CallClock::start();
        let result = call();
        let elapsed = clock.elapsed();
        if elapsed > limit {
            self.chaos.tally.record_slow_call(&self.operator, elapsed);
        }
        result
    }

    pub(super) fn batch_rows(&self) -> Option<usize> {
        self.chaos.batch_rows
    }

    pub(super) fn selects_rows(&self) -> bool {
        self.chaos.selects_rows
    }

    /// Counts the batches split off `batch`.
    pub(super) fn count_splits(&self, batch: &Batch, splits: usize) {
        let tally = &self.chaos.tally;
        tally.batches.fetch_add(1, Ordering::Relaxed);
        tally.splits.fetch_add(splits as u64, Ordering::Relaxed);
        if batch.num_rows() == 1 {
            tally.single_rows.fetch_add(1, Ordering::Relaxed);
        }
    }
}
