//! The sink of a sort: collects batches and sorts them into a run.

use std::{cmp::Ordering, ops::Range, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, BooleanArray, RecordBatch, Scalar},
    buffer::{BooleanBuffer, ScalarBuffer},
    compute::{
        filter, filter_record_batch,
        kernels::cmp::{gt_eq, lt_eq},
    },
    error::ArrowError,
};
use arrow_row::Rows;
use datafusion_physical_expr::PhysicalSortExpr;
use gatework_runtime::{
    Error, Result,
    pipeline::{
        Batch, DriverContext, FinishResult, LocalSink, OperatorContext, PerTask, ReclaimResult,
        Reservation, Sink, SinkResult, SpilledBatches, StartResult,
    },
};
use gatework_shared_state::{Gate, sort::SortProducer};

use super::{
    SortPlan,
    chunks::{SortedBatches, gather_chunks},
    sample_sort::{SortedIndices, prefix},
};
use crate::{
    ResultExt, apply_selection,
    batch_bytes::sum_of,
    compact::compact_views,
    exchange_source::CloseOnDrop,
    spill::{SpillWriter, WriteState, nothing_to_spill_error, try_resize_above},
};

/// Rows in order, with their keys.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) chunks: Vec<RecordBatch>,
    /// Where each chunk begins, and the last one ends.
    starts: Vec<usize>,
    /// The bytes of each chunk's variable-length values.
    text_bytes: Vec<usize>,
    /// What all keys begin with, and what follows of each row's key.
    common: CommonPrefix,
    prefixes: Vec<u128>,
    /// Keys in the order of arrival, and which of them each row has.
    keys: Rows,
    order: ScalarBuffer<u32>,
    /// The prefixes are the keys.
    prefix_is_key: bool,
    _reservation: Option<Reservation>,
}

/// What all keys of a run begin with. Runs are compared by it for each row, so its first bytes are a number.
#[derive(Debug, Default)]
struct CommonPrefix {
    /// How many bytes there are, and up to 15 of them.
    first_bytes: u128,
    rest: Box<[u8]>,
}

impl CommonPrefix {
    fn new(bytes: &[u8]) -> Self {
        let (first, rest) = bytes.split_at(bytes.len().min(15));
        Self { first_bytes: prefix(first) | bytes.len().min(0xff) as u128, rest: rest.into() }
    }
}

impl PartialEq for CommonPrefix {
    fn eq(&self, other: &Self) -> bool {
        let no_rest = self.rest.is_empty() && other.rest.is_empty();
        // A comparison of no bytes would be a call for each row, and may be a slow one: the address of an empty box is
        // none that a vector could be loaded from.
        self.first_bytes == other.first_bytes && (no_rest || self.rest == other.rest)
    }
}

/// Rows in order, wherever they are.
#[derive(Debug)]
pub(super) enum SortedRun {
    InMemory(Box<Run>),
    /// As so many batches.
    Spilled(Arc<dyn SpilledBatches>, usize),
    /// Of another task, while it comes.
    Remote(CloseOnDrop),
}

impl Run {
    /// A part of a run, as it was written.
    pub(super) fn from_sorted_batch(rows: RecordBatch, shared: &SortPlan) -> Result<Self> {
        let columns = shared.key_columns(&rows)?;
        let keys = shared.converter.convert_columns(&columns).query_err()?;
        let prefixes = keys.iter().map(|key| prefix(key.data())).collect();
        let order = (0..rows.num_rows() as u32).collect();
        let (chunks, order) = (vec![rows], order);
        let (starts, text_bytes) = measured(&chunks);
        let (common, prefix_is_key) = (CommonPrefix::default(), false);
        let _reservation = None;
        Ok(Self {
            chunks,
            starts,
            text_bytes,
            common,
            prefixes,
            keys,
            order,
            prefix_is_key,
            _reservation,
        })
    }

    /// The chunk that has row `row`: its number, and where it begins and ends. Behind the last row
    /// there is an empty one.
    pub(super) fn chunk(&self, row: usize) -> (usize, Range<usize>) {
        let chunk = self.starts.partition_point(|start| *start <= row) - 1;
        (chunk, self.starts[chunk]..self.end(chunk))
    }

    /// Where chunk `chunk` ends; the last row, if there is no such chunk.
    pub(super) fn end(&self, chunk: usize) -> usize {
        self.starts.get(chunk + 1).copied().unwrap_or_else(|| self.len())
    }

    /// The bytes of a chunk's variable-length values.
    pub(super) fn text_bytes(&self, chunk: usize) -> usize {
        self.text_bytes.get(chunk).copied().unwrap_or(0)
    }

    /// How many rows there are.
    pub(super) fn len(&self) -> usize {
        self.prefixes.len()
    }

