//! Work that a task has done elsewhere, and what it gives away to be kept there: batches that do not
//! fit into memory.
//!
//! A task that has something done holds a [`PendingIo`], whose gate opens when it is done; whoever does it
//! holds the [`Completion`]. The query counts as live until the completion is gone, so that nothing of
//! it is under way when its end is told.

use std::{fmt, sync::Arc};

use arrow_array::RecordBatch;
use gatework_shared_state::{Dependency, DependencyKind, Gate, memory::PendingRelease};
use parking_lot::Mutex;

use super::{
    QueryContext, Reservation,
    live::{ExternalWork, ExternalWorkHandle, TaskCounter},
};
use crate::{Error, Result};

/// Batches to be kept elsewhere, made one by one as they are written. There is at least one, and all have the
/// same schema.
pub type SpillInput = Box<dyn Iterator<Item = Result<RecordBatch>> + Send>;

/// Where batches are kept that do not fit into memory: files, if the embedder has not thought of
/// something else.
pub trait SpillSpace: Send + Sync + fmt::Debug {
    /// Keeps `batches`, and completes `done` when that has been done, elsewhere than on this thread, and the
    /// batches are gone: `done` holds their reservation.
    fn write(&self, batches: SpillInput, done: Completion<Arc<dyn SpilledBatches>>);

    /// The smallest spill, in bytes; 256 KiB. Less is not worth a file: a local state (one task's
    /// part of an aggregate, a sort, a join's build side or a window) that is refused memory holds
    /// up to this many bytes without a reservation, and only spills when it has more. So a query
    /// may hold this much for each task of each of its breakers beyond its memory limit.
    fn min_spill_bytes(&self) -> usize {
        256 << 10
    }
}

/// Batches that are kept elsewhere, until the last reference is dropped.
pub trait SpilledBatches: Send + Sync + fmt::Debug {
    /// Bytes that they take there.
    fn size_bytes(&self) -> u64;

    /// Gets batch number `batch` back, and completes `done` with it, elsewhere than on this thread.
    fn read(self: Arc<Self>, batch: usize, done: Completion<RecordBatch>);
}

/// Work that is done elsewhere.
#[derive(Debug)]
pub struct PendingIo<T> {
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
    reservations: Vec<Reservation>,
    /// Until it is given back.
    pending_release: Option<PendingRelease>,
    /// Last, so that the query ends when all else is gone.
    external_work: ExternalWork,
}

impl<T> PendingIo<T> {
    /// Work for `query` that is about to begin; `name` says what it is.
    /// Memory that is held for it is given back when it is done.
    pub fn new(
        name: &'static str,
        query: &Arc<QueryContext>,
        reservations: Vec<Reservation>,
    ) -> (Self, Completion<T>) {
        Self::for_graph(name, query, None, reservations)
    }

    /// The same for a task of `graph_tasks`, which ends when this has been done.
    pub(super) fn for_graph(
        name: &'static str,
        query: &Arc<QueryContext>,
        graph_tasks: Option<&Arc<TaskCounter>>,
        reservations: Vec<Reservation>,
    ) -> (Self, Completion<T>) {
        let gate = Dependency::blocked(name, DependencyKind::External);
        let outcome = Arc::default();
        let pending = Self { gate: gate.clone(), outcome: Arc::clone(&outcome) };
        let pending_release = (!reservations.is_empty()).then(|| query.announce_release());
        let external_work = query.external_work(graph_tasks);
        (pending, Completion { name, gate, outcome, reservations, pending_release, external_work })
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
    pub fn has_receiver(&self) -> bool {
        Arc::strong_count(&self.outcome) > 1
    }

    /// To do more for the query when this has been completed, such as to remove what was kept for it.
    pub fn work_handle(&self) -> ExternalWorkHandle {
        self.external_work.handle().clone()
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
        self.reservations.clear();
        self.pending_release = None;
        let given_up = || Err(Error::InvalidConfiguration(format!("a {} was given up", self.name)));
        self.outcome.lock().get_or_insert_with(given_up);
        self.gate.set_always_ready();
    }
}
