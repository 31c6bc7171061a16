//! The sink of a sort: collects batches and sorts them into a run.

use std::{cmp::Ordering, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, Scalar, UInt32Array},
    buffer::BooleanBuffer,
    compute::{
        filter, filter_record_batch, interleave,
        kernels::cmp::{gt_eq, lt_eq},
        take_record_batch,
    },
    datatypes::SchemaRef,
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

use super::Shared;
use crate::{
    OrFail, compact,
    compact::to_keep,
    concat::concat_as,
    exchange_source::ClosesClient,
    spilling::{Writing, Written, nothing_left, own_buffers, resize},
};

/// Rows in order, with their keys.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) rows: RecordBatch,
    /// What all keys begin with, and what follows of the key of each row of `rows`.
    common: Box<[u8]>,
    prefixes: Vec<u128>,
    /// Keys in the order of arrival, and which of them each row of `rows` has.
    keys: Rows,
    order: Vec<u32>,
    /// The prefixes are the keys.
    exact: bool,
    _reservation: Option<Reservation>,
}

/// Rows in order, wherever they are.
#[derive(Debug)]
pub(super) enum SortedRun {
    Here(Run),
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
        let common = Box::default();
        Ok(Self { rows, common, prefixes, keys, order, exact: false, _reservation: None })
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
        let rest = |head: &Self| head.run.rest(head.row);
        self.prefix.cmp(&other.prefix).then_with(|| rest(self).cmp(rest(other)))
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

/// How many bytes all keys begin with. (Of a decimal most bytes are the same, and the others would not be among the
/// first 16.)
fn common_bytes(keys: &Rows) -> usize {
    let mut common = keys.row(0).data();
    for key in keys {
        let same = common.iter().zip(key.data()).take_while(|(one, other)| one == other).count();
        common = &common[..same];
        if common.is_empty() {
            break;
        }
    }
    common.len()
}

/// The first 16 bytes of a key, as a number that compares like them.
fn prefix(key: &[u8]) -> u128 {
    match key.first_chunk::<16>() {
        Some(bytes) => u128::from_be_bytes(*bytes),
        None => {
            let mut bytes = [0; 16];
            bytes[..key.len()].copy_from_slice(key);
            u128::from_be_bytes(bytes)
        }
    }
}

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
        let value = first.expr.evaluate(&run.rows.slice(row, 1))?.into_array_of_size(1)?;
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
    /// Once sorted: how many bytes all keys begin with, and whether the prefixes behind them say the rest.
    common: usize,
    exact: bool,
    bytes: usize,
}

/// Prefixes of keys and numbers of rows, in order.
type Order = Vec<(u128, u32)>;

/// Rows in order, made batch by batch.
struct InOrder {
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
    /// The number of each batch's first row.
    starts: Vec<u32>,
    order: Vec<u32>,
    given: usize,
    step: usize,
}

impl InOrder {
    fn new(shared: &Shared, batches: Vec<RecordBatch>, order: Vec<u32>) -> Self {
        let mut starts = Vec::with_capacity(batches.len());
        let mut rows = 0;
        for batch in &batches {
            starts.push(rows);
            rows += batch.num_rows() as u32;
        }
        let (schema, step) = (shared.config.schema.clone(), shared.config.batch_rows);
        Self { schema, batches, starts, order, given: 0, step }
    }

    fn batch(&self, rows: &[u32]) -> Result<RecordBatch> {
        let place = |row: &u32| {
            let batch = self.starts.partition_point(|start| start <= row) - 1;
            (batch, (row - self.starts[batch]) as usize)
        };
        let places: Vec<_> = rows.iter().map(place).collect();
        // Column by column: batches may differ in which columns they say have no NULLs.
        let column = |place: usize| {
            let columns: Vec<&dyn Array> =
                self.batches.iter().map(|batch| batch.column(place).as_ref()).collect();
            interleave(&columns, &places)
        };
        let columns = (0..self.schema.fields().len()).map(column);
        let columns = columns.collect::<Result<Vec<_>, _>>().or_fail()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        let rows = RecordBatch::try_new_with_options(self.schema.clone(), columns, &options);
        own_buffers(&rows.or_fail()?)
    }
}

