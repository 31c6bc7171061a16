//! Threshold of a top-N: rows behind it are dropped before their keys are encoded, and by the scans
//! below before their other columns are read.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, Scalar},
    buffer::BooleanBuffer,
    compute::{
        SortOptions,
        kernels::cmp::{gt_eq, lt_eq},
    },
    datatypes::{DataType, Float16Type, Float32Type, Float64Type},
    error::ArrowError,
};
use datafusion_common::{ScalarValue, tree_node::TreeNode};
use datafusion_expr::Operator;
use datafusion_physical_expr::{
    LexOrdering, PhysicalExpr,
    expressions::{BinaryExpr, is_not_null, is_null, lit},
};

use super::run::Run;

/// Key behind which no row is wanted, since `fetch` rows lie before or at it.
#[derive(Debug)]
pub(super) struct TopNThreshold {
    pub(super) key: Box<[u8]>,
    /// Value of each sort key.
    values: Vec<ArrayRef>,
    /// Direction of the first sort key.
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
        ordering: &LexOrdering,
    ) -> datafusion_common::Result<Self> {
        let row_alone = run.slice(row, 1);
        // Through a scalar: a slice would keep the values of all rows alive.
        let value = |expr: &Arc<dyn PhysicalExpr>| -> datafusion_common::Result<ArrayRef> {
            let value = expr.evaluate(&row_alone)?.into_array_of_size(1)?;
            let alone = ScalarValue::try_from_array(&value, 0).and_then(|value| value.to_array());
            Ok(alone.unwrap_or(value))
        };
        let values = ordering.iter().map(|key| value(&key.expr)).collect::<Result<_, _>>()?;
        Ok(Self { key: run.key(row).into(), values, options: ordering.first().options })
    }

    /// Returns a predicate that is true for each row before the threshold; `None` if the first sort
    /// key cannot be compared. It is written over those first sort keys that are in `keys`.
    pub(super) fn predicate(
        &self,
        ordering: &LexOrdering,
        keys: &[Arc<dyn PhysicalExpr>],
    ) -> datafusion_common::Result<Option<Arc<dyn PhysicalExpr>>> {
        let usable =
            ordering.iter().zip(keys).zip(&self.values).take_while(|((sort, key), value)| {
                sort.expr.as_ref() == key.as_ref()
                    && compares_as_sorted(value.data_type())
                    && is_replaced_whole(key, keys)
            });
        let mut usable: Vec<_> = usable.map(|((sort, _), value)| (sort, value)).collect();
        // DataFusion's comparisons do not tell -0 from 0, the sort does.
        let zero = usable.iter().position(|(_, value)| is_float_zero(value));
        usable.truncate(zero.map_or(usable.len(), |zero| zero + 1));
        let is_whole = zero.is_none() && usable.len() == ordering.len();
        let mut predicate: Option<Arc<dyn PhysicalExpr>> = None;
        for (sort, value) in usable.into_iter().rev() {
            let value = ScalarValue::try_from_array(value, 0)?;
            let (before, equal) = before_and_equal(&sort.expr, sort.options, value)?;
            let tie = match predicate {
                Some(rest) => Some(binary(equal, Operator::And, rest)),
                None => (!is_whole).then_some(equal),
            };
            predicate = Some(match tie {
                Some(tie) => binary(before, Operator::Or, tie),
                None => before,
            });
        }
        Ok(predicate)
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
        let value = &self.values[0];
        let is_null = value.is_null(0);
        let null_is_within = is_null || self.options.nulls_first;
        let within = match (is_null, self.options) {
            (true, options) if options.nulls_first => BooleanBuffer::new_unset(first.len()),
            (true, _) => BooleanBuffer::new_set(first.len()),
            (false, SortOptions { descending: true, .. }) => {
                gt_eq(first, &Scalar::new(value))?.into_parts().0
            }
            (false, _) => lt_eq(first, &Scalar::new(value))?.into_parts().0,
        };
        let within = match first.nulls().filter(|nulls| nulls.null_count() > 0) {
            Some(valid) if null_is_within => &within | &!valid.inner(),
            Some(valid) => &within & valid.inner(),
            None => within,
        };
        Ok(Some(BooleanArray::new(within, None)))
    }
}

