//! Memory scan: hands the batches of an in-memory table to its tasks.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use arrow::array::RecordBatch;
use gatework_runtime::{
    Result,
    pipeline::{Batch, DriverContext, LocalSource, OperatorContext, Source, SourceResult},
};

use crate::ResultExt;

/// Source over in-memory batches, divided into morsels that tasks take in order.
#[derive(Debug)]
pub struct MemoryScan {
    table: Arc<Table>,
}

#[derive(Debug)]
struct Table {
    /// Batch, offset and length of each morsel.
    morsels: Vec<(RecordBatch, usize, usize)>,
    projection: Option<Vec<usize>>,
    next: AtomicUsize,
}

impl MemoryScan {
    /// Creates a scan of `batches` in morsels of at most `morsel_rows` rows. `projection` lists the
    /// columns to read. Morsels are slices, so nothing is copied.
    ///
    /// # Panics
    /// If `morsel_rows` is 0.
    pub fn new(
        batches: impl IntoIterator<Item = RecordBatch>,
        projection: Option<Vec<usize>>,
        morsel_rows: usize,
    ) -> Self {
        assert!(morsel_rows > 0, "morsel_rows must be at least 1");
        let mut morsels = Vec::new();
        for batch in batches {
            let mut offset = 0;
            while offset < batch.num_rows() {
                let rows = morsel_rows.min(batch.num_rows() - offset);
                morsels.push((batch.clone(), offset, rows));
                offset += rows;
            }
        }
        Self { table: Arc::new(Table { morsels, projection, next: AtomicUsize::new(0) }) }
    }

    /// Returns the number of morsels, the upper bound for useful tasks.
    pub fn num_morsels(&self) -> usize {
        self.table.morsels.len()
    }
}

impl Source for MemoryScan {
    fn name(&self) -> &str {
        "memory scan"
    }

    fn local(&self, _context: OperatorContext) -> Result<Box<dyn LocalSource>> {
        Ok(Box::new(LocalMemoryScan { table: self.table.clone() }))
    }
}

struct LocalMemoryScan {
    table: Arc<Table>,
}

impl LocalSource for LocalMemoryScan {
    fn next(&mut self, _task: &DriverContext) -> Result<SourceResult> {
        // Relaxed: the counter only hands out indices; the table is immutable.
        let morsel = self.table.next.fetch_add(1, Ordering::Relaxed);
        let Some((batch, offset, rows)) = self.table.morsels.get(morsel) else {
            return Ok(SourceResult::Finished);
        };
        let slice = match &self.table.projection {
            Some(columns) => batch.project(columns).query_err()?.slice(*offset, *rows),
            None => batch.slice(*offset, *rows),
        };
        Ok(SourceResult::Batch(Batch::new(slice).with_sequence(morsel as u64)))
    }
}
