//! Window sink: finds the boundaries of window partitions.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch},
    compute::partition,
};
use arrow_row::{OwnedRow, RowConverter, SortField};
use gatework_runtime::{
    Result,
    pipeline::{
        Batch, DriverContext, LocalSink, OperatorContext, OutOfMemory, PerTask, Reservation, Sink,
        SinkResult,
    },
};
use gatework_shared_state::{Dependency, DependencyKind, Gate, window::WindowProducer};

use super::{
    BufferedPartition, PartitionData, ReadyOnDrop, STATE_BYTES, WindowItem, WindowPlan, bytes,
};
use crate::{
    ResultExt, apply_selection,
    buffer::to_sink_result,
    compact::compact_views,
    spill::{BreakerSink, BreakerState, SpillStart, SpillWriter, WriteState, try_resize_above},
};

/// Sink that splits sorted input into window partitions.
#[derive(Debug)]
pub struct WindowSink {
    slots: PerTask<WindowProducer<WindowItem>>,
    plan: Arc<WindowPlan>,
}

impl WindowSink {
    pub(super) fn new(sinks: Vec<WindowProducer<WindowItem>>, plan: Arc<WindowPlan>) -> Self {
        Self { slots: PerTask::new("window sink", sinks), plan }
    }
}

impl Sink for WindowSink {
    fn name(&self) -> &str {
        "window sink"
    }

    fn can_reclaim(&self) -> bool {
        true
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSink>> {
        let sink = self.slots.take(&context)?;
        let closed = sink.closed().clone();
        let state = WindowState {
            sink: Some(sink),
            plan: self.plan.clone(),
            boundaries: PartitionBoundaries::default(),
            complete_rows: BatchBuffer::default(),
            open_rows: BatchBuffer::default(),
            open_partition: OpenPartition::Small,
            writer: SpillWriter::new(context.clone()),
            previous_emitted: None,
            memory: context.reservation(),
            context: context.clone(),
        };
        Ok(Box::new(BreakerSink::new(state, context, closed)))
    }
}

/// The rows of one task that have not been handed over.
struct WindowState {
    sink: Option<WindowProducer<WindowItem>>,
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
    memory: Reservation,
    context: OperatorContext,
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

impl BreakerState for WindowState {
    fn add(&mut self, batch: Batch, task: &DriverContext) -> Result<SinkResult> {
        let result = self.add_rows(compact_views(apply_selection(batch)?)?, task)?;
        if self.plan.is_streaming() && self.memory.resize(self.bytes()).is_err() {
            // Memory that is handed over is released soon.
            return Ok(self.push_streaming(false));
        }
        Ok(result)
    }

    fn reserve(&mut self) -> Result<(), OutOfMemory> {
        if self.plan.is_streaming() {
            return Ok(());
        }
        let Err(denied) = self.memory.resize(self.bytes()) else { return Ok(()) };
        let can_release = self.pending_release().is_some()
            || self.reclaimable_bytes() > 0
            || self.can_buffer_more();
        if can_release || !self.context.can_spill() {
            return Err(denied);
        }
        // Rows not yet buffered are fewer than a large window partition, and are handed over soon.
        // Buffered state is needed until the end.
        let min_bytes = self.context.min_spill_bytes().max(STATE_BYTES);
        let buffered = self.buffered_bytes();
        try_resize_above(&mut self.memory, buffered, min_bytes)
    }

    fn reclaimable_bytes(&self) -> usize {
        match &self.open_partition {
            OpenPartition::Buffered(buffered) => buffered.reclaimable_bytes(),
            OpenPartition::Small | OpenPartition::Streaming => 0,
        }
    }

    fn pending_release(&self) -> Option<Gate> {
        self.previous_emitted.clone().filter(|emitted| !emitted.is_ready())
    }

    /// Starts writing the buffered rows that are in memory.
    fn start_spill(&mut self, task: &DriverContext) -> Result<SpillStart> {
        let buffers_more = self.can_buffer_more();
        if buffers_more {
            self.buffer_open_rows(task)?;
        }
        let bytes = self.reclaimable_bytes();
        let OpenPartition::Buffered(buffered) = &mut self.open_partition else {
            return Ok(SpillStart::Impossible);
        };
        if bytes == 0 {
            return Ok(if buffers_more { SpillStart::Later } else { SpillStart::Impossible });
        }
        let (batches, rows) = buffered.take_in_memory();
        let reservation = self.memory.split(bytes);
        self.writer.write_iter(rows.iter().sum(), batches, vec![reservation], rows)?;
        Ok(SpillStart::Writing)
    }

    fn poll_write(&mut self) -> Result<Option<Gate>> {
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

    fn publish(&mut self, wanted: bool, task: &DriverContext) -> Result<Option<Gate>> {
        if !wanted {
            self.open_partition = OpenPartition::Small;
            (self.complete_rows, self.open_rows) = Default::default();
        }
        // The last items are pushed even without capacity.
        self.finish_open_partition(task)?;
        if self.complete_rows.rows > 0 {
            self.push_complete();
        }
        if let Some(sink) = self.sink.take() {
            sink.finish();
        }
        Ok(None)
    }
}

impl WindowState {
    /// Adds rows, and pushes what can be evaluated. Returns the result of the last push.
    fn add_rows(&mut self, rows: RecordBatch, task: &DriverContext) -> Result<SinkResult> {
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
        let reserved = buffered.bytes();
        // If it is denied, some of the rows are handed over without a reservation.
        let _reserved = self.memory.resize(reserved + self.bytes());
        let memory = self.memory.split(reserved);
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

    fn buffered_bytes(&self) -> usize {
        match &self.open_partition {
            OpenPartition::Buffered(buffered) => buffered.bytes(),
            OpenPartition::Small | OpenPartition::Streaming => 0,
        }
    }

    /// Returns whether the open rows are large enough to be buffered, so that they can be spilled.
    fn can_buffer_more(&self) -> bool {
        self.open_rows.bytes >= self.context.min_spill_bytes().max(1)
    }

    /// Returns the bytes of all rows.
    fn bytes(&self) -> usize {
        self.buffered_bytes() + self.complete_rows.bytes + self.open_rows.bytes
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
        let memory = self.memory.split(bytes);
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
        let row_key = |row| -> Result<OwnedRow> {
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
