//! Memory and spilling of breakers: the parts that all of them share.
//!
//! A breaker implements [`BreakerState`] for the rows of a task, and [`breaker_sink`] makes its
//! sink. To spill, it writes rows with a [`SpillWriter`], and its source reads them with a
//! [`SpillReader`].

mod breaker;
mod partitioned;

pub use breaker::{BreakerSink, BreakerState, SpillStart, breaker_sink};
pub(crate) use partitioned::{
    MAX_SPILL_LEVELS, PartitionSet, PartitionedSpill, SpillSegment, partition_of,
};

use std::{collections::VecDeque, ops::Range, sync::Arc};

use arrow::array::{RecordBatch, RecordBatchOptions};
use gatework_runtime::{
    Result,
    pipeline::{OperatorContext, OutOfMemory, PendingIo, Reservation, SpillInput, SpilledBatches},
};
use gatework_shared_state::Gate;

use crate::{ResultExt, concat::gc_views};

/// Resizes `reservation` to `bytes`. A denial is ignored below `min_bytes`, since spilling fewer
/// bytes would not help.
///
/// # Errors
/// If the bytes are denied.
pub(crate) fn try_resize_above(
    reservation: &mut Reservation,
    bytes: usize,
    min_bytes: usize,
) -> Result<(), OutOfMemory> {
    reservation.resize(bytes).or_else(|denied| match bytes < min_bytes {
        true => Ok(()),
        false => Err(denied),
    })
}

/// Copies `rows` so that view buffers contain only the rows' own values.
pub(crate) fn gc_batch_views(rows: &RecordBatch) -> Result<RecordBatch> {
    let columns = rows.columns().iter().map(gc_views);
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    RecordBatch::try_new_with_options(rows.schema(), columns.collect(), &options).query_err()
}

/// Writer of spill files, one at a time; each file carries a tag `T`.
#[derive(Debug)]
pub struct SpillWriter<T> {
    context: OperatorContext,
    pending: Option<(PendingIo<Arc<dyn SpilledBatches>>, T)>,
}

/// State of a spill file.
#[derive(Debug)]
pub enum WriteState<T> {
    /// No file is being written.
    Idle,
    /// The file is being written; the gate becomes ready when it is complete.
    Blocked(Gate),
    /// The file is complete.
    Finished(Arc<dyn SpilledBatches>, T),
}

impl<T> SpillWriter<T> {
    /// Creates a writer without a file.
    pub fn new(context: OperatorContext) -> Self {
        Self { context, pending: None }
    }

    /// Starts writing `batches`, whose memory is in `reservations`. The previous file must be
    /// finished.
    ///
    /// # Errors
    /// If the query cannot spill.
    pub fn write_batches(
        &mut self,
        batches: Vec<RecordBatch>,
        reservations: Vec<Reservation>,
        tag: T,
    ) -> Result<()> {
        let rows = batches.iter().map(RecordBatch::num_rows).sum();
        self.write_iter(rows, Box::new(batches.into_iter().map(Ok)), reservations, tag)
    }

    /// Starts writing `rows` rows in batches that are produced while they are written.
    ///
    /// # Errors
    /// If the query cannot spill.
    pub fn write_iter(
        &mut self,
        rows: usize,
        batches: SpillInput,
        reservations: Vec<Reservation>,
        tag: T,
    ) -> Result<()> {
        debug_assert!(self.pending.is_none(), "the previous spill file is not finished");
        self.context.metrics().add("spilled_rows", rows as u64);
        self.pending = Some((self.context.spill(batches, reservations)?, tag));
        Ok(())
    }

    /// Returns true if a file was started and its completion has not been polled.
    pub fn is_writing(&self) -> bool {
        self.pending.is_some()
    }

    /// Returns the file, once it is complete.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn poll(&mut self) -> Result<WriteState<T>> {
        let Some((pending, tag)) = self.pending.take() else { return Ok(WriteState::Idle) };
        let Some(file) = pending.take() else {
            let gate = pending.gate().clone();
            self.pending = Some((pending, tag));
            return Ok(WriteState::Blocked(gate));
        };
        let file = file?;
        self.context.metrics().add("spilled_bytes", file.size_bytes());
        Ok(WriteState::Finished(file, tag))
    }
}

/// Reader of spilled batches in order, with prefetch.
#[derive(Debug)]
pub struct SpillReader {
    context: OperatorContext,
    remaining: VecDeque<(Arc<dyn SpilledBatches>, usize)>,
    prefetched: VecDeque<PendingIo<RecordBatch>>,
}

/// Result of a read.
#[derive(Debug)]
pub enum ReadState {
    /// The next batch.
    Batch(RecordBatch),
    /// The next batch is being read; the gate becomes ready when it is in memory.
    Blocked(Gate),
    /// All batches have been read.
    End,
}

const READ_AHEAD: usize = 2;

impl SpillReader {
    /// Creates a reader without batches.
    pub fn new(context: OperatorContext) -> Self {
        Self { context, remaining: VecDeque::new(), prefetched: VecDeque::new() }
    }

    /// Appends `batches` of `file`.
    pub fn push(&mut self, file: &Arc<dyn SpilledBatches>, batches: Range<usize>) {
        self.remaining.extend(batches.map(|batch| (file.clone(), batch)));
    }

    /// Returns the next batch, and starts to read those after it.
    ///
    /// # Errors
    /// If a batch cannot be read.
    pub fn poll(&mut self) -> Result<ReadState> {
        while self.prefetched.len() < READ_AHEAD
            && let Some((file, batch)) = self.remaining.pop_front()
        {
            self.prefetched.push_back(self.context.restore(&file, batch));
        }
        let Some(next) = self.prefetched.front() else { return Ok(ReadState::End) };
        let Some(batch) = next.take() else { return Ok(ReadState::Blocked(next.gate().clone())) };
        self.prefetched.pop_front();
        Ok(ReadState::Batch(batch?))
    }
}
