//! What breakers that spill share.

mod partitioned;

pub(crate) use partitioned::{
    MAX_SPILL_LEVELS, PartitionSet, PartitionedSpill, SpillSegment, partition_of,
};

use std::{collections::VecDeque, ops::Range, sync::Arc};

use arrow::array::{RecordBatch, RecordBatchOptions};
use gatework_runtime::{
    Error, Result,
    pipeline::{OperatorContext, PendingIo, Reservation, SpillInput, SpilledBatches},
};
use gatework_shared_state::Gate;

use crate::{ResultExt, concat::gc_views};

/// Resizes `reservation` to `bytes`; so few that it would not help to spill them are there without one.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub(crate) fn try_resize_above(
    reservation: &mut Reservation,
    bytes: usize,
    min_bytes: usize,
) -> Result<()> {
    match reservation.resize(bytes) {
        Err(Error::OutOfMemory { .. }) if bytes < min_bytes => Ok(()),
        other => other,
    }
}

/// Memory of one that cannot spill what it holds. What is refused is owed until others have given some back.
pub(crate) struct DeferredReservation {
    setup: OperatorContext,
    reservation: Reservation,
    deficit_bytes: usize,
}

impl DeferredReservation {
    pub(crate) fn new(setup: OperatorContext) -> Self {
        Self { reservation: setup.reservation(), setup, deficit_bytes: 0 }
    }

    /// Reserves `bytes` more for what is held already. [`poll`](Self::poll) is to follow.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<()> {
        self.resize(self.reservation.bytes() + self.deficit_bytes + bytes)
    }

    /// Reserves `bytes` in all. [`poll`](Self::poll) is to follow.
    pub(crate) fn resize(&mut self, bytes: usize) -> Result<()> {
        self.deficit_bytes = 0;
        match self.reservation.resize(bytes) {
            Err(Error::OutOfMemory { .. }) => self.deficit_bytes = bytes - self.reservation.bytes(),
            other => other?,
        }
        Ok(())
    }

    /// Where to wait before more is taken.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if nobody else has memory to give back.
    pub(crate) fn poll(&mut self) -> Result<Option<Gate>> {
        match self.reservation.grow(self.deficit_bytes) {
            Ok(()) => self.deficit_bytes = 0,
            Err(error @ Error::OutOfMemory { .. }) => {
                return self.setup.request_reclaim(self.deficit_bytes).map(Some).ok_or(error);
            }
            Err(error) => return Err(error),
        }
        Ok(None)
    }

    /// Owes nothing any more, since what was refused is about to be handed on. Whether anything was.
    pub(crate) fn clear_deficit(&mut self) -> bool {
        std::mem::take(&mut self.deficit_bytes) > 0
    }

    /// All that is reserved.
    pub(crate) fn reservation(&mut self) -> &mut Reservation {
        &mut self.reservation
    }
}

/// Why something is spilled that nobody was refused memory for, in case that it cannot be.
pub(crate) fn nothing_to_spill_error() -> Error {
    Error::InvalidConfiguration("spill requested with no rows in memory".into())
}

/// `columns` without what the buffers of views hold besides their own values.
pub(crate) fn gc_batch_views(rows: &RecordBatch) -> Result<RecordBatch> {
    let columns = rows.columns().iter().map(gc_views);
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    RecordBatch::try_new_with_options(rows.schema(), columns.collect(), &options).query_err()
}

/// A file that a breaker has written, at most one at a time; with each goes a `T`.
pub(crate) struct SpillWriter<T> {
    setup: OperatorContext,
    pending: Option<(PendingIo<Arc<dyn SpilledBatches>>, T)>,
}

/// How a file is getting on.
pub(crate) enum WriteState<T> {
    /// There is none.
    Idle,
    /// It is not done before this opens.
    Blocked(Gate),
    /// It is done.
    Finished(Arc<dyn SpilledBatches>, T),
}

impl<T> SpillWriter<T> {
    pub(crate) fn new(setup: OperatorContext) -> Self {
        Self { setup, pending: None }
    }

    /// Begins to write `batches`, whose memory is `held`. The file before must be done.
    pub(crate) fn write_batches(
        &mut self,
        batches: Vec<RecordBatch>,
        reservations: Vec<Reservation>,
        tag: T,
    ) -> Result<()> {
        let rows = batches.iter().map(RecordBatch::num_rows).sum();
        self.write_iter(rows, Box::new(batches.into_iter().map(Ok)), reservations, tag)
    }

    /// Begins to write `rows` rows in batches that are made as they are written.
    pub(crate) fn write_iter(
        &mut self,
        rows: usize,
        batches: SpillInput,
        reservations: Vec<Reservation>,
        tag: T,
    ) -> Result<()> {
        debug_assert!(self.pending.is_none(), "the file before would be lost");
        self.setup.metrics().add("spilled_rows", rows as u64);
        self.pending = Some((self.setup.spill(batches, reservations)?, tag));
        Ok(())
    }

    /// Whether one has been begun and not been asked for since.
    pub(crate) fn is_writing(&self) -> bool {
        self.pending.is_some()
    }

    /// The file, once it is done.
    pub(crate) fn poll(&mut self) -> Result<WriteState<T>> {
        let Some((pending, tag)) = self.pending.take() else { return Ok(WriteState::Idle) };
        let Some(file) = pending.take() else {
            let gate = pending.gate().clone();
            self.pending = Some((pending, tag));
            return Ok(WriteState::Blocked(gate));
        };
        let file = file?;
        self.setup.metrics().add("spilled_bytes", file.size_bytes());
        Ok(WriteState::Finished(file, tag))
    }
}

/// Spilled batches in turn, some of them read ahead.
pub(crate) struct SpillReader {
    setup: OperatorContext,
    remaining: VecDeque<(Arc<dyn SpilledBatches>, usize)>,
    prefetched: VecDeque<PendingIo<RecordBatch>>,
}

/// What comes next of spilled batches.
pub(crate) enum ReadState {
    /// A batch.
    Batch(RecordBatch),
    /// It is not there before this opens.
    Blocked(Gate),
    /// There is none.
    End,
}

const READ_AHEAD: usize = 2;

impl SpillReader {
    pub(crate) fn new(setup: OperatorContext) -> Self {
        Self { setup, remaining: VecDeque::new(), prefetched: VecDeque::new() }
    }

    /// Appends `batches` of `file`.
    pub(crate) fn push(&mut self, file: &Arc<dyn SpilledBatches>, batches: Range<usize>) {
        self.remaining.extend(batches.map(|batch| (file.clone(), batch)));
    }

    /// The next batch.
    pub(crate) fn next(&mut self) -> Result<ReadState> {
        while self.prefetched.len() < READ_AHEAD
            && let Some((file, batch)) = self.remaining.pop_front()
        {
            self.prefetched.push_back(self.setup.restore(&file, batch));
        }
        let Some(next) = self.prefetched.front() else { return Ok(ReadState::End) };
        let Some(batch) = next.take() else { return Ok(ReadState::Blocked(next.gate().clone())) };
        self.prefetched.pop_front();
        Ok(ReadState::Batch(batch?))
    }
}
