//! The producer's end of a buffer between pipelines: batches on their way into it.

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

/// Charges what goes into a buffer that overflows, and puts away what gets no memory. A `T` says where in
/// the buffer a batch goes.
pub(crate) struct BufferWriter<T> {
    budget: BufferLimit,
    setup: OperatorContext,
    /// With the batches, and their place in the order.
    writer: SpillWriter<(Vec<PendingBatch<T>>, u64)>,
}

/// A batch that is being written: where it goes in the buffer, its rows and its bytes.
struct PendingBatch<T>(T, usize, usize);

/// What is to be done with batches.
pub(crate) enum BufferWrite<T> {
    /// They go into the buffer.
    Ready(Vec<(T, BufferedBatch)>),
    /// They are being put away until this opens.
    Blocked(Gate),
    /// There are none.
    Empty,
}

impl<T> BufferWriter<T> {
    /// For a buffer with this budget, on behalf of the operator of `setup`.
    pub(crate) fn new(budget: BufferLimit, setup: OperatorContext) -> Self {
        Self { budget, writer: SpillWriter::new(setup.clone()), setup }
    }

    /// Holds the parts of a batch that has place `sequence` in its order.
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
            Err(Error::OutOfMemory { .. }) if self.setup.can_spill() => {
                let (mut pending, mut rows) = (Vec::new(), Vec::new());
                for (target, bytes, batch) in batches {
                    pending.push(PendingBatch(target, batch.num_rows(), bytes));
                    rows.push(gc_batch_views(batch.data())?);
                }
                self.writer.write_batches(rows, Vec::new(), (pending, sequence))?;
                self.poll()
            }
            Err(error) => Err(error),
        }
    }

    /// What has become of batches that were being put away.
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
    /// Hands what goes into the buffer to `push`, one after the other, and gives the sink's answer: what the
    /// last push said; without one, what `push` says of the room there is.
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

/// The next batch out of a buffer, as a source answers it.
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
