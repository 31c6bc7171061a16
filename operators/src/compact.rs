//! From a batch with a selection to contiguous columns.

use arrow::{
    array::{BooleanArray, RecordBatch},
    compute::filter_record_batch,
};
use gatework_runtime::{Result, pipeline::Batch};

use crate::OrFail;

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
