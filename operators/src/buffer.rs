//! The two ends of a buffer between pipelines.

use arrow::{
    array::{RecordBatch, RecordBatchOptions},
    datatypes::SchemaRef,
};
use gatework_runtime::{
    Error, Result,
    pipeline::{
        Batch, BufferRead, BufferReader, BufferedBatch, DriverContext, FinishResult, LocalSink,
        OperatorContext, SinkResult, SourceResult,
    },
};
use gatework_shared_state::{BufferLimit, Gate, OnFull, PopResult, PushResult};

use crate::{
    ResultExt, apply_selection,
    spill::{SpillWriter, WriteState, gc_batch_views},
};

/// Writer that reserves memory for batches of an overflowing buffer, and spills batches whose
/// reservation is denied. A `T` names the target of a batch in the buffer.
struct BufferWriter<T> {
    budget: BufferLimit,
    context: OperatorContext,
    /// Writer tagged with the pending batches and their sequence number.
    writer: SpillWriter<(Vec<PendingBatch<T>>, u64)>,
}

/// Batch that is being written: its target in the buffer, its row count and its bytes.
struct PendingBatch<T>(T, usize, usize);

/// Result of a write.
enum BufferWrite<T> {
    /// The batches can be pushed into the buffer.
    Ready(Vec<(T, BufferedBatch)>),
    /// The batches are being spilled; the gate becomes ready when they are written.
    Blocked(Gate),
    /// No batch is pending.
    Empty,
}

impl<T> BufferWriter<T> {
    /// Creates a writer for a buffer with this limit, on behalf of the operator of `context`.
    fn new(budget: BufferLimit, context: OperatorContext) -> Self {
        Self { budget, writer: SpillWriter::new(context.clone()), context }
    }

    /// Buffers the partitions of the batch with sequence number `sequence`.
    fn write(
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
        let mut reservation = self.context.reservation();
        match reservation.grow(batches.iter().map(|(_, bytes, _)| bytes).sum()) {
            Ok(()) => {
                let reserved = |(target, bytes, batch)| {
                    (target, BufferedBatch::reserved(batch, reservation.split(bytes)))
                };
                Ok(BufferWrite::Ready(batches.into_iter().map(reserved).collect()))
            }
            Err(_) if self.context.can_spill() => {
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
    fn poll(&mut self) -> Result<BufferWrite<T>> {
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

/// Producer's end of a channel between pipelines: it routes rows to the targets in the channel.
pub(crate) trait ChannelProducer: Send {
    /// Names a target, such as the index of a consumer.
    type Target: Send;

    /// Divides `rows` among the targets.
    fn route(&self, rows: RecordBatch) -> Result<Vec<(Self::Target, RecordBatch)>>;

    /// Pushes a batch to a target.
    fn push(&mut self, target: Self::Target, batch: BufferedBatch) -> PushResult;

    /// Returns whether there is capacity, without pushing.
    fn poll_capacity(&mut self) -> PushResult;

    /// Ends the input of this producer.
    fn finish(self);

    /// Returns the gate that is ready once no consumer is left.
    fn closed(&self) -> &Gate;
}

/// The local sink of a channel.
pub(crate) struct ChannelSink<P: ChannelProducer> {
    /// `None` once it has finished.
    producer: Option<P>,
    closed: Gate,
    writer: BufferWriter<P::Target>,
}

impl<P: ChannelProducer> ChannelSink<P> {
    /// Creates the sink of `producer`, whose channel has the limit `budget`.
    pub(crate) fn new(producer: P, budget: BufferLimit, context: OperatorContext) -> Self {
        let closed = producer.closed().clone();
        Self { producer: Some(producer), closed, writer: BufferWriter::new(budget, context) }
    }
}

impl<P: ChannelProducer> LocalSink for ChannelSink<P> {
    fn sink(&mut self, batch: Option<Batch>, _task: &DriverContext) -> Result<SinkResult> {
        let Some(producer) = &mut self.producer else { return Ok(SinkResult::Finished) };
        let write = match batch {
            Some(batch) => {
                let sequence = batch.sequence();
                self.writer.write(producer.route(apply_selection(batch)?)?, sequence)?
            }
            None => self.writer.poll()?,
        };
        let batches = match write {
            BufferWrite::Blocked(gate) => return Ok(SinkResult::Blocked(gate.into())),
            BufferWrite::Empty => Vec::new(),
            BufferWrite::Ready(batches) => batches,
        };
        let pushed = batches.into_iter().map(|(target, batch)| producer.push(target, batch)).last();
        Ok(to_sink_result(pushed.unwrap_or_else(|| producer.poll_capacity())))
    }

    fn finish(&mut self, _task: &DriverContext) -> Result<FinishResult> {
        if let Some(producer) = self.producer.take() {
            producer.finish();
        }
        Ok(FinishResult::Done)
    }

    fn closed(&self) -> Option<Gate> {
        Some(self.closed.clone())
    }
}

/// Converts the result of a push into a sink's result.
pub(crate) fn to_sink_result(push: PushResult) -> SinkResult {
    match push {
        PushResult::Accepted => SinkResult::NeedInput,
        PushResult::Backpressure(gate) => SinkResult::Blocked(gate.into()),
        PushResult::Closed => SinkResult::Finished,
    }
}

/// Returns `batch`'s columns under `schema`.
pub(crate) fn with_schema(batch: Batch, schema: &SchemaRef) -> Result<Batch> {
    let sequence = batch.sequence();
    let data = apply_selection(batch)?;
    let options = RecordBatchOptions::new().with_row_count(Some(data.num_rows()));
    let columns = data.columns().to_vec();
    let data = RecordBatch::try_new_with_options(schema.clone(), columns, &options).query_err()?;
    Ok(Batch::new(data).with_sequence(sequence))
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
