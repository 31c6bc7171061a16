//! Union, N:1: a queue per child, read by one source in turn.
//!
//! Every child has the same share of the byte budget and a gate of its own, so a fast child never
//! takes the room of a slow one.
//!
//! Lock: `inner`. All gates flip under it; wakers run after it.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    Budget, Dependency, DependencyKind, Gate, Give, ManyToOne, Payload, Take, Wakeups,
    queue::Queue, sync::Mutex,
};

#[derive(Debug)]
struct Inner<T> {
    children: Box<[Queue<T>]>,
    /// The children that have something, each once, in the order of their turns.
    ready: VecDeque<usize>,
    sinks_left: usize,
    aborted: bool,
    open: bool,
}

#[derive(Debug)]
struct State<T> {
    gates: ManyToOne,
    closed: Gate,
    share: Budget,
    inner: Mutex<Inner<T>>,
}

/// The right of one child task to push. Dropping it unfinished aborts the union.
#[derive(Debug)]
pub struct UnionSink<T: Payload> {
    state: Arc<State<T>>,
    child: usize,
    finished: bool,
}

/// The right to read all children. Dropping it closes the union.
#[derive(Debug)]
pub struct UnionSource<T: Payload> {
    state: Arc<State<T>>,
}

/// A union of `children` sink tasks whose queues share `limit_bytes`.
///
/// # Panics
/// If `children` is 0.
pub fn new<T: Payload>(
    name: &str,
    children: usize,
    limit_bytes: usize,
) -> (Vec<UnionSink<T>>, UnionSource<T>) {
    assert!(children > 0, "a union has at least one child");
    let state = Arc::new(State {
        gates: ManyToOne::new(name, children),
        closed: Dependency::blocked(format!("{name} closed"), DependencyKind::Closed),
        share: Budget::new(limit_bytes.div_ceil(children)),
        inner: Mutex::new(Inner {
            children: (0..children).map(|_| Queue::default()).collect(),
            ready: VecDeque::new(),
            sinks_left: children,
            aborted: false,
            open: true,
        }),
    });
    (
        (0..children)
            .map(|child| UnionSink { state: state.clone(), child, finished: false })
            .collect(),
        UnionSource { state },
    )
}

impl<T: Payload> UnionSink<T> {
    /// Pushes `item` to this child's queue.
    pub fn push(&mut self, item: T) -> Give {
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        if !inner.open || inner.aborted {
            drop(inner);
            return Give::Closed;
        }
        let queue = &mut inner.children[self.child];
        let was_empty = queue.is_empty();
        queue.push(item);
        let bytes = queue.bytes();
        if was_empty {
            inner.ready.push_back(self.child);
        }
        self.state.gates.source().set_ready_alone(&mut wakeups);
        if self.state.share.must_wait(bytes) {
            let gate = self.state.gates.sink(self.child);
            gate.block();
            return Give::Full(gate.clone());
        }
        Give::Accepted
    }

    /// Says that this child's input ended.
    pub fn finish(mut self) {
        self.leave(true);
    }

    /// Ready once the source has left.
    pub fn closed(&self) -> &Gate {
        &self.state.closed
    }

    fn leave(&mut self, finished: bool) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        inner.sinks_left -= 1;
        let was_aborted = inner.aborted;
        inner.aborted |= !finished;
        // Once: of a cancelled query, all sinks leave.
        if !was_aborted && (inner.aborted || inner.sinks_left == 0) {
            self.state.gates.open_for_ever(&mut wakeups);
        }
    }
}

impl<T: Payload> Drop for UnionSink<T> {
    fn drop(&mut self) {
        self.leave(false);
    }
}

impl<T: Payload> UnionSource<T> {
    /// The next item, from the children in turn.
    pub fn take(&mut self) -> Take<T> {
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        if inner.aborted {
            return Take::Aborted;
        }
        if let Some(child) = inner.ready.pop_front()
            && let Some((item, _)) = inner.children[child].pop()
        {
            let queue = &inner.children[child];
            let (bytes, is_empty) = (queue.bytes(), queue.is_empty());
            if !is_empty {
                inner.ready.push_back(child);
            }
            if !self.state.share.must_wait(bytes) {
                self.state.gates.sink(child).set_ready_alone(&mut wakeups);
            }
            return Take::Item(item);
        }
        if inner.sinks_left == 0 {
            return Take::Finished;
        }
        let gate = self.state.gates.source();
        gate.block();
        Take::Blocked(gate.clone())
    }
}

impl<T: Payload> Drop for UnionSource<T> {
    fn drop(&mut self) {
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        inner.open = false;
        inner.ready.clear();
        let unread: Vec<_> = inner.children.iter_mut().map(Queue::take).collect();
        self.state.closed.set_always_ready_later(&mut wakeups);
        self.state.gates.open_for_ever(&mut wakeups);
        drop(inner);
        drop(unread);
    }
}
