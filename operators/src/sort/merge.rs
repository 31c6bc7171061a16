//! The source of a sort: merges the runs.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, binary_heap::PeekMut},
    sync::Arc,
};

use arrow::{array::RecordBatch, compute::interleave_record_batch};
use gatework_runtime::{
    Error, Result,
    pipeline::{
        Batch, Fetch, Held, LocalSource, Pending, Setup, Slots, Source, SourceResult, Taken,
        TaskContext,
    },
};
use gatework_shared_state::{Claim, Gate, output::ExchangeClient, sort::SortSource};

use super::{
    Shared,
    run::{Head, Run, SortedRun},
};
use crate::{
    OrFail,
    batch_bytes::{Lengths, MAX_BATCH_BYTES, rows_within},
    compact,
    error::is_overflow,
    union::rename,
};

/// The source of a sort.
#[derive(Debug)]
pub struct SortMerge {
    shared: Arc<Shared>,
    slots: Slots<SortSource<SortedRun>>,
}

impl SortMerge {
    pub(super) fn new(shared: Arc<Shared>, slots: Slots<SortSource<SortedRun>>) -> Self {
        Self { shared, slots }
    }
}

impl Source for SortMerge {
    fn name(&self) -> &str {
        "sort merge"
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalSource>> {
        Ok(Box::new(LocalMerge {
            source: self.slots.take(&setup)?,
            merger: Merger::new(self.shared.clone(), setup),
        }))
    }
}

struct LocalMerge {
    source: SortSource<SortedRun>,
    merger: Merger,
}

/// The chunk in which a run is.
#[derive(Debug, Clone, Copy, Default)]
struct AtHand {
    chunk: usize,
    first: usize,
    /// Where the one behind it begins, and where that ends.
    next: usize,
    end: usize,
}

/// Merges runs.
pub(super) struct Merger {
    shared: Arc<Shared>,
    setup: Setup,
    /// Rows still wanted.
    left: usize,
    runs: Arc<[SortedRun]>,
    /// Where the merge is, by run.
    cursors: Vec<Cursor>,
    /// A batch without rows.
    nothing: RecordBatch,
    sequence: u64,
}

/// A place in a run.
#[derive(Default)]
struct Cursor {
    /// The next row of the run, or of its block.
    row: usize,
    /// Of a spilled run: the rows at hand, what is being read, and the batch that is read next.
    block: Option<Run>,
    reading: Option<Pending<RecordBatch>>,
    batch: usize,
    /// Of a stream: what fetches its pages.
    fetch: Option<Fetch>,
}

impl Cursor {
    /// The rows at hand.
    fn rows<'a>(&'a self, run: &'a SortedRun) -> Option<&'a Run> {
        match run {
            SortedRun::Here(run) => Some(run),
            SortedRun::Spilled(..) | SortedRun::Stream(_) => self.block.as_ref(),
        }
    }

    fn head<'a>(&'a self, run: &'a SortedRun, row: usize) -> Option<Head<'a>> {
        let rows = self.rows(run)?;
        (row < rows.len()).then(|| rows.head(row))
    }

    /// Sees to it that there are rows at hand, if any are left; the gate of those that are not there yet.
    fn fill(&mut self, run: &SortedRun, shared: &Shared, setup: &Setup) -> Result<Option<Gate>> {
        let (file, batches) = match run {
            SortedRun::Here(_) => return Ok(None),
            SortedRun::Spilled(file, batches) => (file, batches),
            SortedRun::Stream(client) => return self.receive(&client.0, shared, setup),
        };
        loop {
            if self.reading.is_none() && self.batch < *batches {
                self.reading = Some(setup.unspill(file, self.batch));
                self.batch += 1;
            }
            if self.block.as_ref().is_some_and(|block| self.row < block.len()) {
                return Ok(None);
            }
            self.block = None;
            let Some(reading) = &self.reading else { return Ok(None) };
            let Some(rows) = reading.take() else { return Ok(Some(reading.gate().clone())) };
            self.block = Some(Run::read_back(rows?, shared)?);
            (self.row, self.reading) = (0, None);
        }
    }
}

impl Cursor {
    /// The next page of a stream, if the last one is used up.
    fn receive(
        &mut self,
        client: &ExchangeClient<Held>,
        shared: &Shared,
        setup: &Setup,
    ) -> Result<Option<Gate>> {
        let fetch = self.fetch.get_or_insert_with(|| Fetch::new(setup));
        loop {
            if self.block.as_ref().is_some_and(|block| self.row < block.len()) {
                return Ok(None);
            }
            self.block = None;
            match fetch.next(|| client.take())? {
                Taken::Batch(batch) => {
                    let rows = compact(rename(batch, &shared.config.schema)?)?;
                    self.block = Some(Run::read_back(rows, shared)?);
                    self.row = 0;
                }
                Taken::Blocked(gate) => return Ok(Some(gate)),
                Taken::Finished => return Ok(None),
                Taken::Aborted => return Err(Error::ProducerAborted),
            }
        }
    }
}

impl Merger {
    pub(super) fn new(shared: Arc<Shared>, setup: Setup) -> Self {
        Self {
            left: shared.config.fetch.unwrap_or(usize::MAX),
            nothing: RecordBatch::new_empty(shared.config.schema.clone()),
            shared,
            runs: Arc::new([]),
            cursors: Vec::new(),
            setup,
            sequence: 0,
        }
    }

