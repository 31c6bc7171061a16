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
        Batch, FinishResult, GiveBack, LocalSink, Reservation, Setup, Sink, SinkResult, Slots,
        Spilled, Start, TaskContext,
    },
};
use gatework_shared_state::{Gate, sort::SortSink};

use super::{
    Shared,
    chunks::{InOrder, in_chunks},
    order::{Order, prefix},
};
use crate::{
    OrFail,
    batch_bytes::sum_of,
    compact,
    compact::to_keep,
    exchange_source::ClosesClient,
    spilling::{Writing, Written, nothing_left, resize},
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
    common: Common,
    prefixes: Vec<u128>,
    /// Keys in the order of arrival, and which of them each row has.
    keys: Rows,
    order: ScalarBuffer<u32>,
    /// The prefixes are the keys.
    exact: bool,
    _reservation: Option<Reservation>,
}

/// What all keys of a run begin with. Runs are compared by it for each row, so its first bytes are a number.
#[derive(Debug, Default)]
struct Common {
    /// How many bytes there are, and up to 15 of them.
    head: u128,
    rest: Box<[u8]>,
}

impl Common {
    fn new(bytes: &[u8]) -> Self {
        let (first, rest) = bytes.split_at(bytes.len().min(15));
        Self { head: prefix(first) | bytes.len().min(0xff) as u128, rest: rest.into() }
    }
}

impl PartialEq for Common {
    fn eq(&self, other: &Self) -> bool {
        let no_rest = self.rest.is_empty() && other.rest.is_empty();
        // A comparison of no bytes would be a call for each row, and may be a slow one: the address of an empty box is
        // none that a vector could be loaded from.
        self.head == other.head && (no_rest || self.rest == other.rest)
    }
}

/// Rows in order, wherever they are.
#[derive(Debug)]
pub(super) enum SortedRun {
    Here(Box<Run>),
    /// As so many batches.
    Spilled(Arc<dyn Spilled>, usize),
    /// Of another task, while it comes.
    Stream(ClosesClient),
}

impl Run {
    /// A part of a run, as it was written.
    pub(super) fn read_back(rows: RecordBatch, shared: &Shared) -> Result<Self> {
        let columns = shared.key_columns(&rows)?;
        let keys = shared.converter.convert_columns(&columns).or_fail()?;
        let prefixes = keys.iter().map(|key| prefix(key.data())).collect();
        let order = (0..rows.num_rows() as u32).collect();
        let (chunks, order) = (vec![rows], order);
        let (starts, text_bytes) = measured(&chunks);
        let (common, exact) = (Common::default(), false);
        let _reservation = None;
        Ok(Self { chunks, starts, text_bytes, common, prefixes, keys, order, exact, _reservation })
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
    pub(super) fn slice(&self, row: usize, most: usize) -> RecordBatch {
        let (chunk, rows) = self.chunk(row);
        self.chunks[chunk].slice(row - rows.start, most.min(rows.end - row))
    }

    pub(super) fn key(&self, row: usize) -> &[u8] {
        // The row's bytes live as long as `keys`.
        let row = self.keys.row(self.order[row] as usize);
        row.data()
    }

    /// What `row` is compared by with rows of other runs of the same sort.
    pub(super) fn head(&self, row: usize) -> Head<'_> {
        Head { prefix: self.prefixes[row], run: self, row }
    }

    /// All of the key, or nothing if its prefix says it all.
    fn rest(&self, row: usize) -> &[u8] {
        if self.exact { &[] } else { self.key(row) }
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
pub(super) struct Head<'a> {
    prefix: u128,
    run: &'a Run,
    row: usize,
}

impl Ord for Head<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        if self.run.common != other.run.common {
            return self.run.key(self.row).cmp(other.run.key(other.row));
        }
        self.prefix.cmp(&other.prefix).then_with(|| match (self.run.exact, other.run.exact) {
            (true, true) => Ordering::Equal,
            _ => self.run.rest(self.row).cmp(other.run.rest(other.row)),
        })
    }
}

impl PartialOrd for Head<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Head<'_> {}

