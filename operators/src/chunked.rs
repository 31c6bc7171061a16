//! Columns that are kept in several arrays where one array could not hold their values.
//!
//! A breaker that collects more text than offsets of 32 bits reach cannot concatenate it. It keeps
//! a few large arrays instead, and gathers the rows of each output batch from them.

use arrow::{
    array::{Array, ArrayRef, RecordBatch, UInt32Array},
    compute::{interleave, take},
    datatypes::DataType,
};
use gatework_runtime::{Result, pipeline::column_bytes};

use crate::{
    ResultExt,
    batch_bytes::{Lengths, rows_within, value_bytes},
    concat::{concat_arrays, concat_arrays_cancellable},
    error::is_overflow,
};

/// A column of a table that rows are gathered from.
#[derive(Debug, Clone)]
pub(crate) enum Column {
    /// All values in one array.
    One(ArrayRef),
    /// Values in several arrays, none of which is empty.
    Several {
        /// The arrays, in order.
        arrays: Vec<ArrayRef>,
        /// The number of each array's first row.
        starts: Vec<usize>,
    },
}

/// Tells whether offsets of 32 bits say where values of type `kind` are.
fn has_short_offsets(kind: &DataType) -> bool {
    match kind {
        DataType::Utf8 | DataType::Binary | DataType::List(_) | DataType::Map(..) => true,
        DataType::LargeList(field) | DataType::FixedSizeList(field, _) => {
            has_short_offsets(field.data_type())
        }
        DataType::Struct(fields) => fields.iter().any(|field| has_short_offsets(field.data_type())),
        _ => false,
    }
}

impl Column {
    /// Returns the values of `pieces` in order: in one array if its variable-length values have at
    /// most `bound` bytes. Calls `check` now and then.
    ///
    /// # Errors
    /// If the pieces differ in type, or there are none, and that of `check`.
    pub(crate) fn concat(
        chunks: &[ArrayRef],
        bound: usize,
        check: impl Fn() -> Result<()>,
    ) -> Result<Self> {
        let kind = chunks.first().map(|chunk| chunk.data_type());
        if let Some(DataType::Dictionary(..)) = kind {
            return match concat_arrays(chunks) {
                // Their values are more than the keys can count.
                Err(error) if is_overflow(&error) => Ok(Self::several(chunks.to_vec())),
                whole => whole.map(Self::One),
            };
        }
        if !kind.is_some_and(has_short_offsets) || bytes(chunks) <= bound {
            return concat_arrays_cancellable(chunks, check).map(Self::One);
        }
        let (mut arrays, mut remaining) = (Vec::new(), chunks);
        while !remaining.is_empty() {
            check()?;
            let within =
                rows_within(bound, remaining.len(), |index| value_bytes(&remaining[index]));
            let (now, later) = remaining.split_at(within);
            arrays.push(concat_arrays(now)?);
            remaining = later;
        }
        Ok(Self::several(arrays))
    }

    fn several(mut arrays: Vec<ArrayRef>) -> Self {
        arrays.retain(|array| !array.is_empty());
        let mut rows = 0;
        let starts = arrays.iter().map(|array| {
            rows += array.len();
            rows - array.len()
        });
        Self::Several { starts: starts.collect(), arrays }
    }

    fn arrays(&self) -> &[ArrayRef] {
        match self {
            Self::One(array) => std::slice::from_ref(array),
            Self::Several { arrays, .. } => arrays,
        }
    }

    /// Returns the values of `rows`, none of which is NULL.
    ///
    /// # Errors
    /// If they do not fit one array.
    pub(crate) fn take(&self, rows: &UInt32Array) -> Result<ArrayRef> {
        match self {
            Self::One(array) => take(array, rows, None).query_err(),
            Self::Several { arrays, starts } => {
                let position = |row: &u32| locate(starts, *row as usize);
                let indices: Vec<_> = rows.values().iter().map(position).collect();
                let arrays: Vec<&dyn Array> = arrays.iter().map(AsRef::as_ref).collect();
                interleave(&arrays, &indices).query_err()
            }
        }
    }

    /// Returns the length of the longest value.
    fn longest(&self) -> usize {
        let longest = self.arrays().iter().map(|array| Lengths::of(array).longest());
        longest.max().unwrap_or(0)
    }