    /// Whether it has no runs yet.
    pub(super) fn is_idle(&self) -> bool {
        self.runs.is_empty()
    }

    pub(super) fn begin(&mut self, runs: Arc<[SortedRun]>) {
        self.cursors = runs.iter().map(|_| Cursor::default()).collect();
        self.runs = runs;
    }

    /// The next batch of the order.
    pub(super) fn next(&mut self) -> Result<SourceResult> {
        if let Some(gate) = self.fill()? {
            return Ok(SourceResult::Blocked(gate.into()));
        }
        Ok(match self.merge()? {
            Some(batch) => {
                self.left -= batch.num_rows();
                self.sequence += 1;
                let batch = self.shared.without_carried(batch)?;
                SourceResult::Batch(Batch::new(batch).at(self.sequence))
            }
            None => SourceResult::Finished,
        })
    }

    /// The gate of rows without which the merge cannot go on.
    fn fill(&mut self) -> Result<Option<Gate>> {
        let mut missing = None;
        for (cursor, run) in self.cursors.iter_mut().zip(self.runs.iter()) {
            missing = cursor.fill(run, &self.shared, &self.setup)?.or(missing);
        }
        Ok(missing)
    }

    /// The next rows of the order; `None` when the runs are used up. It ends where the rows at hand of a
    /// run do.
    fn merge(&mut self) -> Result<Option<RecordBatch>> {
        let wanted = self.shared.config.batch_rows.min(self.left);
        let head = |run: usize, row: usize| self.cursors[run].head(&self.runs[run], row);
        let nexts = (0..self.cursors.len())
            .filter_map(|run| Some((head(run, self.cursors[run].row)?, run)));
        let heads: Vec<Next<'_>> = nexts.collect();
        if let [(_, run)] = heads[..] {
            drop(heads);
            return Ok(self.rest(run, wanted));
        }
        if wanted == 0 {
            return Ok(None);
        }
        let mut positions: Vec<_> = self.cursors.iter().map(|cursor| cursor.row).collect();
        let chunks = self.chunks();
        let mut order = Vec::with_capacity(wanted);
        let mut take = |run: usize| {
            let position = positions[run];
            let AtHand { first, next, end, .. } = chunks[run];
            order.push(if position < next {
                (2 * run, position - first)
            } else {
                (2 * run + 1, position - next)
            });
            positions[run] += 1;
            (head(run, positions[run]), order.len() == wanted || positions[run] == end)
        };
        let is_here = |run: usize| matches!(self.runs[run], SortedRun::Here(_));
        match heads[..] {
            [one, other] => merge_two(one, other, is_here, &mut take),
            _ => merge_several(heads.into_iter().map(Reverse).collect(), is_here, &mut take),
        }
        if order.is_empty() {
            return Ok(None);
        }
        let chunks = self.rows_of(&chunks);
        let mut within = self.within(&chunks, &order);
        let merged = loop {
            match interleave_record_batch(&chunks, &order[..within]).or_fail() {
                // The keys of a dictionary may count fewer values.
                Err(error) if within > 1 && is_overflow(&error) => within = within.div_ceil(2),
                merged => break merged?,
            }
        };
        drop(chunks);
        for (chunk, _) in &order[..within] {
            self.cursors[chunk / 2].row += 1;
        }
        Ok(Some(merged))
    }

