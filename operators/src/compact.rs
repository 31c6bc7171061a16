//! From a batch with a selection to contiguous columns, and to columns that a breaker can buffer.

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions},
    buffer::Buffer,
    compute::filter_record_batch,
    datatypes::DataType,
};
use gatework_runtime::{Result, pipeline::Batch};

use crate::{ResultExt, concat::gc_views};

/// A view column that refers to less than 1 in this number of its buffers' bytes is copied before
/// it is buffered.
const MAX_BUFFER_RATIO: usize = 4;

/// Returns `rows` for buffering in a breaker. Sparse views, such as those of a join's output, get
/// buffers of their own, since they would keep otherwise unreferenced buffers alive.
///
/// # Errors
/// If Arrow rejects the columns, whose types are unchanged.
pub(crate) fn compact_views(rows: RecordBatch) -> Result<RecordBatch> {
    let buffer_bytes = |buffers: &[Buffer]| buffers.iter().map(Buffer::len).sum::<usize>();
    let is_sparse = |column: &ArrayRef| match column.data_type() {
        DataType::Utf8View => {
            let views = column.as_string_view();
            buffer_bytes(views.data_buffers()) > MAX_BUFFER_RATIO * views.total_buffer_bytes_used()
        }
        DataType::BinaryView => {
            let views = column.as_binary_view();
            buffer_bytes(views.data_buffers()) > MAX_BUFFER_RATIO * views.total_buffer_bytes_used()
        }
        _ => false,
    };
    if !rows.columns().iter().any(is_sparse) {
        return Ok(rows);
    }
    let columns = rows.columns().iter().map(|column| match is_sparse(column) {
        true => gc_views(column),
        false => column.clone(),
    });
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    RecordBatch::try_new_with_options(rows.schema(), columns.collect(), &options).query_err()
}

/// Returns the selected rows of `batch` as contiguous columns; no copy if all rows are selected.
///
/// # Errors
/// If Arrow cannot gather a column.
pub fn apply_selection(batch: Batch) -> Result<RecordBatch> {
    match batch.into_parts() {
        (data, None) => Ok(data),
        (data, Some(selection)) => {
            filter_record_batch(&data, &BooleanArray::new(selection, None)).query_err()
        }
    }
}
