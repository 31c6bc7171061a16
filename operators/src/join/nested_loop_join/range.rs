//! Conditions that bound a key of one side by values of the other: `a.x BETWEEN b.y AND b.z`.
//!
//! The rows of one side are sorted by the key, a chunk or a probe batch at a time. For each row of
//! the other side, two binary searches find the rows whose keys lie within its bounds, and only
//! these pairs are tested. The filter is evaluated for each of them, so the candidates may be too
//! many, but never too few. (DeWitt et al., "An Evaluation of Non-Equijoin Algorithms", 1991:
//! band join.)

use std::{cmp::Ordering, ops::Range, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array, make_comparator},
    compute::{SortOptions, sort_to_indices, take},
    datatypes::ArrowPrimitiveType,
    downcast_primitive_array,
};
use datafusion_common::{
    JoinSide, Result as DataFusionResult,
    tree_node::{Transformed, TransformedResult, TreeNode},
    utils::normalize_float_zero,
};
use datafusion_expr::Operator;
use datafusion_physical_expr::{
    PhysicalExpr,
    expressions::{BinaryExpr, Column},
    split_conjunction,
    utils::collect_columns,
};
use datafusion_physical_expr_common::physical_expr::is_volatile;
use gatework_runtime::pipeline::column_bytes;

use crate::join::filter::JoinFilter;

/// A key of one side, bounded by values of the other side.
#[derive(Debug)]
pub(super) struct RangeCondition {
    /// Side whose rows are sorted by the key.
    pub(super) sorted: JoinSide,
    key: Arc<dyn PhysicalExpr>,
    lower: Option<Bound>,
    upper: Option<Bound>,
}

#[derive(Debug)]
struct Bound {
    value: Arc<dyn PhysicalExpr>,
    is_inclusive: bool,
}

/// Rows in the order of their keys, without those whose key is NULL.
#[derive(Debug)]
pub(super) struct SortedKeys {
    pub(super) rows: Vec<u32>,
    keys: ArrayRef,
}

/// The bounds of rows.
pub(super) struct Bounds {
    lower: Option<ArrayRef>,
    upper: Option<ArrayRef>,
}

impl RangeCondition {
    /// Returns the condition of `filter` that excludes the most pairs: one with two bounds, or else
    /// one with one. Returns `None` if there is no such condition. If the first match decides the
    /// output of a row of one side, that side should have the bounds: `sorted` is then the other.
    pub(super) fn of(filter: &JoinFilter, sorted: JoinSide) -> DataFusionResult<Option<Self>> {
        let preferred = sorted;
        let mut found: Vec<Self> = Vec::new();
        for conjunct in split_conjunction(&filter.expression) {
            let Some(comparison) = conjunct.downcast_ref::<BinaryExpr>() else { continue };
            let (left, right) = (comparison.left(), comparison.right());
            let (Some(left_side), Some(right_side)) = (side(filter, left), side(filter, right))
            else {
                continue;
            };
            if left_side == right_side || is_volatile(conjunct) {
                continue;
            }
            let (is_lower, is_inclusive) = match comparison.op() {
                Operator::Gt => (true, false),
                Operator::GtEq => (true, true),
                Operator::Lt => (false, false),
                Operator::LtEq => (false, true),
                _ => continue,
            };
            let (left, right) = (over_side(filter, left)?, over_side(filter, right)?);
            // Each side is a key, bounded by the other one.
            for (sorted, key, value, is_lower) in
                [(left_side, &left, &right, is_lower), (right_side, &right, &left, !is_lower)]
            {
                let bound = Bound { value: value.clone(), is_inclusive };
                let same = |it: &&mut Self| {
                    it.sorted == sorted
                        && it.key.as_ref() == key.as_ref()
                        && if is_lower { it.lower.is_none() } else { it.upper.is_none() }
                };
                let (lower, upper) =
                    if is_lower { (Some(bound), None) } else { (None, Some(bound)) };
                match found.iter_mut().find(same) {
                    Some(condition) if is_lower => condition.lower = lower,
                    Some(condition) => condition.upper = upper,
                    None => found.push(Self { sorted, key: key.clone(), lower, upper }),
                }
            }
        }
        let bounds = |it: &Self| usize::from(it.lower.is_some()) + usize::from(it.upper.is_some());
        Ok(found.into_iter().max_by_key(|it| (bounds(it), it.sorted == preferred)))
    }

    /// Returns the rows of the sorted side in order; `None` if the key cannot be computed for all
    /// rows, or cannot be sorted.
    pub(super) fn sort(&self, rows: &RecordBatch) -> Option<SortedKeys> {
        let keys = evaluate(&self.key, rows)?;
        // Arrow sorts and compares NULLs in lists in different orders.
        if keys.data_type().is_nested() {
            return None;
        }
        let options = SortOptions { descending: false, nulls_first: false };
        let order = sort_to_indices(&keys, Some(options), None).ok()?;
        let order = order.slice(0, keys.len() - keys.logical_null_count());
        let keys = take(&keys, &order, None).ok()?;
        Some(SortedKeys { rows: order.values().to_vec(), keys })
    }

