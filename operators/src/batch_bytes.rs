//! Bytes of variable-length values: how large a batch is, and where it is cut.
//!
//! Batches are bounded in rows, and a row may hold a text of megabytes. Arrow's offsets of 32 bits
//! reach 2 GiB, and evaluating a batch of gigabytes delays a cancel by seconds. Operators that
//! gather rows therefore cut their output by [`MAX_BATCH_BYTES`], and operators that evaluate
//! expressions do so in slices of [`SLICE_BYTES`].

use std::ops::Range;

use arrow::{
    array::{Array, ArrayRef, AsArray, GenericByteViewArray, OffsetSizeTrait, RecordBatch},
    buffer::Buffer,
    datatypes::{ByteViewType, DataType, Int16Type, Int32Type, Int64Type},
    error::ArrowError,
};
use datafusion_common::DataFusionError;
use gatework_runtime::pipeline::column_bytes;

/// Bounds, in bytes, the variable-length values of a batch whose rows an operator gathers: output
/// of joins, sorts and aggregates. A batch that would exceed it is cut; a single row may exceed it.
pub(crate) const MAX_BATCH_BYTES: usize = if cfg!(test) { 256 << 10 } else { 64 << 20 };

/// Bounds, in bytes, the variable-length values of an array that is concatenated from several. A
/// column that exceeds it is kept in several arrays ([`Column`](crate::chunked::Column)). Offsets
/// of 32 bits reach twice as far.
pub(crate) const MAX_ARRAY_BYTES: usize = if cfg!(test) { 512 << 10 } else { 1 << 30 };

/// Bounds, in bytes, the variable-length values that an expression is evaluated on at a time.
/// Between two slices a task checks whether its query was cancelled. A regular expression that
/// reads 100 MB a second takes 40 ms for a slice.
pub(crate) const SLICE_BYTES: usize = if cfg!(test) { 64 << 10 } else { 4 << 20 };

/// The longest value that an inline view holds.
const INLINE_BYTES: usize = 12;

/// Number of views that are sampled to estimate the bytes of all.
const SAMPLE_VIEWS: usize = 64;

/// Estimates from this size on are replaced by the sum of all lengths.
const MIN_EXACT_BYTES: usize = SLICE_BYTES / 4;

/// Returns the bytes of `column`'s variable-length values, in time that does not depend on its
/// rows: exactly for texts with offsets, by a sample for views of short texts and for encoded
/// values.
pub(crate) fn value_bytes(column: &dyn Array) -> usize {
    match column.data_type() {
        DataType::Utf8 => span(column.as_string::<i32>().value_offsets()),
        DataType::LargeUtf8 => span(column.as_string::<i64>().value_offsets()),
        DataType::Binary => span(column.as_binary::<i32>().value_offsets()),
        DataType::LargeBinary => span(column.as_binary::<i64>().value_offsets()),
        DataType::Utf8View => view_bytes(column.as_string_view()),
        DataType::BinaryView => view_bytes(column.as_binary_view()),
        DataType::Dictionary(..) => {
            expanded(column.as_any_dictionary().values().as_ref(), column.len())
        }
        DataType::RunEndEncoded(ends, _) => match ends.data_type() {
            DataType::Int16 => expanded(column.as_run::<Int16Type>().values(), column.len()),
            DataType::Int32 => expanded(column.as_run::<Int32Type>().values(), column.len()),
            _ => expanded(column.as_run::<Int64Type>().values(), column.len()),
        },
        DataType::Struct(_) => sum_of(column.as_struct().columns()),
        kind if kind.is_nested() => column_bytes(column),
        _ => 0,
    }
}

/// Returns the [`value_bytes`] of all `columns`.
pub(crate) fn sum_of(columns: &[ArrayRef]) -> usize {
    columns.iter().map(|column| value_bytes(column.as_ref())).sum()
}

fn span<O: OffsetSizeTrait>(offsets: &[O]) -> usize {
    match offsets {
        [first, .., last] => last.as_usize() - first.as_usize(),
        _ => 0,
    }
}

/// Estimates the bytes of `rows` rows that each have one of `values`.
fn expanded(values: &dyn Array, rows: usize) -> usize {
    let average = value_bytes(values).div_ceil(values.len().max(1));
    average.saturating_mul(rows)
}

fn view_bytes<T: ByteViewType>(column: &GenericByteViewArray<T>) -> usize {
    let views = column.views();
    let buffers: usize = column.data_buffers().iter().map(Buffer::len).sum();
    if buffers == 0 {
        return INLINE_BYTES * views.len();
    }
    let step = views.len().div_ceil(SAMPLE_VIEWS).max(1);
    let estimate = step * views.iter().step_by(step).map(view_length).sum::<usize>();
    // A large value that the sample misses makes the buffers large.
    match estimate.max(buffers) < MIN_EXACT_BYTES {
        true => estimate,
        false => views.iter().map(view_length).sum(),
    }
}