    /// Adds the length of each of `rows` to its place in `lengths`.
    fn add_lengths(&self, rows: &[u32], lengths: &mut [usize]) {
        let known: Vec<Lengths<'_>> =
            self.arrays().iter().map(|array| Lengths::of(array)).collect();
        for (row, length) in rows.iter().zip(lengths) {
            *length += match self {
                Self::One(_) => known[0].at(*row as usize),
                Self::Several { starts, .. } => {
                    let (array, row) = locate(starts, *row as usize);
                    known[array].at(row)
                }
            };
        }
    }
}

/// Returns the array that has row `row`, and the row's number there.
fn locate(starts: &[usize], row: usize) -> (usize, usize) {
    let array = starts.partition_point(|start| *start <= row) - 1;
    (array, row - starts[array])
}

fn bytes(chunks: &[ArrayRef]) -> usize {
    chunks.iter().map(|piece| value_bytes(piece)).sum()
}

/// Rows that others are gathered from.
pub(crate) trait Gather {
    /// Returns column `column` of `rows`, none of which is NULL.
    ///
    /// # Errors
    /// If its values do not fit one array.
    fn gather(&self, column: usize, rows: &UInt32Array) -> Result<ArrayRef>;

    /// Returns the length of the longest value of `column`.
    fn longest(&self, column: usize) -> usize;

    /// Adds the length of the value of each of `rows` to its place in `lengths`.
    fn add_lengths(&self, column: usize, rows: &[u32], lengths: &mut [usize]);
}

impl Gather for RecordBatch {
    fn gather(&self, column: usize, rows: &UInt32Array) -> Result<ArrayRef> {
        take(self.column(column), rows, None).query_err()
    }

    fn longest(&self, column: usize) -> usize {
        Lengths::of(self.column(column)).longest()
    }

    fn add_lengths(&self, column: usize, rows: &[u32], lengths: &mut [usize]) {
        let known = Lengths::of(self.column(column));
        for (row, length) in rows.iter().zip(lengths) {
            *length += known.at(*row as usize);
        }
    }
}

/// The columns of a table that rows are gathered from.
#[derive(Debug)]
pub(crate) struct Columns {
    columns: Vec<Column>,
    longest: Vec<usize>,
}

impl Columns {
    pub(crate) fn new(columns: Vec<Column>) -> Self {
        let longest = columns.iter().map(Column::longest).collect();
        Self { columns, longest }
    }

    /// Returns the bytes of all columns.
    pub(crate) fn bytes(&self) -> usize {
        let arrays = self.columns.iter().flat_map(Column::arrays);
        arrays.map(|array| column_bytes(array.as_ref())).sum()
    }
}

impl Gather for Columns {
    fn gather(&self, column: usize, rows: &UInt32Array) -> Result<ArrayRef> {
        self.columns[column].take(rows)
    }

    fn longest(&self, column: usize) -> usize {
        self.longest[column]
    }

    fn add_lengths(&self, column: usize, rows: &[u32], lengths: &mut [usize]) {
        self.columns[column].add_lengths(rows, lengths);
    }
}

/// Rows of one side of pairs, and the columns of them that are gathered.
pub(crate) type Side<'a> = (&'a dyn Gather, &'a [usize], &'a [u32]);

/// Returns the length of the longest row of `columns` that `rows` may have.
pub(crate) fn longest_row(rows: &dyn Gather, columns: &[usize]) -> usize {
    columns.iter().map(|column| rows.longest(*column)).sum()
}

/// Returns how many of the pairs of `sides`, from the first on, have at most `bound` bytes of
/// variable-length values together, and at least 1. No pair has more than `longest` bytes.
pub(crate) fn pairs_within(bound: usize, longest: usize, sides: [Side<'_>; 2]) -> usize {
    let pairs = sides[0].2.len();
    if longest.saturating_mul(pairs) <= bound {
        return pairs;
    }
    let mut lengths = vec![0; pairs];
    for (side, columns, rows) in sides {
        columns.iter().for_each(|column| side.add_lengths(*column, rows, &mut lengths));
    }
    rows_within(bound, pairs, |pair| lengths[pair])
}

#[cfg(test)]
mod tests;