impl Iterator for InOrder {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let rows = self.order.get(self.given..)?;
        let rows = &rows[..self.step.min(rows.len())];
        self.given += rows.len();
        (!rows.is_empty()).then(|| self.batch(rows))
    }
}

impl Collected {
    fn new(shared: &Shared) -> Self {
        Self {
            batches: Vec::new(),
            keys: shared.converter.empty_rows(0, 0),
            common: 0,
            exact: false,
            bytes: 0,
        }
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
    fn relieve(&mut self) -> Result<Option<Gate>> {
        let Some(error) = self.refused.take() else { return Ok(None) };
        match self.reserve() {
            Err(Error::OutOfMemory { .. }) => {}
            other => return other.map(|()| None),
        }
        if let Some(gate) = self.setup.ask_for_memory(self.collected.bytes) {
            self.refused = Some(error);
            return Ok(Some(gate));
        }
        self.spill(error)?;
        Ok(None)
    }

    /// Begins to write what was collected, in order, to a file because of `error`.
    fn spill(&mut self, error: Error) -> Result<()> {
        if self.writing.is_busy() || !self.setup.can_spill() {
            return Err(error);
        }
        let Some((collected, order)) = self.in_order()? else { return Err(error) };
        let order: Vec<u32> = order.into_iter().map(|(_, row)| row).collect();
        let (rows, step) = (order.len(), self.shared.config.batch_rows);
        let held = vec![self.reservation.split_off()];
        let batches = Box::new(InOrder::new(&self.shared, collected.batches, order));
        self.refused = None;
        self.setup.could_give_back(0);
        self.writing.begin_each(rows, batches, held, rows.div_ceil(step))
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

    fn room(&mut self) -> Result<SinkResult> {
        Ok(match self.waits()? {
            Some(gate) => SinkResult::Blocked(gate.into()),
            None => SinkResult::NeedInput,
        })
    }

    /// The gate to wait at before more rows are taken.
    fn waits(&mut self) -> Result<Option<Gate>> {
        loop {
            if let Some(gate) = self.writing()? {
                return Ok(Some(gate));
            }
            if self.refused.is_none() {
                return Ok(None);
            }
            if let Some(gate) = self.relieve()? {
                return Ok(Some(gate));
            }
        }
    }

    /// What was collected, and its order as prefixes and numbers of rows; with a `fetch`, only as many.
    fn in_order(&mut self) -> Result<Option<(Collected, Order)>> {
        let mut collected = std::mem::replace(&mut self.collected, Collected::new(&self.shared));
        let keys = &collected.keys;
        let rows = keys.num_rows();
        if rows == 0 {
            return Ok(None);
        }
        if rows > u32::MAX as usize {
            return Err(Error::Setup("more than 2^32 rows in one sort run".into()));
        }
        let (first, common) = (keys.row(0).data().len(), common_bytes(keys));
        let mut exact = first - common <= 16;
        let mut order: Vec<(u128, u32)> = Vec::with_capacity(rows);
        for (row, key) in (0..).zip(keys.iter()) {
            exact &= key.data().len() == first;
            order.push((prefix(&key.data()[common..]), row));
        }
        let fetch = self.shared.config.fetch;
        if exact {
            sort_some(&mut order, fetch, |a, b| a.0.cmp(&b.0));
        } else {
            let whole = |row: u32| keys.row(row as usize);
            sort_some(&mut order, fetch, |a, b| {
                a.0.cmp(&b.0).then_with(|| whole(a.1).cmp(&whole(b.1)))
            });
        }
        (collected.common, collected.exact) = (common, exact);
        Ok(Some((collected, order)))
    }

    /// Sorts what was collected; with a `fetch`, only as many rows come out.
    fn sort(&mut self) -> Result<Option<Run>> {
        let Some((collected, order)) = self.in_order()? else { return Ok(None) };
        let Collected { batches, keys, common, exact, .. } = collected;
        let common = keys.row(0).data()[..common].into();
        let (prefixes, order): (Vec<_>, Vec<_>) = order.into_iter().unzip();
        let all = concat_as(&self.shared.config.schema, &batches)?;
        drop(batches);
        let sorted = take_record_batch(&all, &UInt32Array::from(order.clone())).or_fail()?;
        let bytes = Batch::new(sorted.clone()).bytes() + keys.size() + 20 * order.len();
        match self.reservation.resize(bytes) {
            // It is about what was reserved for the rows before they were sorted.
            Err(Error::OutOfMemory { .. }) if self.setup.can_spill() => {}
            other => other?,
        }
        let _reservation = Some(self.reservation.split_off());
        Ok(Some(Run { rows: sorted, common, prefixes, keys, order, exact, _reservation }))
    }

    /// Sorts a top-N's rows down to what it may keep, and tells the others the boundary.
    fn shrink(&mut self, fetch: usize) -> Result<()> {
        let Some(run) = self.sort()? else { return Ok(()) };
        let rows = run.rows.num_rows();
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
        self.keep(run.rows)
    }
}

/// Sorts `order`; with a `fetch`, only as many elements are left.
fn sort_some(
    order: &mut Vec<(u128, u32)>,
    fetch: Option<usize>,
    by_key: impl Fn(&(u128, u32), &(u128, u32)) -> Ordering,
) {
    match fetch {
        Some(fetch) if fetch < order.len() && fetch > 0 => {
            order.select_nth_unstable_by(fetch - 1, &by_key);
            order.truncate(fetch);
        }
        Some(0) => order.clear(),
        _ => {}
    }
    order.sort_unstable_by(by_key);
}

impl LocalSink for LocalRuns {
    fn start(&mut self, _task: &TaskContext) -> Result<Start> {
        Ok(if self.shared.config.fetch == Some(0) { Start::Finished } else { Start::Ready })
    }

    fn sink(&mut self, batch: Option<Batch>, _task: &TaskContext) -> Result<SinkResult> {
        let Some(batch) = batch else { return self.room() };
        self.add(to_keep(compact(batch)?)?)?;
        if let Some(fetch) = self.shared.config.fetch
            && self.collected.keys.num_rows() >= fetch.saturating_add(TOP_N_SLACK_ROWS.max(fetch))
        {
            self.shrink(fetch)?;
        }
        self.room()
    }

    fn give_back(&mut self, _task: &TaskContext) -> Result<GiveBack> {
        if self.writing()?.is_some() {
            return Ok(GiveBack::Begun);
        }
        if self.reservation.bytes() == 0 || !self.setup.can_spill() {
            return Ok(GiveBack::Nothing);
        }
        self.spill(nothing_left())?;
        Ok(GiveBack::Begun)
    }

    fn finish(&mut self, _task: &TaskContext) -> Result<FinishResult> {
        if self.closed.is_ready() {
            self.refused = None;
        }
        if let Some(gate) = self.waits()? {
            return Ok(FinishResult::Blocked(gate.into()));
        }
        let wanted = !self.closed.is_ready() && self.collected.keys.num_rows() > 0;
        if wanted && !self.spilled.is_empty() {
            // Runs are merged batch by batch; a whole one in memory would be in the way.
            self.spill(nothing_left())?;
            if let Some(gate) = self.writing()? {
                return Ok(FinishResult::Blocked(gate.into()));
            }
        }
        let Some(sink) = self.sink.take() else { return Ok(FinishResult::Done) };
        let mut runs = std::mem::take(&mut self.spilled);
        if !self.closed.is_ready() {
            runs.extend(self.sort()?.map(SortedRun::Here));
        }
        self.setup.metrics().add("runs", runs.len() as u64);
        sink.publish(runs);
        Ok(FinishResult::Done)
    }

    fn closed(&self) -> Option<Gate> {
        Some(self.closed.clone())
    }
}
