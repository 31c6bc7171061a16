//! Window sink: finds the boundaries of window partitions.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch},
    compute::partition,
};
use arrow_row::{OwnedRow, RowConverter, SortField};
use gatework_runtime::{
    Error, Result,
    pipeline::{
        Batch, DriverContext, FinishResult, LocalSink, OperatorContext, PerTask, ReclaimResult,
        Sink, SinkResult,
    },
};
use gatework_shared_state::{Dependency, DependencyKind, Gate, window::WindowProducer};

use super::{
    BufferedPartition, PartitionData, ReadyOnDrop, STATE_BYTES, WindowItem, WindowPlan, bytes,
};
use crate::{
    ResultExt, apply_selection,
    compact::compact_views,
    result::to_sink_result,
    spill::{DeferredReservation, SpillWriter, WriteState},
};

/// Sink that splits sorted input into window partitions.
#[derive(Debug)]
pub struct WindowSink {
    slots: PerTask<WindowProducer<WindowItem>>,
    plan: Arc<WindowPlan>,
}

impl WindowSink {
    pub(super) fn new(sinks: Vec<WindowProducer<WindowItem>>, plan: Arc<WindowPlan>) -> Self {
        Self { slots: PerTask::new(sinks), plan }
    }
}

impl Sink for WindowSink {
    fn name(&self) -> &str {
        "window sink"
    }

    fn can_reclaim(&self) -> bool {
        true
    }

    fn local(&self, setup: OperatorContext) -> Result<Box<dyn LocalSink>> {
        let sink = self.slots.take(&setup)?;
        Ok(Box::new(LocalWindowSink {
            closed: sink.closed().clone(),
            sink: Some(sink),
            plan: self.plan.clone(),
            boundaries: PartitionBoundaries::default(),
            complete_rows: BatchBuffer::default(),
            open_rows: BatchBuffer::default(),
            open_partition: OpenPartition::Small,
            writer: SpillWriter::new(setup.clone()),
            previous_emitted: None,
            memory: DeferredReservation::new(setup.clone()),
            setup,
        }))
    }
}

struct LocalWindowSink {
    sink: Option<WindowProducer<WindowItem>>,
    closed: Gate,
    plan: Arc<WindowPlan>,
    boundaries: PartitionBoundaries,
    /// Complete window partitions, none of them large.
    complete_rows: BatchBuffer,
    /// Last rows of the open window partition.
    open_rows: BatchBuffer,
    /// State of the open window partition's earlier rows.
    open_partition: OpenPartition,
    /// Writer of the open partition's rows, tagged with the row count of each batch.
    writer: SpillWriter<Vec<usize>>,
    /// Gate that becomes ready when the previous large window partition is emitted and its memory
    /// released.
    previous_emitted: Option<Gate>,
    memory: DeferredReservation,
    setup: OperatorContext,
}

/// Minimum bytes that a row counts towards a large window partition: those of a number.
const MIN_ROW_BYTES: usize = 8;

/// State of the open window partition.
enum OpenPartition {
    /// The partition is small so far.
    Small,
    /// Chunks of the partition have been handed over.
    Streaming,
    /// The partition is large and buffered.
    Buffered(Box<BufferedPartition>),
}

/// Batches in order, none of which is copied before its partitions are complete.
#[derive(Default)]
struct BatchBuffer {
    batches: Vec<RecordBatch>,
    rows: usize,
    bytes: usize,
}

/// Detector of partition boundaries across batches.
#[derive(Default)]
struct PartitionBoundaries {
    /// Converter for the types of the first batch.
    converter: Option<RowConverter>,
    /// Partition keys of the last row so far.
    last: Option<OwnedRow>,
}

/// Window partition boundaries within a batch.
struct BoundaryScan {
    /// True if the first row starts a new partition.
    begins_new: bool,
    /// End of the first partition, if it ends in this batch.
    first_end: usize,
    /// Start of the last partition.
    last_start: usize,
}

