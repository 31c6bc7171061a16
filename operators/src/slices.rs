//! Slices of a large batch, on which an operator evaluates its expressions one at a time.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use arrow::array::RecordBatch;
use datafusion_physical_expr::{PhysicalExpr, expressions::Column, utils::collect_columns};
use gatework_runtime::{
    Result,
    pipeline::{Batch, DriverContext, OperatorResult},
};

use crate::batch_bytes::{SLICE_BYTES, slice_ranges, value_bytes};

/// Input batch of an operator in slices of bounded bytes. A batch within the bound is one slice.
#[derive(Debug)]
pub(crate) struct Slices {
    remaining: VecDeque<Batch>,
    bound: usize,
}

impl Default for Slices {
    fn default() -> Self {
        Self::within(SLICE_BYTES)
    }
}

impl Slices {
    /// Creates slices whose variable-length values have at most `bound` bytes, or that are a single
    /// row.
    pub(crate) fn within(bound: usize) -> Self {
        Self { remaining: VecDeque::new(), bound }
    }

    /// Takes `batch`, on which expressions over `columns` are evaluated.
    pub(crate) fn begin(&mut self, batch: Batch, columns: &[usize]) {
        match ranges(batch.data(), columns, self.bound) {
            Some(ranges) => {
                self.remaining.extend(ranges.into_iter().map(|range| slice(&batch, range)))
            }
            None => self.remaining.push_back(batch),
        }
    }

    /// Returns the next slice; `None` when the batch is used up.
    pub(crate) fn next(&mut self) -> Option<Batch> {
        self.remaining.pop_front()
    }

    /// Takes the halves of `batch` as the next slices.
    pub(crate) fn halve(&mut self, batch: &Batch) {
        let (rows, middle) = (batch.num_physical_rows(), batch.num_physical_rows() / 2);
        self.remaining.push_front(slice(batch, middle..rows));
        self.remaining.push_front(slice(batch, 0..middle));
    }

    /// Returns the result of an operator that produced `output` from a slice.
    pub(crate) fn operator_result(&self, output: Batch) -> OperatorResult {
        match self.remaining.is_empty() {
            true => OperatorResult::Batch(output),
            false => OperatorResult::HaveMoreOutput(output),
        }
    }

    /// Checks between two slices for cancellation, and returns whether the task should yield.
    ///
    /// # Errors
    /// If the query was cancelled.
    pub(crate) fn should_yield(&self, task: &DriverContext) -> Result<bool> {
        if self.remaining.is_empty() {
            return Ok(false);
        }
        task.check_cancelled()?;
        Ok(task.should_yield())
    }
}

/// Returns the columns that the computed `expressions` read.
pub(crate) fn computed_from<'a>(
    expressions: impl Iterator<Item = &'a Arc<dyn PhysicalExpr>>,
) -> Vec<usize> {
    let computed = expressions.filter(|expression| !expression.is::<Column>());
    let mut columns: Vec<usize> =
        computed.flat_map(collect_columns).map(|column| column.index()).collect();
    columns.sort_unstable();
    columns.dedup();
    columns
}

/// Returns row ranges of `data` whose values in `columns` have at most `bound` bytes each, or that
/// are a single row. Returns `None` if all rows are within the bound.
fn ranges(data: &RecordBatch, columns: &[usize], bound: usize) -> Option<Vec<Range<usize>>> {
    let bytes = |column: &usize| value_bytes(data.column(*column));
    if columns.iter().map(bytes).sum::<usize>() <= bound {
        return None;
    }
    let used: Vec<_> = columns.iter().map(|column| data.column(*column).clone()).collect();
    slice_ranges(&used, data.num_rows(), bound)
}

/// Calls `each` with `data`, or with slices of it whose values in `columns` are within
/// [`SLICE_BYTES`]. Between slices it checks whether `task` was cancelled.
///
/// # Errors
/// The error of `each`, or if the query was cancelled.
pub(crate) fn for_each_slice(
    data: &RecordBatch,
    columns: &[usize],
    task: &DriverContext,
    mut each: impl FnMut(&RecordBatch) -> Result<()>,
) -> Result<()> {
    let Some(ranges) = ranges(data, columns, SLICE_BYTES) else { return each(data) };
    ranges.into_iter().try_for_each(|range| {
        task.check_cancelled()?;
        each(&data.slice(range.start, range.len()))
    })
}

fn slice(batch: &Batch, range: Range<usize>) -> Batch {
    let data = batch.data().slice(range.start, range.len());
    let slice = match batch.selection() {
        Some(selection) => Batch::with_selection(data, selection.slice(range.start, range.len())),
        None => Batch::new(data),
    };
    slice.with_sequence(batch.sequence())
}
