//! Scan of in-memory splits.

use std::collections::VecDeque;

use arrow::array::RecordBatch;
use gatework_operators::ResultExt;
use gatework_runtime::{
    Result,
    pipeline::{Batch, DriverContext, LocalSource, OperatorContext, Source, SourceResult},
};
use gatework_shared_state::{
    PopResult,
    splits::{SplitGuard, SplitQueue},
};

use crate::splits::{Split, SplitData};

/// Returns the rows of the splits in a queue, reduced to the columns in `projection`.
#[derive(Debug)]
pub(crate) struct SplitScan {
    queue: SplitQueue<Split>,
    projection: Option<Vec<usize>>,
    batch_rows: usize,
}

impl SplitScan {
    pub(crate) fn new(
        queue: SplitQueue<Split>,
        projection: Option<Vec<usize>>,
        batch_rows: usize,
    ) -> Self {
        Self { queue, projection, batch_rows: batch_rows.max(1) }
    }
}

impl Source for SplitScan {
    fn name(&self) -> &str {
        "memory scan"
    }

    fn local(&self, _context: OperatorContext) -> Result<Box<dyn LocalSource>> {
        Ok(Box::new(LocalSplitScan {
            queue: self.queue.clone(),
            projection: self.projection.clone(),
            batch_rows: self.batch_rows,
            batches: VecDeque::new(),
            guard: None,
        }))
    }
}

struct LocalSplitScan {
    queue: SplitQueue<Split>,
    projection: Option<Vec<usize>>,
    batch_rows: usize,
    /// Batches of the current split that have not been emitted.
    batches: VecDeque<RecordBatch>,
    guard: Option<SplitGuard<Split>>,
}

impl LocalSplitScan {
    /// Returns the next rows of the current split.
    fn rows(&mut self) -> Result<Option<RecordBatch>> {
        let Some(batch) = self.batches.pop_front() else { return Ok(None) };
        let rows = batch.num_rows().min(self.batch_rows);
        if rows < batch.num_rows() {
            self.batches.push_front(batch.slice(rows, batch.num_rows() - rows));
        }
        let slice = batch.slice(0, rows);
        Ok(Some(match &self.projection {
            Some(columns) => slice.project(columns).query_err()?,
            None => slice,
        }))
    }
}

impl LocalSource for LocalSplitScan {
    fn next(&mut self, task: &DriverContext) -> Result<SourceResult> {
        loop {
            task.check_cancelled()?;
            if let Some(rows) = self.rows()? {
                return Ok(SourceResult::Batch(Batch::new(rows)));
            }
            self.guard = None;
            match self.queue.take() {
                PopResult::Item((split, guard)) => {
                    self.guard = Some(guard);
                    if let SplitData::Batches(batches) = split.data {
                        self.batches.extend(batches);
                    }
                }
                PopResult::Blocked(gate) => return Ok(SourceResult::Blocked(gate.into())),
                PopResult::Finished | PopResult::Aborted => return Ok(SourceResult::Finished),
            }
        }
    }
}