    /// Rows from `row` on to the end of their chunk, or `most`.
    pub(super) fn slice(&self, row: usize, max_rows: usize) -> RecordBatch {
        let (chunk, rows) = self.chunk(row);
        self.chunks[chunk].slice(row - rows.start, max_rows.min(rows.end - row))
    }

    pub(super) fn key(&self, row: usize) -> &[u8] {
        // The row's bytes live as long as `keys`.
        let row = self.keys.row(self.order[row] as usize);
        row.data()
    }

    /// What `row` is compared by with rows of other runs of the same sort.
    pub(super) fn row_key(&self, row: usize) -> RowKey<'_> {
        RowKey { prefix: self.prefixes[row], run: self, row }
    }

    /// All of the key, or nothing if its prefix says it all.
    fn tie_breaker(&self, row: usize) -> &[u8] {
        if self.prefix_is_key { &[] } else { self.key(row) }
    }
}

/// Where chunks begin, and the last ends; and the bytes of their variable-length values.
fn measured(chunks: &[RecordBatch]) -> (Vec<usize>, Vec<usize>) {
    let mut starts = vec![0];
    let mut end = 0;
    for chunk in chunks {
        end += chunk.num_rows();
        starts.push(end);
    }
    (starts, chunks.iter().map(|chunk| sum_of(chunk.columns())).collect())
}

/// A key in two parts: most comparisons end with the first, which is a number at hand; the other is far away. Where
/// one run's prefixes say it all and another's do not, equal prefixes are those of equal keys, or of one that ends
/// where the other goes on, so nothing comes before something.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowKey<'a> {
    prefix: u128,
    run: &'a Run,
    row: usize,
}

impl Ord for RowKey<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        if self.run.common != other.run.common {
            return self.run.key(self.row).cmp(other.run.key(other.row));
        }
        self.prefix.cmp(&other.prefix).then_with(|| {
            match (self.run.prefix_is_key, other.run.prefix_is_key) {
                (true, true) => Ordering::Equal,
                _ => self.run.tie_breaker(self.row).cmp(other.run.tie_breaker(other.row)),
            }
        })
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

/// A row that so many rows lie before, or at, that no row behind it is wanted.
#[derive(Debug)]
pub(super) struct TopNThreshold {
    key: Box<[u8]>,
    /// The first sort key's value, and whether it descends.
    first: ArrayRef,
    descending: bool,
}

impl TopNThreshold {
    fn new(run: &Run, row: usize, first: &PhysicalSortExpr) -> datafusion_common::Result<Self> {
        let value = first.expr.evaluate(&run.slice(row, 1))?.into_array_of_size(1)?;
        let descending = first.options.descending;
        Ok(Self { key: run.key(row).into(), first: value, descending })
    }

    /// The rows whose first sort key is not behind the boundary's, told from the column alone; `None` if
    /// that does not go for NULLs or for the type.
    fn within_threshold(&self, first: &ArrayRef) -> Result<Option<BooleanArray>, ArrowError> {
        if !first.data_type().is_primitive() || first.null_count() + self.first.null_count() > 0 {
            return Ok(None);
        }
        let threshold = Scalar::new(&self.first);
        if self.descending { gt_eq(first, &threshold) } else { lt_eq(first, &threshold) }.map(Some)
    }
}

/// The sink of a sort.
#[derive(Debug)]
pub struct SortSink {
    shared: Arc<SortPlan>,
    slots: PerTask<SortProducer<SortedRun>>,
}

impl SortSink {
    pub(super) fn new(shared: Arc<SortPlan>, slots: PerTask<SortProducer<SortedRun>>) -> Self {
        Self { shared, slots }
    }
}

impl Sink for SortSink {
    fn name(&self) -> &str {
        if self.shared.config.fetch.is_some() { "top-n sink" } else { "sort sink" }
    }

    fn can_reclaim(&self) -> bool {
        true
    }

    fn local(&self, setup: OperatorContext) -> Result<Box<dyn LocalSink>> {
        let sink = self.slots.take(&setup)?;
        Ok(Box::new(LocalSortSink {
            closed: sink.closed().clone(),
            sink: Some(sink),
            spilled: Vec::new(),
            writer: SpillWriter::new(setup.clone()),
            input: SortInput::new(&self.shared),
            reservation: setup.reservation(),
            denied: None,
            shared: self.shared.clone(),
            setup,
        }))
    }
}

/// Batches that have not been sorted yet, and their keys.
struct SortInput {
    batches: Vec<RecordBatch>,
    keys: Rows,
    bytes: usize,
}

impl SortInput {
    fn new(shared: &SortPlan) -> Self {
        Self { batches: Vec::new(), keys: shared.converter.empty_rows(0, 0), bytes: 0 }
    }
}

