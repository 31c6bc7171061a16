//! Sorted rows, gathered in chunks: all at once for a run in memory, one by one for a spilled run.
//!
//! A chunk has the row count of an output batch, or fewer rows if their texts exceed the bytes of a
//! batch. Collected text that does not fit one array is gathered from several arrays.

use std::{ops::Range, vec};

use arrow::{
    array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, UInt32Array},
    buffer::ScalarBuffer,
    compute::interleave,
    datatypes::SchemaRef,
};
use gatework_runtime::{Result, pipeline::DriverContext};

use crate::{
    ResultExt,
    batch_bytes::{Lengths, MAX_ARRAY_BYTES, MAX_BATCH_BYTES, rows_within, sum_of},
    chunked::Column,
    spill::gc_batch_views,
};

/// Returns the ranges of `order` that become chunks: `max_rows` rows, or fewer if the
/// variable-length values of the rows exceed `bound` bytes.
pub(super) fn chunk_ranges(
    batches: &[RecordBatch],
    order: &[u32],
    max_rows: usize,
    bound: usize,
) -> Vec<Range<usize>> {
    let even = |first: usize| first..order.len().min(first + max_rows);
    let longest = || batches.iter().map(longest_row).max().unwrap_or(0);
    let bytes: usize = batches.iter().map(|batch| sum_of(batch.columns())).sum();
    if bytes <= bound || longest().saturating_mul(max_rows) <= bound {
        return (0..order.len()).step_by(max_rows).map(even).collect();
    }
    let lengths: Vec<usize> = batches.iter().flat_map(row_lengths).collect();
    let (mut ranges, mut first) = (Vec::new(), 0);
    while first < order.len() {
        let rows = even(first).len();
        let length = |row: usize| lengths[order[first + row] as usize];
        let end = first + rows_within(bound, rows, length);
        ranges.push(first..end);
        first = end;
    }
    ranges
}

fn longest_row(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(|column| Lengths::of(column).longest()).sum()
}

fn row_lengths(batch: &RecordBatch) -> Vec<usize> {
    let mut lengths = vec![0; batch.num_rows()];
    for column in batch.columns() {
        let known = Lengths::of(column);
        lengths.iter_mut().enumerate().for_each(|(row, length)| *length += known.at(row));
    }
    lengths
}

/// Gathers the rows of `batches` in `order`, in chunks. It works column by column, so two copies of
/// all rows never exist at once.
pub(super) fn gather_chunks(
    schema: &SchemaRef,
    batches: Vec<RecordBatch>,
    order: &ScalarBuffer<u32>,
    max_rows: usize,
    task: &DriverContext,
) -> Result<Vec<RecordBatch>> {
    let rows: Vec<_> = chunk_ranges(&batches, order, max_rows, MAX_BATCH_BYTES)
        .into_iter()
        .map(|range| UInt32Array::new(order.slice(range.start, range.len()), None))
        .collect();
    let mut remaining: Vec<_> =
        batches.into_iter().map(|batch| batch.into_parts().1.into_iter()).collect();
    let mut sorted = vec![Vec::with_capacity(schema.fields().len()); rows.len()];
    for _column in schema.fields() {
        task.check_cancelled()?;
        let arrays: Vec<ArrayRef> = remaining.iter_mut().filter_map(Iterator::next).collect();
        let all = Column::concat(&arrays, MAX_ARRAY_BYTES, || task.check_cancelled())?;
        drop(arrays);
        for (chunk, rows) in sorted.iter_mut().zip(&rows) {
            task.check_cancelled()?;
            chunk.push(all.take(rows)?);
        }
    }
    let chunks = sorted.into_iter().zip(&rows).map(|(columns, rows)| {
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        RecordBatch::try_new_with_options(schema.clone(), columns, &options).query_err()
    });
    chunks.collect()
}

/// Sorted rows, produced batch by batch.
pub(super) struct SortedBatches {
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
    /// Row index of each batch's first row.
    starts: Vec<u32>,
    order: Vec<u32>,
    /// Ranges of `order` that have not been produced.
    remaining: vec::IntoIter<Range<usize>>,
}

impl SortedBatches {
    /// Creates the iterator over the rows of `batches` in `order`, at most `max_rows` per batch.
    pub(super) fn new(
        schema: SchemaRef,
        batches: Vec<RecordBatch>,
        order: Vec<u32>,
        max_rows: usize,
    ) -> Self {
        let mut starts = Vec::with_capacity(batches.len());
        let mut rows = 0;
        for batch in &batches {
            starts.push(rows);
            rows += batch.num_rows() as u32;
        }
        let remaining = chunk_ranges(&batches, &order, max_rows, MAX_BATCH_BYTES).into_iter();
        Self { schema, batches, starts, order, remaining }
    }

    /// Returns the number of remaining batches.
    pub(super) fn remaining_batches(&self) -> usize {
        self.remaining.len()
    }

    fn batch(&self, rows: &[u32]) -> Result<RecordBatch> {
        let position = |row: &u32| {
            let batch = self.starts.partition_point(|start| start <= row) - 1;
            (batch, (row - self.starts[batch]) as usize)
        };
        let indices: Vec<_> = rows.iter().map(position).collect();
        // Interleaved column by column, because batches may differ in the nullability of columns.
        let column = |index: usize| {
            let columns: Vec<&dyn Array> =
                self.batches.iter().map(|batch| batch.column(index).as_ref()).collect();
            interleave(&columns, &indices)
        };
        let columns = (0..self.schema.fields().len()).map(column);
        let columns = columns.collect::<Result<Vec<_>, _>>().query_err()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        let rows = RecordBatch::try_new_with_options(self.schema.clone(), columns, &options);
        gc_batch_views(&rows.query_err()?)
    }
}

impl Iterator for SortedBatches {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let range = self.remaining.next()?;
        Some(self.batch(&self.order[range]))
    }
}