/// A row that so many rows lie before, or at, that no row behind it is wanted.
#[derive(Debug)]
pub(super) struct Boundary {
    key: Box<[u8]>,
    /// The first sort key's value, and whether it descends.
    first: ArrayRef,
    descending: bool,
}

impl Boundary {
    fn new(run: &Run, row: usize, first: &PhysicalSortExpr) -> datafusion_common::Result<Self> {
        let value = first.expr.evaluate(&run.slice(row, 1))?.into_array_of_size(1)?;
        let descending = first.options.descending;
        Ok(Self { key: run.key(row).into(), first: value, descending })
    }

    /// The rows whose first sort key is not behind the boundary's, told from the column alone; `None` if
    /// that does not go for NULLs or for the type.
    fn not_behind(&self, first: &ArrayRef) -> Result<Option<BooleanArray>, ArrowError> {
        if !first.data_type().is_primitive() || first.null_count() + self.first.null_count() > 0 {
            return Ok(None);
        }
        let boundary = Scalar::new(&self.first);
        if self.descending { gt_eq(first, &boundary) } else { lt_eq(first, &boundary) }.map(Some)
    }
}

/// The sink of a sort.
#[derive(Debug)]
pub struct SortRuns {
    shared: Arc<Shared>,
    slots: Slots<SortSink<SortedRun>>,
}

impl SortRuns {
    pub(super) fn new(shared: Arc<Shared>, slots: Slots<SortSink<SortedRun>>) -> Self {
        Self { shared, slots }
    }
}

impl Sink for SortRuns {
    fn name(&self) -> &str {
        if self.shared.config.fetch.is_some() { "top-n" } else { "sort" }
    }

    fn holds_memory(&self) -> bool {
        true
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalSink>> {
        let sink = self.slots.take(&setup)?;
        Ok(Box::new(LocalRuns {
            closed: sink.closed().clone(),
            sink: Some(sink),
            spilled: Vec::new(),
            writing: Writing::new(setup.clone()),
            collected: Collected::new(&self.shared),
            reservation: setup.reservation(),
            refused: None,
            shared: self.shared.clone(),
            setup,
        }))
    }
}

/// Batches that have not been sorted yet, and their keys.
struct Collected {
    batches: Vec<RecordBatch>,
    keys: Rows,
    bytes: usize,
}

impl Collected {
    fn new(shared: &Shared) -> Self {
        Self { batches: Vec::new(), keys: shared.converter.empty_rows(0, 0), bytes: 0 }
    }
}

struct LocalRuns {
    shared: Arc<Shared>,
    sink: Option<SortSink<SortedRun>>,
    /// Runs that were spilled, and one that is being written, as so many batches.
    spilled: Vec<SortedRun>,
    writing: Writing<usize>,
    closed: Gate,
    collected: Collected,
    reservation: Reservation,
    /// What was collected has not been reserved.
    refused: Option<Error>,
    setup: Setup,
}

/// A top-N task sorts what it has when it holds this many rows more than it may keep.
const TOP_N_SLACK_ROWS: usize = 1 << 13;

impl LocalRuns {
    fn add(&mut self, mut data: RecordBatch) -> Result<()> {
        let shared = &self.shared;
        let mut columns = shared.key_columns(&data)?;
        let boundary = shared.boundary.read().clone();
        let Some(boundary) = boundary else {
            let first = self.collected.keys.num_rows();
            shared.converter.append(&mut self.collected.keys, &columns).or_fail()?;
            debug_assert_eq!(first + data.num_rows(), self.collected.keys.num_rows());
            return self.keep(data);
        };
        if let Some(near) = boundary.not_behind(&columns[0]).or_fail()? {
            if near.true_count() == 0 {
                return Ok(());
            }
            data = filter_record_batch(&data, &near).or_fail()?;
            for column in &mut columns {
                *column = filter(column, &near).or_fail()?;
            }
        }
        let keys = shared.converter.convert_columns(&columns).or_fail()?;
        let before = BooleanBuffer::collect_bool(data.num_rows(), |row| {
            keys.row(row).data() < boundary.key.as_ref()
        });
        if before.count_set_bits() == 0 {
            return Ok(());
        }
        for row in before.set_indices() {
            self.collected.keys.push(keys.row(row));
        }
        self.keep(filter_record_batch(&data, &BooleanArray::new(before, None)).or_fail()?)
    }

