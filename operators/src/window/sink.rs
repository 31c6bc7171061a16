//! The sink of a window: finds where window partitions end.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch},
    compute::partition,
};
use arrow_row::{OwnedRow, RowConverter, SortField};
use gatework_runtime::{
    Result,
    pipeline::{
        Batch, FinishResult, LocalSink, Reservation, Setup, Sink, SinkResult, Slots, TaskContext,
    },
};
use gatework_shared_state::{Gate, analytic::AnalyticSink};

use super::{Partitions, Plan, bytes};
use crate::{OrFail, compact, compact::to_keep, result::answer};

/// Cuts sorted input into window partitions.
#[derive(Debug)]
pub struct WindowSink {
    slots: Slots<AnalyticSink<Partitions>>,
    plan: Arc<Plan>,
}

impl WindowSink {
    pub(super) fn new(sinks: Vec<AnalyticSink<Partitions>>, plan: Arc<Plan>) -> Self {
        Self { slots: Slots::new(sinks), plan }
    }
}

impl Sink for WindowSink {
    fn name(&self) -> &str {
        "window sink"
    }

    fn holds_memory(&self) -> bool {
        true
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalSink>> {
        let sink = self.slots.take(setup.instance())?;
        Ok(Box::new(LocalWindowSink {
            closed: sink.closed().clone(),
            sink: Some(sink),
            plan: self.plan.clone(),
            edges: Edges::default(),
            whole: Pieces::default(),
            open: Pieces::default(),
            memory: setup.reservation(),
        }))
    }
}

struct LocalWindowSink {
    sink: Option<AnalyticSink<Partitions>>,
    closed: Gate,
    plan: Arc<Plan>,
    edges: Edges,
    /// Window partitions that have ended.
    whole: Pieces,
    /// The window partition that has not.
    open: Pieces,
    memory: Reservation,
}

/// Batches in order, none of which is copied before the partitions in them are whole.
#[derive(Default)]
struct Pieces {
    batches: Vec<RecordBatch>,
    rows: usize,
    bytes: usize,
}

/// Compares partition keys across batches.
#[derive(Default)]
struct Edges {
    /// Made for the types of the first batch.
    converter: Option<RowConverter>,
    /// The keys of the last row so far.
    last: Option<OwnedRow>,
}

impl LocalSink for LocalWindowSink {
    fn sink(&mut self, batch: Option<Batch>, _task: &TaskContext) -> Result<SinkResult> {
        // Woken: there is room, or nobody reads any more, which the next push would tell.
        let Some(batch) = batch.filter(|batch| batch.rows() > 0) else {
            return Ok(SinkResult::NeedInput);
        };
        let rows = to_keep(compact(batch)?)?;
        let keys = self.plan.keys(&rows)?;
        let (begins_new, last_start) = self.edges.find(&keys)?;
        self.memory.grow(bytes(&rows))?;
        if begins_new {
            self.whole.append(&mut self.open);
        }
        if last_start > 0 {
            self.whole.append(&mut self.open);
            self.whole.push(rows.slice(0, last_start));
        }
        self.open.push(rows.slice(last_start, rows.num_rows() - last_start));
        if self.whole.rows < self.plan.batch_size {
            return Ok(SinkResult::NeedInput);
        }
        Ok(self.hand_over())
    }

    fn finish(&mut self, _task: &TaskContext) -> Result<FinishResult> {
        self.whole.append(&mut self.open);
        if self.whole.rows > 0 {
            // The last item is in, whether there is room for more or not.
            self.hand_over();
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
    fn hand_over(&mut self) -> SinkResult {
        let Some(sink) = &mut self.sink else { return SinkResult::Finished };
        let Pieces { batches, rows, bytes } = std::mem::take(&mut self.whole);
        // What slices were charged too much or too little is settled with the last of them.
        let share = if self.open.rows == 0 { self.memory.bytes() } else { bytes };
        let memory = self.memory.split_some(share);
        answer(sink.push(Partitions { batches, rows, bytes, _memory: memory }))
    }
}

impl Pieces {
    fn push(&mut self, rows: RecordBatch) {
        self.rows += rows.num_rows();
        self.bytes += bytes(&rows);
        self.batches.push(rows);
    }

    /// Moves all of `other` here.
    fn append(&mut self, other: &mut Self) {
        self.batches.append(&mut other.batches);
        self.rows += std::mem::take(&mut other.rows);
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Edges {
    /// Whether the first of these rows begins a new partition after those before, and at which row
    /// the partition of the last one begins.
    fn find(&mut self, keys: &[ArrayRef]) -> Result<(bool, usize)> {
        let Some(column) = keys.first() else { return Ok((false, 0)) };
        let converter = match &mut self.converter {
            Some(converter) => converter,
            none => {
                let fields = keys.iter().map(|key| SortField::new(key.data_type().clone()));
                none.insert(RowConverter::new(fields.collect()).or_fail()?)
            }
        };
        let edge = |row| {
            let columns: Vec<_> = keys.iter().map(|key| key.slice(row, 1)).collect();
            Ok(converter.convert_columns(&columns).or_fail()?.row(0).owned())
        };
        let (first, last) = (edge(0)?, edge(column.len() - 1)?);
        let begins_new = self.last.as_ref().is_some_and(|before| *before != first);
        let last_start = if first == last {
            // Equal rows are neighbours, so all between are equal as well.
            0
        } else {
            let ranges = partition(keys).or_fail()?.ranges();
            ranges.last().map_or(0, |range| range.start)
        };
        self.last = Some(last);
        Ok((begins_new, last_start))
    }
}
