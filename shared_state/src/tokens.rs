//! Counted tokens: the rights to produce into a shared state and to consume from it.
//!
//! # Protocol
//!
//! Each side has one atomic count of the tokens that have not ended. A token that ends decrements
//! the count and reports to the state what the decrement saw. The decrement with the result 0
//! happens once.
//!
//! The reports of two tokens may overlap, and may reach the state in another order than their
//! decrements: the report with 0 left may come before the report with 1 left. Two rules make the
//! report with 0 left sufficient.
//!
//! * *It sees all data.* A producer adds its data before its token ends. Its decrement releases the
//!   data, and the decrement that finds 0 left acquires the data of all producers (AcqRel; every
//!   decrement continues the release sequence of those before it).
//! * *It knows of every abort.* A token that is dropped unfinished first sets a flag in the same
//!   atomic. Each later decrement sees the flag, and reports [`ProducerEnd::Dropped`] even if its
//!   own producer finished. So a state never finishes while the report of an abort is on its way.
//!
//! Lock: none. The state takes its own in its reports. The gate `closed` changes once, after the
//! last consumer's report, so it needs no lock either.

use std::{ops::Deref, sync::Arc};

use crate::{
    Dependency, DependencyKind, Gate,
    sync::atomic::{AtomicUsize, Ordering},
};

/// How the producers ended so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProducerEnd {
    /// This producer finished, and no producer before it was dropped unfinished.
    Finished,
    /// This producer, or one that ended before it, was dropped unfinished.
    Dropped,
}

/// A state that producers and consumers share through counted tokens.
///
/// Calls may overlap and come in any order, but the call with `left == 0` knows of all ends before
/// it. A state finishes in `producer_ended(Finished, 0)`, and aborts in `producer_ended(Dropped,
/// _)`, which may be called several times.
pub trait SharedState {
    /// Called when a producer ended; `left` producers have not ended yet. All data that the ended
    /// producers added is visible if `left` is 0.
    fn producer_ended(&self, end: ProducerEnd, left: usize);

    /// Called when the consumer with this index was dropped; `left` consumers are left. With `left
    /// == 0`, no task reads any more: the state drops its unread data, and its producers may end
    /// early.
    fn consumer_ended(&self, index: usize, left: usize) {
        let _ = (index, left);
    }
}

/// The number of producers that have not ended, times 2, plus 1 if one was dropped unfinished.
#[derive(Debug)]
struct ProducerCount(AtomicUsize);

impl ProducerCount {
    const ONE: usize = 2;
    const DROPPED: usize = 1;

    fn new(producers: usize) -> Self {
        Self(AtomicUsize::new(producers * Self::ONE))
    }

    /// Counts the end of a producer. Returns how the producers ended so far, and how many are left.
    fn end(&self, end: ProducerEnd) -> (ProducerEnd, usize) {
        if end == ProducerEnd::Dropped {
            // Relaxed: a decrement after this producer's reads this atomic and so sees the flag.
            self.0.fetch_or(Self::DROPPED, Ordering::Relaxed);
        }
        // AcqRel pairs with the other producers' decrements: the last one acquires what all others
        // released, which is the data that they added.
        let count = self.0.fetch_sub(Self::ONE, Ordering::AcqRel) - Self::ONE;
        let end = match count & Self::DROPPED {
            0 => ProducerEnd::Finished,
            _ => ProducerEnd::Dropped,
        };
        (end, count / Self::ONE)
    }
}

#[derive(Debug)]
struct Shared<S> {
    producers: ProducerCount,
    /// Number of consumers that were not dropped.
    consumers: AtomicUsize,
    closed: Gate,
    state: S,
}

/// The right of one producer task to add to the state, which it dereferences to. Dropping it
/// unfinished reports [`ProducerEnd::Dropped`].
#[derive(Debug)]
pub struct Producer<S: SharedState> {
    shared: Arc<Shared<S>>,
    index: usize,
    end: ProducerEnd,
}

/// The right of one consumer task to read the state, which it dereferences to.
#[derive(Debug)]
pub struct Consumer<S: SharedState> {
    shared: Arc<Shared<S>>,
    index: usize,
}

