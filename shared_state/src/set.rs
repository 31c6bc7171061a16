//! Intersect and except, N:1: the build sink makes a table of the first child, the probe sinks of
//! the other children get it handed down one after the other, and one source reads what is left.
//!
//! Only one task owns the table at a time, so it needs no lock of its own. The gate of sink `i` is
//! shut until sink `i - 1` has passed the table on. The table's bytes are charged to the query's
//! memory by the sink that builds it.
//!
//! Lock: `inner`. All gates flip under it; wakers run after it.

use std::sync::Arc;

use crate::{Dependency, DependencyKind, Gate, ManyToOne, PopResult, Wakeups, sync::Mutex};

#[derive(Debug)]
struct Inner<T> {
    /// The table between two owners.
    table: Option<T>,
    /// The sink whose turn it is; `sinks` when it is the source's.
    current_child: usize,
    aborted: bool,
    /// The source has left, so nobody reads the table any more.
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

/// A chain over `children` sinks that starts with `table`.
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
    /// The table, once it is this child's turn; [`PopResult::Finished`] if nobody reads it any more.
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

    /// Passes the table on to the next child, or to the source after the last one.
    pub fn pass_to_next(mut self, table: T) {
        self.passed = true;
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        if inner.closed {
            // Nobody would take it out again; it goes when the lock is released.
            drop(inner);
            return;
        }
        inner.table = Some(table);
        inner.current_child = self.child + 1;
        let next =
            self.state.gates.sinks().get(inner.current_child).unwrap_or(self.state.gates.source());
        next.set_always_ready_deferred(&mut wakeups);
    }

    /// Ready once the source has left.
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
    /// The final table, once; then [`PopResult::Finished`].
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
