//! Sort source: merges the runs.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, binary_heap::PeekMut},
    sync::Arc,
};

use arrow::{array::RecordBatch, compute::interleave_record_batch};
use gatework_runtime::{
    Error, Result,
    pipeline::{
        Batch, BufferRead, BufferReader, BufferedBatch, DriverContext, LocalSource,
        OperatorContext, PendingIo, PerTask, Source, SourceResult,
    },
};
use gatework_shared_state::{ClaimResult, Gate, output::ExchangeClient, sort::SortConsumer};

use super::{
    SortPlan,
    run::{RowKey, Run, SortedRun},
};
use crate::{
    ResultExt, apply_selection,
    batch_bytes::{Lengths, MAX_BATCH_BYTES, rows_within},
    buffer::with_schema,
    error::is_overflow,
};

/// Source of a sort.
#[derive(Debug)]
pub struct SortSource {
    plan: Arc<SortPlan>,
    slots: PerTask<SortConsumer<SortedRun>>,
}

impl SortSource {
    pub(super) fn new(plan: Arc<SortPlan>, slots: PerTask<SortConsumer<SortedRun>>) -> Self {
        Self { plan, slots }
    }
}

impl Source for SortSource {
    fn name(&self) -> &str {
        "sort source"
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSource>> {
        Ok(Box::new(LocalSortSource {
            source: self.slots.take(&context)?,
            merger: RunMerger::new(self.plan.clone(), context),
        }))
    }
}

struct LocalSortSource {
    source: SortConsumer<SortedRun>,
    merger: RunMerger,
}

/// Current chunk of a run.
#[derive(Debug, Clone, Copy, Default)]
struct CurrentChunk {
    chunk: usize,
    first: usize,
    /// Start and end of the next chunk.
    next: usize,
    end: usize,
}

/// Merge of sorted runs.
pub(super) struct RunMerger {
    plan: Arc<SortPlan>,
    context: OperatorContext,
    /// Rows still wanted.
    remaining: usize,
    runs: Arc<[SortedRun]>,
    /// Position of the merge in each run.
    cursors: Vec<Cursor>,
    /// Batch without rows.
    empty_batch: RecordBatch,
    sequence: u64,
}

/// Position in a run.
#[derive(Default)]
struct Cursor {
    /// Index of the next row in the run, or in its block.
    row: usize,
    /// Spilled run: the rows in memory, the pending read, and the index of the batch to read next.
    block: Option<Run>,
    pending_read: Option<PendingIo<RecordBatch>>,
    next_batch: usize,
    /// Remote run: the reader of its pages.
    reader: Option<BufferReader>,
}

impl Cursor {
    /// Returns the rows in memory.
    fn rows<'a>(&'a self, run: &'a SortedRun) -> Option<&'a Run> {
        match run {
            SortedRun::InMemory(run) => Some(run),
            SortedRun::Spilled(..) | SortedRun::Remote(_) => self.block.as_ref(),
        }
    }

    fn row_key<'a>(&'a self, run: &'a SortedRun, row: usize) -> Option<RowKey<'a>> {
        let rows = self.rows(run)?;
        (row < rows.len()).then(|| rows.row_key(row))
    }

