//! Reads the rows of one row group, window by window.

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
use gatework_operators::selection::refine;

use super::{LocalConjuncts, RowGroupPlan, pages::PageRows};
use crate::scan::decode::ColumnDecoder;

/// Maximum size of a window, in batches. If few rows pass, a window of several batches yields one.
const WINDOW_BATCHES: usize = 8;

/// A row group that is being read.
pub(in super::super) struct RowGroupReader {
    plan: Arc<RowGroupPlan>,
    /// One decoder per slot.
    decoders: Vec<ColumnDecoder>,
    rows: usize,
    next_row: usize,
    /// The rows of pages that may match; `None` if all may.
    pages: Option<PageRows>,
    batch_rows: usize,
    window_rows: usize,
}

/// State of one window.
struct RowWindow {
    rows: usize,
    /// The rows that have passed so far; `None` if all have.
    selection: Option<BooleanBuffer>,
    remaining: usize,
    /// Decoded columns, reduced to the rows that have passed.
    arrays: Vec<Option<ArrayRef>>,
}

impl RowGroupReader {
    pub(super) fn new(
        plan: Arc<RowGroupPlan>,
        decoders: Vec<ColumnDecoder>,
        rows: usize,
        pages: Option<PageRows>,
        batch_rows: usize,
    ) -> Self {
        Self { plan, decoders, rows, next_row: 0, pages, batch_rows, window_rows: batch_rows }
    }

    /// Returns whether the next window reaches the last quarter of the rows.
    pub(in super::super) fn is_near_end(&self) -> bool {
        self.next_row + self.window_rows >= self.rows - self.rows / 4
    }

    /// Returns the rows of the next window that pass all conjuncts, possibly none. `None` at the
    /// end.
    pub(in super::super) fn next(
        &mut self,
        conjuncts: &mut LocalConjuncts,
    ) -> Result<Option<RecordBatch>> {
        let rows = self.window_rows.min(self.rows - self.next_row);
        if rows == 0 {
            return Ok(None);
        }
        let selection = self.pages.as_mut().map(|pages| pages.take(rows));
        let remaining = selection.as_ref().map_or(rows, BooleanBuffer::count_set_bits);
        let arrays = vec![None; self.decoders.len()];
        let mut window = RowWindow { rows, selection, remaining, arrays };
        for position in 0..conjuncts.len() {
            if window.remaining == 0 {
                break;
            }
            let Some(inputs) = conjuncts.prepare(position, rows) else { continue };
            for slot in &inputs.slots {
                self.decode(*slot, &mut window)?;
            }
            if let Some(keep) = conjuncts.evaluate(position, &window.arrays, window.remaining)? {
                window.keep(keep)?;
            }
        }
        let plan = self.plan.clone();
        if window.remaining > 0 {
            for slot in &plan.output.slots {
                self.decode(*slot, &mut window)?;
            }
        }
        self.advance(&window)?;
        conjuncts.reorder();
        self.adapt(&window);
        if window.remaining == 0 {
            return Ok(Some(RecordBatch::new_empty(plan.schema.clone())));
        }
        plan.project(&window.arrays, window.remaining).map(Some)
    }

    fn decode(&mut self, slot: usize, window: &mut RowWindow) -> Result<()> {
        if window.arrays[slot].is_none() {
            let read = self.decoders[slot].read(window.rows, window.selection.as_ref());
            let array =
                read.map_err(|error| column_error(self.plan.columns[slot].name(), error))?;
            window.arrays[slot] = Some(array);
        }
        Ok(())
    }

    /// Advances past a window. After the last one, every column must be at its end.
    fn advance(&mut self, window: &RowWindow) -> Result<()> {
        self.next_row += window.rows;
        let columns = self.decoders.iter_mut().zip(&window.arrays).zip(&self.plan.columns);
        for ((decoder, array), field) in columns {
            let skipped = if array.is_none() { decoder.skip(window.rows) } else { Ok(()) };
            let at_end = self.next_row == self.rows;
            let passed = skipped.and_then(|()| if at_end { decoder.finish() } else { Ok(()) });
            passed.map_err(|error| column_error(field.name(), error))?;
        }
        Ok(())
    }

    /// Adapts the size of the next window so that it yields about one full batch.
    fn adapt(&mut self, window: &RowWindow) {
        if window.remaining < window.rows / 4 {
            self.window_rows = (2 * self.window_rows).min(WINDOW_BATCHES * self.batch_rows);
        } else if window.remaining > window.rows / 2 {
            self.window_rows = (self.window_rows / 2).max(self.batch_rows);
        }
    }
}

impl RowWindow {
    /// Keeps the rows that are set in `keep`, which has one bit per row that has passed so far.
    fn keep(&mut self, keep: BooleanBuffer) -> Result<()> {
        self.remaining = keep.count_set_bits();
        let mask = BooleanArray::new(keep, None);
        for array in self.arrays.iter_mut().flatten() {
            *array = filter(array, &mask)?;
        }
        let (keep, _) = mask.into_parts();
        self.selection = Some(match self.selection.take() {
            Some(selection) => refine(&selection, &keep),
            None => keep,
        });
        Ok(())
    }
}

/// Returns the error for a column that cannot be decoded.
pub(super) fn column_error(column: &str, error: ParquetError) -> DataFusionError {
    let reason = match error {
        ParquetError::General(reason) | ParquetError::EOF(reason) => reason,
        error => error.to_string(),
    };
    let error = ParquetError::General(format!("column '{column}': {reason}"));
    DataFusionError::ParquetError(Box::new(error))
}
