//! The core of every full breaker, which sees all of its input first: N producers publish into a
//! collection, then M consumers claim work from it.
//!
//! Phases: `Building` until the last producer published, then `Ready`. `Aborted` from `Building` if
//! a producer is dropped without publishing. `Closed` once the last consumer was dropped: later
//! publications are dropped. The last producer only changes the phase and the gates; the consumers
//! do the expensive work in their claims.
//!
//! The counts are those of [`tokens()`]. A producer adds to the contents under the lock, and then
//! its token ends. So the end with 0 producers left comes after all contributions, and it reports
//! an abort if there was one, even if the phase is not `Aborted` yet. Each phase change is one step
//! under the lock, together with its gates.
//!
//! Lock: `inner`. The gates of producers and consumers change under it; wakers run after it. The
//! gate `closed` becomes ready after the phase is `Closed` and the contents were dropped.
//!
//! ```
//! use gatework_shared_state::{ClaimResult, breaker};
//! let (producers, consumers) = breaker::new("names", 2, 1, Vec::new());
//! let ClaimResult::Blocked(gate) = consumers[0].claim(Vec::pop) else { unreachable!() };
//! for (producer, name) in producers.into_iter().zip(["a", "b"]) {
//!     producer.publish(|names| names.push(name));
//! }
//! assert!(gate.is_ready());
//! assert!(matches!(consumers[0].claim(Vec::pop), ClaimResult::Work("b")));
//! assert!(matches!(consumers[0].claim(Vec::pop), ClaimResult::Work("a")));
//! assert!(matches!(consumers[0].claim(Vec::pop), ClaimResult::Finished));
//! ```

use crate::{
    ClaimResult, Consumer, Gate, ManyToMany, Producer, ProducerEnd, SharedState, StateLock, tokens,
};

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
}

#[derive(Debug)]
struct State<C> {
    gates: ManyToMany,
    inner: StateLock<Inner<C>>,
}

/// The right of one producer task to publish. Dropping it unpublished aborts the breaker.
#[derive(Debug)]
pub struct BreakerProducer<C: Default>(Producer<State<C>>);

/// The right of one consumer task to claim work. Dropping the last one drops the contents.
#[derive(Debug)]
pub struct BreakerConsumer<C: Default>(Consumer<State<C>>);

/// Creates a breaker for `producers` tasks that publish into `contents` and `consumers` tasks that
/// claim work from them.
///
/// # Panics
/// If `producers` or `consumers` is 0.
pub fn new<C: Default>(
    name: &str,
    producers: usize,
    consumers: usize,
    contents: C,
) -> (Vec<BreakerProducer<C>>, Vec<BreakerConsumer<C>>) {
    let state = State {
        gates: ManyToMany::new(name, producers, consumers),
        inner: StateLock::new(Inner { phase: Phase::Building, contents }),
    };
    let (producers, consumers) = tokens(name, state, producers, consumers);
    (
        producers.into_iter().map(BreakerProducer).collect(),
        consumers.into_iter().map(BreakerConsumer).collect(),
    )
}

impl<C: Default> SharedState for State<C> {
    fn producer_ended(&self, end: ProducerEnd, left: usize) {
        let phase = match end {
            ProducerEnd::Dropped => Phase::Aborted,
            ProducerEnd::Finished if left == 0 => Phase::Ready,
            ProducerEnd::Finished => return,
        };
        let mut guard = self.inner.lock();
        let (inner, wakeups) = guard.parts();
        if inner.phase == Phase::Building {
            inner.phase = phase;
            self.gates.set_always_ready_all(wakeups);
        }
    }

    fn consumer_ended(&self, _index: usize, left: usize) {
        if left > 0 {
            return;
        }
        let mut guard = self.inner.lock();
        let (inner, wakeups) = guard.parts();
        inner.phase = Phase::Closed;
        let unread = std::mem::take(&mut inner.contents);
        self.gates.set_always_ready_all(wakeups);
        guard.unlock_and_drop(unread);
    }
}

impl<C: Default> BreakerProducer<C> {
    /// Adds this task's contribution with `add`, and ends the producer. After an abort, or when no
    /// consumer is left, `add` is dropped uncalled. If `add` panics, the breaker is aborted.
    pub fn publish(self, add: impl FnOnce(&mut C)) {
        let mut inner = self.0.inner.lock();
        if inner.phase == Phase::Building {
            add(&mut inner.contents);
        }
        drop(inner);
        self.0.finish();
    }

    /// Returns the gate that is ready once no consumer is left.
    pub fn closed(&self) -> &Gate {
        self.0.closed()
    }
}

impl<C: Default> BreakerConsumer<C> {
    /// Claims work with `next`, which returns `None` when all work was claimed. It runs under the
    /// lock: it moves work out of the contents and leaves expensive steps to the caller.
    pub fn claim<T>(&self, next: impl FnOnce(&mut C) -> Option<T>) -> ClaimResult<T> {
        let mut inner = self.0.inner.lock();
        match inner.phase {
            Phase::Building => ClaimResult::Blocked(self.gate().clone()),
            Phase::Aborted => ClaimResult::Aborted,
            Phase::Ready => {
                next(&mut inner.contents).map_or(ClaimResult::Finished, ClaimResult::Work)
            }
            // Not reached: this consumer is left.
            Phase::Closed => ClaimResult::Finished,
        }
    }

    /// Returns the gate that is ready when the last producer published, or one was dropped.
    pub fn gate(&self) -> &Gate {
        self.0.gates.source(self.0.index())
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