    /// Ensures that rows are in memory, if any remain; returns the gate of a pending read.
    fn fill(
        &mut self,
        run: &SortedRun,
        plan: &SortPlan,
        context: &OperatorContext,
    ) -> Result<Option<Gate>> {
        let (file, batches) = match run {
            SortedRun::InMemory(_) => return Ok(None),
            SortedRun::Spilled(file, batches) => (file, batches),
            SortedRun::Remote(client) => return self.receive(&client.0, plan, context),
        };
        loop {
            if self.pending_read.is_none() && self.next_batch < *batches {
                self.pending_read = Some(context.restore(file, self.next_batch));
                self.next_batch += 1;
            }
            if self.block.as_ref().is_some_and(|block| self.row < block.len()) {
                return Ok(None);
            }
            self.block = None;
            let Some(pending) = &self.pending_read else { return Ok(None) };
            let Some(rows) = pending.take() else { return Ok(Some(pending.gate().clone())) };
            self.block = Some(Run::from_sorted_batch(rows?, plan)?);
            (self.row, self.pending_read) = (0, None);
        }
    }
}

impl Cursor {
    /// Receives the next page of a remote run, if the current one is used up.
    fn receive(
        &mut self,
        client: &ExchangeClient<BufferedBatch>,
        plan: &SortPlan,
        context: &OperatorContext,
    ) -> Result<Option<Gate>> {
        let reader = self.reader.get_or_insert_with(|| BufferReader::new(context));
        loop {
            if self.block.as_ref().is_some_and(|block| self.row < block.len()) {
                return Ok(None);
            }
            self.block = None;
            match reader.next(|| client.take())? {
                BufferRead::Batch(batch) => {
                    let rows = apply_selection(with_schema(batch, &plan.config.schema)?)?;
                    self.block = Some(Run::from_sorted_batch(rows, plan)?);
                    self.row = 0;
                }
                BufferRead::Blocked(gate) => return Ok(Some(gate)),
                BufferRead::Finished => return Ok(None),
                BufferRead::Aborted => return Err(Error::ProducerAborted),
            }
        }
    }
}

impl RunMerger {
    pub(super) fn new(plan: Arc<SortPlan>, context: OperatorContext) -> Self {
        Self {
            remaining: plan.config.fetch.unwrap_or(usize::MAX),
            empty_batch: RecordBatch::new_empty(plan.config.schema.clone()),
            plan,
            runs: Arc::new([]),
            cursors: Vec::new(),
            context,
            sequence: 0,
        }
    }

    /// Returns true if no runs have been added.
    pub(super) fn is_idle(&self) -> bool {
        self.runs.is_empty()
    }

    pub(super) fn start(&mut self, runs: Arc<[SortedRun]>) {
        self.cursors = runs.iter().map(|_| Cursor::default()).collect();
        self.runs = runs;
    }

    /// Returns the next batch in sort order.
    pub(super) fn next(&mut self) -> Result<SourceResult> {
        if let Some(gate) = self.fill()? {
            return Ok(SourceResult::Blocked(gate.into()));
        }
        Ok(match self.merge()? {
            Some(batch) => {
                self.remaining -= batch.num_rows();
                self.sequence += 1;
                let batch = self.plan.without_carried(batch)?;
                SourceResult::Batch(Batch::new(batch).with_sequence(self.sequence))
            }
            None => SourceResult::Finished,
        })
    }

    /// Returns the gate of a run whose next rows are not in memory.
    fn fill(&mut self) -> Result<Option<Gate>> {
        let mut missing = None;
        for (cursor, run) in self.cursors.iter_mut().zip(self.runs.iter()) {
            missing = cursor.fill(run, &self.plan, &self.context)?.or(missing);
        }
        Ok(missing)
    }

    /// Merges the next rows; returns `None` when the runs are used up. It stops where the rows in
    /// memory of a run end.
    fn merge(&mut self) -> Result<Option<RecordBatch>> {
        let max_rows = self.plan.config.batch_rows.min(self.remaining);
        let row_key = |run: usize, row: usize| self.cursors[run].row_key(&self.runs[run], row);
        let nexts = (0..self.cursors.len())
            .filter_map(|run| Some((row_key(run, self.cursors[run].row)?, run)));
        let heads: Vec<HeapEntry<'_>> = nexts.collect();
        if let [(_, run)] = heads[..] {
            drop(heads);
            return Ok(self.take_last_run(run, max_rows));
        }
        if max_rows == 0 {
            return Ok(None);
        }
        let mut positions: Vec<_> = self.cursors.iter().map(|cursor| cursor.row).collect();
        let chunks = self.chunks();
        let mut order = Vec::with_capacity(max_rows);
        let mut take = |run: usize| {
            let position = positions[run];
            let CurrentChunk { first, next, end, .. } = chunks[run];
            order.push(if position < next {
                (2 * run, position - first)
            } else {
                (2 * run + 1, position - next)
            });
            positions[run] += 1;
            (row_key(run, positions[run]), order.len() == max_rows || positions[run] == end)
        };
        let is_in_memory = |run: usize| matches!(self.runs[run], SortedRun::InMemory(_));
        match heads[..] {
            [one, other] => merge_two(one, other, is_in_memory, &mut take),
            _ => merge_several(heads.into_iter().map(Reverse).collect(), is_in_memory, &mut take),
        }
        if order.is_empty() {
            return Ok(None);
        }
        let chunks = self.rows_of(&chunks);
        let mut num_rows = self.rows_that_fit(&chunks, &order);
        let merged = loop {
            match interleave_record_batch(&chunks, &order[..num_rows]).query_err() {
                // Dictionary keys may be too narrow for the merged values.
                Err(error) if num_rows > 1 && is_overflow(&error) => {
                    num_rows = num_rows.div_ceil(2)
                }
                merged => break merged?,
            }
        };
        drop(chunks);
        for (chunk, _) in &order[..num_rows] {
            self.cursors[chunk / 2].row += 1;
        }
        Ok(Some(merged))
    }

