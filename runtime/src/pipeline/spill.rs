//! Spilling, and other work that a task has done outside the query's tasks.
//!
//! The task holds a [`PendingIo`], whose gate becomes ready when the work is done. The code that
//! does the work holds the [`Completion`]. The query counts as alive until the completion is
//! dropped. So no work of the query is in progress when its end is reported.

use std::{fmt, sync::Arc};

use arrow_array::RecordBatch;
use gatework_shared_state::{Dependency, DependencyKind, Gate, memory::PendingRelease};
use parking_lot::Mutex;

use super::{
    QueryContext, Reservation,
    live::{ExternalWork, ExternalWorkHandle, TaskCounter},
};
use crate::{Error, Result};

/// Batches to spill, produced one by one as they are written: at least one, all of the same schema.
pub type SpillInput = Box<dyn Iterator<Item = Result<RecordBatch>> + Send>;

/// A place for spilled batches; usually temporary files.
pub trait SpillSpace: Send + Sync + fmt::Debug {
    /// Writes `batches` on another thread, then completes `done`. The batches are dropped before
    /// `done`, which holds their reservation.
    fn write(&self, batches: SpillInput, done: Completion<Arc<dyn SpilledBatches>>);

    /// Returns the smallest spill, in bytes; default 256 KiB. A smaller spill is not worth a file.
    /// A local state is one task's part of an aggregate, a sort, a join's build side or a window.
    /// If its reservation is denied, it uses up to this many bytes without a reservation and spills
    /// only above that. So a query may exceed its memory limit by this amount per task of each
    /// breaker.
    fn min_spill_bytes(&self) -> usize {
        256 << 10
    }
}

/// Spilled batches; they are kept until the last reference is dropped.
pub trait SpilledBatches: Send + Sync + fmt::Debug {
    /// Returns the number of bytes that the spilled batches occupy in their files.
    fn size_bytes(&self) -> u64;

    /// Reads batch number `batch` on another thread, then completes `done` with it.
    fn read(self: Arc<Self>, batch: usize, done: Completion<RecordBatch>);
}

/// Work in progress outside the query's tasks, as the waiting task sees it.
#[derive(Debug)]
pub struct PendingIo<T> {
    gate: Gate,
    outcome: Arc<Mutex<Option<Result<T>>>>,
}

/// The obligation to report the work's outcome. Dropping it without an outcome fails the work.
#[derive(Debug)]
pub struct Completion<T> {
    name: &'static str,
    gate: Gate,
    outcome: Arc<Mutex<Option<Result<T>>>>,
    /// Released before the gate becomes ready.
    reservations: Vec<Reservation>,
    /// Announces the release of `reservations`; dropped after them.
    pending_release: Option<PendingRelease>,
    /// The last field, so that the query ends when all other fields are dropped.
    external_work: ExternalWork,
}

impl<T> PendingIo<T> {
    /// Creates work for `query` that is about to start; `name` describes it. `reservations` are
    /// released when the work is done.
    pub fn new(
        name: &'static str,
        query: &Arc<QueryContext>,
        reservations: Vec<Reservation>,
    ) -> (Self, Completion<T>) {
        Self::for_graph(name, query, None, reservations)
    }

    /// Like [`new`](Self::new), for a task of `graph_tasks`; that graph ends only after the work is
    /// done.
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

    /// Returns the gate that becomes ready when the work is done.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Takes the work's outcome, once; `None` before the work is done.
    pub fn take(&self) -> Option<Result<T>> {
        self.outcome.lock().take()
    }
}

impl<T> Completion<T> {
    /// Returns whether a task still waits for the outcome.
    pub fn has_receiver(&self) -> bool {
        Arc::strong_count(&self.outcome) > 1
    }

    /// Returns a handle for later work on the query's behalf, such as the removal of files, after
    /// this work is complete.
    pub fn work_handle(&self) -> ExternalWorkHandle {
        self.external_work.handle().clone()
    }

    /// Reports the outcome of the work.
    pub fn complete(self, outcome: Result<T>) {
        // Set before the memory is released: a task that is asked to reclaim and sees no outcome
        // may answer that a release is pending.
        *self.outcome.lock() = Some(outcome);
    }
}

impl<T> Drop for Completion<T> {
    fn drop(&mut self) {
        self.reservations.clear();
        self.pending_release = None;
        let given_up = || Err(Error::InvalidConfiguration(format!("{} was abandoned", self.name)));
        self.outcome.lock().get_or_insert_with(given_up);
        self.gate.set_always_ready();
    }
}
