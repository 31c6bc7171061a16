//! Work that a task has done elsewhere, and what it gives away to be kept there: batches that do not
//! fit into memory.
//!
//! A task that has something done holds a [`Pending`], whose gate opens when it is done; whoever does it
//! holds the [`Completion`]. The query counts as live until the completion is gone, so that nothing of
//! it is under way when its end is told.

use std::{fmt, sync::Arc};

use arrow_array::RecordBatch;
use gatework_shared_state::{Dependency, DependencyKind, Gate, memory::Giving};
use parking_lot::Mutex;

use super::{
    QueryContext, Reservation,
    live::{LiveCount, Outside, Presence},
};
use crate::{Error, Result};

/// Batches to be kept elsewhere, made one by one as they are written. There is at least one, and all have the
/// same schema.
pub type ToSpill = Box<dyn Iterator<Item = Result<RecordBatch>> + Send>;

/// Where batches are kept that do not fit into memory: files, if the embedder has not thought of
/// something else.
pub trait SpillSpace: Send + Sync + fmt::Debug {
    /// Keeps `batches`, and completes `done` when that has been done, elsewhere than on this thread, and the
    /// batches are gone: `done` holds their reservation.
    fn write(&self, batches: ToSpill, done: Completion<Arc<dyn Spilled>>);

    /// The smallest spill, in bytes; 256 KiB. Less is not worth a file: a local state (one task's
    /// part of an aggregate, a sort, a join's build side or a window) that is refused memory holds
    /// up to this many bytes without a reservation, and only spills when it has more. So a query
    /// may hold this much for each task of each of its breakers beyond its memory limit.
    fn overdraft(&self) -> usize {
        256 << 10
    }
}

/// Batches that are kept elsewhere, until the last reference is dropped.
pub trait Spilled: Send + Sync + fmt::Debug {
    /// Bytes that they take there.
    fn bytes(&self) -> u64;

    /// Gets batch number `batch` back, and completes `done` with it, elsewhere than on this thread.
    fn read(self: Arc<Self>, batch: usize, done: Completion<RecordBatch>);
}

/// Work that is done elsewhere.
#[derive(Debug)]
pub struct Pending<T> {
    gate: Gate,
    outcome: Arc<Mutex<Option<Result<T>>>>,
}

/// The duty to say what came of it. Dropped without, the work has failed.
#[derive(Debug)]
pub struct Completion<T> {
    name: &'static str,
    gate: Gate,
    outcome: Arc<Mutex<Option<Result<T>>>>,
    /// Given back before the gate opens.
    held: Vec<Reservation>,
    /// Until it is given back.
    giving: Option<Giving>,
    /// Last, so that the query ends when all else is gone.
    outside: Outside,
}

impl<T> Pending<T> {
    /// Work for `query` that is about to begin; `name` says what it is.
    /// Memory that is held for it is given back when it is done.
    pub fn new(
        name: &'static str,
        query: &Arc<QueryContext>,
        held: Vec<Reservation>,
    ) -> (Self, Completion<T>) {
        Self::within(name, query, None, held)
    }

    /// The same for a task of `region`, which ends when this has been done.
    pub(super) fn within(
        name: &'static str,
        query: &Arc<QueryContext>,
        region: Option<&Arc<LiveCount>>,
        held: Vec<Reservation>,
    ) -> (Self, Completion<T>) {
        let gate = Dependency::blocked(name, DependencyKind::External);
        let outcome = Arc::default();
        let pending = Self { gate: gate.clone(), outcome: Arc::clone(&outcome) };
        let giving = (!held.is_empty()).then(|| query.memory_giving());
        let outside = query.outside(region);
        (pending, Completion { name, gate, outcome, held, giving, outside })
    }

    /// Opens when the work is done.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// What came of it, once; `None` before it is done.
    pub fn take(&self) -> Option<Result<T>> {
        self.outcome.lock().take()
    }
}

impl<T> Completion<T> {
    /// Whether anybody waits for it.
    pub fn is_wanted(&self) -> bool {
        Arc::strong_count(&self.outcome) > 1
    }

    /// To do more for the query when this has been completed, such as to remove what was kept for it.
    pub fn presence(&self) -> Presence {
        self.outside.presence().clone()
    }

    /// Says what came of the work.
    pub fn complete(self, outcome: Result<T>) {
        // Before its memory is given back: a task that is asked for some, and finds this not done, may
        // answer that some is about to come.
        *self.outcome.lock() = Some(outcome);
    }
}

impl<T> Drop for Completion<T> {
    fn drop(&mut self) {
        self.held.clear();
        self.giving = None;
        let given_up = || Err(Error::Setup(format!("a {} was given up", self.name)));
        self.outcome.lock().get_or_insert_with(given_up);
        self.gate.set_always_ready();
    }
}