impl LocalSink for LocalWindowSink {
    fn sink(&mut self, batch: Option<Batch>, task: &DriverContext) -> Result<SinkResult> {
        let mut result = SinkResult::NeedInput;
        if let Some(batch) = batch.filter(|batch| batch.num_rows() > 0) {
            result = self.add(compact_views(apply_selection(batch)?)?, task)?;
        }
        // Woken: there is capacity or memory, or the consumer is gone, which the next push reports.
        if self.plan.is_streaming() {
            // Memory that was handed over is released soon.
            return Ok(if self.memory.clear_deficit() {
                self.push_streaming(false)
            } else {
                result
            });
        }
        // Backpressure goes first; memory is polled again when there is capacity.
        if !matches!(result, SinkResult::NeedInput) {
            return Ok(result);
        }
        let gate = self.poll_memory(task)?;
        if let OpenPartition::Buffered(buffered) = &self.open_partition
            && self.setup.can_spill()
            && !self.writer.is_writing()
        {
            self.setup.set_reclaimable_bytes(buffered.reclaimable_bytes());
        }
        Ok(match gate {
            Some(gate) => SinkResult::Blocked(gate.into()),
            None => SinkResult::NeedInput,
        })
    }

    fn reclaim(&mut self, _task: &DriverContext) -> Result<ReclaimResult> {
        // The task waits for the file, so that no rows are being written when the partition ends.
        if let Some(gate) = self.poll_spill()? {
            return Ok(ReclaimResult::Blocked(gate.into()));
        }
        if !self.spill()? {
            return Ok(ReclaimResult::NothingToReclaim);
        }
        Ok(match self.poll_spill()? {
            Some(gate) => ReclaimResult::Blocked(gate.into()),
            None => ReclaimResult::Started,
        })
    }

    fn finish(&mut self, task: &DriverContext) -> Result<FinishResult> {
        if self.closed.is_ready() {
            // The consumer is gone.
            self.open_partition = OpenPartition::Small;
            (self.complete_rows, self.open_rows) = Default::default();
        } else if let Some(gate) = self.poll_spill()? {
            return Ok(FinishResult::Blocked(gate.into()));
        }
        // The last items are pushed even without capacity.
        self.finish_open_partition(task)?;
        if self.complete_rows.rows > 0 {
            self.push_complete();
        }
        if let Some(sink) = self.sink.take() {
            sink.finish();
        }
        Ok(FinishResult::Done)
    }

    fn closed(&self) -> Option<Gate> {
        Some(self.closed.clone())
    }
}

impl LocalWindowSink {
    /// Adds rows, and pushes what can be evaluated. Returns the result of the last push.
    fn add(&mut self, rows: RecordBatch, task: &DriverContext) -> Result<SinkResult> {
        let keys = self.plan.keys(&rows)?;
        let scan = self.boundaries.find(&keys)?;
        let mut result = None;
        if scan.begins_new {
            result = self.finish_open_partition(task)?;
        }
        if scan.last_start > 0 {
            self.open_rows.push(rows.slice(0, scan.first_end));
            result = self.finish_open_partition(task)?.or(result);
            let between = scan.last_start - scan.first_end;
            if between > 0 {
                self.complete_rows.push(rows.slice(scan.first_end, between));
            }
        }
        self.open_rows.push(rows.slice(scan.last_start, rows.num_rows() - scan.last_start));
        // Rows without columns count too, since they get results.
        let weight = self.open_rows.bytes.max(MIN_ROW_BYTES * self.open_rows.rows);
        let is_large = weight >= self.plan.large_bytes;
        if is_large && self.plan.is_streaming() {
            result = Some(self.push_streaming(false));
        } else if is_large && self.open_rows.rows >= self.plan.batch_size {
            self.buffer_open_rows(task)?;
        }
        let full = self.complete_rows.rows >= self.plan.batch_size;
        if full || self.complete_rows.bytes >= self.plan.large_bytes {
            result = Some(self.push_complete());
        }
        self.reserve()?;
        Ok(result.unwrap_or(SinkResult::NeedInput))
    }

