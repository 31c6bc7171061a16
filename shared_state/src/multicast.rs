//! Multicast, 1:N: one sink, several sources that each read everything at their own pace.
//!
//! An item stays until the slowest open source has read it. The byte budget covers what is held; on
//! an edge where waiting for the slowest reader would close a cycle (one multicast feeding both sides
//! of a join) the wait-for graph lets the budget overflow.
//!
//! Lock: `inner`. All gates flip under it; wakers run after it.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    Budget, Dependency, DependencyKind, Gate, Give, OneToMany, Payload, Take, Wakeups, sync::Mutex,
};

/// An item, and how many sources have yet to read it. Sources read in order, so that is never less
/// for a later item.
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
    /// Where each source reads next.
    positions: Box<[u64]>,
    /// Sources that have not left.
    open: usize,
    finished: bool,
    aborted: bool,
}

#[derive(Debug)]
struct State<T> {
    gates: OneToMany,
    closed: Gate,
    budget: Budget,
    inner: Mutex<Inner<T>>,
}

/// The right to push. Dropping it unfinished aborts the multicast.
#[derive(Debug)]
pub struct MulticastSink<T: Payload + Clone> {
    state: Arc<State<T>>,
    finished: bool,
}

/// The right of one source to read everything. Dropping it gives that up.
#[derive(Debug)]
pub struct MulticastSource<T: Payload + Clone> {
    state: Arc<State<T>>,
    instance: usize,
}

/// A multicast to `sources` sources.
///
/// # Panics
/// If `sources` is 0.
pub fn new<T: Payload + Clone>(
    name: &str,
    sources: usize,
    budget: Budget,
) -> (MulticastSink<T>, Vec<MulticastSource<T>>) {
    assert!(sources > 0, "a multicast has at least one source");
    let state = Arc::new(State {
        gates: OneToMany::new(name, sources),
        closed: Dependency::blocked(format!("{name} closed"), DependencyKind::Closed),
        budget,
        inner: Mutex::new(Inner {
            items: VecDeque::new(),
            bytes: 0,
            first: 0,
            positions: vec![0; sources].into(),
            open: sources,
            finished: false,
            aborted: false,
        }),
    });
    let readers =
        (0..sources).map(|instance| MulticastSource { state: state.clone(), instance }).collect();
    (MulticastSink { state, finished: false }, readers)
}

impl<T: Payload + Clone> State<T> {
    /// Lets go of what every open source has read.
    fn release(&self, inner: &mut Inner<T>, wakeups: &mut Wakeups) -> Vec<T> {
        let mut released = Vec::new();
        while inner.items.front().is_some_and(|shared| shared.unread == 0)
            && let Some(shared) = inner.items.pop_front()
        {
            inner.bytes -= shared.bytes;
            inner.first += 1;
            released.push(shared.item);
        }
        if !released.is_empty() && !self.budget.must_wait(inner.bytes) {
            self.gates.sink().set_ready_alone(wakeups);
        }
        released
    }
}

impl<T> Inner<T> {
    /// Where in `items` source `instance` reads next.
    fn offset(&self, instance: usize) -> usize {
        usize::try_from(self.positions[instance] - self.first).unwrap_or(usize::MAX)
    }
}

impl<T: Payload + Clone> MulticastSink<T> {
    /// Pushes `item` to all sources.
    pub fn push(&mut self, item: T) -> Give {
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        if inner.open == 0 {
            drop(inner);
            return Give::Closed;
        }
        let bytes = item.bytes();
        let unread = inner.open;
        inner.items.push_back(Shared { item, bytes, unread });
        inner.bytes += bytes;
        for gate in self.state.gates.sources() {
            gate.set_ready_alone(&mut wakeups);
        }
        if self.state.budget.must_wait(inner.bytes) {
            let gate = self.state.gates.sink();
            gate.block();
            return Give::Full(gate.clone());
        }
        Give::Accepted
    }

    /// Says that the input ended.
    pub fn finish(mut self) {
        self.leave(true);
    }

    /// Ready once no source is left.
    pub fn closed(&self) -> &Gate {
        &self.state.closed
    }

    fn leave(&mut self, finished: bool) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        inner.finished = finished;
        inner.aborted = !finished;
        self.state.gates.open_for_ever(&mut wakeups);
    }
}

impl<T: Payload + Clone> Drop for MulticastSink<T> {
    fn drop(&mut self) {
        self.leave(false);
    }
}

impl<T: Payload + Clone> MulticastSource<T> {
    /// The next item at this source's position.
    pub fn take(&mut self) -> Take<T> {
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        if inner.aborted {
            return Take::Aborted;
        }
        let offset = inner.offset(self.instance);
        if let Some(shared) = inner.items.get_mut(offset) {
            shared.unread -= 1;
            let item = shared.item.clone();
            inner.positions[self.instance] += 1;
            let released = self.state.release(&mut inner, &mut wakeups);
            drop(inner);
            drop(released);
            return Take::Item(item);
        }
        if inner.finished {
            return Take::Finished;
        }
        let gate = self.state.gates.source(self.instance);
        gate.block();
        Take::Blocked(gate.clone())
    }
}

impl<T: Payload + Clone> Drop for MulticastSource<T> {
    fn drop(&mut self) {
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        inner.open -= 1;
        let offset = inner.offset(self.instance);
        for shared in inner.items.iter_mut().skip(offset) {
            shared.unread -= 1;
        }
        let released = self.state.release(&mut inner, &mut wakeups);
        if inner.open == 0 {
            self.state.closed.set_always_ready_later(&mut wakeups);
            self.state.gates.sink().set_always_ready_later(&mut wakeups);
        }
        drop(inner);
        drop(released);
    }
}
