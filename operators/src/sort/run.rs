//! Sort sink: collects batches and sorts them into a run.

use std::{cmp::Ordering, ops::Range, sync::Arc};

use arrow::{
    array::{BooleanArray, RecordBatch},
    buffer::{BooleanBuffer, ScalarBuffer},
    compute::{filter, filter_record_batch},
};
use arrow_row::Rows;
use gatework_runtime::{
    Error, Result,
    pipeline::{
        Batch, DriverContext, LocalSink, OperatorContext, OutOfMemory, PerTask, Reservation, Sink,
        SinkResult, SpilledBatches, StartResult,
    },
};
use gatework_shared_state::{Gate, sort::SortProducer};

use super::{
    SortPlan,
    chunks::{SortedBatches, gather_chunks},
    prefix::KeyPrefix,
    sample_sort::SortedIndices,
    threshold::TopNThreshold,
};
use crate::{
    ResultExt, apply_selection,
    batch_bytes::sum_of,
    compact::compact_views,
    exchange_source::CloseOnDrop,
    spill::{BreakerSink, BreakerState, SpillStart, SpillWriter, WriteState, try_resize_above},
};

/// Sorted rows in memory, with their keys.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) chunks: Vec<RecordBatch>,
    /// First row of each chunk, and the end of the last.
    starts: Vec<usize>,
    /// Bytes of each chunk's variable-length values.
    text_bytes: Vec<usize>,
    /// Prefix of each row's key. Only runs with the same instance of `prefix` are compared by it.
    prefix: Arc<KeyPrefix>,
    prefixes: Vec<u128>,
    /// Keys in the order of arrival, and the key index of each row.
    keys: Rows,
    order: ScalarBuffer<u32>,
    _reservation: Option<Reservation>,
}

/// Sorted rows in memory, in a spill file or in another task.
#[derive(Debug)]
pub(super) enum SortedRun {
    InMemory(Box<Run>),
    /// Spill file and its number of batches.
    Spilled(Arc<dyn SpilledBatches>, usize),
    /// Output of another task, read while it is produced.
    Remote(CloseOnDrop),
}

impl Run {
    /// Creates a run from a sorted batch that was spilled or received.
    pub(super) fn from_sorted_batch(rows: RecordBatch, plan: &SortPlan) -> Result<Self> {
        let columns = plan.key_columns(&rows)?;
        let keys = plan.converter.convert_columns(&columns).query_err()?;
        let prefix = plan.leading_prefix.clone();
        let prefixes = keys.iter().map(|key| prefix.of(key.data())).collect();
        let order = (0..rows.num_rows() as u32).collect();
        let (chunks, order) = (vec![rows], order);
        let (starts, text_bytes) = measured(&chunks);
        let _reservation = None;
        Ok(Self { chunks, starts, text_bytes, prefix, prefixes, keys, order, _reservation })
    }

    /// Returns the index and row range of the chunk that contains row `row`. Behind the last row
    /// there is an empty chunk.
    pub(super) fn chunk(&self, row: usize) -> (usize, Range<usize>) {
        let chunk = self.starts.partition_point(|start| *start <= row) - 1;
        (chunk, self.starts[chunk]..self.end(chunk))
    }

    /// Returns the end of chunk `chunk`; the row count if there is no such chunk.
    pub(super) fn end(&self, chunk: usize) -> usize {
        self.starts.get(chunk + 1).copied().unwrap_or_else(|| self.len())
    }

    /// Returns the bytes of a chunk's variable-length values.
    pub(super) fn text_bytes(&self, chunk: usize) -> usize {
        self.text_bytes.get(chunk).copied().unwrap_or(0)
    }

    /// Returns the number of rows.
    pub(super) fn len(&self) -> usize {
        self.prefixes.len()
    }

    /// Returns the rows from `row` to the end of its chunk, at most `max_rows`.
    pub(super) fn slice(&self, row: usize, max_rows: usize) -> RecordBatch {
        let (chunk, rows) = self.chunk(row);
        self.chunks[chunk].slice(row - rows.start, max_rows.min(rows.end - row))
    }

    pub(super) fn key(&self, row: usize) -> &[u8] {
        // The row's bytes live as long as `keys`.
        let row = self.keys.row(self.order[row] as usize);
        row.data()
    }

    /// Returns the key by which `row` is compared with rows of other runs of the same sort.
    pub(super) fn row_key(&self, row: usize) -> RowKey<'_> {
        RowKey { prefix: self.prefixes[row], run: self, row }
    }
}

/// Returns the chunk starts with the end of the last, and the bytes of each chunk's variable-length
/// values.
fn measured(chunks: &[RecordBatch]) -> (Vec<usize>, Vec<usize>) {
    let mut starts = vec![0];
    let mut end = 0;
    for chunk in chunks {
        end += chunk.num_rows();
        starts.push(end);
    }
    (starts, chunks.iter().map(|chunk| sum_of(chunk.columns())).collect())
}

