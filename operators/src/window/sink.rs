//! The sink of a window: finds where window partitions end.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch},
    compute::partition,
};
use arrow_row::{OwnedRow, RowConverter, SortField};
use gatework_runtime::{
    Error, Result,
    pipeline::{
        Batch, FinishResult, GiveBack, LocalSink, Setup, Sink, SinkResult, Slots, TaskContext,
    },
};
use gatework_shared_state::{Gate, analytic::AnalyticSink};

use super::{Content, Large, Partitions, Plan, bytes};
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
            begun: Begun::No,
            memory: Debt::new(setup.clone()),
            setup,
        }))
    }
}

struct LocalWindowSink {
    sink: Option<AnalyticSink<Partitions>>,
    closed: Gate,
    plan: Arc<Plan>,
    edges: Edges,
    /// Window partitions that have ended, none of them large.
    whole: Pieces,
    /// The last rows of the window partition that has not.
    open: Pieces,
    /// What has become of those before them.
    begun: Begun,
    memory: Debt,
    setup: Setup,
}

/// Whether the open window partition is large.
enum Begun {
    /// It is not.
    No,
    /// Pieces of it have been handed over.
    Piecewise,
    /// It is collected.
    Large(Box<Large>),
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
        if self.plan.is_piecewise() {
            // What is handed over comes back soon.
            return Ok(if self.memory.forgive() { self.hand_over_piece(false) } else { room });
        }
        // Full first: it is asked for memory again when there is room.
        if !matches!(room, SinkResult::NeedInput) {
            return Ok(room);
        }
        Ok(match self.settle()? {
            Some(gate) => SinkResult::Blocked(gate.into()),
            None => SinkResult::NeedInput,
        })
    }

    fn give_back(&mut self, _task: &TaskContext) -> Result<GiveBack> {
        let Begun::Large(large) = &mut self.begun else { return Ok(GiveBack::Nothing) };
        // It goes on when the file is written, so that no rows are on their way when the partition ends.
        if let Some(gate) = large.written()? {
            return Ok(GiveBack::Blocked(gate.into()));
        }
        if large.could_give_back() == 0 {
            return Ok(GiveBack::Nothing);
        }
        large.put_away(self.memory.reservation())?;
        self.setup.could_give_back(0);
        Ok(match large.written()? {
            Some(gate) => GiveBack::Blocked(gate.into()),
            None => GiveBack::Begun,
        })
    }

    fn finish(&mut self, _task: &TaskContext) -> Result<FinishResult> {
        if let Begun::Large(large) = &mut self.begun
            && let Some(gate) = large.written()?
        {
            return Ok(FinishResult::Blocked(gate.into()));
        }
        // The last items are in, whether there is room for more or not.
        self.end_open()?;
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
    /// Takes rows, and hands over what is to be evaluated. Answers whether there is room for more.
    fn add(&mut self, rows: RecordBatch) -> Result<SinkResult> {
        let keys = self.plan.keys(&rows)?;
        let found = self.edges.find(&keys)?;
        let mut room = None;
        if found.begins_new {
            room = self.end_open()?;
        }
        if found.last_start > 0 {
            self.open.push(rows.slice(0, found.first_end));
            room = self.end_open()?.or(room);
            let between = found.last_start - found.first_end;
            if between > 0 {
                self.whole.push(rows.slice(found.first_end, between));
            }
        }
        self.open.push(rows.slice(found.last_start, rows.num_rows() - found.last_start));
        let large = self.open.bytes >= self.plan.large_bytes;
        if large && self.plan.is_piecewise() {
            room = Some(self.hand_over_piece(false));
        } else if large && self.open.rows >= self.plan.batch_size {
            self.collect()?;
        }
        if self.whole.rows >= self.plan.batch_size {
            room = Some(self.hand_over());
        }
        self.charge()?;
        Ok(room.unwrap_or(SinkResult::NeedInput))
    }

    /// The open window partition has ended. Answers whether there is room for more, if anything was handed over.
    fn end_open(&mut self) -> Result<Option<SinkResult>> {
        match &self.begun {
            Begun::No => {
                self.whole.append(&mut self.open);
                return Ok(None);
            }
            Begun::Piecewise => return Ok(Some(self.hand_over_piece(true))),
            Begun::Large(_) => self.collect()?,
        }
        if self.whole.rows > 0 {
            self.hand_over();
        }
        let Begun::Large(large) = std::mem::replace(&mut self.begun, Begun::No) else {
            return Ok(None);
        };
        self.setup.could_give_back(0);
        self.memory.set(large.bytes() + self.whole.bytes + self.open.bytes)?;
        let (rows, bytes) = (large.rows(), large.bytes());
        Ok(Some(self.push(Content::Large(large), rows, bytes)))
    }

    /// Adds what there is of the open window partition to what is collected of it.
    fn collect(&mut self) -> Result<()> {
        let Pieces { batches, .. } = std::mem::take(&mut self.open);
        let Some(first) = batches.first() else { return Ok(()) };
        if !matches!(self.begun, Begun::Large(_)) {
            let large = Large::new(&self.plan, &first.schema(), self.setup.clone())?;
            self.begun = Begun::Large(Box::new(large));
        }
        if let Begun::Large(large) = &mut self.begun {
            large.add(&batches)?;
            self.setup.could_give_back(large.could_give_back());
        }
        Ok(())
    }

    /// Reserves what there is, or notes what is owed.
    fn charge(&mut self) -> Result<()> {
        let collected = match &self.begun {
            Begun::Large(large) => large.bytes(),
            Begun::No | Begun::Piecewise => 0,
        };
        self.memory.set(collected + self.whole.bytes + self.open.bytes)
    }

    /// Waits for the memory that is owed, and for rows that are put away because there is none.
    fn settle(&mut self) -> Result<Option<Gate>> {
        loop {
            if let Begun::Large(large) = &mut self.begun
                && let Some(gate) = large.written()?
            {
                return Ok(Some(gate));
            }
            match self.memory.settle() {
                Err(Error::OutOfMemory { .. }) if self.setup.can_spill() => {}
                other => return other,
            }
            if self.open.bytes >= self.setup.overdraft() {
                self.collect()?;
            }
            let Begun::Large(large) = &mut self.begun else {
                // Less than makes a window partition large, and soon handed over.
                self.memory.forgive();
                return Ok(None);
            };
            if large.could_give_back() == 0 {
                // What is not collected is as above; what is will be needed at the end.
                let kept = large.bytes();
                self.memory.set(kept)?;
                if kept < self.setup.overdraft() {
                    self.memory.forgive();
                }
                return self.memory.settle();
            }
            large.put_away(self.memory.reservation())?;
            self.setup.could_give_back(0);
            self.charge()?;
        }
    }

    fn hand_over(&mut self) -> SinkResult {
        let Pieces { batches, rows, bytes } = std::mem::take(&mut self.whole);
        self.push(Content::Whole(batches), rows, bytes)
    }

    /// Hands over what there is of the open window partition, behind those before it.
    fn hand_over_piece(&mut self, last: bool) -> SinkResult {
        if self.whole.rows > 0 {
            self.hand_over();
        }
        self.begun = if last { Begun::No } else { Begun::Piecewise };
        let Pieces { batches, rows, bytes } = std::mem::take(&mut self.open);
        self.push(Content::Piece(batches, last), rows, bytes)
    }

    fn push(&mut self, content: Content, rows: usize, bytes: usize) -> SinkResult {
        let Some(sink) = &mut self.sink else { return SinkResult::Finished };
        let memory = self.memory.reservation().split_some(bytes);
        answer(sink.push(Partitions { content, rows, bytes, memory }))
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
