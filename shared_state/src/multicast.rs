//! Multicast, 1:N: one producer, and several consumers that each read all items at their own pace.
//!
//! An item stays until the slowest open consumer has read it. The byte limit covers the buffered
//! items. If waiting for the slowest consumer would close a cycle (one multicast feeds both sides
//! of a join), the wait-for graph lets the buffer overflow.
//!
//! Lock: `inner`. All gates change under it; wakers run after it. The consumers are counted under
//! it as well, and not by [`tokens()`](crate::tokens()): a push counts the consumers that will read
//! its item, and a consumer that ends subtracts itself from the items that it has not read.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    BufferLimit, Dependency, DependencyKind, Gate, OneToMany, Payload, PopResult, PushResult,
    StateLock, Wakeups,
};

/// An item, and the number of consumers that have not read it. Consumers read in order, so a later
/// item has at least this number.
#[derive(Debug)]
struct Shared<T> {
    item: T,
    bytes: usize,
    unread: usize,
}

#[derive(Debug)]
struct Inner<T> {
    items: VecDeque<Shared<T>>,
    bytes: usize,
    /// Position of `items[0]` in the whole sequence.
    first: u64,
    /// Position of each consumer's next item.
    positions: Box<[u64]>,
    /// Number of consumers that were not dropped.
    consumers_left: usize,
    finished: bool,
    aborted: bool,
}

#[derive(Debug)]
struct State<T> {
    gates: OneToMany,
    closed: Gate,
    limit: BufferLimit,
    inner: StateLock<Inner<T>>,
}

/// The right to push. Dropping it unfinished aborts the multicast.
#[derive(Debug)]
pub struct MulticastProducer<T: Payload + Clone> {
    state: Arc<State<T>>,
    finished: bool,
}

/// The right of one consumer to read all items. Dropping it ends its reading.
#[derive(Debug)]
pub struct MulticastConsumer<T: Payload + Clone> {
    state: Arc<State<T>>,
    task_index: usize,
}

/// Creates a multicast to `consumers` consumers.
///
/// # Panics
/// If `consumers` is 0.
pub fn new<T: Payload + Clone>(
    name: &str,
    consumers: usize,
    limit: BufferLimit,
) -> (MulticastProducer<T>, Vec<MulticastConsumer<T>>) {
    assert!(consumers > 0, "a multicast has at least one consumer");
    let state = Arc::new(State {
        gates: OneToMany::new(name, consumers),
        closed: Dependency::blocked(format!("{name} closed"), DependencyKind::ConsumersGone),
        limit,
        inner: StateLock::new(Inner {
            items: VecDeque::new(),
            bytes: 0,
            first: 0,
            positions: vec![0; consumers].into(),
            consumers_left: consumers,
            finished: false,
            aborted: false,
        }),
    });
    let readers = (0..consumers)
        .map(|task_index| MulticastConsumer { state: state.clone(), task_index })
        .collect();
    (MulticastProducer { state, finished: false }, readers)
}

impl<T: Payload + Clone> State<T> {
    /// Removes the items that every open consumer has read.
    fn release(&self, inner: &mut Inner<T>, wakeups: &mut Wakeups) -> Vec<T> {
        let mut released = Vec::new();
        while inner.items.front().is_some_and(|shared| shared.unread == 0)
            && let Some(shared) = inner.items.pop_front()
        {
            inner.bytes -= shared.bytes;
            inner.first += 1;
            released.push(shared.item);
        }
        if !released.is_empty() && !self.limit.is_exceeded(inner.bytes) {
            self.gates.sink().set_ready_exclusive(wakeups);
        }
        released
    }
}

impl<T> Inner<T> {
    /// Returns the index in `items` of consumer `task_index`'s next item.
    fn offset(&self, task_index: usize) -> usize {
        usize::try_from(self.positions[task_index] - self.first).unwrap_or(usize::MAX)
    }
}

impl<T: Payload + Clone> MulticastProducer<T> {
    /// Pushes `item` to all consumers.
    pub fn push(&mut self, item: T) -> PushResult {
        let mut guard = self.state.inner.lock();
        let (inner, wakeups) = guard.parts();
        if inner.consumers_left == 0 {
            // The lock is released first, and then the item is dropped.
            return PushResult::Closed;
        }
        let bytes = item.bytes();
        let unread = inner.consumers_left;
        inner.items.push_back(Shared { item, bytes, unread });
        inner.bytes += bytes;
        for gate in self.state.gates.sources() {
            gate.set_ready_exclusive(wakeups);
        }
        if self.state.limit.is_exceeded(inner.bytes) {
            let gate = self.state.gates.sink();
            gate.block();
            return PushResult::Backpressure(gate.clone());
        }
        PushResult::Accepted
    }

    /// Ends the input.
    pub fn finish(mut self) {
        self.leave(true);
    }

    /// Returns the gate that is ready once no consumer is left.
    pub fn closed(&self) -> &Gate {
        &self.state.closed
    }

    fn leave(&mut self, finished: bool) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let mut guard = self.state.inner.lock();
        let (inner, wakeups) = guard.parts();
        inner.finished = finished;
        inner.aborted = !finished;
        self.state.gates.set_always_ready_all(wakeups);
    }
}

impl<T: Payload + Clone> Drop for MulticastProducer<T> {
    fn drop(&mut self) {
        self.leave(false);
    }
}

impl<T: Payload + Clone> MulticastConsumer<T> {
    /// Takes the next item at this consumer's position.
    pub fn take(&mut self) -> PopResult<T> {
        let mut guard = self.state.inner.lock();
        let (inner, wakeups) = guard.parts();
        if inner.aborted {
            return PopResult::Aborted;
        }
        let offset = inner.offset(self.task_index);
        if let Some(shared) = inner.items.get_mut(offset) {
            shared.unread -= 1;
            let item = shared.item.clone();
            inner.positions[self.task_index] += 1;
            let released = self.state.release(inner, wakeups);
            guard.unlock_and_drop(released);
            return PopResult::Item(item);
        }
        if inner.finished {
            return PopResult::Finished;
        }
        let gate = self.state.gates.source(self.task_index);
        gate.block();
        PopResult::Blocked(gate.clone())
    }
}

impl<T: Payload + Clone> Drop for MulticastConsumer<T> {
    fn drop(&mut self) {
        let mut guard = self.state.inner.lock();
        let (inner, wakeups) = guard.parts();
        inner.consumers_left -= 1;
        let offset = inner.offset(self.task_index);
        for shared in inner.items.iter_mut().skip(offset) {
            shared.unread -= 1;
        }
        let released = self.state.release(inner, wakeups);
        if inner.consumers_left == 0 {
            self.state.closed.set_always_ready_deferred(wakeups);
            self.state.gates.sink().set_always_ready_deferred(wakeups);
        }
        guard.unlock_and_drop(released);
    }
}
