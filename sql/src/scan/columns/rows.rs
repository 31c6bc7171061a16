//! The rows of one row group, window by window.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanArray, RecordBatch},
    buffer::BooleanBuffer,
    compute::filter,
};
use datafusion::{
    error::{DataFusionError, Result},
    parquet::errors::ParquetError,
};
use gatework_operators::selection::narrow;

use super::{ColumnPlan, LocalConjuncts, pages::PageRows};
use crate::scan::decode::ColumnDecoder;

/// A window is this many batches at most: where few rows pass, many are looked at for one batch.
const WINDOW_BATCHES: usize = 8;

/// A row group that is being read.
pub(in super::super) struct RowGroupRows {
    plan: Arc<ColumnPlan>,
    /// By place of the column.
    decoders: Vec<ColumnDecoder>,
    rows: usize,
    at: usize,
    /// The rows of pages that may match; `None` for all.
    pages: Option<PageRows>,
    batch_rows: usize,
    window: usize,
}

/// What is known of one window.
struct Window {
    rows: usize,
    /// The rows that are left; `None` for all.
    selection: Option<BooleanBuffer>,
    left: usize,
    /// Decoded columns: of the rows that are left.
    arrays: Vec<Option<ArrayRef>>,
}

impl RowGroupRows {
    pub(super) fn new(
        plan: Arc<ColumnPlan>,
        decoders: Vec<ColumnDecoder>,
        rows: usize,
        pages: Option<PageRows>,
        batch_rows: usize,
    ) -> Self {
        Self { plan, decoders, rows, at: 0, pages, batch_rows, window: batch_rows }
    }

    /// Whether the next window reaches the last quarter.
    pub(in super::super) fn is_near_end(&self) -> bool {
        self.at + self.window >= self.rows - self.rows / 4
    }

    /// The rows of the next window that are left of it; maybe none. `None` at the end.
    pub(in super::super) fn next(
        &mut self,
        conjuncts: &mut LocalConjuncts,
    ) -> Result<Option<RecordBatch>> {
        let rows = self.window.min(self.rows - self.at);
        if rows == 0 {
            return Ok(None);
        }
        let selection = self.pages.as_mut().map(|pages| pages.take(rows));
        let left = selection.as_ref().map_or(rows, BooleanBuffer::count_set_bits);
        let arrays = vec![None; self.decoders.len()];
        let mut window = Window { rows, selection, left, arrays };
        for turn in 0..conjuncts.len() {
            if window.left == 0 {
                break;
            }
            let Some(inputs) = conjuncts.prepare(turn, rows) else { continue };
            for slot in &inputs.slots {
                self.decode(*slot, &mut window)?;
            }
            if let Some(keep) = conjuncts.evaluate(turn, &window.arrays, window.left)? {
                window.keep(keep)?;
            }
        }
        let plan = self.plan.clone();
        if window.left > 0 {
            for slot in &plan.output.slots {
                self.decode(*slot, &mut window)?;
            }
        }
        self.pass(&window)?;
        conjuncts.reorder();
        self.adapt(&window);
        if window.left == 0 {
            return Ok(Some(RecordBatch::new_empty(plan.schema.clone())));
        }
        plan.project(&window.arrays, window.left).map(Some)
    }

    fn decode(&mut self, slot: usize, window: &mut Window) -> Result<()> {
        if window.arrays[slot].is_none() {
            let read = self.decoders[slot].read(window.rows, window.selection.as_ref());
            let array = read.map_err(|error| failed(self.plan.columns[slot].name(), error))?;
            window.arrays[slot] = Some(array);
        }
        Ok(())
    }

    /// Moves past a window. After the last one, every column must be at its end.
    fn pass(&mut self, window: &Window) -> Result<()> {
        self.at += window.rows;
        let columns = self.decoders.iter_mut().zip(&window.arrays).zip(&self.plan.columns);
        for ((decoder, array), field) in columns {
            let skipped = if array.is_none() { decoder.skip(window.rows) } else { Ok(()) };
            let at_end = self.at == self.rows;
            let passed = skipped.and_then(|()| if at_end { decoder.finish() } else { Ok(()) });
            passed.map_err(|error| failed(field.name(), error))?;
        }
        Ok(())
    }

    /// Makes the next window as large as a full batch needs.
    fn adapt(&mut self, window: &Window) {
        if window.left < window.rows / 4 {
            self.window = (2 * self.window).min(WINDOW_BATCHES * self.batch_rows);
        } else if window.left > window.rows / 2 {
            self.window = (self.window / 2).max(self.batch_rows);
        }
    }
}

impl Window {
    /// Leaves those rows that `keep`, one bit per row that is left, says.
    fn keep(&mut self, keep: BooleanBuffer) -> Result<()> {
        self.left = keep.count_set_bits();
        let mask = BooleanArray::new(keep, None);
        for array in self.arrays.iter_mut().flatten() {
            *array = filter(array, &mask)?;
        }
        let (keep, _) = mask.into_parts();
        self.selection = Some(match self.selection.take() {
            Some(selection) => narrow(&selection, &keep),
            None => keep,
        });
        Ok(())
    }
}

/// The error for a column that cannot be decoded.
pub(super) fn failed(column: &str, error: ParquetError) -> DataFusionError {
    let reason = match error {
        ParquetError::General(reason) | ParquetError::EOF(reason) => reason,
        error => error.to_string(),
    };
    let error = ParquetError::General(format!("column '{column}': {reason}"));
    DataFusionError::ParquetError(Box::new(error))
}
