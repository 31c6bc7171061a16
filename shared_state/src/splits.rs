//! Splits of a table for one task of a stage, 1:N: a scheduler adds splits as the task makes
//! progress, and the tasks of its scan take them one by one.
//!
//! Lock: `inner`. Both gates change under it.

use std::{collections::VecDeque, fmt, iter::Sum, ops::AddAssign, sync::Arc};

use crate::{Dependency, DependencyKind, Gate, PopResult, StateLock};

struct Inner<S> {
    queued: VecDeque<(S, u64)>,
    /// Number of splits taken and not yet read.
    reading: usize,
    /// Total weight of the splits that are queued or being read.
    weight: u64,
    no_more_splits: bool,
    closed: bool,
}

/// A queue of splits. Clones are the same queue.
pub struct SplitQueue<S> {
    state: Arc<State<S>>,
}

struct State<S> {
    /// For the scan tasks: ready while there are splits, or when there will be no more.
    splits: Gate,
    /// For the scheduler: ready while the queue has capacity.
    capacity: Gate,
    /// Upper bound: the queue has no capacity from this number of queued splits on.
    max_queued: usize,
    inner: StateLock<Inner<S>>,
}

/// Guard of a split that is being read. Dropped when the split was read, or will not be.
pub struct SplitGuard<S> {
    state: Arc<State<S>>,
    weight: u64,
}

impl<S> Drop for SplitGuard<S> {
    fn drop(&mut self) {
        let mut inner = self.state.inner.lock();
        inner.reading -= 1;
        inner.weight -= self.weight;
    }
}

impl<S> fmt::Debug for SplitGuard<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a split of weight {}", self.weight)
    }
}

/// Counts and weight of a queue's splits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SplitLoad {
    /// Splits that no task has taken.
    pub queued: usize,
    /// Splits that are being read.
    pub reading: usize,
    /// Total weight of the queued splits and of those being read.
    pub weight: u64,
}

impl AddAssign for SplitLoad {
    fn add_assign(&mut self, other: Self) {
        self.queued += other.queued;
        self.reading += other.reading;
        self.weight += other.weight;
    }
}

impl Sum for SplitLoad {
    fn sum<I: Iterator<Item = Self>>(loads: I) -> Self {
        let mut all = Self::default();
        loads.for_each(|load| all += load);
        all
    }
}

impl<S> Clone for SplitQueue<S> {
    fn clone(&self) -> Self {
        Self { state: self.state.clone() }
    }
}

impl<S> fmt::Debug for SplitQueue<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.load())
    }
}

impl<S> SplitQueue<S> {
    /// Creates a queue with capacity for `max_queued` splits. (It accepts more splits than that.)
    pub fn new(name: &str, max_queued: usize) -> Self {
        let inner = Inner {
            queued: VecDeque::new(),
            reading: 0,
            weight: 0,
            no_more_splits: false,
            closed: false,
        };
        let state = State {
            // The scheduler is a task of another query context.
            splits: Dependency::blocked(format!("{name} splits"), DependencyKind::External),
            capacity: Dependency::ready(format!("{name} split queue"), DependencyKind::External),
            max_queued: max_queued.max(1),
            inner: StateLock::new(inner),
        };
        Self { state: Arc::new(state) }
    }

    /// Adds splits, each with its weight. Splits added after the end are dropped.
    pub fn add(&self, splits: impl IntoIterator<Item = (S, u64)>) {
        let mut late = Vec::new();
        let mut inner = self.state.inner.lock();
        if inner.no_more_splits || inner.closed {
            late.extend(splits);
            return;
        }
        for (split, weight) in splits {
            inner.weight += weight;
            inner.queued.push_back((split, weight));
        }
        if inner.queued.len() >= self.state.max_queued {
            self.state.capacity.block();
        }
        if !inner.queued.is_empty() {
            inner.set_ready(&self.state.splits);
        }
    }

    /// Records that there will be no more splits.
    pub fn set_no_more_splits(&self) {
        let mut inner = self.state.inner.lock();
        inner.no_more_splits = true;
        inner.set_always_ready(&self.state.splits);
    }

    /// Takes the next split, with a guard to drop when the split was read.
    pub fn take(&self) -> PopResult<(S, SplitGuard<S>)> {
        let mut inner = self.state.inner.lock();
        if let Some((split, weight)) = inner.queued.pop_front() {
            inner.reading += 1;
            if inner.queued.len() <= self.state.max_queued / 2 {
                inner.set_ready(&self.state.capacity);
            }
            return PopResult::Item((split, SplitGuard { state: self.state.clone(), weight }));
        }
        if inner.no_more_splits || inner.closed {
            return PopResult::Finished;
        }
        self.state.splits.block();
        PopResult::Blocked(self.state.splits.clone())
    }

    /// Closes the queue, because no task reads it any more. Drops the queued splits.
    pub fn close(&self) {
        let mut inner = self.state.inner.lock();
        inner.closed = true;
        let unread = std::mem::take(&mut inner.queued);
        inner.weight -= unread.iter().map(|(_, weight)| weight).sum::<u64>();
        inner.set_always_ready(&self.state.splits);
        inner.set_always_ready(&self.state.capacity);
        inner.unlock_and_drop(unread);
    }

    /// Returns the queue's counts and weight.
    pub fn load(&self) -> SplitLoad {
        let inner = self.state.inner.lock();
        SplitLoad { queued: inner.queued.len(), reading: inner.reading, weight: inner.weight }
    }

    /// Returns the gate that is ready while the scheduler may add splits. It is blocked when the
    /// queue is full, and becomes ready when the queue is half empty.
    pub fn capacity(&self) -> &Gate {
        &self.state.capacity
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    fn next(queue: &SplitQueue<usize>) -> (usize, SplitGuard<usize>) {
        match queue.take() {
            PopResult::Item(split) => split,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn j8_room_comes_back_when_half_is_taken() {
        let queue = SplitQueue::new("test", 4);
        queue.add((0..3).map(|split| (split, 10)));
        assert!(queue.capacity().is_ready());
        queue.add([(3, 10)]);
        assert!(!queue.capacity().is_ready());
        let (first, reading) = next(&queue);
        assert!(first == 0 && !queue.capacity().is_ready());
        let (second, _also_reading) = next(&queue);
        assert!(second == 1 && queue.capacity().is_ready());
        assert_eq!(queue.load(), SplitLoad { queued: 2, reading: 2, weight: 40 });
        drop(reading);
        assert_eq!(queue.load(), SplitLoad { queued: 2, reading: 1, weight: 30 });
    }

    #[test]
    fn takers_wait_for_splits_and_for_their_end() {
        let queue = SplitQueue::new("test", 4);
        let PopResult::Blocked(gate) = queue.take() else { panic!("the queue is empty") };
        queue.add([(7, 1)]);
        assert!(gate.is_ready());
        assert_eq!(next(&queue).0, 7);
        assert!(matches!(queue.take(), PopResult::Blocked(_)));
        queue.set_no_more_splits();
        assert!(gate.is_ready() && matches!(queue.take(), PopResult::Finished));
        // Too late: dropped.
        queue.add([(8, 1)]);
        assert!(matches!(queue.take(), PopResult::Finished));
    }

    #[test]
    fn a_closed_queue_lets_everybody_go() {
        let queue = SplitQueue::new("test", 1);
        queue.add([(1, 5)]);
        assert!(!queue.capacity().is_ready());
        queue.close();
        assert!(queue.capacity().is_ready());
        assert!(matches!(queue.take(), PopResult::Finished));
        assert_eq!(queue.load(), SplitLoad::default());
    }
}
