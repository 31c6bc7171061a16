//! Bytes of variable-length values: the size of a batch, and the rows at which it is split.
//!
//! Batches are bounded in rows, and a row may hold a text of megabytes. Arrow's 32-bit offsets
//! reach 2 GiB, and evaluating a batch of gigabytes delays a cancellation by seconds. Operators
//! that gather rows therefore split their output at [`MAX_BATCH_BYTES`]. Operators that evaluate
//! expressions do so on slices of [`SLICE_BYTES`].

use std::ops::Range;

use arrow::{
    array::{Array, ArrayRef, AsArray, GenericByteViewArray, OffsetSizeTrait, RecordBatch},
    buffer::Buffer,
    datatypes::{ByteViewType, DataType, Int16Type, Int32Type, Int64Type, UInt32Type},
    error::ArrowError,
};
use datafusion_common::DataFusionError;
use gatework_runtime::pipeline::column_bytes;

/// Upper bound, in bytes, for the variable-length values of a gathered batch: output of joins,
/// sorts and aggregates. A larger batch is split; a single row may exceed the bound.
pub(crate) const MAX_BATCH_BYTES: usize = if cfg!(test) { 256 << 10 } else { 64 << 20 };

/// Upper bound, in bytes, for the variable-length values of a concatenated array. A larger column
/// is kept in several arrays ([`Column`](crate::chunked::Column)). 32-bit offsets reach twice as
/// far.
pub(crate) const MAX_ARRAY_BYTES: usize = if cfg!(test) { 512 << 10 } else { 1 << 30 };

/// Upper bound, in bytes, for the variable-length values that one expression evaluation reads.
/// Between two slices a task checks whether its query was cancelled. A regular expression that
/// reads 100 MB/s takes 40 ms for a slice.
pub(crate) const SLICE_BYTES: usize = if cfg!(test) { 64 << 10 } else { 4 << 20 };

/// Length, in bytes, of the longest value that an inline view stores.
const INLINE_BYTES: usize = 12;

/// Number of views sampled to estimate the bytes of all views.
const SAMPLE_VIEWS: usize = 64;

/// Estimates of at least this number of bytes are replaced by the exact sum of all lengths.
const MIN_EXACT_BYTES: usize = SLICE_BYTES / 4;

/// Returns the bytes of `column`'s variable-length values. The result is exact for texts with
/// offsets. Views of short texts are estimated from a sample, runs and most dictionaries from the
/// average of their values. The values of `UInt32` codes, of which an operator may decode all, are
/// summed up, or have fewer bytes than the result.
pub(crate) fn value_bytes(column: &dyn Array) -> usize {
    match column.data_type() {
        DataType::Utf8 => span(column.as_string::<i32>().value_offsets()),
        DataType::LargeUtf8 => span(column.as_string::<i64>().value_offsets()),
        DataType::Binary => span(column.as_binary::<i32>().value_offsets()),
        DataType::LargeBinary => span(column.as_binary::<i64>().value_offsets()),
        DataType::Utf8View => view_bytes(column.as_string_view()),
        DataType::BinaryView => view_bytes(column.as_binary_view()),
        DataType::Dictionary(..) => match column.as_dictionary_opt::<UInt32Type>() {
            Some(codes) => bytes_of_codes(codes.keys().values(), codes.values().as_ref()),
            None => expanded(column.as_any_dictionary().values().as_ref(), column.len()),
        },
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

/// Estimates the bytes of `rows` rows, each of which has one of `values`.
fn expanded(values: &dyn Array, rows: usize) -> usize {
    let average = value_bytes(values).div_ceil(values.len().max(1));
    average.saturating_mul(rows)
}

/// Returns a bound for the bytes of the values with these codes: their sum, or less than
/// [`MIN_EXACT_BYTES`]. A sample of the codes would miss a large value. Values without lengths of
/// their own are estimated from their average.
fn bytes_of_codes(codes: &[u32], values: &dyn Array) -> usize {
    let lengths = Lengths::of(values);
    if matches!(lengths, Lengths::Even(_)) {
        return expanded(values, codes.len());
    }
    if values.len() <= codes.len() {
        let bound = lengths.longest().saturating_mul(codes.len());
        if bound < MIN_EXACT_BYTES {
            return bound;
        }
    }
    // The code of a NULL may be anything.
    let codes = codes.iter().map(|code| *code as usize).filter(|code| *code < values.len());
    codes.map(|code| lengths.at(code)).sum()
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

/// Lengths of a column's values.
#[derive(Debug)]
pub(crate) enum Lengths<'a> {
    /// 32-bit offsets of the values.
    Offsets(&'a [i32]),
    /// 64-bit offsets of the values.
    LargeOffsets(&'a [i64]),
    /// Views of the values.
    Views(&'a [u128]),
    /// Average length, used for every row.
    Even(usize),
}

impl<'a> Lengths<'a> {
    /// Returns the lengths of `column`'s values. Encoded values count 0, since gathered rows share
    /// them. A consumer that may decode a dictionary counts the lengths of its entries instead.
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

    /// Returns the length of the value in row `row`.
    #[inline]
    pub(crate) fn at(&self, row: usize) -> usize {
        match self {
            Self::Offsets(offsets) => (offsets[row + 1] - offsets[row]) as usize,
            Self::LargeOffsets(offsets) => (offsets[row + 1] - offsets[row]) as usize,
            Self::Views(views) => view_length(&views[row]),
            Self::Even(length) => *length,
        }
    }

    /// Returns the maximum length.
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

/// Returns the length of the longest prefix of `rows` rows that has at most `bound` bytes; 1 if the
/// first row alone exceeds the bound.
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

/// Returns row ranges of `columns` whose values have at most `bound` bytes each, or that are a
/// single row. Returns `None` if all `rows` rows are within the bound.
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

/// Returns `rows` in slices whose values have at most `bound` bytes each, or that are a single row.
pub(crate) fn split_by_bytes(rows: &RecordBatch, bound: usize) -> Vec<RecordBatch> {
    match slice_ranges(rows.columns(), rows.num_rows(), bound) {
        Some(ranges) => ranges.iter().map(|range| rows.slice(range.start, range.len())).collect(),
        None => vec![rows.clone()],
    }
}

/// Returns true if `error` says that a result does not fit one array. Half of the rows may fit.
pub(crate) fn is_overflow(error: &DataFusionError) -> bool {
    match error.find_root() {
        DataFusionError::ArrowError(error, _) => matches!(
            error.as_ref(),
            ArrowError::OffsetOverflowError(_) | ArrowError::DictionaryKeyOverflowError
        ),
        // DataFusion's functions have no error variant for overflow.
        DataFusionError::Execution(message) => {
            message.contains("offset overflow") || message.contains("size overflow")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
