//! The sink of a sort: collects batches and sorts them into a run.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanArray, RecordBatch, UInt32Array},
    buffer::BooleanBuffer,
    compute::{filter_record_batch, take_record_batch},
};
use arrow_row::Rows;
use gatework_runtime::{
    Error, Result,
    pipeline::{
        Batch, FinishResult, LocalSink, Reservation, Setup, Sink, SinkResult, Slots, Start,
        TaskContext,
    },
};
use gatework_shared_state::{Gate, sort::SortSink};

use super::Shared;
use crate::{OrFail, compact, concat::concat_as};

/// Rows in order, with their keys.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) rows: RecordBatch,
    /// Keys in the order of arrival, and which of them each row of `rows` has.
    keys: Rows,
    order: Vec<u32>,
    _reservation: Reservation,
}

impl Run {
    pub(super) fn key(&self, row: usize) -> &[u8] {
        // The row's bytes live as long as `keys`.
        let row = self.keys.row(self.order[row] as usize);
        row.data()
    }
}

/// The sink of a sort.
#[derive(Debug)]
pub struct SortRuns {
    shared: Arc<Shared>,
    slots: Slots<SortSink<Run>>,
}

impl SortRuns {
    pub(super) fn new(shared: Arc<Shared>, slots: Slots<SortSink<Run>>) -> Self {
        Self { shared, slots }
    }
}

impl Sink for SortRuns {
    fn name(&self) -> &str {
        if self.shared.config.fetch.is_some() { "top-n" } else { "sort" }
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalSink>> {
        let sink = self.slots.take(setup.instance())?;
        Ok(Box::new(LocalRuns {
            closed: sink.closed().clone(),
            sink: Some(sink),
            collected: Collected::new(&self.shared),
            reservation: setup.reservation(),
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
    sink: Option<SortSink<Run>>,
    closed: Gate,
    collected: Collected,
    reservation: Reservation,
    setup: Setup,
}

/// A top-N task sorts what it has when it holds this many rows more than it may keep.
const TOP_N_SLACK_ROWS: usize = 1 << 15;

impl LocalRuns {
    fn add(&mut self, data: RecordBatch) -> Result<()> {
        let shared = &self.shared;
        let columns = shared
            .config
            .ordering
            .iter()
            .map(|key| key.expr.evaluate(&data)?.into_array_of_size(data.num_rows()))
            .collect::<Result<Vec<ArrayRef>, _>>()
            .or_fail()?;
        let boundary = shared.boundary.read().clone();
        let Some(boundary) = boundary else {
            let first = self.collected.keys.num_rows();
            shared.converter.append(&mut self.collected.keys, &columns).or_fail()?;
            debug_assert_eq!(first + data.num_rows(), self.collected.keys.num_rows());
            return self.keep(data);
        };
        let keys = shared.converter.convert_columns(&columns).or_fail()?;
        let before = BooleanBuffer::collect_bool(data.num_rows(), |row| {
            keys.row(row).data() < boundary.as_ref()
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
        self.reservation.resize(self.collected.bytes + self.collected.keys.size())
    }

    /// Sorts what was collected; with a `fetch`, only as many rows come out.
    fn sort(&mut self) -> Result<Option<Run>> {
        let collected = std::mem::replace(&mut self.collected, Collected::new(&self.shared));
        let rows = collected.keys.num_rows();
        if rows == 0 {
            return Ok(None);
        }
        if rows > u32::MAX as usize {
            return Err(Error::Setup("more than 2^32 rows in one sort run".into()));
        }
        let keys = collected.keys;
        let mut order: Vec<u32> = (0..rows as u32).collect();
        let by_key = |a: &u32, b: &u32| keys.row(*a as usize).cmp(&keys.row(*b as usize));
        match self.shared.config.fetch {
            Some(fetch) if fetch < rows && fetch > 0 => {
                order.select_nth_unstable_by(fetch - 1, by_key);
                order.truncate(fetch);
            }
            Some(0) => order.clear(),
            _ => {}
        }
        order.sort_unstable_by(by_key);
        let all = concat_as(&self.shared.config.schema, &collected.batches)?;
        drop(collected.batches);
        let sorted = take_record_batch(&all, &UInt32Array::from(order.clone())).or_fail()?;
        let bytes = Batch::new(sorted.clone()).bytes() + keys.size() + 4 * order.len();
        self.reservation.resize(bytes)?;
        let _reservation = self.reservation.split_off();
        Ok(Some(Run { rows: sorted, keys, order, _reservation }))
    }

    /// Sorts a top-N's rows down to what it may keep, and tells the others the boundary.
    fn shrink(&mut self, fetch: usize) -> Result<()> {
        let Some(run) = self.sort()? else { return Ok(()) };
        let rows = run.rows.num_rows();
        if rows == fetch && rows > 0 {
            let last: Box<[u8]> = run.key(rows - 1).into();
            let mut boundary = self.shared.boundary.write();
            if boundary.as_ref().is_none_or(|known| last < *known) {
                *boundary = Some(last);
            }
        }
        for row in 0..rows {
            self.collected.keys.push(run.keys.row(run.order[row] as usize));
        }
        self.keep(run.rows)
    }
}

impl LocalSink for LocalRuns {
    fn start(&mut self, _task: &TaskContext) -> Result<Start> {
        Ok(if self.shared.config.fetch == Some(0) { Start::Finished } else { Start::Ready })
    }

    fn sink(&mut self, batch: Option<Batch>, _task: &TaskContext) -> Result<SinkResult> {
        let Some(batch) = batch else { return Ok(SinkResult::NeedInput) };
        self.add(compact(batch)?)?;
        if let Some(fetch) = self.shared.config.fetch
            && self.collected.keys.num_rows() >= fetch.saturating_add(TOP_N_SLACK_ROWS.max(fetch))
        {
            self.shrink(fetch)?;
        }
        Ok(SinkResult::NeedInput)
    }

    fn finish(&mut self, _task: &TaskContext) -> Result<FinishResult> {
        let Some(sink) = self.sink.take() else { return Ok(FinishResult::Done) };
        let run = if self.closed.is_ready() { None } else { self.sort()? };
        self.setup.metrics().add("runs", run.is_some().into());
        sink.publish(run.into_iter().collect());
        Ok(FinishResult::Done)
    }

    fn closed(&self) -> Option<Gate> {
        Some(self.closed.clone())
    }
}
