//! The sink of a window: finds where window partitions end.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch},
    compute::partition,
};
use arrow_row::{OwnedRow, RowConverter, SortField};
use gatework_runtime::{
    Result,
    pipeline::{Batch, FinishResult, LocalSink, Setup, Sink, SinkResult, Slots, TaskContext},
};
use gatework_shared_state::{Gate, analytic::AnalyticSink};

use super::{Kind, Partitions, Plan, bytes};
use crate::{OrFail, compact, compact::to_keep, result::answer, spilling::Debt};

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
        let sink = self.slots.take(&setup)?;
        Ok(Box::new(LocalWindowSink {
            closed: sink.closed().clone(),
            sink: Some(sink),
            plan: self.plan.clone(),
            edges: Edges::default(),
            whole: Pieces::default(),
            open: Pieces::default(),
            is_long: false,
            memory: Debt::new(setup),
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
    /// Pieces of the open window partition have been handed over.
    is_long: bool,
    memory: Debt,
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

/// Where window partitions end among rows.
struct Found {
    /// The first row begins a new one after those before.
    begins_new: bool,
    /// Where the first ends, if it does.
    first_end: usize,
    /// Where the last one begins.
    last_start: usize,
}

impl LocalSink for LocalWindowSink {
    fn sink(&mut self, batch: Option<Batch>, _task: &TaskContext) -> Result<SinkResult> {
        let mut room = SinkResult::NeedInput;
        if let Some(batch) = batch.filter(|batch| batch.rows() > 0) {
            room = self.add(to_keep(compact(batch)?)?)?;
        }
        // Woken: there is room or memory, or nobody reads any more, which the next push would tell.
        if self.plan.long_bytes.is_some() {
            // What is handed over comes back soon.
            return Ok(if self.memory.forgive() {
                self.hand_over_piece(Kind::Piece)
            } else {
                room
            });
        }
        // Full first: it is asked for memory again when there is room.
        if !matches!(room, SinkResult::NeedInput) {
            return Ok(room);
        }
        Ok(match self.memory.settle()? {
            Some(gate) => SinkResult::Blocked(gate.into()),
            None => SinkResult::NeedInput,
        })
    }

    fn finish(&mut self, _task: &TaskContext) -> Result<FinishResult> {
        // The last items are in, whether there is room for more or not.
        self.end_open();
        if self.whole.rows > 0 {
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
    /// Takes rows, and hands over what is to be evaluated.
    fn add(&mut self, rows: RecordBatch) -> Result<SinkResult> {
        let keys = self.plan.keys(&rows)?;
        let found = self.edges.find(&keys)?;
        self.memory.add(bytes(&rows))?;
        if found.begins_new {
            self.end_open();
        }
        if found.last_start > 0 {
            self.open.push(rows.slice(0, found.first_end));
            self.end_open();
            let between = found.last_start - found.first_end;
            if between > 0 {
                self.whole.push(rows.slice(found.first_end, between));
            }
        }
        self.open.push(rows.slice(found.last_start, rows.num_rows() - found.last_start));
        if self.plan.long_bytes.is_some_and(|long| self.open.bytes >= long) {
            return Ok(self.hand_over_piece(Kind::Piece));
        }
        if self.whole.rows < self.plan.batch_size {
            return Ok(SinkResult::NeedInput);
        }
        Ok(self.hand_over())
    }

    /// The open window partition has ended.
    fn end_open(&mut self) {
        if std::mem::take(&mut self.is_long) {
            self.push(Kind::LastPiece);
        } else {
            self.whole.append(&mut self.open);
        }
    }

    fn hand_over(&mut self) -> SinkResult {
        self.push(Kind::Whole)
    }

    /// Hands over what there is of the open window partition, behind those before it.
    fn hand_over_piece(&mut self, kind: Kind) -> SinkResult {
        if self.whole.rows > 0 {
            self.hand_over();
        }
        self.is_long = true;
        self.push(kind)
    }

    fn push(&mut self, kind: Kind) -> SinkResult {
        let Some(sink) = &mut self.sink else { return SinkResult::Finished };
        let pieces = if kind == Kind::Whole { &mut self.whole } else { &mut self.open };
        let Pieces { batches, rows, bytes } = std::mem::take(pieces);
        // What slices were charged too much or too little is settled with the last of them.
        let left = self.whole.rows + self.open.rows;
        let share = if left == 0 { self.memory.reservation().bytes() } else { bytes };
        let memory = self.memory.reservation().split_some(share);
        answer(sink.push(Partitions { kind, batches, rows, bytes, _memory: memory }))
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
    /// Looks for edges in the next rows.
    fn find(&mut self, keys: &[ArrayRef]) -> Result<Found> {
        let none = Found { begins_new: false, first_end: 0, last_start: 0 };
        let Some(column) = keys.first() else { return Ok(none) };
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
        self.last = Some(last.clone());
        if first == last {
            // Equal rows are neighbours, so all between are equal as well.
            return Ok(Found { begins_new, ..none });
        }
        let ranges = partition(keys).or_fail()?.ranges();
        let first_end = ranges.first().map_or(0, |range| range.end);
        let last_start = ranges.last().map_or(0, |range| range.start);
        Ok(Found { begins_new, first_end, last_start })
    }
}