/// Creates the tokens of `state`, a shared state with the name `name`. A count of rows, N:1:
///
/// ```
/// use gatework_shared_state::{
///     ClaimResult, ManyToOne, ProducerEnd, SharedState, StateLock, tokens,
/// };
///
/// #[derive(Default)]
/// struct Inner {
///     rows: usize,
///     end: Option<ProducerEnd>,
/// }
///
/// struct Count {
///     gates: ManyToOne,
///     inner: StateLock<Inner>,
/// }
///
/// impl Count {
///     fn add(&self, rows: usize) {
///         self.inner.lock().rows += rows;
///     }
///
///     fn total(&self) -> ClaimResult<usize> {
///         let inner = self.inner.lock();
///         match inner.end {
///             None => ClaimResult::Blocked(self.gates.source().clone()),
///             Some(ProducerEnd::Finished) => ClaimResult::Work(inner.rows),
///             Some(ProducerEnd::Dropped) => ClaimResult::Aborted,
///         }
///     }
/// }
///
/// impl SharedState for Count {
///     fn producer_ended(&self, end: ProducerEnd, left: usize) {
///         if left == 0 || end == ProducerEnd::Dropped {
///             let mut inner = self.inner.lock();
///             inner.end = Some(end);
///             inner.set_always_ready(self.gates.source());
///         }
///     }
/// }
///
/// let count = Count { gates: ManyToOne::new("count", 2), inner: StateLock::default() };
/// let (producers, consumers) = tokens("count", count, 2, 1);
/// let ClaimResult::Blocked(gate) = consumers[0].total() else { unreachable!() };
/// for producer in producers {
///     producer.add(10 + producer.index());
///     producer.finish();
/// }
/// assert!(gate.is_ready());
/// assert!(matches!(consumers[0].total(), ClaimResult::Work(21)));
/// ```
///
/// # Panics
/// If `producers` or `consumers` is 0.
pub fn tokens<S: SharedState>(
    name: &str,
    state: S,
    producers: usize,
    consumers: usize,
) -> (Vec<Producer<S>>, Vec<Consumer<S>>) {
    assert!(producers > 0 && consumers > 0, "{name} needs a producer and a consumer");
    let shared = Arc::new(Shared {
        producers: ProducerCount::new(producers),
        consumers: AtomicUsize::new(consumers),
        closed: Dependency::blocked(format!("{name} closed"), DependencyKind::ConsumersGone),
        state,
    });
    let producer = |index| Producer { shared: shared.clone(), index, end: ProducerEnd::Dropped };
    let consumer = |index| Consumer { shared: shared.clone(), index };
    ((0..producers).map(producer).collect(), (0..consumers).map(consumer).collect())
}

impl<S: SharedState> Producer<S> {
    /// Returns the index of this producer's task.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Ends the producer. It has added all its data.
    pub fn finish(mut self) {
        self.end = ProducerEnd::Finished;
    }

    /// Returns the gate that is ready once no consumer is left: the producer may end early.
    pub fn closed(&self) -> &Gate {
        &self.shared.closed
    }
}

impl<S: SharedState> Deref for Producer<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.shared.state
    }
}

impl<S: SharedState> Drop for Producer<S> {
    fn drop(&mut self) {
        let (end, left) = self.shared.producers.end(self.end);
        self.shared.state.producer_ended(end, left);
    }
}

impl<S: SharedState> Consumer<S> {
    /// Returns the index of this consumer's task.
    pub fn index(&self) -> usize {
        self.index
    }
}

impl<S: SharedState> Deref for Consumer<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.shared.state
    }
}

impl<S: SharedState> Drop for Consumer<S> {
    fn drop(&mut self) {
        // AcqRel pairs with the other consumers' decrements: the last one sees what all others did.
        let left = self.shared.consumers.fetch_sub(1, Ordering::AcqRel) - 1;
        // Dropped last, so that the gate becomes ready even if the state panics.
        let _close = (left == 0).then(|| Close(&self.shared.closed));
        self.shared.state.consumer_ended(self.index, left);
    }
}

/// Makes the gate always ready when it is dropped.
struct Close<'a>(&'a Gate);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        self.0.set_always_ready();
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