struct LocalSortSink {
    shared: Arc<SortPlan>,
    sink: Option<SortProducer<SortedRun>>,
    /// Runs that were spilled, and one that is being written, as so many batches.
    spilled: Vec<SortedRun>,
    writer: SpillWriter<usize>,
    closed: Gate,
    input: SortInput,
    reservation: Reservation,
    /// What was collected has not been reserved.
    denied: Option<Error>,
    setup: OperatorContext,
}

/// A top-N task sorts what it has when it holds this many rows more than it may keep.
const TOP_N_SLACK_ROWS: usize = 1 << 13;

impl LocalSortSink {
    fn add(&mut self, mut data: RecordBatch) -> Result<()> {
        let shared = &self.shared;
        let mut columns = shared.key_columns(&data)?;
        let threshold = shared.threshold.read().clone();
        let Some(threshold) = threshold else {
            let first = self.input.keys.num_rows();
            shared.converter.append(&mut self.input.keys, &columns).query_err()?;
            debug_assert_eq!(first + data.num_rows(), self.input.keys.num_rows());
            return self.push(data);
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
        let keys = shared.converter.convert_columns(&columns).query_err()?;
        let before = BooleanBuffer::collect_bool(data.num_rows(), |row| {
            keys.row(row).data() < threshold.key.as_ref()
        });
        if before.count_set_bits() == 0 {
            return Ok(());
        }
        for row in before.set_indices() {
            self.input.keys.push(keys.row(row));
        }
        self.push(filter_record_batch(&data, &BooleanArray::new(before, None)).query_err()?)
    }

    fn push(&mut self, data: RecordBatch) -> Result<()> {
        self.input.bytes += Batch::new(data.clone()).bytes();
        self.input.batches.push(data);
        match self.reserve() {
            // What did not fit has been collected all the same.
            Err(error @ Error::OutOfMemory { .. }) => self.denied = Some(error),
            other => other?,
        }
        if self.setup.can_spill() {
            self.setup.set_reclaimable_bytes(self.reservation.bytes());
        }
        Ok(())
    }

    /// Reserves what was collected.
    fn reserve(&mut self) -> Result<()> {
        let bytes = self.input.bytes + self.input.keys.size();
        try_resize_above(&mut self.reservation, bytes, self.setup.min_spill_bytes())
    }

    /// If memory was refused: has another one give some back, and answers where to wait for that, or begins
    /// to spill.
    fn resolve_denial(&mut self, task: &DriverContext) -> Result<Option<Gate>> {
        let Some(error) = self.denied.take() else { return Ok(None) };
        match self.reserve() {
            Err(Error::OutOfMemory { .. }) => {}
            other => return other.map(|()| None),
        }
        if let Some(gate) = self.setup.request_reclaim(self.input.bytes) {
            self.denied = Some(error);
            return Ok(Some(gate));
        }
        self.spill(error, task)?;
        Ok(None)
    }

    /// Begins to write what was collected, in order, to a file because of `error`.
    fn spill(&mut self, error: Error, task: &DriverContext) -> Result<()> {
        if self.writer.is_writing() || !self.setup.can_spill() {
            return Err(error);
        }
        let Some((input, order)) = self.take_input_sorted(task)? else { return Err(error) };
        let SortedIndices { prefixes, rows: order, .. } = order;
        drop(prefixes);
        let (rows, config) = (order.len(), &self.shared.config);
        let reservations = vec![self.reservation.take()];
        let (schema, max_rows) = (config.schema.clone(), config.batch_rows);
        let batches = SortedBatches::new(schema, input.batches, order, max_rows);
        let count = batches.remaining_batches();
        self.denied = None;
        self.setup.set_reclaimable_bytes(0);
        self.writer.write_iter(rows, Box::new(batches), reservations, count)
    }

    /// The gate of a run that is still being written.
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

    fn ready_for_input(&mut self, task: &DriverContext) -> Result<SinkResult> {
        Ok(match self.poll_memory(task)? {
            Some(gate) => SinkResult::Blocked(gate.into()),
            None => SinkResult::NeedInput,
        })
    }

    /// The gate to wait at before more rows are taken.
    fn poll_memory(&mut self, task: &DriverContext) -> Result<Option<Gate>> {
        loop {
            if let Some(gate) = self.poll_write()? {
                return Ok(Some(gate));
            }
            if self.denied.is_none() {
                return Ok(None);
            }
            if let Some(gate) = self.resolve_denial(task)? {
                return Ok(Some(gate));
            }
        }
    }

    /// What was collected, and its order; with a `fetch`, only of as many.
    fn take_input_sorted(
        &mut self,
        task: &DriverContext,
    ) -> Result<Option<(SortInput, SortedIndices)>> {
        let input = std::mem::replace(&mut self.input, SortInput::new(&self.shared));
        let rows = input.keys.num_rows();
        if rows == 0 {
            return Ok(None);
        }
        if rows > u32::MAX as usize {
            return Err(Error::InvalidConfiguration("more than 2^32 rows in one sort run".into()));
        }
        let order = SortedIndices::of(&input.keys, self.shared.config.fetch, task)?;
        Ok(Some((input, order)))
    }

    /// Sorts what was collected; with a `fetch`, only as many rows come out.
    fn sort(&mut self, task: &DriverContext) -> Result<Option<Run>> {
        let Some((input, order)) = self.take_input_sorted(task)? else { return Ok(None) };
        let SortInput { batches, keys, .. } = input;
        let SortedIndices { common, prefix_is_key, prefixes, rows } = order;
        let common = CommonPrefix::new(&keys.row(0).data()[..common]);
        let order = ScalarBuffer::from(rows);
        let config = &self.shared.config;
        let chunks = gather_chunks(&config.schema, batches, &order, config.batch_rows, task)?;
        let (starts, text_bytes) = measured(&chunks);
        let bytes = chunks.iter().map(|chunk| Batch::new(chunk.clone()).bytes()).sum::<usize>();
        match self.reservation.resize(bytes + keys.size() + 20 * order.len()) {
            // It is about what was reserved for the rows before they were sorted.
            Err(Error::OutOfMemory { .. }) if self.setup.can_spill() => {}
            other => other?,
        }
        let _reservation = Some(self.reservation.take());
        Ok(Some(Run {
            chunks,
            starts,
            text_bytes,
            common,
            prefixes,
            keys,
            order,
            prefix_is_key,
            _reservation,
        }))
    }

    /// Sorts a top-N's rows down to what it may keep, and tells the others the boundary.
    fn shrink(&mut self, fetch: usize, task: &DriverContext) -> Result<()> {
        let Some(run) = self.sort(task)? else { return Ok(()) };
        let rows = run.len();
        if rows == fetch && rows > 0 {
            let last =
                TopNThreshold::new(&run, rows - 1, &self.shared.config.ordering[0]).query_err()?;
            let mut threshold = self.shared.threshold.write();
            if threshold.as_ref().is_none_or(|known| last.key < known.key) {
                *threshold = Some(Arc::new(last));
            }
        }
        for row in 0..rows {
            self.input.keys.push(run.keys.row(run.order[row] as usize));
        }
        run.chunks.into_iter().try_for_each(|chunk| self.push(chunk))
    }
}

impl LocalSink for LocalSortSink {
    fn start(&mut self, _task: &DriverContext) -> Result<StartResult> {
        Ok(if self.shared.config.fetch == Some(0) {
            StartResult::Finished
        } else {
            StartResult::Ready
        })
    }