    /// Returns the bounds of rows of the other side; `None` if they cannot be computed for all
    /// rows.
    pub(super) fn bounds(&self, rows: &RecordBatch) -> Option<Bounds> {
        let values = |bound: &Option<Bound>| match bound {
            Some(bound) => evaluate(&bound.value, rows).map(Some),
            None => Some(None),
        };
        Some(Bounds { lower: values(&self.lower)?, upper: values(&self.upper)? })
    }

    /// Returns for each row with these bounds the range of `sorted` within them; `None` if the
    /// types do not allow it.
    pub(super) fn ranges(&self, sorted: &SortedKeys, bounds: &Bounds) -> Option<Vec<Range<u32>>> {
        let keys = &sorted.keys;
        let count = bounds.lower.as_ref().or(bounds.upper.as_ref())?.len();
        // Rows before the range of a lower bound, and up to the end of that of an upper bound.
        let starts = match (&self.lower, &bounds.lower) {
            (Some(bound), Some(values)) => positions(keys, values, !bound.is_inclusive)?,
            _ => vec![Some(0); count],
        };
        let ends = match (&self.upper, &bounds.upper) {
            (Some(bound), Some(values)) => positions(keys, values, bound.is_inclusive)?,
            _ => vec![Some(keys.len() as u32); count],
        };
        let range = |(start, end): (Option<u32>, Option<u32>)| match (start, end) {
            (Some(start), Some(end)) if start < end => start..end,
            // NULL is in no order.
            _ => 0..0,
        };
        Some(starts.into_iter().zip(ends).map(range).collect())
    }
}

impl SortedKeys {
    /// Returns the memory of the keys, in bytes.
    pub(super) fn bytes(&self) -> usize {
        4 * self.rows.capacity() + column_bytes(self.keys.as_ref())
    }
}

/// Returns the only side whose columns `expr` reads; `None` if it reads none, or both sides.
fn side(filter: &JoinFilter, expr: &Arc<dyn PhysicalExpr>) -> Option<JoinSide> {
    let columns = collect_columns(expr);
    let mut sides = columns.iter().map(|column| filter.columns.get(column.index()));
    let (first, _) = sides.next()??;
    sides.all(|side| side.is_some_and(|(side, _)| side == first)).then_some(*first)
}

/// Rewrites `expr` from the columns of `filter` to those of its side.
fn over_side(
    filter: &JoinFilter,
    expr: &Arc<dyn PhysicalExpr>,
) -> DataFusionResult<Arc<dyn PhysicalExpr>> {
    let rewrite = |node: Arc<dyn PhysicalExpr>| {
        let Some(column) = node.downcast_ref::<Column>() else { return Ok(Transformed::no(node)) };
        let (_, index) = filter.columns[column.index()];
        // Named alike wherever it is read, so that equal keys compare equal.
        Ok(Transformed::yes(Arc::new(Column::new(&format!("column {index}"), index)) as _))
    };
    expr.clone().transform_up(rewrite).data()
}

/// Returns the values of `expr`, in which -0 is 0; `None` if it fails. (The filter may not reach
/// the rows for which it fails.)
fn evaluate(expr: &Arc<dyn PhysicalExpr>, rows: &RecordBatch) -> Option<ArrayRef> {
    let values = expr.evaluate(rows).ok()?.into_array(rows.num_rows()).ok()?;
    Some(normalize_float_zero(&values))
}

/// Returns for each of `values` the number of `keys` that are less, or with `or_equal` less or
/// equal. `None` for NULL, and for types that cannot be compared.
fn positions(keys: &ArrayRef, values: &ArrayRef, or_equal: bool) -> Option<Vec<Option<u32>>> {
    if keys.data_type() != values.data_type() {
        return None;
    }
    let nulls = values.logical_nulls();
    let is_valid = |row: usize| nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row));
    let rows = 0..values.len();
    downcast_primitive_array!(
        keys => {
            return Some(primitive_positions(keys, values, or_equal, is_valid));
        },
        _ => {}
    );
    let compare = make_comparator(keys, values, SortOptions::default()).ok()?;
    let order = UInt32Array::from_iter_values(0..keys.len() as u32);
    let position = |row: usize| {
        let is_before = |key: &u32| match compare(*key as usize, row) {
            Ordering::Less => true,
            Ordering::Equal => or_equal,
            Ordering::Greater => false,
        };
        order.values().partition_point(is_before) as u32
    };
    Some(rows.map(|row| is_valid(row).then(|| position(row))).collect())
}

fn primitive_positions<T: ArrowPrimitiveType>(
    keys: &arrow::array::PrimitiveArray<T>,
    values: &ArrayRef,
    or_equal: bool,
    is_valid: impl Fn(usize) -> bool,
) -> Vec<Option<u32>> {
    use arrow::array::ArrowNativeTypeOp;
    let (keys, values) = (keys.values(), values.as_primitive::<T>());
    let position = |row: usize| {
        let value = values.value(row);
        let position = match or_equal {
            true => keys.partition_point(|key| key.is_le(value)),
            false => keys.partition_point(|key| key.is_lt(value)),
        };
        position as u32
    };
    (0..values.len()).map(|row| is_valid(row).then(|| position(row))).collect()
}