    /// Completes the open window partition. Returns the result of a push, if one was necessary.
    fn finish_open_partition(&mut self, task: &DriverContext) -> Result<Option<SinkResult>> {
        match &self.open_partition {
            OpenPartition::Small => {
                self.complete_rows.append(&mut self.open_rows);
                return Ok(None);
            }
            OpenPartition::Streaming => return Ok(Some(self.push_streaming(true))),
            OpenPartition::Buffered(_) => self.buffer_open_rows(task)?,
        }
        if self.complete_rows.rows > 0 {
            self.push_complete();
        }
        let OpenPartition::Buffered(buffered) =
            std::mem::replace(&mut self.open_partition, OpenPartition::Small)
        else {
            return Ok(None);
        };
        self.setup.set_reclaimable_bytes(0);
        let reserved = buffered.bytes();
        self.memory.resize(reserved + self.complete_rows.bytes + self.open_rows.bytes)?;
        let memory = self.memory.reservation().split(reserved);
        let (rows, bytes) = (buffered.rows(), buffered.row_bytes());
        let gate = Dependency::blocked("window partition emitted", DependencyKind::Sink);
        self.previous_emitted = Some(gate.clone());
        let content = PartitionData::Buffered(buffered, ReadyOnDrop(gate));
        Ok(Some(self.push(WindowItem { content, rows, bytes, memory })))
    }

    /// Moves the open rows into the buffered window partition.
    fn buffer_open_rows(&mut self, task: &DriverContext) -> Result<()> {
        let BatchBuffer { batches, .. } = std::mem::take(&mut self.open_rows);
        let Some(first) = batches.first() else { return Ok(()) };
        if !matches!(self.open_partition, OpenPartition::Buffered(_)) {
            self.open_partition = OpenPartition::Buffered(Box::new(BufferedPartition::new(
                &self.plan,
                &first.schema(),
            )?));
        }
        match &mut self.open_partition {
            OpenPartition::Buffered(buffered) => buffered.add(&batches, task),
            OpenPartition::Small | OpenPartition::Streaming => Ok(()),
        }
    }

    /// Starts writing the buffered rows that are in memory. Returns false if there are none. No
    /// write may be pending.
    fn spill(&mut self) -> Result<bool> {
        let OpenPartition::Buffered(buffered) = &mut self.open_partition else { return Ok(false) };
        let bytes = buffered.reclaimable_bytes();
        if bytes == 0 || !self.setup.can_spill() {
            return Ok(false);
        }
        let (batches, rows) = buffered.take_in_memory();
        let reservation = self.memory.reservation().split(bytes);
        self.writer.write_iter(rows.iter().sum(), batches, vec![reservation], rows)?;
        self.setup.set_reclaimable_bytes(0);
        Ok(true)
    }

    /// Returns the gate of rows that are being written.
    fn poll_spill(&mut self) -> Result<Option<Gate>> {
        match self.writer.poll()? {
            WriteState::Idle => {}
            WriteState::Blocked(gate) => return Ok(Some(gate)),
            WriteState::Finished(file, rows) => {
                if let OpenPartition::Buffered(buffered) = &mut self.open_partition {
                    buffered.add_spilled(&file, rows);
                }
            }
        }
        Ok(None)
    }

    fn buffered_bytes(&self) -> usize {
        match &self.open_partition {
            OpenPartition::Buffered(buffered) => buffered.bytes(),
            OpenPartition::Small | OpenPartition::Streaming => 0,
        }
    }

    /// Reserves memory for all rows, or records the deficit.
    fn reserve(&mut self) -> Result<()> {
        self.memory.resize(self.buffered_bytes() + self.complete_rows.bytes + self.open_rows.bytes)
    }