    fn sink(&mut self, batch: Option<Batch>, task: &DriverContext) -> Result<SinkResult> {
        let Some(batch) = batch else { return self.ready_for_input(task) };
        let rows = self.shared.with_carried(compact_views(apply_selection(batch)?)?)?;
        self.add(rows)?;
        if let Some(fetch) = self.shared.config.fetch
            && self.input.keys.num_rows() >= fetch.saturating_add(TOP_N_SLACK_ROWS.max(fetch))
        {
            self.shrink(fetch, task)?;
        }
        self.ready_for_input(task)
    }

    fn reclaim(&mut self, task: &DriverContext) -> Result<ReclaimResult> {
        if self.poll_write()?.is_some() {
            return Ok(ReclaimResult::Started);
        }
        if self.reservation.bytes() == 0 || !self.setup.can_spill() {
            return Ok(ReclaimResult::NothingToReclaim);
        }
        self.spill(nothing_to_spill_error(), task)?;
        Ok(ReclaimResult::Started)
    }

    fn finish(&mut self, task: &DriverContext) -> Result<FinishResult> {
        if self.closed.is_ready() {
            self.denied = None;
        }
        if let Some(gate) = self.poll_memory(task)? {
            return Ok(FinishResult::Blocked(gate.into()));
        }
        let wanted = !self.closed.is_ready() && self.input.keys.num_rows() > 0;
        if wanted && !self.spilled.is_empty() {
            // Runs are merged batch by batch; a whole one in memory would be in the way.
            self.spill(nothing_to_spill_error(), task)?;
            if let Some(gate) = self.poll_write()? {
                return Ok(FinishResult::Blocked(gate.into()));
            }
        }
        let Some(sink) = self.sink.take() else { return Ok(FinishResult::Done) };
        let mut runs = std::mem::take(&mut self.spilled);
        if !self.closed.is_ready() {
            runs.extend(self.sort(task)?.map(Box::new).map(SortedRun::InMemory));
        }
        self.setup.metrics().add("sorted_runs", runs.len() as u64);
        sink.publish(runs);
        Ok(FinishResult::Done)
    }

    fn closed(&self) -> Option<Gate> {
        Some(self.closed.clone())
    }
}
