//! Union, N:1: a queue per child, read round-robin by one consumer.
//!
//! Every child has an equal share of the byte limit and a gate of its own. So a fast child never
//! uses the capacity of a slow one.
//!
//! Lock: `inner`. All gates change under it; wakers run after it.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    BufferLimit, Dependency, DependencyKind, Gate, ManyToOne, Payload, PopResult, PushResult,
    Wakeups, queue::SizedQueue, sync::Mutex,
};

#[derive(Debug)]
struct Inner<T> {
    children: Box<[SizedQueue<T>]>,
    /// The children with items, each once, in round-robin order.
    ready: VecDeque<usize>,
    producers_left: usize,
    aborted: bool,
    open: bool,
}

#[derive(Debug)]
struct State<T> {
    gates: ManyToOne,
    closed: Gate,
    share: BufferLimit,
    inner: Mutex<Inner<T>>,
}

/// The right of one child task to push. Dropping it unfinished aborts the union.
#[derive(Debug)]
pub struct UnionProducer<T: Payload> {
    state: Arc<State<T>>,
    child: usize,
    finished: bool,
}

/// The right to read all children. Dropping it closes the union.
#[derive(Debug)]
pub struct UnionConsumer<T: Payload> {
    state: Arc<State<T>>,
}

/// Creates a union of `children` producer tasks whose queues share `limit_bytes`.
///
/// # Panics
/// If `children` is 0.
pub fn new<T: Payload>(
    name: &str,
    children: usize,
    limit_bytes: usize,
) -> (Vec<UnionProducer<T>>, UnionConsumer<T>) {
    assert!(children > 0, "a union has at least one child");
    let state = Arc::new(State {
        gates: ManyToOne::new(name, children),
        closed: Dependency::blocked(format!("{name} closed"), DependencyKind::ConsumersGone),
        share: BufferLimit::new(limit_bytes.div_ceil(children)),
        inner: Mutex::new(Inner {
            children: (0..children).map(|_| SizedQueue::default()).collect(),
            ready: VecDeque::new(),
            producers_left: children,
            aborted: false,
            open: true,
        }),
    });
    (
        (0..children)
            .map(|child| UnionProducer { state: state.clone(), child, finished: false })
            .collect(),
        UnionConsumer { state },
    )
}

impl<T: Payload> UnionProducer<T> {
    /// Pushes `item` to this child's queue.
    pub fn push(&mut self, item: T) -> PushResult {
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        if !inner.open || inner.aborted {
            drop(inner);
            return PushResult::Closed;
        }
        let queue = &mut inner.children[self.child];
        let was_empty = queue.is_empty();
        queue.push(item);
        let bytes = queue.bytes();
        if was_empty {
            inner.ready.push_back(self.child);
        }
        self.state.gates.source().set_ready_exclusive(&mut wakeups);
        if self.state.share.is_exceeded(bytes) {
            let gate = self.state.gates.sink(self.child);
            gate.block();
            return PushResult::Backpressure(gate.clone());
        }
        PushResult::Accepted
    }

    /// Ends this child's input.
    pub fn finish(mut self) {
        self.leave(true);
    }

    /// Returns the gate that is ready once the consumer was dropped.
    pub fn closed(&self) -> &Gate {
        &self.state.closed
    }

    fn leave(&mut self, finished: bool) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        inner.producers_left -= 1;
        let was_aborted = inner.aborted;
        inner.aborted |= !finished;
        // Only once: in a cancelled query, all producers are dropped.
        if !was_aborted && (inner.aborted || inner.producers_left == 0) {
            self.state.gates.set_always_ready_all(&mut wakeups);
        }
    }
}

impl<T: Payload> Drop for UnionProducer<T> {
    fn drop(&mut self) {
        self.leave(false);
    }
}

impl<T: Payload> UnionConsumer<T> {
    /// Takes the next item, from the children in round-robin order.
    pub fn take(&mut self) -> PopResult<T> {
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        if inner.aborted {
            return PopResult::Aborted;
        }
        if let Some(child) = inner.ready.pop_front()
            && let Some((item, _)) = inner.children[child].pop()
        {
            let queue = &inner.children[child];
            let (bytes, is_empty) = (queue.bytes(), queue.is_empty());
            if !is_empty {
                inner.ready.push_back(child);
            }
            if !self.state.share.is_exceeded(bytes) {
                self.state.gates.sink(child).set_ready_exclusive(&mut wakeups);
            }
            return PopResult::Item(item);
        }
        if inner.producers_left == 0 {
            return PopResult::Finished;
        }
        let gate = self.state.gates.source();
        gate.block();
        PopResult::Blocked(gate.clone())
    }
}

impl<T: Payload> Drop for UnionConsumer<T> {
    fn drop(&mut self) {
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        inner.open = false;
        inner.ready.clear();
        let unread: Vec<_> = inner.children.iter_mut().map(SizedQueue::take).collect();
        self.state.closed.set_always_ready_deferred(&mut wakeups);
        self.state.gates.set_always_ready_all(&mut wakeups);
        drop(inner);
        drop(unread);
    }
}
