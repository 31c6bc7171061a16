//! Intersect and except, N:1: the build producer makes a table of the first child. The probe
//! producers of the other children receive it one after the other, and one consumer reads the
//! remaining rows.
//!
//! Only one task owns the table at a time, so the table needs no lock of its own. The gate of
//! producer `i` is blocked until producer `i - 1` has passed the table on. The producer that builds
//! the table reserves its memory in the query's pool.
//!
//! Lock: `inner`. All gates change under it; wakers run after it.

use std::sync::Arc;

use crate::{Dependency, DependencyKind, Gate, ManyToOne, PopResult, Wakeups, sync::Mutex};

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
    closed: Gate,
    inner: Mutex<Inner<T>>,
}

/// The right of child `i`'s task to work on the table. Dropping it without passing the table on
/// aborts the state.
#[derive(Debug)]
pub struct SetProducer<T> {
    state: Arc<State<T>>,
    child: usize,
    passed: bool,
}

/// The right to read the final table.
#[derive(Debug)]
pub struct SetConsumer<T> {
    state: Arc<State<T>>,
}

/// Creates a chain of `children` producers that starts with `table`.
///
/// # Panics
/// If `children` is 0.
pub fn new<T>(name: &str, children: usize, table: T) -> (Vec<SetProducer<T>>, SetConsumer<T>) {
    assert!(children > 0, "a set operation has at least one child");
    let gates = ManyToOne::new(name, children);
    gates.sinks()[1..].iter().for_each(|gate| gate.block());
    let state = Arc::new(State {
        gates,
        closed: Dependency::blocked(format!("{name} closed"), DependencyKind::ConsumersGone),
        inner: Mutex::new(Inner {
            table: Some(table),
            current_child: 0,
            aborted: false,
            closed: false,
        }),
    });
    (
        (0..children)
            .map(|child| SetProducer { state: state.clone(), child, passed: false })
            .collect(),
        SetConsumer { state },
    )
}

impl<T> SetProducer<T> {
    /// Takes the table when the children before have passed it on; [`PopResult::Finished`] if the
    /// consumer was dropped.
    pub fn take(&mut self) -> PopResult<T> {
        let mut inner = self.state.inner.lock();
        if inner.aborted {
            return PopResult::Aborted;
        }
        if inner.closed {
            return PopResult::Finished;
        }
        if inner.current_child != self.child {
            return PopResult::Blocked(self.state.gates.sink(self.child).clone());
        }
        inner.table.take().map_or(PopResult::Finished, PopResult::Item)
    }

    /// Passes the table on to the next child, or to the consumer after the last child.
    pub fn pass_to_next(mut self, table: T) {
        self.passed = true;
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        if inner.closed {
            // The table has no reader any more: it is dropped after the lock is released.
            drop(inner);
            return;
        }
        inner.table = Some(table);
        inner.current_child = self.child + 1;
        let next =
            self.state.gates.sinks().get(inner.current_child).unwrap_or(self.state.gates.source());
        next.set_always_ready_deferred(&mut wakeups);
    }

    /// Returns the gate that is ready once the consumer was dropped.
    pub fn closed(&self) -> &Gate {
        &self.state.closed
    }
}

impl<T> Drop for SetProducer<T> {
    fn drop(&mut self) {
        if self.passed {
            return;
        }
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        inner.aborted = true;
        let table = inner.table.take();
        self.state.gates.set_always_ready_all(&mut wakeups);
        drop(inner);
        drop(table);
    }
}

impl<T> SetConsumer<T> {
    /// Takes the final table, once; then returns [`PopResult::Finished`].
    pub fn take(&mut self) -> PopResult<T> {
        let mut inner = self.state.inner.lock();
        if inner.aborted {
            return PopResult::Aborted;
        }
        if inner.current_child < self.state.gates.sinks().len() {
            return PopResult::Blocked(self.state.gates.source().clone());
        }
        inner.table.take().map_or(PopResult::Finished, PopResult::Item)
    }
}

impl<T> Drop for SetConsumer<T> {
    fn drop(&mut self) {
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        inner.closed = true;
        let table = inner.table.take();
        self.state.closed.set_always_ready_deferred(&mut wakeups);
        self.state.gates.set_always_ready_all(&mut wakeups);
        drop(inner);
        drop(table);
    }
}
