//! From several batches to one.

use std::sync::Arc;

use arrow::{
    array::RecordBatch,
    compute::concat_batches,
    datatypes::{Field, Schema},
};
use gatework_runtime::Result;

use crate::OrFail;

/// The rows of `batches` in order; free if there is one. The children of a union may differ in which
/// columns can be NULL, so in what is concatenated all can.
///
/// # Errors
/// If the batches' columns differ in type.
pub(crate) fn concat_rows(batches: &[RecordBatch]) -> Result<RecordBatch> {
    match batches {
        [] => Ok(RecordBatch::new_empty(Arc::new(Schema::empty()))),
        [only] => Ok(only.clone()),
        [first, ..] => {
            let nullable = |field: &Arc<Field>| field.as_ref().clone().with_nullable(true);
            let fields: Vec<Field> = first.schema_ref().fields().iter().map(nullable).collect();
            concat_batches(&Arc::new(Schema::new(fields)), batches).or_fail()
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int32Array};

    use super::*;

    #[test]
    fn children_of_a_union_may_differ_in_nulls() {
        let batch = |values: Vec<Option<i32>>, nullable| {
            let column: ArrayRef = Arc::new(Int32Array::from(values));
            RecordBatch::try_from_iter_with_nullable([("n", column, nullable)]).unwrap()
        };
        let rows = concat_rows(&[batch(vec![Some(1)], false), batch(vec![None], true)]).unwrap();
        assert_eq!((rows.num_rows(), rows.column(0).null_count()), (2, 1));
        assert_eq!(concat_rows(&[]).unwrap().num_rows(), 0);
    }
}
