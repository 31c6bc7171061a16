//! Concatenation of several arrays or batches.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions},
    compute::concat,
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use gatework_runtime::Result;

use crate::ResultExt;

/// Average number of buffers per view array above which the strings of each array are copied first.
const BUFFERS_PER_ARRAY: usize = 4;

/// A concatenated view column with fewer rows per buffer than this is copied into one buffer. A
/// take from such a column copies the list of its buffers.
const ROWS_PER_BUFFER: usize = 1024;

/// Approximate number of view rows that are concatenated in one step, into one buffer if they have
/// many small ones.
const ROWS_PER_STEP: usize = 1 << 16;

/// Concatenates `arrays` in order; no copy if there is one.
///
/// # Errors
/// If the arrays differ in type, or there are none.
pub(crate) fn concat_arrays(arrays: &[ArrayRef]) -> Result<ArrayRef> {
    concat_arrays_cancellable(arrays, || Ok(()))
}

/// Concatenates `arrays` like [`concat_arrays`], and calls `check` once per step. The views of many
/// strings take long.
///
/// Every slice of a view column refers to all buffers of the whole, and Arrow concatenates these
/// lists. A thousand slices of a column with a thousand buffers would make a million. Arrays with
/// many buffers are therefore first copied into one buffer each. A step whose result still has many
/// small buffers is copied into one buffer.
///
/// # Errors
/// If the arrays differ in type, if there are none, or if `check` fails.
pub(crate) fn concat_arrays_cancellable(
    arrays: &[ArrayRef],
    check: impl Fn() -> Result<()>,
) -> Result<ArrayRef> {
    if let [only] = arrays {
        return Ok(only.clone());
    }
    if arrays.iter().all(|array| view_buffers(array) == 0) {
        return concat_all(arrays);
    }
    let (mut steps, mut remaining) = (Vec::new(), arrays);
    while !remaining.is_empty() {
        check()?;
        let mut rows = 0;
        let few = remaining.iter().take_while(|array| {
            let begins = rows < ROWS_PER_STEP;
            rows += array.len();
            begins
        });
        let (now, later) = remaining.split_at(few.count());
        steps.push(concat_views(now)?);
        remaining = later;
    }
    match &steps[..] {
        [only] => Ok(only.clone()),
        steps => concat_all(steps),
    }
}

/// Concatenates the view arrays of one step.
fn concat_views(arrays: &[ArrayRef]) -> Result<ArrayRef> {
    let buffers: usize = arrays.iter().map(view_buffers).sum();
    let whole = if buffers > BUFFERS_PER_ARRAY * arrays.len() {
        concat_all(&arrays.iter().map(gc_views).collect::<Vec<_>>())?
    } else {
        concat_all(arrays)?
    };
    let buffers = view_buffers(&whole);
    let scattered = buffers > 1 && buffers > whole.len() / ROWS_PER_BUFFER;
    Ok(if scattered { gc_views(&whole) } else { whole })
}

fn concat_all(arrays: &[ArrayRef]) -> Result<ArrayRef> {
    let arrays: Vec<&dyn Array> = arrays.iter().map(AsRef::as_ref).collect();
    concat(&arrays).query_err()
}

fn view_buffers(array: &ArrayRef) -> usize {
    match array.data_type() {
        DataType::Utf8View => array.as_string_view().data_buffers().len(),
        DataType::BinaryView => array.as_binary_view().data_buffers().len(),
        _ => 0,
    }
}

/// Returns `array`, if it has views, with buffers that contain only its own values.
pub(crate) fn gc_views(array: &ArrayRef) -> ArrayRef {
    match array.data_type() {
        DataType::Utf8View => Arc::new(array.as_string_view().gc()),
        DataType::BinaryView => Arc::new(array.as_binary_view().gc()),
        _ => array.clone(),
    }
}

