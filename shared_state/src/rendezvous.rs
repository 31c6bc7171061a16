//! The core of every breaker that must see all of its input first: N sinks publish into a
//! collection, then M sources claim units of work out of it.
//!
//! States: `Collecting` until the last sink published, then `Open` until the last unit is claimed;
//! `Aborted` from `Collecting` once a sink leaves without publishing; `Closed` once the last source
//! has left: what is published then is dropped. The last sink only changes the state and opens the
//! source gates: whatever is heavy is done by those who claim.
//!
//! Lock: `inner`. All gates flip under it; wakers run after it.

use crate::{Claim, Dependency, DependencyKind, Gate, ManyToMany, Wakeups, sync::Mutex};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Collecting,
    Open,
    Aborted,
    Closed,
}

#[derive(Debug)]
struct Inner<C> {
    phase: Phase,
    collected: C,
    sinks_left: usize,
    sources_left: usize,
}

#[derive(Debug)]
pub(crate) struct Rendezvous<C> {
    gates: ManyToMany,
    /// Ready once the last source has left: sinks may end early.
    closed: Gate,
    inner: Mutex<Inner<C>>,
}

impl<C: Default> Rendezvous<C> {
    pub(crate) fn new(name: &str, sinks: usize, sources: usize, collected: C) -> Self {
        assert!(sinks > 0 && sources > 0, "a breaker has at least one sink and one source");
        Self {
            gates: ManyToMany::new(name, sinks, sources),
            closed: Dependency::blocked(format!("{name} closed"), DependencyKind::Closed),
            inner: Mutex::new(Inner {
                phase: Phase::Collecting,
                collected,
                sinks_left: sinks,
                sources_left: sources,
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
        inner.sinks_left -= 1;
        // After an abort or when nobody reads, what is published is dropped with the state.
        if inner.phase != Phase::Collecting {
            return;
        }
        add(&mut inner.collected);
        if inner.sinks_left == 0 {
            inner.phase = Phase::Open;
            self.gates.open_for_ever(&mut wakeups);
        }
    }

    /// A sink leaves without publishing.
    pub(crate) fn abort(&self) {
        let mut wakeups = Wakeups::new();
        let mut inner = self.inner.lock();
        inner.sinks_left -= 1;
        if inner.phase == Phase::Collecting {
            inner.phase = Phase::Aborted;
            self.gates.open_for_ever(&mut wakeups);
        }
    }

    /// A source claims with `next`, which answers `None` when all units are taken.
    pub(crate) fn claim<T>(
        &self,
        source: usize,
        next: impl FnOnce(&mut C) -> Option<T>,
    ) -> Claim<T> {
        let mut inner = self.inner.lock();
        match inner.phase {
            Phase::Collecting => Claim::Blocked(self.gates.source(source).clone()),
            Phase::Aborted => Claim::Aborted,
            // Without a source nobody claims; whoever came late would have nothing to claim.
            Phase::Closed => Claim::Finished,
            Phase::Open => next(&mut inner.collected).map_or(Claim::Finished, Claim::Unit),
        }
    }

    /// A source leaves; after the last one nobody reads any more.
    pub(crate) fn leave(&self) {
        let mut wakeups = Wakeups::new();
        let mut inner = self.inner.lock();
        inner.sources_left -= 1;
        if inner.sources_left == 0 {
            inner.phase = Phase::Closed;
            let unread = std::mem::take(&mut inner.collected);
            self.closed.set_always_ready_later(&mut wakeups);
            self.gates.open_for_ever(&mut wakeups);
            drop(inner);
            drop(unread);
        }
    }
}