fn view_length(view: &u128) -> usize {
    *view as u32 as usize
}

/// Tells the lengths of a column's values.
#[derive(Debug)]
pub(crate) enum Lengths<'a> {
    /// Values between these offsets.
    Offsets(&'a [i32]),
    /// Values between these offsets.
    LargeOffsets(&'a [i64]),
    /// Values of these views.
    Views(&'a [u128]),
    /// The average of all rows.
    Even(usize),
}

impl<'a> Lengths<'a> {
    /// Returns the lengths of `column`'s values. Those of encoded values are 0: gathered rows share
    /// them.
    pub(crate) fn of(column: &'a dyn Array) -> Self {
        match column.data_type() {
            DataType::Utf8 => Self::Offsets(column.as_string::<i32>().value_offsets()),
            DataType::Binary => Self::Offsets(column.as_binary::<i32>().value_offsets()),
            DataType::LargeUtf8 => Self::LargeOffsets(column.as_string::<i64>().value_offsets()),
            DataType::LargeBinary => Self::LargeOffsets(column.as_binary::<i64>().value_offsets()),
            DataType::Utf8View => Self::Views(column.as_string_view().views()),
            DataType::BinaryView => Self::Views(column.as_binary_view().views()),
            DataType::Dictionary(..) | DataType::RunEndEncoded(..) => Self::Even(0),
            _ => Self::Even(value_bytes(column).div_ceil(column.len().max(1))),
        }
    }

    /// Returns the length of row `row`'s value.
    #[inline]
    pub(crate) fn at(&self, row: usize) -> usize {
        match self {
            Self::Offsets(offsets) => (offsets[row + 1] - offsets[row]) as usize,
            Self::LargeOffsets(offsets) => (offsets[row + 1] - offsets[row]) as usize,
            Self::Views(views) => view_length(&views[row]),
            Self::Even(length) => *length,
        }
    }

    /// Returns the greatest of the lengths.
    pub(crate) fn longest(&self) -> usize {
        let longest = match self {
            Self::Offsets(offsets) => {
                offsets.windows(2).map(|ends| (ends[1] - ends[0]) as usize).max()
            }
            Self::LargeOffsets(offsets) => {
                offsets.windows(2).map(|ends| (ends[1] - ends[0]) as usize).max()
            }
            Self::Views(views) => views.iter().map(view_length).max(),
            Self::Even(length) => Some(*length),
        };
        longest.unwrap_or(0)
    }
}

/// Returns how many of `rows` rows, from the first on, have at most `bound` bytes together; 1 if
/// the first row alone has more.
pub(crate) fn rows_within(bound: usize, rows: usize, bytes: impl Fn(usize) -> usize) -> usize {
    let mut sum = 0_usize;
    for row in 0..rows {
        sum = sum.saturating_add(bytes(row));
        if sum > bound {
            return row.max(1);
        }
    }
    rows
}

/// Returns ranges of the `rows` rows of `columns` whose values have at most `bound` bytes each, or
/// that are one row; `None` if all rows are within the bound.
pub(crate) fn slice_ranges(
    columns: &[ArrayRef],
    rows: usize,
    bound: usize,
) -> Option<Vec<Range<usize>>> {
    if sum_of(columns) <= bound || rows < 2 {
        return None;
    }
    let mut ranges = Vec::new();
    let mut pending: Vec<Range<usize>> = std::iter::once(0..rows).collect();
    while let Some(range) = pending.pop() {
        let bytes = |column: &ArrayRef| value_bytes(&column.slice(range.start, range.len()));
        if range.len() < 2 || columns.iter().map(bytes).sum::<usize>() <= bound {
            ranges.push(range);
            continue;
        }
        let middle = range.start + range.len() / 2;
        pending.push(middle..range.end);
        pending.push(range.start..middle);
    }
    Some(ranges)
}

/// Returns `rows` in slices whose values have at most `bound` bytes each, or that are one row.
pub(crate) fn split_by_bytes(rows: &RecordBatch, bound: usize) -> Vec<RecordBatch> {
    match slice_ranges(rows.columns(), rows.num_rows(), bound) {
        Some(ranges) => ranges.iter().map(|range| rows.slice(range.start, range.len())).collect(),
        None => vec![rows.clone()],
    }
}

/// Tells whether `error` says that a result does not fit one array; that of half the rows may fit.
pub(crate) fn is_overflow(error: &DataFusionError) -> bool {
    match error.find_root() {
        DataFusionError::ArrowError(error, _) => matches!(
            error.as_ref(),
            ArrowError::OffsetOverflowError(_) | ArrowError::DictionaryKeyOverflowError
        ),
        // DataFusion's functions have no variant of their own for it.
        DataFusionError::Execution(message) => {
            message.contains("offset overflow") || message.contains("size overflow")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