    /// Returns each run's current chunk and the start and end of its next one.
    fn chunks(&self) -> Vec<CurrentChunk> {
        let cursors = self.cursors.iter().zip(self.runs.iter());
        let chunks = cursors.map(|(cursor, run)| match cursor.rows(run) {
            Some(rows) => {
                let (chunk, range) = rows.chunk(cursor.row);
                let (first, next, end) = (range.start, range.end, rows.end(chunk + 1));
                CurrentChunk { chunk, first, next, end }
            }
            None => CurrentChunk::default(),
        });
        chunks.collect()
    }

    /// Returns the batches of each run's current chunk and its next one.
    fn rows_of<'a>(&'a self, chunks: &[CurrentChunk]) -> Vec<&'a RecordBatch> {
        let cursors = self.cursors.iter().zip(self.runs.iter()).zip(chunks);
        let rows = cursors.flat_map(|((cursor, run), current)| {
            [0, 1].map(|more| cursor.rows(run)?.chunks.get(current.chunk + more))
        });
        rows.map(|rows| rows.unwrap_or(&self.empty_batch)).collect()
    }

    /// Returns the number of rows of `order`, given by indices into `chunks`, that fit a batch.
    fn rows_that_fit(&self, chunks: &[&RecordBatch], order: &[(usize, usize)]) -> usize {
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

    /// Returns up to `wanted` rows of the only run with rows left.
    fn take_last_run(&mut self, run: usize, wanted: usize) -> Option<RecordBatch> {
        let cursor = &mut self.cursors[run];
        let rows = cursor.rows(&self.runs[run])?;
        if wanted == 0 || cursor.row >= rows.len() {
            return None;
        }
        let slice = rows.slice(cursor.row, wanted);
        cursor.row += slice.num_rows();
        Some(slice)
    }
}

/// Next row of a run, and the run's index.
type HeapEntry<'a> = (RowKey<'a>, usize);

/// Takes rows of two runs in order until `take` has enough, or the next rows of a run are not in
/// memory.
fn merge_two<'a>(
    mut one: HeapEntry<'a>,
    mut other: HeapEntry<'a>,
    is_in_memory: impl Fn(usize) -> bool,
    take: &mut impl FnMut(usize) -> (Option<RowKey<'a>>, bool),
) {
    loop {
        let first = if one.cmp(&other).is_le() { &mut one } else { &mut other };
        let run = first.1;
        let (next, enough) = take(run);
        match next {
            Some(next) if !enough => first.0 = next,
            Some(_) => return,
            None if enough || !is_in_memory(run) => return,
            None => break,
        }
    }
    // One run is used up; the next call returns the other run's rows unchanged.
}

/// Merges like [`merge_two`], with several runs.
fn merge_several<'a>(
    mut heads: BinaryHeap<Reverse<HeapEntry<'a>>>,
    is_in_memory: impl Fn(usize) -> bool,
    take: &mut impl FnMut(usize) -> (Option<RowKey<'a>>, bool),
) {
    while let Some(mut first) = heads.peek_mut() {
        let run = first.0.1;
        let (next, enough) = take(run);
        match next {
            Some(next) => *first = Reverse((next, run)),
            None => {
                PeekMut::pop(first);
                // The run's next rows are not in memory.
                if !is_in_memory(run) {
                    return;
                }
            }
        }
        if enough {
            return;
        }
    }
}

impl LocalSource for LocalSortSource {
    fn next(&mut self, task: &DriverContext) -> Result<SourceResult> {
        loop {
            task.check_cancelled()?;
            if !self.merger.is_idle() {
                return self.merger.next();
            }
            match self.source.claim() {
                ClaimResult::Work((_, runs)) => self.merger.start(runs),
                ClaimResult::Blocked(gate) => return Ok(SourceResult::Blocked(gate.into())),
                ClaimResult::Finished => return Ok(SourceResult::Finished),
                ClaimResult::Aborted => return Err(Error::ProducerAborted),
            }
        }
    }
}