    fn keep(&mut self, data: RecordBatch) -> Result<()> {
        self.collected.bytes += Batch::new(data.clone()).bytes();
        self.collected.batches.push(data);
        match self.reserve() {
            // What did not fit has been collected all the same.
            Err(error @ Error::OutOfMemory { .. }) => self.refused = Some(error),
            other => other?,
        }
        if self.setup.can_spill() {
            self.setup.could_give_back(self.reservation.bytes());
        }
        Ok(())
    }

    /// Reserves what was collected.
    fn reserve(&mut self) -> Result<()> {
        let bytes = self.collected.bytes + self.collected.keys.size();
        resize(&mut self.reservation, bytes, self.setup.overdraft())
    }

    /// If memory was refused: has another one give some back, and answers where to wait for that, or begins
    /// to spill.
    fn relieve(&mut self, task: &TaskContext) -> Result<Option<Gate>> {
        let Some(error) = self.refused.take() else { return Ok(None) };
        match self.reserve() {
            Err(Error::OutOfMemory { .. }) => {}
            other => return other.map(|()| None),
        }
        if let Some(gate) = self.setup.ask_for_memory(self.collected.bytes) {
            self.refused = Some(error);
            return Ok(Some(gate));
        }
        self.spill(error, task)?;
        Ok(None)
    }

    /// Begins to write what was collected, in order, to a file because of `error`.
    fn spill(&mut self, error: Error, task: &TaskContext) -> Result<()> {
        if self.writing.is_busy() || !self.setup.can_spill() {
            return Err(error);
        }
        let Some((collected, order)) = self.in_order(task)? else { return Err(error) };
        let Order { prefixes, rows: order, .. } = order;
        drop(prefixes);
        let (rows, config) = (order.len(), &self.shared.config);
        let held = vec![self.reservation.split_off()];
        let (schema, most) = (config.schema.clone(), config.batch_rows);
        let batches = InOrder::new(schema, collected.batches, order, most);
        let count = batches.left();
        self.refused = None;
        self.setup.could_give_back(0);
        self.writing.begin_each(rows, Box::new(batches), held, count)
    }

    /// The gate of a run that is still being written.
    fn writing(&mut self) -> Result<Option<Gate>> {
        match self.writing.poll()? {
            Written::Nothing => {}
            Written::Blocked(gate) => return Ok(Some(gate)),
            Written::File(file, batches) => self.spilled.push(SortedRun::Spilled(file, batches)),
        }
        Ok(None)
    }

    fn room(&mut self, task: &TaskContext) -> Result<SinkResult> {
        Ok(match self.waits(task)? {
            Some(gate) => SinkResult::Blocked(gate.into()),
            None => SinkResult::NeedInput,
        })
    }

    /// The gate to wait at before more rows are taken.
    fn waits(&mut self, task: &TaskContext) -> Result<Option<Gate>> {
        loop {
            if let Some(gate) = self.writing()? {
                return Ok(Some(gate));
            }
            if self.refused.is_none() {
                return Ok(None);
            }
            if let Some(gate) = self.relieve(task)? {
                return Ok(Some(gate));
            }
        }
    }

    /// What was collected, and its order; with a `fetch`, only of as many.
    fn in_order(&mut self, task: &TaskContext) -> Result<Option<(Collected, Order)>> {
        let collected = std::mem::replace(&mut self.collected, Collected::new(&self.shared));
        let rows = collected.keys.num_rows();
        if rows == 0 {
            return Ok(None);
        }
        if rows > u32::MAX as usize {
            return Err(Error::Setup("more than 2^32 rows in one sort run".into()));
        }
        let order = Order::of(&collected.keys, self.shared.config.fetch, task)?;
        Ok(Some((collected, order)))
    }

