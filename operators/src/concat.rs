//! From several batches to one.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions},
    compute::concat,
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use gatework_runtime::Result;

use crate::ResultExt;

/// Buffers a piece of a view column may bring along before its strings are copied together.
const BUFFERS_PER_ARRAY: usize = 4;

/// Rows per buffer of a view column below which its strings are copied together: whoever takes rows
/// of it copies the list of its buffers.
const ROWS_PER_BUFFER: usize = 1024;

/// Rows of views that are copied at a time, about; into one buffer if they have many small ones.
const ROWS_PER_STEP: usize = 1 << 16;

/// The values of `pieces` in order; free if there is one.
///
/// # Errors
/// If the pieces differ in type, or there are none.
pub(crate) fn concat_arrays(arrays: &[ArrayRef]) -> Result<ArrayRef> {
    concat_arrays_cancellable(arrays, || Ok(()))
}

/// The same of as many as there may be, which takes time if they are views of strings. Asks `check` now and then.
///
/// Every slice of a view column refers to all buffers of the whole, and Arrow strings those lists
/// together: a thousand slices of a column with a thousand buffers would make a million. Pieces that
/// bring many buffers are therefore copied into one buffer each first, and so are some pieces together that
/// have many small ones.
///
/// # Errors
/// If the pieces differ in type, or there are none, and that of `check`.
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

/// Of views, some.
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

/// `array`, if it is of views, with buffers that have nothing else in them.
pub(crate) fn gc_views(array: &ArrayRef) -> ArrayRef {
    match array.data_type() {
        DataType::Utf8View => Arc::new(array.as_string_view().gc()),
        DataType::BinaryView => Arc::new(array.as_binary_view().gc()),
        _ => array.clone(),
    }
}

/// The rows of `batches` in order, as rows of `schema`.
///
/// # Errors
/// If the batches' columns are not of `schema`'s types.
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

/// The rows of `batches` in order; free if there is one. The children of a union may differ in which
/// columns can be NULL, so in what is concatenated all can.
///
/// # Errors
/// If the batches' columns differ in type.
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
        // Steps of several pieces, of one large one, and a last one that is short.
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