/// Key with its prefix. Most comparisons are decided by the prefixes of runs that share a
/// [`KeyPrefix`]; whole keys need a memory access.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowKey<'a> {
    prefix: u128,
    run: &'a Run,
    row: usize,
}

impl Ord for RowKey<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_key = || self.run.key(self.row).cmp(other.run.key(other.row));
        if !Arc::ptr_eq(&self.run.prefix, &other.run.prefix) {
            return by_key();
        }
        match self.prefix.cmp(&other.prefix) {
            Ordering::Equal if !self.run.prefix.is_key() => by_key(),
            order => order,
        }
    }
}

impl PartialOrd for RowKey<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for RowKey<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for RowKey<'_> {}

/// Sink of a sort.
#[derive(Debug)]
pub struct SortSink {
    plan: Arc<SortPlan>,
    slots: PerTask<SortProducer<SortedRun>>,
}

impl SortSink {
    pub(super) fn new(plan: Arc<SortPlan>, slots: PerTask<SortProducer<SortedRun>>) -> Self {
        Self { plan, slots }
    }
}

impl Sink for SortSink {
    fn name(&self) -> &str {
        if self.plan.config.fetch.is_some() { "top-n sink" } else { "sort sink" }
    }

    fn can_reclaim(&self) -> bool {
        true
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSink>> {
        let sink = self.slots.take(&context)?;
        let closed = sink.closed().clone();
        let state = SortState {
            sink: Some(sink),
            spilled: Vec::new(),
            writer: SpillWriter::new(context.clone()),
            input: SortInput::new(&self.plan),
            reservation: context.reservation(),
            plan: self.plan.clone(),
            context: context.clone(),
        };
        Ok(Box::new(BreakerSink::new(state, context, closed)))
    }
}

/// Batches that are not yet sorted, and their keys.
struct SortInput {
    batches: Vec<RecordBatch>,
    keys: Rows,
    bytes: usize,
}

impl SortInput {
    fn new(plan: &SortPlan) -> Self {
        Self { batches: Vec::new(), keys: plan.converter.empty_rows(0, 0), bytes: 0 }
    }
}

/// The rows of one task.
struct SortState {
    plan: Arc<SortPlan>,
    sink: Option<SortProducer<SortedRun>>,
    /// Spilled runs, and the run being written, tagged with its number of batches.
    spilled: Vec<SortedRun>,
    writer: SpillWriter<usize>,
    input: SortInput,
    reservation: Reservation,
    context: OperatorContext,
}

/// Maximum `fetch` of a top-n that sorts its first `fetch` rows for a threshold alone.
const FIRST_SHRINK_ROWS: usize = 1 << 16;

impl SortState {
    /// Adds rows that are not behind the threshold.
    fn add_rows(&mut self, mut data: RecordBatch) -> Result<()> {
        let plan = &self.plan;
        let mut columns = plan.key_columns(&data)?;
        let threshold = plan.threshold.read().clone();
        let Some(threshold) = threshold else {
            let first = self.input.keys.num_rows();
            plan.converter.append(&mut self.input.keys, &columns).query_err()?;
            debug_assert_eq!(first + data.num_rows(), self.input.keys.num_rows());
            self.push(data);
            return Ok(());
        };
        if let Some(mask) = threshold.within_threshold(&columns[0]).query_err()? {
            if mask.true_count() == 0 {
                return Ok(());
            }
            data = filter_record_batch(&data, &mask).query_err()?;
            for column in &mut columns {
                *column = filter(column, &mask).query_err()?;
            }
        }
        let keys = plan.converter.convert_columns(&columns).query_err()?;
        let before = BooleanBuffer::collect_bool(data.num_rows(), |row| {
            keys.row(row).data() < threshold.key.as_ref()
        });
        if before.count_set_bits() == 0 {
            return Ok(());
        }
        for row in before.set_indices() {
            self.input.keys.push(keys.row(row));
        }
        self.push(filter_record_batch(&data, &BooleanArray::new(before, None)).query_err()?);
        Ok(())
    }

    fn push(&mut self, data: RecordBatch) {
        self.input.bytes += Batch::new(data.clone()).bytes();
        self.input.batches.push(data);
    }

    /// Takes the collected rows and their order; with a `fetch`, the order of the first `fetch`
    /// rows.
    fn take_input_sorted(
        &mut self,
        task: &DriverContext,
    ) -> Result<Option<(SortInput, SortedIndices)>> {
        let input = std::mem::replace(&mut self.input, SortInput::new(&self.plan));
        let rows = input.keys.num_rows();
        if rows == 0 {
            return Ok(None);
        }
        if rows > u32::MAX as usize {
            return Err(Error::InvalidConfiguration(
                "a sort run exceeds 2^32 - 1 rows: use more tasks".into(),
            ));
        }
        let order = SortedIndices::of(&input.keys, self.plan.config.fetch, task)?;
        Ok(Some((input, order)))
    }