    /// Sorts what was collected; with a `fetch`, only as many rows come out.
    fn sort(&mut self, task: &TaskContext) -> Result<Option<Run>> {
        let Some((collected, order)) = self.in_order(task)? else { return Ok(None) };
        let Collected { batches, keys, .. } = collected;
        let Order { common, exact, prefixes, rows } = order;
        let common = Common::new(&keys.row(0).data()[..common]);
        let order = ScalarBuffer::from(rows);
        let config = &self.shared.config;
        let chunks = in_chunks(&config.schema, batches, &order, config.batch_rows, task)?;
        let (starts, text_bytes) = measured(&chunks);
        let bytes = chunks.iter().map(|chunk| Batch::new(chunk.clone()).bytes()).sum::<usize>();
        match self.reservation.resize(bytes + keys.size() + 20 * order.len()) {
            // It is about what was reserved for the rows before they were sorted.
            Err(Error::OutOfMemory { .. }) if self.setup.can_spill() => {}
            other => other?,
        }
        let _reservation = Some(self.reservation.split_off());
        Ok(Some(Run {
            chunks,
            starts,
            text_bytes,
            common,
            prefixes,
            keys,
            order,
            exact,
            _reservation,
        }))
    }

    /// Sorts a top-N's rows down to what it may keep, and tells the others the boundary.
    fn shrink(&mut self, fetch: usize, task: &TaskContext) -> Result<()> {
        let Some(run) = self.sort(task)? else { return Ok(()) };
        let rows = run.len();
        if rows == fetch && rows > 0 {
            let last = Boundary::new(&run, rows - 1, &self.shared.config.ordering[0]).or_fail()?;
            let mut boundary = self.shared.boundary.write();
            if boundary.as_ref().is_none_or(|known| last.key < known.key) {
                *boundary = Some(Arc::new(last));
            }
        }
        for row in 0..rows {
            self.collected.keys.push(run.keys.row(run.order[row] as usize));
        }
        run.chunks.into_iter().try_for_each(|chunk| self.keep(chunk))
    }
}

impl LocalSink for LocalRuns {
    fn start(&mut self, _task: &TaskContext) -> Result<Start> {
        Ok(if self.shared.config.fetch == Some(0) { Start::Finished } else { Start::Ready })
    }

    fn sink(&mut self, batch: Option<Batch>, task: &TaskContext) -> Result<SinkResult> {
        let Some(batch) = batch else { return self.room(task) };
        let rows = self.shared.carry(to_keep(compact(batch)?)?)?;
        self.add(rows)?;
        if let Some(fetch) = self.shared.config.fetch
            && self.collected.keys.num_rows() >= fetch.saturating_add(TOP_N_SLACK_ROWS.max(fetch))
        {
            self.shrink(fetch, task)?;
        }
        self.room(task)
    }

    fn give_back(&mut self, task: &TaskContext) -> Result<GiveBack> {
        if self.writing()?.is_some() {
            return Ok(GiveBack::Begun);
        }
        if self.reservation.bytes() == 0 || !self.setup.can_spill() {
            return Ok(GiveBack::Nothing);
        }
        self.spill(nothing_left(), task)?;
        Ok(GiveBack::Begun)
    }

    fn finish(&mut self, task: &TaskContext) -> Result<FinishResult> {
        if self.closed.is_ready() {
            self.refused = None;
        }
        if let Some(gate) = self.waits(task)? {
            return Ok(FinishResult::Blocked(gate.into()));
        }
        let wanted = !self.closed.is_ready() && self.collected.keys.num_rows() > 0;
        if wanted && !self.spilled.is_empty() {
            // Runs are merged batch by batch; a whole one in memory would be in the way.
            self.spill(nothing_left(), task)?;
            if let Some(gate) = self.writing()? {
                return Ok(FinishResult::Blocked(gate.into()));
            }
        }
        let Some(sink) = self.sink.take() else { return Ok(FinishResult::Done) };
        let mut runs = std::mem::take(&mut self.spilled);
        if !self.closed.is_ready() {
            runs.extend(self.sort(task)?.map(Box::new).map(SortedRun::Here));
        }
        self.setup.metrics().add("runs", runs.len() as u64);
        sink.publish(runs);
        Ok(FinishResult::Done)
    }

    fn closed(&self) -> Option<Gate> {
        Some(self.closed.clone())
    }
}
