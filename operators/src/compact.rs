//! From a batch with a selection to contiguous columns, and to columns that can be kept.

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions},
    buffer::Buffer,
    compute::filter_record_batch,
    datatypes::DataType,
};
use gatework_runtime::{Result, pipeline::Batch};

use crate::{OrFail, concat::gather_views};

/// A column of views that refers to less than this part of its buffers is copied before it is kept.
const WORTH_KEEPING: usize = 4;

/// `rows` as a breaker may keep them: views that would keep much alive that nobody else refers to any more,
/// as those of a join's output do, get buffers of their own.
///
/// # Errors
/// If Arrow refuses the columns, which have not changed in type.
pub(crate) fn to_keep(rows: RecordBatch) -> Result<RecordBatch> {
    let alive = |buffers: &[Buffer]| buffers.iter().map(Buffer::len).sum::<usize>();
    let wasteful = |column: &ArrayRef| match column.data_type() {
        DataType::Utf8View => {
            let views = column.as_string_view();
            alive(views.data_buffers()) > WORTH_KEEPING * views.total_buffer_bytes_used()
        }
        DataType::BinaryView => {
            let views = column.as_binary_view();
            alive(views.data_buffers()) > WORTH_KEEPING * views.total_buffer_bytes_used()
        }
        _ => false,
    };
    if !rows.columns().iter().any(wasteful) {
        return Ok(rows);
    }
    let columns = rows.columns().iter().map(|column| match wasteful(column) {
        true => gather_views(column),
        false => column.clone(),
    });
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    RecordBatch::try_new_with_options(rows.schema(), columns.collect(), &options).or_fail()
}

/// The selected rows of `batch` as contiguous columns; free if all rows are selected.
///
/// # Errors
/// If Arrow cannot gather a column.
pub fn compact(batch: Batch) -> Result<RecordBatch> {
    match batch.into_parts() {
        (data, None) => Ok(data),
        (data, Some(selection)) => {
            filter_record_batch(&data, &BooleanArray::new(selection, None)).or_fail()
        }
    }
}
