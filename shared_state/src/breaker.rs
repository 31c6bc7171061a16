//! The core of every full breaker, which sees all of its input first: N producers publish into a
//! collection, then M consumers claim work from it.
//!
//! Phases: `Building` until the last producer published, then `Ready`. `Aborted` from `Building` if
//! a producer is dropped without publishing. `Closed` once the last consumer was dropped: later
//! publications are dropped. The last producer only changes the phase and the gates; the consumers
//! do the expensive work in their claims.
//!
//! Lock: `inner`. All gates change under it; wakers run after it.

use crate::{ClaimResult, Dependency, DependencyKind, Gate, ManyToMany, Wakeups, sync::Mutex};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Building,
    Ready,
    Aborted,
    Closed,
}

#[derive(Debug)]
struct Inner<C> {
    phase: Phase,
    contents: C,
    producers_left: usize,
    consumers_left: usize,
}

#[derive(Debug)]
pub(crate) struct Breaker<C> {
    gates: ManyToMany,
    /// Ready once the last consumer was dropped: producers may end early.
    closed: Gate,
    inner: Mutex<Inner<C>>,
}

impl<C: Default> Breaker<C> {
    pub(crate) fn new(name: &str, producers: usize, consumers: usize, contents: C) -> Self {
        assert!(producers > 0 && consumers > 0, "a breaker needs a producer and a consumer");
        Self {
            gates: ManyToMany::new(name, producers, consumers),
            closed: Dependency::blocked(format!("{name} closed"), DependencyKind::ConsumersGone),
            inner: Mutex::new(Inner {
                phase: Phase::Building,
                contents,
                producers_left: producers,
                consumers_left: consumers,
            }),
        }
    }

    pub(crate) fn closed(&self) -> &Gate {
        &self.closed
    }

    pub(crate) fn gates(&self) -> &ManyToMany {
        &self.gates
    }

    /// Adds a producer's contribution and ends the producer.
    pub(crate) fn publish(&self, add: impl FnOnce(&mut C)) {
        let mut wakeups = Wakeups::new();
        let mut inner = self.inner.lock();
        inner.producers_left -= 1;
        // After an abort or a close, the contribution is dropped with the closure.
        if inner.phase != Phase::Building {
            return;
        }
        add(&mut inner.contents);
        if inner.producers_left == 0 {
            inner.phase = Phase::Ready;
            self.gates.set_always_ready_all(&mut wakeups);
        }
    }

    /// Ends a producer that did not publish.
    pub(crate) fn abort(&self) {
        let mut wakeups = Wakeups::new();
        let mut inner = self.inner.lock();
        inner.producers_left -= 1;
        if inner.phase == Phase::Building {
            inner.phase = Phase::Aborted;
            self.gates.set_always_ready_all(&mut wakeups);
        }
    }

    /// Claims work for a consumer with `next`, which returns `None` when all work was claimed.
    pub(crate) fn claim<T>(
        &self,
        consumer: usize,
        next: impl FnOnce(&mut C) -> Option<T>,
    ) -> ClaimResult<T> {
        let mut inner = self.inner.lock();
        match inner.phase {
            Phase::Building => ClaimResult::Blocked(self.gates.source(consumer).clone()),
            Phase::Aborted => ClaimResult::Aborted,
            // All consumers were dropped; a late claim gets no work.
            Phase::Closed => ClaimResult::Finished,
            Phase::Ready => {
                next(&mut inner.contents).map_or(ClaimResult::Finished, ClaimResult::Work)
            }
        }
    }

    /// Ends a consumer; the last one closes the state.
    pub(crate) fn consumer_dropped(&self) {
        let mut wakeups = Wakeups::new();
        let mut inner = self.inner.lock();
        inner.consumers_left -= 1;
        if inner.consumers_left == 0 {
            inner.phase = Phase::Closed;
            let unread = std::mem::take(&mut inner.contents);
            self.closed.set_always_ready_deferred(&mut wakeups);
            self.gates.set_always_ready_all(&mut wakeups);
            drop(inner);
            drop(unread);
        }
    }
}
