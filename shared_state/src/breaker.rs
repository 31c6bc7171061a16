//! The core of every breaker that must see all of its input first: N sinks publish into a
//! collection, then M sources claim units of work out of it.
//!
//! States: `Building` until the last sink published, then `Ready` until the last unit is claimed;
//! `Aborted` from `Building` once a sink leaves without publishing; `Closed` once the last source
//! has left: what is published then is dropped. The last sink only changes the state and opens the
//! source gates: whatever is heavy is done by those who claim.
//!
//! Lock: `inner`. All gates flip under it; wakers run after it.

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
pub(crate) struct BreakerState<C> {
    gates: ManyToMany,
    /// Ready once the last source has left: sinks may end early.
    closed: Gate,
    inner: Mutex<Inner<C>>,
}

impl<C: Default> BreakerState<C> {
    pub(crate) fn new(name: &str, producers: usize, consumers: usize, contents: C) -> Self {
        assert!(producers > 0 && consumers > 0, "a breaker has at least one sink and one source");
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

    /// A sink adds what it has and leaves.
    pub(crate) fn publish(&self, add: impl FnOnce(&mut C)) {
        let mut wakeups = Wakeups::new();
        let mut inner = self.inner.lock();
        inner.producers_left -= 1;
        // After an abort or when nobody reads, what is published is dropped with the state.
        if inner.phase != Phase::Building {
            return;
        }
        add(&mut inner.contents);
        if inner.producers_left == 0 {
            inner.phase = Phase::Ready;
            self.gates.set_always_ready_all(&mut wakeups);
        }
    }

    /// A sink leaves without publishing.
    pub(crate) fn abort(&self) {
        let mut wakeups = Wakeups::new();
        let mut inner = self.inner.lock();
        inner.producers_left -= 1;
        if inner.phase == Phase::Building {
            inner.phase = Phase::Aborted;
            self.gates.set_always_ready_all(&mut wakeups);
        }
    }

    /// A source claims with `next`, which answers `None` when all units are taken.
    pub(crate) fn claim<T>(
        &self,
        consumer: usize,
        next: impl FnOnce(&mut C) -> Option<T>,
    ) -> ClaimResult<T> {
        let mut inner = self.inner.lock();
        match inner.phase {
            Phase::Building => ClaimResult::Blocked(self.gates.source(consumer).clone()),
            Phase::Aborted => ClaimResult::Aborted,
            // Without a source nobody claims; whoever came late would have nothing to claim.
            Phase::Closed => ClaimResult::Finished,
            Phase::Ready => {
                next(&mut inner.contents).map_or(ClaimResult::Finished, ClaimResult::Work)
            }
        }
    }

    /// A source leaves; after the last one nobody reads any more.
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
