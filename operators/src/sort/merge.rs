//! The source of a sort: merges the runs.

use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc};

use arrow::{array::RecordBatch, compute::interleave_record_batch};
use gatework_runtime::{
    Error, Result,
    pipeline::{Batch, LocalSource, Setup, Slots, Source, SourceResult, TaskContext},
};
use gatework_shared_state::{Claim, sort::SortSource};

use super::{Shared, run::Run};
use crate::OrFail;

/// The source of a sort.
#[derive(Debug)]
pub struct SortMerge {
    shared: Arc<Shared>,
    slots: Slots<SortSource<Run>>,
}

impl SortMerge {
    pub(super) fn new(shared: Arc<Shared>, slots: Slots<SortSource<Run>>) -> Self {
        Self { shared, slots }
    }
}

impl Source for SortMerge {
    fn name(&self) -> &str {
        "sort merge"
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalSource>> {
        Ok(Box::new(LocalMerge {
            source: self.slots.take(setup.instance())?,
            left: self.shared.config.fetch.unwrap_or(usize::MAX),
            batch_rows: self.shared.config.batch_rows,
            runs: Arc::new([]),
            positions: Vec::new(),
            sequence: 0,
        }))
    }
}

struct LocalMerge {
    source: SortSource<Run>,
    /// Rows still wanted.
    left: usize,
    batch_rows: usize,
    runs: Arc<[Run]>,
    /// The next row of each run.
    positions: Vec<usize>,
    sequence: u64,
}

impl LocalMerge {
    /// The next rows of the order; `None` when the runs are used up.
    fn merge(&mut self) -> Result<Option<RecordBatch>> {
        let wanted = self.batch_rows.min(self.left);
        if let [run] = self.runs.as_ref() {
            let rows = wanted.min(run.rows.num_rows() - self.positions[0]);
            let slice = run.rows.slice(self.positions[0], rows);
            self.positions[0] += rows;
            return Ok((rows > 0).then_some(slice));
        }
        let key = |run: usize, row: usize| {
            self.runs.get(run).filter(|run| row < run.rows.num_rows()).map(|run| run.head(row))
        };
        let heads = self.positions.iter().enumerate();
        let mut heads: BinaryHeap<_> =
            heads.filter_map(|(run, row)| Some(Reverse((key(run, *row)?, run)))).collect();
        let mut positions = self.positions.clone();
        let mut order = Vec::with_capacity(wanted);
        while order.len() < wanted {
            let Some(mut head) = heads.peek_mut() else { break };
            let run = head.0.1;
            order.push((run, positions[run]));
            positions[run] += 1;
            match key(run, positions[run]) {
                Some(next) => *head = Reverse((next, run)),
                None => drop(std::collections::binary_heap::PeekMut::pop(head)),
            }
        }
        drop(heads);
        self.positions = positions;
        if order.is_empty() {
            return Ok(None);
        }
        let rows: Vec<&RecordBatch> = self.runs.iter().map(|run| &run.rows).collect();
        interleave_record_batch(&rows, &order).or_fail().map(Some)
    }
}

impl LocalSource for LocalMerge {
    fn next(&mut self, _task: &TaskContext) -> Result<SourceResult> {
        loop {
            if !self.runs.is_empty() {
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
                    self.positions = vec![0; runs.len()];
                    self.runs = runs;
                }
                Claim::Blocked(gate) => return Ok(SourceResult::Blocked(gate.into())),
                Claim::Finished => return Ok(SourceResult::Finished),
                Claim::Aborted => return Err(Error::ProducerAborted),
            }
        }
    }
}