    /// Polls the deficit, and spills rows if no memory becomes available.
    fn poll_memory(&mut self, task: &DriverContext) -> Result<Option<Gate>> {
        loop {
            if let Some(gate) = self.poll_spill()? {
                return Ok(Some(gate));
            }
            let error = match self.memory.poll() {
                Err(error @ Error::OutOfMemory { .. }) => error,
                other => return other,
            };
            if let Some(emitted) =
                self.previous_emitted.as_ref().filter(|emitted| !emitted.is_ready())
            {
                return Ok(Some(emitted.clone()));
            }
            if !self.setup.can_spill() {
                return Err(error);
            }
            if self.open_rows.bytes >= self.setup.min_spill_bytes() {
                self.buffer_open_rows(task)?;
            }
            if self.spill()? {
                self.reserve()?;
                continue;
            }
            // Rows not yet buffered are fewer than a large window partition, and are handed over
            // soon. Buffered state is needed until the end.
            let buffered_bytes = self.buffered_bytes();
            self.memory.resize(buffered_bytes)?;
            if buffered_bytes < self.setup.min_spill_bytes().max(STATE_BYTES) {
                self.memory.clear_deficit();
            }
            return self.memory.poll();
        }
    }

    fn push_complete(&mut self) -> SinkResult {
        let complete = std::mem::take(&mut self.complete_rows);
        self.push_buffer(complete, PartitionData::Complete)
    }

    /// Hands over the open rows, behind the complete partitions.
    fn push_streaming(&mut self, last: bool) -> SinkResult {
        if self.complete_rows.rows > 0 {
            self.push_complete();
        }
        self.open_partition = if last { OpenPartition::Small } else { OpenPartition::Streaming };
        let open_rows = std::mem::take(&mut self.open_rows);
        self.push_buffer(open_rows, |batches| PartitionData::Streaming(batches, last))
    }

    fn push_buffer(
        &mut self,
        BatchBuffer { batches, rows, bytes }: BatchBuffer,
        content: impl FnOnce(Vec<RecordBatch>) -> PartitionData,
    ) -> SinkResult {
        let memory = self.memory.reservation().split(bytes);
        self.push(WindowItem { content: content(batches), rows, bytes, memory })
    }

    fn push(&mut self, partitions: WindowItem) -> SinkResult {
        match &mut self.sink {
            Some(sink) => to_sink_result(sink.push(partitions)),
            None => SinkResult::Finished,
        }
    }
}

impl BatchBuffer {
    fn push(&mut self, rows: RecordBatch) {
        self.rows += rows.num_rows();
        self.bytes += bytes(&rows);
        self.batches.push(rows);
    }

    /// Moves all of `other` to the end.
    fn append(&mut self, other: &mut Self) {
        self.batches.append(&mut other.batches);
        self.rows += std::mem::take(&mut other.rows);
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl PartitionBoundaries {
    /// Finds the partition boundaries in the next rows.
    fn find(&mut self, keys: &[ArrayRef]) -> Result<BoundaryScan> {
        let none = BoundaryScan { begins_new: false, first_end: 0, last_start: 0 };
        let Some(column) = keys.first() else { return Ok(none) };
        let converter = match &mut self.converter {
            Some(converter) => converter,
            none => {
                let fields = keys.iter().map(|key| SortField::new(key.data_type().clone()));
                none.insert(RowConverter::new(fields.collect()).query_err()?)
            }
        };
        let row_key = |row| {
            let columns: Vec<_> = keys.iter().map(|key| key.slice(row, 1)).collect();
            Ok(converter.convert_columns(&columns).query_err()?.row(0).owned())
        };
        let (first, last) = (row_key(0)?, row_key(column.len() - 1)?);
        let begins_new = self.last.as_ref().is_some_and(|before| *before != first);
        self.last = Some(last.clone());
        if first == last {
            // Equal rows are adjacent, so all rows in between are equal as well.
            return Ok(BoundaryScan { begins_new, ..none });
        }
        let ranges = partition(keys).query_err()?.ranges();
        let first_end = ranges.first().map_or(0, |range| range.end);
        let last_start = ranges.last().map_or(0, |range| range.start);
        Ok(BoundaryScan { begins_new, first_end, last_start })
    }
}
