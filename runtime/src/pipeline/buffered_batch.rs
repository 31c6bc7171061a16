//! A batch that waits in a buffer between pipelines, in memory or put away.
//!
//! A buffer that blocks its producers is small by its budget. One that does not, because waiting would close
//! a cycle, charges what it holds to the query; what gets no memory is put away, and is fetched back by
//! whoever takes it out.

use std::sync::Arc;

use arrow_array::RecordBatch;
use gatework_shared_state::{Gate, Payload, PopResult};

use super::{
    Batch, OperatorContext, PendingIo, QueryContext, Reservation, SpilledBatches, live::TaskCounter,
};
use crate::Result;

/// A batch in a buffer. Clones share what is charged for it, and its place in a file.
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
    /// Batch number `.1` of what was put away.
    Spilled(Arc<dyn SpilledBatches>, usize),
}

impl BufferedBatch {
    /// A batch in memory that was reserved for it.
    pub fn reserved(batch: Batch, reservation: Reservation) -> Self {
        let storage =
            Storage::InMemory { batch: batch.clone(), _reservation: Some(Arc::new(reservation)) };
        Self { storage, ..batch.into() }
    }

    /// Batch number `index` of `file`, of so many rows, at place `sequence` of its morsel's order.
    pub fn spilled(
        file: Arc<dyn SpilledBatches>,
        index: usize,
        rows: usize,
        sequence: u64,
    ) -> Self {
        Self { rows, bytes: 0, sequence, storage: Storage::Spilled(file, index) }
    }

    /// The batch with its size, by which a buffer that blocks its producers counts it also while it is in
    /// a file: a buffer does not grow without bound because memory is short.
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

    /// Bytes that a buffer counts it with.
    fn bytes(&self) -> usize {
        self.bytes
    }
}

/// What comes next out of a buffer.
#[derive(Debug)]
pub enum BufferRead {
    /// A batch, for the pipeline behind the buffer.
    Batch(Batch),
    /// Nothing before this opens.
    Blocked(Gate),
    /// Nothing any more.
    Finished,
    /// The producers were aborted.
    Aborted,
}

/// The consumer's end of a buffer: fetches back what was put away.
#[derive(Debug)]
pub struct BufferReader {
    query: Arc<QueryContext>,
    /// Of the task that fetches; a reader outside has none.
    graph_tasks: Option<Arc<TaskCounter>>,
    restoring: Option<(PendingIo<RecordBatch>, u64)>,
}

impl BufferReader {
    /// For a source.
    pub fn new(setup: &OperatorContext) -> Self {
        let graph_tasks = Some(setup.graph_tasks.clone());
        Self { query: setup.query.clone(), graph_tasks, restoring: None }
    }

    /// For the reader of a query's result.
    pub(super) fn external(query: &Arc<QueryContext>) -> Self {
        Self { query: query.clone(), graph_tasks: None, restoring: None }
    }

    /// The next batch that `pop` has.
    ///
    /// # Errors
    /// If one that was put away cannot be read.
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
