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
use gatework_shared_state::{Dependency, DependencyKind, Gate, analytic::AnalyticSink};

use super::{Content, Large, OpensGate, Partitions, Plan, STATE_BYTES, bytes};
use crate::{
    OrFail, compact,
    compact::to_keep,
    result::answer,
    spilling::{Debt, Writing, Written},
};

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
            writing: Writing::new(setup.clone()),
            given: None,
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
    /// Rows of it that are on their way to a file, and how many there are in each batch.
    writing: Writing<Vec<usize>>,
    /// Opens when the large window partition before has been given, and with it its memory.
    given: Option<Gate>,
    memory: Debt,
    setup: Setup,
}

/// What a row counts at least for whether its window partition is large: a number.
const LEAST_ROW_BYTES: usize = 8;

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
    fn sink(&mut self, batch: Option<Batch>, task: &TaskContext) -> Result<SinkResult> {
        let mut room = SinkResult::NeedInput;
        if let Some(batch) = batch.filter(|batch| batch.rows() > 0) {
            room = self.add(to_keep(compact(batch)?)?, task)?;
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
        let gate = self.settle(task)?;
        if let Begun::Large(large) = &self.begun
            && self.setup.can_spill()
            && !self.writing.is_busy()
        {
            self.setup.could_give_back(large.could_give_back());
        }
        Ok(match gate {
            Some(gate) => SinkResult::Blocked(gate.into()),
            None => SinkResult::NeedInput,
        })
    }

    fn give_back(&mut self, _task: &TaskContext) -> Result<GiveBack> {
        // It goes on when the file is written, so that no rows are on their way when the partition ends.
        if let Some(gate) = self.written()? {
            return Ok(GiveBack::Blocked(gate.into()));
        }
        if !self.put_away()? {
            return Ok(GiveBack::Nothing);
        }
        Ok(match self.written()? {
            Some(gate) => GiveBack::Blocked(gate.into()),
            None => GiveBack::Begun,
        })
    }

    fn finish(&mut self, task: &TaskContext) -> Result<FinishResult> {
        if self.closed.is_ready() {
            // Nobody reads any more.
            self.begun = Begun::No;
            (self.whole, self.open) = Default::default();
        } else if let Some(gate) = self.written()? {
            return Ok(FinishResult::Blocked(gate.into()));
        }
        // The last items are in, whether there is room for more or not.
        self.end_open(task)?;
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
    fn add(&mut self, rows: RecordBatch, task: &TaskContext) -> Result<SinkResult> {
        let keys = self.plan.keys(&rows)?;
        let found = self.edges.find(&keys)?;
        let mut room = None;
        if found.begins_new {
            room = self.end_open(task)?;
        }
        if found.last_start > 0 {
            self.open.push(rows.slice(0, found.first_end));
            room = self.end_open(task)?.or(room);
            let between = found.last_start - found.first_end;
            if between > 0 {
                self.whole.push(rows.slice(found.first_end, between));
            }
        }
        self.open.push(rows.slice(found.last_start, rows.num_rows() - found.last_start));
        // Rows without columns get results all the same.
        let weight = self.open.bytes.max(LEAST_ROW_BYTES * self.open.rows);
        let large = weight >= self.plan.large_bytes;
        if large && self.plan.is_piecewise() {
            room = Some(self.hand_over_piece(false));
        } else if large && self.open.rows >= self.plan.batch_size {
            self.collect(task)?;
        }
        let full = self.whole.rows >= self.plan.batch_size;
        if full || self.whole.bytes >= self.plan.large_bytes {
            room = Some(self.hand_over());
        }
        self.charge()?;
        Ok(room.unwrap_or(SinkResult::NeedInput))
    }

    /// The open window partition has ended. Answers whether there is room for more, if anything was handed over.
    fn end_open(&mut self, task: &TaskContext) -> Result<Option<SinkResult>> {
        match &self.begun {
            Begun::No => {
                self.whole.append(&mut self.open);
                return Ok(None);
            }
            Begun::Piecewise => return Ok(Some(self.hand_over_piece(true))),
            Begun::Large(_) => self.collect(task)?,
        }
        if self.whole.rows > 0 {
            self.hand_over();
        }
        let Begun::Large(large) = std::mem::replace(&mut self.begun, Begun::No) else {
            return Ok(None);
        };
        self.setup.could_give_back(0);
        let reserved = large.bytes();
        self.memory.set(reserved + self.whole.bytes + self.open.bytes)?;
        let memory = self.memory.reservation().split_some(reserved);
        let (rows, bytes) = (large.rows(), large.row_bytes());
        let gate = Dependency::blocked("window partition given", DependencyKind::Sink);
        self.given = Some(gate.clone());
        let content = Content::Large(large, OpensGate(gate));
        Ok(Some(self.push(Partitions { content, rows, bytes, memory })))
    }

    /// Adds what there is of the open window partition to what is collected of it.
    fn collect(&mut self, task: &TaskContext) -> Result<()> {
        let Pieces { batches, .. } = std::mem::take(&mut self.open);
        let Some(first) = batches.first() else { return Ok(()) };
        if !matches!(self.begun, Begun::Large(_)) {
            self.begun = Begun::Large(Box::new(Large::new(&self.plan, &first.schema())?));
        }
        match &mut self.begun {
            Begun::Large(large) => large.add(&batches, task),
            Begun::No | Begun::Piecewise => Ok(()),
        }
    }

    /// Begins to write the collected rows that are in memory. Whether there are any; none may be on their way.
    fn put_away(&mut self) -> Result<bool> {
        let Begun::Large(large) = &mut self.begun else { return Ok(false) };
        let bytes = large.could_give_back();
        if bytes == 0 || !self.setup.can_spill() {
            return Ok(false);
        }
        let (batches, rows) = large.take_here();
        let held = self.memory.reservation().split_some(bytes);
        self.writing.begin_each(rows.iter().sum(), batches, vec![held], rows)?;
        self.setup.could_give_back(0);
        Ok(true)
    }

    /// The gate of rows that are on their way to a file.
    fn written(&mut self) -> Result<Option<Gate>> {
        match self.writing.poll()? {
            Written::Nothing => {}
            Written::Blocked(gate) => return Ok(Some(gate)),
            Written::File(file, rows) => {
                if let Begun::Large(large) = &mut self.begun {
                    large.was_put_away(&file, rows);
                }
            }
        }
        Ok(None)
    }

    fn collected_bytes(&self) -> usize {
        match &self.begun {
            Begun::Large(large) => large.bytes(),
            Begun::No | Begun::Piecewise => 0,
        }
    }

    /// Reserves what there is, or notes what is owed.
    fn charge(&mut self) -> Result<()> {
        self.memory.set(self.collected_bytes() + self.whole.bytes + self.open.bytes)
    }

    /// Waits for the memory that is owed, and for rows that are put away because there is none.
    fn settle(&mut self, task: &TaskContext) -> Result<Option<Gate>> {
        loop {
            if let Some(gate) = self.written()? {
                return Ok(Some(gate));
            }
            let error = match self.memory.settle() {
                Err(error @ Error::OutOfMemory { .. }) => error,
                other => return other,
            };
            if let Some(given) = self.given.as_ref().filter(|given| !given.is_ready()) {
                return Ok(Some(given.clone()));
            }
            if !self.setup.can_spill() {
                return Err(error);
            }
            if self.open.bytes >= self.setup.overdraft() {
                self.collect(task)?;
            }
            if self.put_away()? {
                self.charge()?;
                continue;
            }
            // What is not collected is less than makes a window partition large, and soon handed over; what is will
            // be needed at the end.
            let collected = self.collected_bytes();
            self.memory.set(collected)?;
            if collected < self.setup.overdraft().max(STATE_BYTES) {
                self.memory.forgive();
            }
            return self.memory.settle();
        }
    }

    fn hand_over(&mut self) -> SinkResult {
        let whole = std::mem::take(&mut self.whole);
        self.push_pieces(whole, Content::Whole)
    }

    /// Hands over what there is of the open window partition, behind those before it.
    fn hand_over_piece(&mut self, last: bool) -> SinkResult {
        if self.whole.rows > 0 {
            self.hand_over();
        }
        self.begun = if last { Begun::No } else { Begun::Piecewise };
        let open = std::mem::take(&mut self.open);
        self.push_pieces(open, |batches| Content::Piece(batches, last))
    }

    fn push_pieces(
        &mut self,
        Pieces { batches, rows, bytes }: Pieces,
        content: impl FnOnce(Vec<RecordBatch>) -> Content,
    ) -> SinkResult {
        let memory = self.memory.reservation().split_some(bytes);
        self.push(Partitions { content: content(batches), rows, bytes, memory })
    }

    fn push(&mut self, partitions: Partitions) -> SinkResult {
        match &mut self.sink {
            Some(sink) => answer(sink.push(partitions)),
            None => SinkResult::Finished,
        }
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