    /// The chunk in which each run is, and the one behind it.
    fn chunks(&self) -> Vec<AtHand> {
        let cursors = self.cursors.iter().zip(self.runs.iter());
        let chunks = cursors.map(|(cursor, run)| match cursor.rows(run) {
            Some(rows) => {
                let (chunk, range) = rows.chunk(cursor.row);
                let (first, next, end) = (range.start, range.end, rows.end(chunk + 1));
                AtHand { chunk, first, next, end }
            }
            None => AtHand::default(),
        });
        chunks.collect()
    }

    /// The rows of the chunks in which the runs are, and those behind them.
    fn rows_of<'a>(&'a self, chunks: &[AtHand]) -> Vec<&'a RecordBatch> {
        let cursors = self.cursors.iter().zip(self.runs.iter()).zip(chunks);
        let rows = cursors.flat_map(|((cursor, run), at_hand)| {
            [0, 1].map(|more| cursor.rows(run)?.chunks.get(at_hand.chunk + more))
        });
        rows.map(|rows| rows.unwrap_or(&self.nothing)).collect()
    }

    /// How many of the rows of `order`, by their numbers in `chunks`, a batch may hold.
    fn within(&self, chunks: &[&RecordBatch], order: &[(usize, usize)]) -> usize {
        let cursors = self.cursors.iter().zip(self.runs.iter());
        let bytes = cursors.filter_map(|(cursor, run)| {
            let rows = cursor.rows(run)?;
            let (chunk, _) = rows.chunk(cursor.row);
            Some(rows.text_bytes(chunk) + rows.text_bytes(chunk + 1))
        });
        if bytes.sum::<usize>() <= MAX_BATCH_BYTES {
            return order.len();
        }
        let lengths: Vec<Vec<Lengths<'_>>> = chunks
            .iter()
            .map(|rows| rows.columns().iter().map(|column| Lengths::of(column)).collect())
            .collect();
        rows_within(MAX_BATCH_BYTES, order.len(), |row| {
            let (chunk, row) = order[row];
            lengths[chunk].iter().map(|column| column.at(row)).sum()
        })
    }

    /// So many rows of the only run that has some.
    fn rest(&mut self, run: usize, wanted: usize) -> Option<RecordBatch> {
        let cursor = &mut self.cursors[run];
        let at_hand = cursor.rows(&self.runs[run])?;
        if wanted == 0 || cursor.row >= at_hand.len() {
            return None;
        }
        let slice = at_hand.slice(cursor.row, wanted);
        cursor.row += slice.num_rows();
        Some(slice)
    }
}

/// The next row of a run, and which run that is.
type Next<'a> = (Head<'a>, usize);

/// Takes rows of two runs in order until `take` has enough, or what comes next of one is not at hand.
fn merge_two<'a>(
    mut one: Next<'a>,
    mut other: Next<'a>,
    is_here: impl Fn(usize) -> bool,
    take: &mut impl FnMut(usize) -> (Option<Head<'a>>, bool),
) {
    loop {
        let first = if one.cmp(&other).is_le() { &mut one } else { &mut other };
        let run = first.1;
        let (next, enough) = take(run);
        match next {
            Some(next) if !enough => first.0 = next,
            Some(_) => return,
            None if enough || !is_here(run) => return,
            None => break,
        }
    }
    // All of one run has been taken; the next call gives the other's rows as they are.
}

/// The same of several.
fn merge_several<'a>(
    mut heads: BinaryHeap<Reverse<Next<'a>>>,
    is_here: impl Fn(usize) -> bool,
    take: &mut impl FnMut(usize) -> (Option<Head<'a>>, bool),
) {
    while let Some(mut first) = heads.peek_mut() {
        let run = first.0.1;
        let (next, enough) = take(run);
        match next {
            Some(next) => *first = Reverse((next, run)),
            None => {
                PeekMut::pop(first);
                // What comes next of this run is not known.
                if !is_here(run) {
                    return;
                }
            }
        }
        if enough {
            return;
        }
    }
}

impl LocalSource for LocalMerge {
    fn next(&mut self, task: &TaskContext) -> Result<SourceResult> {
        loop {
            task.check()?;
            if !self.merger.is_idle() {
                return self.merger.next();
            }
            match self.source.claim() {
                Claim::Unit((_, runs)) => self.merger.begin(runs),
                Claim::Blocked(gate) => return Ok(SourceResult::Blocked(gate.into())),
                Claim::Finished => return Ok(SourceResult::Finished),
                Claim::Aborted => return Err(Error::ProducerAborted),
            }
        }
    }
}