/// Concatenates `batches` in order as rows of `schema`.
///
/// # Errors
/// If the columns of `batches` do not have `schema`'s types.
pub(crate) fn concat_batches_as(
    schema: &SchemaRef,
    batches: &[RecordBatch],
) -> Result<RecordBatch> {
    if batches.is_empty() {
        return Ok(RecordBatch::new_empty(schema.clone()));
    }
    let column = |index: usize| {
        let arrays: Vec<ArrayRef> = batches.iter().map(|b| b.column(index).clone()).collect();
        concat_arrays(&arrays)
    };
    let columns = (0..schema.fields().len()).map(column).collect::<Result<Vec<_>>>()?;
    let rows = batches.iter().map(RecordBatch::num_rows).sum();
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options).query_err()
}

/// Concatenates `batches` in order; no copy if there is one. The children of a union may differ in
/// the nullability of columns, so every column of the result is nullable.
///
/// # Errors
/// If the columns of `batches` differ in type.
pub(crate) fn concat_batches(batches: &[RecordBatch]) -> Result<RecordBatch> {
    match batches {
        [] => Ok(RecordBatch::new_empty(Arc::new(Schema::empty()))),
        [only] => Ok(only.clone()),
        [first, ..] => {
            let nullable = |field: &Arc<Field>| field.as_ref().clone().with_nullable(true);
            let fields: Vec<Field> = first.schema_ref().fields().iter().map(nullable).collect();
            concat_batches_as(&Arc::new(Schema::new(fields)), batches)
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int32Array, StringViewArray};
    use gatework_runtime::Error;

    use super::*;

    #[test]
    fn children_of_a_union_may_differ_in_nulls() {
        let batch = |values: Vec<Option<i32>>, nullable| {
            let column: ArrayRef = Arc::new(Int32Array::from(values));
            RecordBatch::try_from_iter_with_nullable([("n", column, nullable)]).unwrap()
        };
        let rows = concat_batches(&[batch(vec![Some(1)], false), batch(vec![None], true)]).unwrap();
        assert_eq!((rows.num_rows(), rows.column(0).null_count()), (2, 1));
        assert_eq!(concat_batches(&[]).unwrap().num_rows(), 0);
    }

    #[test]
    fn slices_of_views_do_not_multiply_their_buffers() {
        let text = |row: usize| format!("a string too long to be inlined, number {row}");
        let parts: Vec<ArrayRef> = (0..40)
            .map(|row| Arc::new(StringViewArray::from_iter_values([text(row)])) as ArrayRef)
            .collect();
        let parts: Vec<&dyn Array> = parts.iter().map(AsRef::as_ref).collect();
        let whole = concat(&parts).unwrap();
        assert_eq!(view_buffers(&whole), 40);
        let slices: Vec<ArrayRef> = (0..40).map(|row| whole.slice(row, 1)).collect();
        let again = concat_arrays(&slices).unwrap();
        assert_eq!(&again, &whole);
        assert_eq!(view_buffers(&again), 1);
    }

    #[test]
    fn many_views_are_copied_in_steps() {
        let text = |row: usize| format!("a string too long to be inlined, number {row}");
        let piece = |piece: usize, rows: usize| -> ArrayRef {
            let rows = (0..rows).map(|row| text(1_000_000 * piece + row));
            Arc::new(StringViewArray::from_iter_values(rows))
        };
        // The steps are several arrays, one large array, and a short last step.
        let sizes = [40_000, 40_000, 100_000, 1, 65_536, 7];
        let pieces: Vec<_> = sizes.iter().enumerate().map(|(at, rows)| piece(at, *rows)).collect();
        let steps = std::cell::Cell::new(0);
        let count = || {
            steps.set(steps.get() + 1);
            Ok(())
        };
        let whole = concat_arrays_cancellable(&pieces, count).unwrap();
        assert_eq!(steps.get(), 4);
        assert_eq!(&whole, &concat_all(&pieces).unwrap());
        for stop in 0..steps.get() {
            let left = std::cell::Cell::new(stop);
            let check = || match left.get() {
                0 => Err(Error::InvalidConfiguration("stop".into())),
                more => {
                    left.set(more - 1);
                    Ok(())
                }
            };
            let stopped = concat_arrays_cancellable(&pieces, check);
            assert!(stopped.unwrap_err().to_string().contains("stop"));
        }
    }
}