    /// Sorts the collected rows; with a `fetch`, returns at most that number of rows.
    fn sort(&mut self, task: &DriverContext) -> Result<Option<Run>> {
        let Some((input, order)) = self.take_input_sorted(task)? else { return Ok(None) };
        let SortInput { batches, keys, .. } = input;
        let SortedIndices { prefix, prefixes, rows } = order;
        let prefix = Arc::new(prefix);
        let order = ScalarBuffer::from(rows);
        let config = &self.plan.config;
        let chunks = gather_chunks(&config.schema, batches, &order, config.batch_rows, task)?;
        let (starts, text_bytes) = measured(&chunks);
        let bytes = chunks.iter().map(|chunk| Batch::new(chunk.clone()).bytes()).sum::<usize>();
        let resized = self.reservation.resize(bytes + keys.size() + 20 * order.len());
        // Otherwise the size is close to what was reserved for the unsorted rows.
        if !self.context.can_spill() {
            resized?;
        }
        let _reservation = Some(self.reservation.take());
        Ok(Some(Run { chunks, starts, text_bytes, prefix, prefixes, keys, order, _reservation }))
    }

    /// Sorts a top-N's rows, keeps the first `fetch`, and publishes the threshold to the other
    /// tasks.
    fn shrink(&mut self, fetch: usize, task: &DriverContext) -> Result<()> {
        let Some(run) = self.sort(task)? else { return Ok(()) };
        let rows = run.len();
        if rows == fetch && rows > 0 {
            let ordering = &self.plan.config.ordering;
            self.plan.publish(TopNThreshold::new(&run, rows - 1, ordering).query_err()?)?;
        }
        for row in 0..rows {
            self.input.keys.push(run.keys.row(run.order[row] as usize));
        }
        run.chunks.into_iter().for_each(|chunk| self.push(chunk));
        Ok(())
    }
}

impl BreakerState for SortState {
    fn start(&mut self) -> Result<StartResult> {
        Ok(if self.plan.config.fetch == Some(0) {
            StartResult::Finished
        } else {
            StartResult::Ready
        })
    }

    fn add(&mut self, batch: Batch, task: &DriverContext) -> Result<SinkResult> {
        let rows = self.plan.with_carried(compact_views(apply_selection(batch)?)?)?;
        self.add_rows(rows)?;
        if let Some(fetch) = self.plan.config.fetch {
            // As many rows again as were kept, so that each is sorted a few times at most. But the
            // first threshold as soon as there is one: it spares the most.
            let is_first = self.plan.threshold.read().is_none();
            let is_cheap = is_first && fetch <= FIRST_SHRINK_ROWS;
            let enough = if is_cheap { fetch } else { fetch.saturating_mul(2) };
            if self.input.keys.num_rows() >= enough {
                self.shrink(fetch, task)?;
            }
        }
        Ok(SinkResult::NeedInput)
    }

    fn reserve(&mut self) -> Result<(), OutOfMemory> {
        if self.input.keys.num_rows() == 0 {
            return Ok(());
        }
        let bytes = self.input.bytes + self.input.keys.size();
        try_resize_above(&mut self.reservation, bytes, self.context.min_spill_bytes())
    }

    fn reclaimable_bytes(&self) -> usize {
        self.reservation.bytes()
    }

    /// Starts writing the collected rows in order to a file.
    fn start_spill(&mut self, task: &DriverContext) -> Result<SpillStart> {
        let Some((input, order)) = self.take_input_sorted(task)? else {
            return Ok(SpillStart::Impossible);
        };
        let SortedIndices { prefixes, rows: order, .. } = order;
        drop(prefixes);
        let (rows, config) = (order.len(), &self.plan.config);
        let reservations = vec![self.reservation.take()];
        let (schema, max_rows) = (config.schema.clone(), config.batch_rows);
        let batches = SortedBatches::new(schema, input.batches, order, max_rows);
        let count = batches.remaining_batches();
        self.writer.write_iter(rows, Box::new(batches), reservations, count)?;
        Ok(SpillStart::Writing)
    }

    fn poll_write(&mut self) -> Result<Option<Gate>> {
        match self.writer.poll()? {
            WriteState::Idle => {}
            WriteState::Blocked(gate) => return Ok(Some(gate)),
            WriteState::Finished(file, batches) => {
                self.spilled.push(SortedRun::Spilled(file, batches))
            }
        }
        Ok(None)
    }

    fn publish(&mut self, wanted: bool, task: &DriverContext) -> Result<Option<Gate>> {
        if wanted && !self.spilled.is_empty() {
            // Spilled runs are merged batch by batch; a whole run in memory would take memory from
            // them.
            self.start_spill(task)?;
            if let Some(gate) = self.poll_write()? {
                return Ok(Some(gate));
            }
        }
        let Some(sink) = self.sink.take() else { return Ok(None) };
        let mut runs = std::mem::take(&mut self.spilled);
        if wanted && let Some(mut run) = self.sort(task)? {
            run.prefix = self.plan.share_prefix(run.prefix);
            runs.push(SortedRun::InMemory(Box::new(run)));
        }
        self.context.metrics().add("sorted_runs", runs.len() as u64);
        sink.publish(runs);
        Ok(None)
    }
}