/// Returns whether a scan can replace `key` by its own expression: key by key, from the leaves up.
/// A key within another one would be replaced first.
fn is_replaced_whole(key: &Arc<dyn PhysicalExpr>, keys: &[Arc<dyn PhysicalExpr>]) -> bool {
    let is_other_key = |node: &Arc<dyn PhysicalExpr>| {
        Ok(node.as_ref() != key.as_ref() && keys.iter().any(|key| key.as_ref() == node.as_ref()))
    };
    !key.exists(is_other_key).unwrap_or(true)
}

fn is_float_zero(value: &ArrayRef) -> bool {
    value.is_valid(0)
        && match value.data_type() {
            DataType::Float16 => value.as_primitive::<Float16Type>().value(0).to_f32() == 0.0,
            DataType::Float32 => value.as_primitive::<Float32Type>().value(0) == 0.0,
            DataType::Float64 => value.as_primitive::<Float64Type>().value(0) == 0.0,
            _ => false,
        }
}

fn binary(
    left: Arc<dyn PhysicalExpr>,
    operator: Operator,
    right: Arc<dyn PhysicalExpr>,
) -> Arc<dyn PhysicalExpr> {
    Arc::new(BinaryExpr::new(left, operator, right))
}

/// Returns the predicates that are true for rows whose `key` is sorted before `value`, and for
/// those whose `key` is `value`.
fn before_and_equal(
    key: &Arc<dyn PhysicalExpr>,
    options: SortOptions,
    value: ScalarValue,
) -> datafusion_common::Result<(Arc<dyn PhysicalExpr>, Arc<dyn PhysicalExpr>)> {
    if value.is_null() {
        let before = if options.nulls_first { lit(false) } else { is_not_null(key.clone())? };
        return Ok((before, is_null(key.clone())?));
    }
    let operator = if options.descending { Operator::Gt } else { Operator::Lt };
    let before = binary(key.clone(), operator, lit(value.clone()));
    let before = match options.nulls_first {
        true => binary(is_null(key.clone())?, Operator::Or, before),
        false => before,
    };
    Ok((before, binary(key.clone(), Operator::Eq, lit(value))))
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{Float64Array, Int32Array, RecordBatch, StringViewArray},
        compute::SortColumn,
    };
    use datafusion_physical_expr::{PhysicalSortExpr, expressions::Column};

    use super::*;

    /// Returns which values are within the threshold `first`.
    fn within(values: &ArrayRef, first: usize, descending: bool, nulls_first: bool) -> Vec<bool> {
        let options = SortOptions { descending, nulls_first };
        let values_of_row = vec![values.slice(first, 1)];
        let threshold = TopNThreshold { key: Box::default(), values: values_of_row, options };
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

    /// The predicate over a prefix of the keys is compared with the order in which Arrow sorts.
    #[test]
    fn the_predicate_is_true_before_the_threshold() {
        let numbers = [Some(1), None, Some(2)];
        let texts = [Some("a"), None, Some("longer than twelve bytes")];
        let pairs = || numbers.iter().flat_map(|a| texts.iter().map(move |b| (*a, *b)));
        let first: ArrayRef = Arc::new(pairs().map(|pair| pair.0).collect::<Int32Array>());
        let second: ArrayRef = Arc::new(pairs().map(|pair| pair.1).collect::<StringViewArray>());
        let rows = RecordBatch::try_from_iter([("a", first.clone()), ("b", second.clone())]);
        let rows = rows.unwrap();
        let keys: [Arc<dyn PhysicalExpr>; 2] =
            [Arc::new(Column::new("a", 0)), Arc::new(Column::new("b", 1))];
        let directions = [(false, false), (false, true), (true, false), (true, true)];
        let all = directions.iter().flat_map(|a| directions.iter().map(move |b| [*a, *b]));
        for options in all {
            let options =
                options.map(|(descending, nulls_first)| SortOptions { descending, nulls_first });
            let sort = |key: usize| PhysicalSortExpr::new(keys[key].clone(), options[key]);
            let ordering = LexOrdering::new([sort(0), sort(1)]).unwrap();
            let column = |values: &ArrayRef, key: usize| SortColumn {
                values: values.clone(),
                options: Some(options[key]),
            };
            let sorted = [column(&first, 0), column(&second, 1)];
            let order = arrow::compute::lexsort_to_indices(&sorted, None).unwrap();
            for row in 0..rows.num_rows() {
                let values = rows.columns().iter().map(|values| values.slice(row, 1)).collect();
                let threshold = TopNThreshold { key: Box::default(), values, options: options[0] };
                let before = |known: &[Arc<dyn PhysicalExpr>]| -> Vec<usize> {
                    let predicate = threshold.predicate(&ordering, known).unwrap().unwrap();
                    let is_before = predicate.evaluate(&rows).unwrap();
                    let is_before = is_before.into_array(rows.num_rows()).unwrap();
                    let is_before = is_before.as_boolean();
                    let passes = |row: &usize| is_before.is_valid(*row) && is_before.value(*row);
                    (0..rows.num_rows()).filter(passes).collect()
                };
                let position = |row| order.values().iter().position(|at| *at as usize == row);
                let is_before = |other: &usize| position(*other) < position(row);
                let expected: Vec<_> = (0..rows.num_rows()).filter(is_before).collect();
                assert_eq!(before(&keys), expected, "{options:?}, row {row}");
                let same_first = |other: &usize| is_before(other) || other / 3 == row / 3;
                let expected: Vec<_> = (0..rows.num_rows()).filter(same_first).collect();
                assert_eq!(before(&keys[..1]), expected, "{options:?}, row {row}");
            }
            assert!(threshold_without_keys(&rows, &ordering));
        }
    }

    fn threshold_without_keys(rows: &RecordBatch, ordering: &LexOrdering) -> bool {
        let values = rows.columns().iter().map(|values| values.slice(0, 1)).collect();
        let options = ordering.first().options;
        let threshold = TopNThreshold { key: Box::default(), values, options };
        threshold.predicate(ordering, &[]).unwrap().is_none()
    }

    /// DataFusion's comparisons take -0 for 0, the sort does not.
    #[test]
    fn zeros_are_not_behind_a_zero() {
        let zeros: ArrayRef = Arc::new(Float64Array::from(vec![-0.0, 0.0, 1.0]));
        let ids: ArrayRef = Arc::new(Int32Array::from(vec![9, 9, 0]));
        let rows = RecordBatch::try_from_iter([("f", zeros.clone()), ("id", ids)]).unwrap();
        let keys: [Arc<dyn PhysicalExpr>; 2] =
            [Arc::new(Column::new("f", 0)), Arc::new(Column::new("id", 1))];
        let options = SortOptions { descending: false, nulls_first: false };
        let sort = |key: &Arc<dyn PhysicalExpr>| PhysicalSortExpr::new(key.clone(), options);
        let ordering = LexOrdering::new(keys.iter().map(sort)).unwrap();
        for zero in 0..2 {
            let id: ArrayRef = Arc::new(Int32Array::from(vec![5]));
            let values = vec![zeros.slice(zero, 1), id];
            let threshold = TopNThreshold { key: Box::default(), values, options };
            let predicate = threshold.predicate(&ordering, &keys).unwrap().unwrap();
            let kept = predicate.evaluate(&rows).unwrap().into_array(3).unwrap();
            let kept: Vec<_> = kept.as_boolean().iter().collect();
            assert_eq!(kept, [Some(true), Some(true), Some(false)]);
        }
    }
}
