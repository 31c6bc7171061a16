//! A batch in a buffer between pipelines, in memory or spilled.
//!
//! A buffer that blocks its producers is bounded by its limit. A buffer that does not block,
//! because blocking would close a cycle of waits, reserves memory of the query for its batches. A
//! batch whose reservation is denied is spilled, and the consumer restores it.

use std::sync::Arc;

use arrow_array::RecordBatch;
use gatework_shared_state::{Gate, Payload, PopResult};

use super::{
    Batch, OperatorContext, PendingIo, QueryContext, Reservation, SpilledBatches, live::TaskCounter,
};
use crate::Result;

/// A batch in a buffer. Clones share its reservation, or its batch in a spill file.
#[derive(Debug, Clone)]
pub struct BufferedBatch {
    rows: usize,
    bytes: usize,
    sequence: u64,
    storage: Storage,
}

#[derive(Debug, Clone)]
enum Storage {
    InMemory {
        batch: Batch,
        _reservation: Option<Arc<Reservation>>,
    },
    /// Batch number `.1` of a spill file.
    Spilled(Arc<dyn SpilledBatches>, usize),
}

impl BufferedBatch {
    /// Creates a batch in memory from a batch and its reservation.
    pub fn reserved(batch: Batch, reservation: Reservation) -> Self {
        let storage =
            Storage::InMemory { batch: batch.clone(), _reservation: Some(Arc::new(reservation)) };
        Self { storage, ..batch.into() }
    }

    /// Creates a spilled batch: batch number `index` of `file`, with `rows` rows and sequence
    /// number `sequence`.
    pub fn spilled(
        file: Arc<dyn SpilledBatches>,
        index: usize,
        rows: usize,
        sequence: u64,
    ) -> Self {
        Self { rows, bytes: 0, sequence, storage: Storage::Spilled(file, index) }
    }

    /// Sets the size in bytes that a buffer counts for the batch. A buffer that blocks its
    /// producers counts spilled batches too, so that it stays bounded when memory is short.
    #[must_use]
    pub fn counted(self, bytes: usize) -> Self {
        Self { bytes, ..self }
    }
}

impl From<Batch> for BufferedBatch {
    fn from(batch: Batch) -> Self {
        Self {
            rows: batch.num_rows(),
            bytes: batch.bytes(),
            sequence: batch.sequence(),
            storage: Storage::InMemory { batch, _reservation: None },
        }
    }
}

impl Payload for BufferedBatch {
    fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the size in bytes that a buffer counts for the batch.
    fn bytes(&self) -> usize {
        self.bytes
    }
}

/// The result of [`BufferReader::next`].
#[derive(Debug)]
pub enum BufferRead {
    /// The next batch, in memory.
    Batch(Batch),
    /// No batch is available until the gate is ready.
    Blocked(Gate),
    /// The buffer is exhausted.
    Finished,
    /// The producers were aborted.
    Aborted,
}

/// The consumer's end of a buffer: restores spilled batches.
#[derive(Debug)]
pub struct BufferReader {
    query: Arc<QueryContext>,
    /// The graph of the consuming task; `None` for a reader outside the graph.
    graph_tasks: Option<Arc<TaskCounter>>,
    restoring: Option<(PendingIo<RecordBatch>, u64)>,
}

impl BufferReader {
    /// Creates a reader for a source.
    pub fn new(context: &OperatorContext) -> Self {
        let graph_tasks = Some(context.graph_tasks.clone());
        Self { query: context.query.clone(), graph_tasks, restoring: None }
    }

    /// Creates a reader for the result of a query.
    pub(super) fn external(query: &Arc<QueryContext>) -> Self {
        Self { query: query.clone(), graph_tasks: None, restoring: None }
    }

    /// Returns the next batch that `pop` yields.
    ///
    /// # Errors
    /// If a spilled batch cannot be read.
    pub fn next(&mut self, pop: impl FnOnce() -> PopResult<BufferedBatch>) -> Result<BufferRead> {
        if self.restoring.is_none() {
            match pop() {
                PopResult::Item(BufferedBatch {
                    storage: Storage::InMemory { batch, .. }, ..
                }) => {
                    return Ok(BufferRead::Batch(batch));
                }
                PopResult::Item(BufferedBatch {
                    storage: Storage::Spilled(file, index),
                    sequence,
                    ..
                }) => {
                    let pending = self.query.restore(&file, index, self.graph_tasks.as_ref());
                    self.restoring = Some((pending, sequence));
                }
                PopResult::Blocked(gate) => return Ok(BufferRead::Blocked(gate)),
                PopResult::Finished => return Ok(BufferRead::Finished),
                PopResult::Aborted => return Ok(BufferRead::Aborted),
            }
        }
        let Some((pending, sequence)) = self.restoring.take() else {
            return Ok(BufferRead::Finished);
        };
        match pending.take() {
            Some(rows) => Ok(BufferRead::Batch(Batch::new(rows?).with_sequence(sequence))),
            None => {
                let gate = pending.gate().clone();
                self.restoring = Some((pending, sequence));
                Ok(BufferRead::Blocked(gate))
            }
        }
    }
}
