//! Intersect and except, N:1: the build sink makes a table of the first child, the probe sinks of
//! the other children get it handed down one after the other, and one source reads what is left.
//!
//! Only one task owns the table at a time, so it needs no lock of its own. The gate of sink `i` is
//! shut until sink `i - 1` has passed the table on. The table's bytes are charged to the query's
//! memory by the sink that builds it.
//!
//! Lock: `inner`. All gates flip under it; wakers run after it.

use std::sync::Arc;

use crate::{Dependency, DependencyKind, Gate, ManyToOne, Take, Wakeups, sync::Mutex};

#[derive(Debug)]
struct Inner<H> {
    /// The table between two owners.
    table: Option<H>,
    /// The sink whose turn it is; `sinks` when it is the source's.
    turn: usize,
    aborted: bool,
    /// The source has left, so nobody reads the table any more.
    closed: bool,
}

#[derive(Debug)]
struct State<H> {
    gates: ManyToOne,
    closed: Gate,
    inner: Mutex<Inner<H>>,
}

/// The right of child `i`'s task to work on the table. Dropping it without passing the table on
/// aborts the state.
#[derive(Debug)]
pub struct SetSink<H> {
    state: Arc<State<H>>,
    child: usize,
    passed: bool,
}

/// The right to read the final table.
#[derive(Debug)]
pub struct SetSource<H> {
    state: Arc<State<H>>,
}

/// A chain over `children` sinks that starts with `table`.
///
/// # Panics
/// If `children` is 0.
pub fn new<H>(name: &str, children: usize, table: H) -> (Vec<SetSink<H>>, SetSource<H>) {
    assert!(children > 0, "a set operation has at least one child");
    let gates = ManyToOne::new(name, children);
    gates.sinks()[1..].iter().for_each(|gate| gate.block());
    let state = Arc::new(State {
        gates,
        closed: Dependency::blocked(format!("{name} closed"), DependencyKind::Closed),
        inner: Mutex::new(Inner { table: Some(table), turn: 0, aborted: false, closed: false }),
    });
    (
        (0..children).map(|child| SetSink { state: state.clone(), child, passed: false }).collect(),
        SetSource { state },
    )
}

impl<H> SetSink<H> {
    /// The table, once it is this child's turn; [`Take::Finished`] if nobody reads it any more.
    pub fn take(&mut self) -> Take<H> {
        let mut inner = self.state.inner.lock();
        if inner.aborted {
            return Take::Aborted;
        }
        if inner.closed {
            return Take::Finished;
        }
        if inner.turn != self.child {
            return Take::Blocked(self.state.gates.sink(self.child).clone());
        }
        inner.table.take().map_or(Take::Finished, Take::Item)
    }

    /// Passes the table on to the next child, or to the source after the last one.
    pub fn pass(mut self, table: H) {
        self.passed = true;
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        if inner.closed {
            // Nobody would take it out again; it goes when the lock is released.
            drop(inner);
            return;
        }
        inner.table = Some(table);
        inner.turn = self.child + 1;
        let next = self.state.gates.sinks().get(inner.turn).unwrap_or(self.state.gates.source());
        next.set_always_ready_later(&mut wakeups);
    }

    /// Ready once the source has left.
    pub fn closed(&self) -> &Gate {
        &self.state.closed
    }
}

impl<H> Drop for SetSink<H> {
    fn drop(&mut self) {
        if self.passed {
            return;
        }
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        inner.aborted = true;
        let table = inner.table.take();
        self.state.gates.open_for_ever(&mut wakeups);
        drop(inner);
        drop(table);
    }
}

impl<H> SetSource<H> {
    /// The final table, once; then [`Take::Finished`].
    pub fn take(&mut self) -> Take<H> {
        let mut inner = self.state.inner.lock();
        if inner.aborted {
            return Take::Aborted;
        }
        if inner.turn < self.state.gates.sinks().len() {
            return Take::Blocked(self.state.gates.source().clone());
        }
        inner.table.take().map_or(Take::Finished, Take::Item)
    }
}

impl<H> Drop for SetSource<H> {
    fn drop(&mut self) {
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        inner.closed = true;
        let table = inner.table.take();
        self.state.closed.set_always_ready_later(&mut wakeups);
        self.state.gates.open_for_ever(&mut wakeups);
        drop(inner);
        drop(table);
    }
}
