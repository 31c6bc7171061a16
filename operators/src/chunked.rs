//! Columns stored in several arrays where one array cannot contain their values.
//!
//! A breaker that collects more text than 32-bit offsets reach cannot concatenate it. It keeps a
//! few large arrays instead, and gathers the rows of each output batch from them.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, DictionaryArray, RecordBatch, UInt32Array},
    compute::{interleave, take},
    datatypes::DataType,
};
use gatework_runtime::{Result, pipeline::column_bytes};

use crate::{
    ResultExt,
    batch_bytes::{Lengths, MAX_BATCH_BYTES, rows_within, value_bytes},
    concat::{concat_arrays, concat_arrays_cancellable},
    dictionary::{EntriesId, marked_codes},
    error::is_overflow,
};

/// Rows of a batch that an operator may decode.
const MAX_DECODED_ROWS: usize = 1 << 13;

/// Column of a table from which rows are gathered.
#[derive(Debug, Clone)]
pub(crate) enum Column {
    /// All values in one array.
    One(ArrayRef),
    /// Values in several arrays, none of which is empty.
    Several {
        /// Arrays, in order.
        arrays: Vec<ArrayRef>,
        /// Row index of each array's first row.
        starts: Vec<usize>,
    },
}

/// Returns true if values of type `kind` are located by 32-bit offsets.
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
    /// Concatenates `chunks` in order, into one array if its variable-length values have at most
    /// `bound` bytes. Calls `check` once per concatenated array or step.
    ///
    /// # Errors
    /// If the chunks differ in type, if there are none, or if `check` fails.
    pub(crate) fn concat(
        chunks: &[ArrayRef],
        bound: usize,
        check: impl Fn() -> Result<()>,
    ) -> Result<Self> {
        let kind = chunks.first().map(|chunk| chunk.data_type());
        if let Some(DataType::Dictionary(..)) = kind {
            return match concat_arrays(chunks) {
                // The chunks have more distinct values than the key type can count.
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

    /// Returns the values of `rows`, an index array without NULLs.
    ///
    /// # Errors
    /// If the values do not fit one array.
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

    /// Adds the length of the value of each of `rows` to the same index of `lengths`.
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

/// Returns the index of the array that contains row `row`, and the row's index in that array.
fn locate(starts: &[usize], row: usize) -> (usize, usize) {
    let array = starts.partition_point(|start| *start <= row) - 1;
    (array, row - starts[array])
}

fn bytes(chunks: &[ArrayRef]) -> usize {
    chunks.iter().map(|piece| value_bytes(piece)).sum()
}

/// Rows from which output rows are gathered.
pub(crate) trait Gather {
    /// Returns column `column` of `rows`, an index array without NULLs.
    ///
    /// # Errors
    /// If the values do not fit one array.
    fn gather(&self, column: usize, rows: &UInt32Array) -> Result<ArrayRef>;

    /// Returns column `column` of `rows` as a dictionary whose codes are these rows, or as plain
    /// values.
    ///
    /// # Errors
    /// If the values do not fit one array.
    fn gather_codes(&self, column: usize, rows: &UInt32Array) -> Result<ArrayRef> {
        self.gather(column, rows)
    }

    /// Returns the length of the longest value of `column`.
    fn longest(&self, column: usize) -> usize;

    /// Adds the length of the value of each of `rows` to the same index of `lengths`.
    fn add_lengths(&self, column: usize, rows: &[u32], lengths: &mut [usize]);
}

impl Gather for RecordBatch {
    fn gather(&self, column: usize, rows: &UInt32Array) -> Result<ArrayRef> {
        take(self.column(column), rows, None).query_err()
    }

    // A dictionary counts as its entries, since a consumer may decode the gathered rows.
    fn longest(&self, column: usize) -> usize {
        match marked_codes(self, column) {
            Some((codes, entries)) => LongestEntry::default().bound(codes, entries),
            None => Lengths::of(self.column(column)).longest(),
        }
    }

    fn add_lengths(&self, column: usize, rows: &[u32], lengths: &mut [usize]) {
        if let Some((codes, entries)) = marked_codes(self, column) {
            let known = Lengths::of(entries);
            for (row, length) in rows.iter().zip(lengths) {
                *length += known.at(codes[*row as usize] as usize);
            }
            return;
        }
        let known = Lengths::of(self.column(column));
        for (row, length) in rows.iter().zip(lengths) {
            *length += known.at(*row as usize);
        }
    }
}

/// Columns of a table from which rows are gathered.
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

    fn gather_codes(&self, column: usize, rows: &UInt32Array) -> Result<ArrayRef> {
        match &self.columns[column] {
            // The operator that decodes a batch makes one array of the column.
            Column::One(array)
                if !has_short_offsets(array.data_type())
                    || self.longest[column] * rows.len().max(MAX_DECODED_ROWS)
                        <= MAX_BATCH_BYTES =>
            {
                let codes = DictionaryArray::try_new(rows.clone(), array.clone());
                Ok(Arc::new(codes.query_err()?))
            }
            column => column.take(rows),
        }
    }

    fn longest(&self, column: usize) -> usize {
        self.longest[column]
    }

    fn add_lengths(&self, column: usize, rows: &[u32], lengths: &mut [usize]) {
        self.columns[column].add_lengths(rows, lengths);
    }
}

/// Maximum number of entries that are searched for the longest one at once.
const MAX_LONGEST_ENTRIES: usize = 1 << 16;

/// The longest entry of a column's current dictionary, found in time proportional to the rows.
#[derive(Debug, Default)]
struct LongestEntry {
    entries: Option<EntriesId>,
    /// Rows that were seen with these entries.
    rows: usize,
    /// Length of the longest entry; `None` until as many rows as entries were seen.
    length: Option<usize>,
}

impl LongestEntry {
    /// Returns a length that none of the entries at `codes` exceeds.
    fn bound(&mut self, codes: &[u32], entries: &ArrayRef) -> usize {
        if !self.entries.as_ref().is_some_and(|known| known.is(entries)) {
            *self = Self { entries: Some(EntriesId::of(entries)), rows: 0, length: None };
        }
        if let Some(length) = self.length {
            return length;
        }
        let lengths = Lengths::of(entries);
        self.rows = self.rows.saturating_add(codes.len());
        if self.rows >= entries.len() && entries.len() <= MAX_LONGEST_ENTRIES {
            return *self.length.insert(lengths.longest());
        }
        codes.iter().map(|code| lengths.at(*code as usize)).max().unwrap_or(0)
    }
}

/// The longest entries of a task's dictionaries, by column. Many batches have the same dictionary.
#[derive(Debug, Default)]
pub(crate) struct LongestEntries(Vec<LongestEntry>);

impl LongestEntries {
    /// Returns an upper bound for the bytes of a row of `columns`.
    pub(crate) fn longest_row(&mut self, rows: &RecordBatch, columns: &[usize]) -> usize {
        self.0.resize_with(rows.num_columns(), LongestEntry::default);
        let longest = columns.iter().map(|column| match marked_codes(rows, *column) {
            Some((codes, entries)) => self.0[*column].bound(codes, entries),
            None => rows.longest(*column),
        });
        longest.sum()
    }
}

/// One side of row pairs: the source, the gathered columns, and the row index of each pair.
pub(crate) type Side<'a> = (&'a dyn Gather, &'a [usize], &'a [u32]);

/// Returns an upper bound for the bytes of a row of `columns`.
pub(crate) fn longest_row(rows: &dyn Gather, columns: &[usize]) -> usize {
    columns.iter().map(|column| rows.longest(*column)).sum()
}

/// Returns the length of the longest prefix of the pairs of `sides` that has at most `bound` bytes
/// of variable-length values, at least 1. No pair has more than `longest` bytes.
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
