//! Threshold of a top-N: rows behind it are dropped before their keys are encoded.

use arrow::{
    array::{Array, ArrayRef, BooleanArray, Scalar},
    buffer::BooleanBuffer,
    compute::{
        SortOptions,
        kernels::cmp::{gt_eq, lt_eq},
    },
    datatypes::DataType,
    error::ArrowError,
};
use datafusion_physical_expr::PhysicalSortExpr;

use super::run::Run;

/// Key behind which no row is wanted, since `fetch` rows lie before or at it.
#[derive(Debug)]
pub(super) struct TopNThreshold {
    pub(super) key: Box<[u8]>,
    /// Value of the first sort key, and its direction.
    first: ArrayRef,
    options: SortOptions,
}

/// Returns whether Arrow's comparisons of columns of type `kind` have the order of a sort.
fn compares_as_sorted(kind: &DataType) -> bool {
    use DataType as T;
    let is_text = matches!(
        kind,
        T::Utf8 | T::LargeUtf8 | T::Utf8View | T::Binary | T::LargeBinary | T::BinaryView
    );
    is_text || kind.is_primitive() || kind == &T::Boolean
}

impl TopNThreshold {
    pub(super) fn new(
        run: &Run,
        row: usize,
        first: &PhysicalSortExpr,
    ) -> datafusion_common::Result<Self> {
        let value = first.expr.evaluate(&run.slice(row, 1))?.into_array_of_size(1)?;
        Ok(Self { key: run.key(row).into(), first: value, options: first.options })
    }

    /// Returns the rows whose first sort key is not behind the threshold's, decided from the column
    /// alone. Returns `None` for types that do not allow it.
    pub(super) fn within_threshold(
        &self,
        first: &ArrayRef,
    ) -> Result<Option<BooleanArray>, ArrowError> {
        if !compares_as_sorted(first.data_type()) {
            return Ok(None);
        }
        let is_null = self.first.is_null(0);
        let null_is_within = is_null || self.options.nulls_first;
        let within = match (is_null, self.options) {
            (true, options) if options.nulls_first => BooleanBuffer::new_unset(first.len()),
            (true, _) => BooleanBuffer::new_set(first.len()),
            (false, SortOptions { descending: true, .. }) => {
                gt_eq(first, &Scalar::new(&self.first))?.into_parts().0
            }
            (false, _) => lt_eq(first, &Scalar::new(&self.first))?.into_parts().0,
        };
        let within = match first.nulls().filter(|nulls| nulls.null_count() > 0) {
            Some(valid) if null_is_within => &within | &!valid.inner(),
            Some(valid) => &within & valid.inner(),
            None => within,
        };
        Ok(Some(BooleanArray::new(within, None)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int32Array, StringViewArray};

    use super::*;

    /// Returns which values are within the threshold `first`.
    fn within(values: &ArrayRef, first: usize, descending: bool, nulls_first: bool) -> Vec<bool> {
        let options = SortOptions { descending, nulls_first };
        let threshold =
            TopNThreshold { key: Box::default(), first: values.slice(first, 1), options };
        let within = threshold.within_threshold(values).unwrap().unwrap();
        assert_eq!(within.null_count(), 0);
        within.values().iter().collect()
    }

    #[test]
    fn rows_up_to_the_threshold_are_within() {
        let texts = [Some("b"), None, Some("a"), Some("longer than twelve bytes"), Some("")];
        let texts: ArrayRef = Arc::new(StringViewArray::from_iter(texts));
        let numbers: ArrayRef =
            Arc::new(Int32Array::from(vec![Some(2), None, Some(1), Some(3), Some(0)]));
        for values in [texts, numbers] {
            let [yes, no] = [true, false];
            assert_eq!(within(&values, 0, false, false), [yes, no, yes, no, yes]);
            assert_eq!(within(&values, 0, false, true), [yes, yes, yes, no, yes]);
            assert_eq!(within(&values, 0, true, false), [yes, no, no, yes, no]);
            assert_eq!(within(&values, 1, true, false), [yes; 5]);
            assert_eq!(within(&values, 1, false, true), [no, yes, no, no, no]);
        }
    }
}
