//! Intersect and except, N:1: the build producer makes a table of the first child. The probe
//! producers of the other children receive it one after the other, and one consumer reads the
//! remaining rows.
//!
//! Only one task owns the table at a time, so the table needs no lock of its own. The gate of
//! producer `i` is blocked until producer `i - 1` has passed the table on. The producer that builds
//! the table reserves its memory in the query's pool.
//!
//! A producer that passed the table on has finished; the ends are reported by [`tokens()`].
//!
//! Lock: `inner`. The gates of producers and consumer change under it; wakers run after it. The
//! gate `closed` becomes ready after the consumer's end.

use crate::{
    Consumer, Gate, ManyToOne, PopResult, Producer, ProducerEnd, SharedState, StateLock, tokens,
};

#[derive(Debug)]
struct Inner<T> {
    /// The table while no task owns it.
    table: Option<T>,
    /// Index of the producer that may take the table; the number of children for the consumer.
    current_child: usize,
    aborted: bool,
    /// Whether the consumer was dropped, so that the table is no longer read.
    closed: bool,
}

#[derive(Debug)]
struct State<T> {
    gates: ManyToOne,
    inner: StateLock<Inner<T>>,
}

/// The right of child `i`'s task to work on the table. Dropping it without passing the table on
/// aborts the state.
#[derive(Debug)]
pub struct SetProducer<T>(Producer<State<T>>);

/// The right to read the final table.
#[derive(Debug)]
pub struct SetConsumer<T>(Consumer<State<T>>);

/// Creates a chain of `children` producers that starts with `table`.
///
/// # Panics
/// If `children` is 0.
pub fn new<T>(name: &str, children: usize, table: T) -> (Vec<SetProducer<T>>, SetConsumer<T>) {
    let gates = ManyToOne::new(name, children);
    gates.sinks().iter().skip(1).for_each(|gate| gate.block());
    let inner = Inner { table: Some(table), current_child: 0, aborted: false, closed: false };
    let state = State { gates, inner: StateLock::new(inner) };
    let (producers, mut consumers) = tokens(name, state, children, 1);
    (producers.into_iter().map(SetProducer).collect(), SetConsumer(consumers.remove(0)))
}

impl<T> State<T> {
    /// Ends the chain by `change`, and drops the table unless a task owns it.
    fn end(&self, change: impl FnOnce(&mut Inner<T>)) {
        let mut guard = self.inner.lock();
        let (inner, wakeups) = guard.parts();
        change(inner);
        let table = inner.table.take();
        self.gates.set_always_ready_all(wakeups);
        guard.unlock_and_drop(table);
    }
}

impl<T> SharedState for State<T> {
    fn producer_ended(&self, end: ProducerEnd, _left: usize) {
        if end == ProducerEnd::Dropped {
            self.end(|inner| inner.aborted = true);
        }
    }

    fn consumer_ended(&self, _index: usize, _left: usize) {
        self.end(|inner| inner.closed = true);
    }
}

impl<T> SetProducer<T> {
    /// Takes the table when the children before have passed it on; [`PopResult::Finished`] if the
    /// consumer was dropped.
    pub fn take(&mut self) -> PopResult<T> {
        let mut inner = self.0.inner.lock();
        if inner.aborted {
            return PopResult::Aborted;
        }
        if inner.closed {
            return PopResult::Finished;
        }
        if inner.current_child != self.0.index() {
            return PopResult::Blocked(self.0.gates.sink(self.0.index()).clone());
        }
        inner.table.take().map_or(PopResult::Finished, PopResult::Item)
    }

    /// Passes the table on to the next child, or to the consumer after the last child.
    pub fn pass_to_next(self, table: T) {
        let state = &self.0;
        let mut inner = state.inner.lock();
        // Without a reader, the table is dropped after the lock is released.
        if !inner.closed {
            inner.table = Some(table);
            inner.current_child = state.index() + 1;
            let next = state.gates.sinks().get(inner.current_child).unwrap_or(state.gates.source());
            inner.set_always_ready(next);
        }
        drop(inner);
        self.0.finish();
    }

    /// Returns the gate that is ready once the consumer was dropped.
    pub fn closed(&self) -> &Gate {
        self.0.closed()
    }
}

impl<T> SetConsumer<T> {
    /// Takes the final table, once; then returns [`PopResult::Finished`].
    pub fn take(&mut self) -> PopResult<T> {
        let mut inner = self.0.inner.lock();
        if inner.aborted {
            return PopResult::Aborted;
        }
        if inner.current_child < self.0.gates.sinks().len() {
            return PopResult::Blocked(self.0.gates.source().clone());
        }
        inner.table.take().map_or(PopResult::Finished, PopResult::Item)
    }
}
