//! Producer's end of a buffer between pipelines.

use gatework_runtime::{
    Error, Result,
    pipeline::{
        Batch, BufferRead, BufferReader, BufferedBatch, OperatorContext, SinkResult, SourceResult,
    },
};
use gatework_shared_state::{BufferLimit, Gate, OnFull, PopResult, PushResult};

use arrow::array::RecordBatch;

use crate::{
    result::to_sink_result,
    spill::{SpillWriter, WriteState, gc_batch_views},
};

/// Writer that reserves memory for batches of an overflowing buffer, and spills batches whose
/// reservation is denied. A `T` names the target of a batch in the buffer.
pub(crate) struct BufferWriter<T> {
    budget: BufferLimit,
    setup: OperatorContext,
    /// Writer tagged with the pending batches and their sequence number.
    writer: SpillWriter<(Vec<PendingBatch<T>>, u64)>,
}

/// Batch that is being written: its target in the buffer, its row count and its bytes.
struct PendingBatch<T>(T, usize, usize);

/// Result of a write.
pub(crate) enum BufferWrite<T> {
    /// The batches can be pushed into the buffer.
    Ready(Vec<(T, BufferedBatch)>),
    /// The batches are being spilled; the gate becomes ready when they are written.
    Blocked(Gate),
    /// No batch is pending.
    Empty,
}

impl<T> BufferWriter<T> {
    /// Creates a writer for a buffer with this limit, on behalf of the operator of `setup`.
    pub(crate) fn new(budget: BufferLimit, setup: OperatorContext) -> Self {
        Self { budget, writer: SpillWriter::new(setup.clone()), setup }
    }

    /// Buffers the partitions of the batch with sequence number `sequence`.
    pub(crate) fn write(
        &mut self,
        partitions: Vec<(T, RecordBatch)>,
        sequence: u64,
    ) -> Result<BufferWrite<T>> {
        let batches = partitions
            .into_iter()
            .map(|(target, rows)| (target, Batch::new(rows).with_sequence(sequence)));
        if self.budget.on_full() == OnFull::Block {
            return Ok(BufferWrite::Ready(
                batches.map(|(target, batch)| (target, batch.into())).collect(),
            ));
        }
        let batches: Vec<_> =
            batches.map(|(target, batch)| (target, batch.bytes(), batch)).collect();
        let mut reservation = self.setup.reservation();
        match reservation.grow(batches.iter().map(|(_, bytes, _)| bytes).sum()) {
            Ok(()) => {
                let reserved = |(target, bytes, batch)| {
                    (target, BufferedBatch::reserved(batch, reservation.split(bytes)))
                };
                Ok(BufferWrite::Ready(batches.into_iter().map(reserved).collect()))
            }
            Err(_) if self.setup.can_spill() => {
                let (mut pending, mut rows) = (Vec::new(), Vec::new());
                for (target, bytes, batch) in batches {
                    pending.push(PendingBatch(target, batch.num_rows(), bytes));
                    rows.push(gc_batch_views(batch.data())?);
                }
                self.writer.write_batches(rows, Vec::new(), (pending, sequence))?;
                self.poll()
            }
            Err(denied) => Err(denied.into()),
        }
    }

    /// Polls the batches that are being spilled.
    pub(crate) fn poll(&mut self) -> Result<BufferWrite<T>> {
        Ok(match self.writer.poll()? {
            WriteState::Idle => BufferWrite::Empty,
            WriteState::Blocked(gate) => BufferWrite::Blocked(gate),
            WriteState::Finished(file, (pending, sequence)) => {
                let pending = pending.into_iter().enumerate();
                let spilled = |(index, PendingBatch(target, rows, bytes))| {
                    (
                        target,
                        BufferedBatch::spilled(file.clone(), index, rows, sequence).counted(bytes),
                    )
                };
                BufferWrite::Ready(pending.map(spilled).collect())
            }
        })
    }
}

impl<T> BufferWrite<T> {
    /// Hands the ready batches to `push` one by one, and returns the sink result of the last push.
    /// Without batches, `push(None)` reports the buffer's capacity.
    pub(crate) fn into_sink_result(
        self,
        mut push: impl FnMut(Option<(T, BufferedBatch)>) -> PushResult,
    ) -> SinkResult {
        match self {
            Self::Blocked(gate) => SinkResult::Blocked(gate.into()),
            Self::Empty => to_sink_result(push(None)),
            Self::Ready(batches) => {
                let result = batches.into_iter().map(|batch| push(Some(batch))).last();
                to_sink_result(result.unwrap_or_else(|| push(None)))
            }
        }
    }
}

/// Reads the next batch from a buffer as a source result.
pub(crate) fn next_batch(
    reader: &mut BufferReader,
    pop: impl FnOnce() -> PopResult<BufferedBatch>,
) -> Result<SourceResult> {
    Ok(match reader.next(pop)? {
        BufferRead::Batch(batch) => SourceResult::Batch(batch),
        BufferRead::Blocked(gate) => SourceResult::Blocked(gate.into()),
        BufferRead::Finished => SourceResult::Finished,
        BufferRead::Aborted => return Err(Error::ProducerAborted),
    })
}
