//! The source of a sort: merges the runs.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, binary_heap::PeekMut},
    sync::Arc,
};

use arrow::{array::RecordBatch, compute::interleave_record_batch};
use gatework_runtime::{
    Error, Result,
    pipeline::{Batch, LocalSource, Pending, Setup, Slots, Source, SourceResult, TaskContext},
};
use gatework_shared_state::{Claim, Gate, sort::SortSource};

use super::{
    Shared,
    run::{Head, Run, SortedRun},
};
use crate::OrFail;

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
            left: self.shared.config.fetch.unwrap_or(usize::MAX),
            shared: self.shared.clone(),
            runs: Arc::new([]),
            cursors: Vec::new(),
            setup,
            sequence: 0,
        }))
    }
}

struct LocalMerge {
    shared: Arc<Shared>,
    source: SortSource<SortedRun>,
    setup: Setup,
    /// Rows still wanted.
    left: usize,
    runs: Arc<[SortedRun]>,
    /// Where the merge is, by run.
    cursors: Vec<Cursor>,
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
}

impl Cursor {
    /// The rows at hand.
    fn rows<'a>(&'a self, run: &'a SortedRun) -> Option<&'a Run> {
        match run {
            SortedRun::Here(run) => Some(run),
            SortedRun::Spilled(..) => self.block.as_ref(),
        }
    }

    fn head<'a>(&'a self, run: &'a SortedRun, row: usize) -> Option<Head<'a>> {
        let rows = self.rows(run)?;
        (row < rows.rows.num_rows()).then(|| rows.head(row))
    }

    /// Sees to it that there are rows at hand, if any are left; the gate of those that are not there yet.
    fn fill(&mut self, run: &SortedRun, shared: &Shared, setup: &Setup) -> Result<Option<Gate>> {
        let SortedRun::Spilled(file, batches) = run else { return Ok(None) };
        loop {
            if self.reading.is_none() && self.batch < *batches {
                self.reading = Some(setup.unspill(file, self.batch));
                self.batch += 1;
            }
            if self.block.as_ref().is_some_and(|block| self.row < block.rows.num_rows()) {
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

impl LocalMerge {
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
        if let ([SortedRun::Here(run)], [cursor]) = (self.runs.as_ref(), &mut self.cursors[..]) {
            let rows = wanted.min(run.rows.num_rows() - cursor.row);
            let slice = run.rows.slice(cursor.row, rows);
            cursor.row += rows;
            return Ok((rows > 0).then_some(slice));
        }
        let head = |run: usize, row: usize| self.cursors[run].head(&self.runs[run], row);
        let mut heads: BinaryHeap<_> = (0..self.cursors.len())
            .filter_map(|run| Some(Reverse((head(run, self.cursors[run].row)?, run))))
            .collect();
        let mut positions: Vec<_> = self.cursors.iter().map(|cursor| cursor.row).collect();
        let mut order = Vec::with_capacity(wanted);
        while order.len() < wanted {
            let Some(mut first) = heads.peek_mut() else { break };
            let run = first.0.1;
            order.push((run, positions[run]));
            positions[run] += 1;
            match head(run, positions[run]) {
                Some(next) => *first = Reverse((next, run)),
                None => {
                    PeekMut::pop(first);
                    // What comes next of this run is not known.
                    if matches!(self.runs[run], SortedRun::Spilled(..)) {
                        break;
                    }
                }
            }
        }
        drop(heads);
        if order.is_empty() {
            return Ok(None);
        }
        let nothing = RecordBatch::new_empty(self.shared.config.schema.clone());
        let rows = self.cursors.iter().zip(self.runs.iter());
        let rows: Vec<&RecordBatch> = rows
            .map(|(cursor, run)| cursor.rows(run).map_or(&nothing, |block| &block.rows))
            .collect();
        let merged = interleave_record_batch(&rows, &order).or_fail()?;
        for (cursor, position) in self.cursors.iter_mut().zip(positions) {
            cursor.row = position;
        }
        Ok(Some(merged))
    }
}

impl LocalSource for LocalMerge {
    fn next(&mut self, task: &TaskContext) -> Result<SourceResult> {
        loop {
            task.check()?;
            if !self.runs.is_empty() {
                if let Some(gate) = self.fill()? {
                    return Ok(SourceResult::Blocked(gate.into()));
                }
                match self.merge()? {
                    Some(batch) => {
                        self.left -= batch.num_rows();
                        self.sequence += 1;
                        return Ok(SourceResult::Batch(Batch::new(batch).at(self.sequence)));
                    }
                    None => return Ok(SourceResult::Finished),
                }
            }
            match self.source.claim() {
                Claim::Unit((_, runs)) => {
                    self.cursors = runs.iter().map(|_| Cursor::default()).collect();
                    self.runs = runs;
                }
                Claim::Blocked(gate) => return Ok(SourceResult::Blocked(gate.into())),
                Claim::Finished => return Ok(SourceResult::Finished),
                Claim::Aborted => return Err(Error::ProducerAborted),
            }
        }
    }
}
