//! The comparator of results: defines "equal" wherever the results of two executions of a query are
//! compared.
//!
//! * If the query orders its result, the sequence of order keys must be equal. Rows that tie on the
//!   keys must be equal as multisets. If it does not order, the whole result is one such multiset.
//! * `LIMIT` or `OFFSET` may choose freely among the rows of a tie that the cut goes through. These
//!   actual rows only have to be present in the reference's result *without* the cut. That result
//!   is expensive, so it is requested only if the cheap comparison cannot decide
//!   ([`Difference::needs_unlimited`]).
//! * Integers, decimals, strings, dates, booleans and nested values are compared exactly, in any
//!   Arrow layout. Floats are compared within a [`Tolerance`], where NaN equals NaN and `-0.0`
//!   equals `0.0`. Floats inside nested values are compared exactly, bit for bit.
//! * Schemas are compared by names and logical types; nullability and metadata are ignored.
//!
//! Other results that SQL leaves open (`array_agg` or `first_value` without order, `random()`) are
//! not supported.
//!
//! This module owns no state and takes no locks. [`order`](ResultOrder) reads a plan's order,
//! `table` converts both sides to one layout, `sequence` walks the order keys, `multiset` matches
//! unordered rows.

mod difference;
mod hidden_keys;
mod multiset;
mod order;
mod sequence;
mod table;

use arrow::array::RecordBatch;

pub use difference::{Difference, MismatchExample};
pub use hidden_keys::with_hidden_keys;
pub use order::{KeyExpression, ResultOrder, SortKey, without_limit};

use sequence::OrderedMatch;
use table::Layout;

/// The maximum distance of two floats that count as the same result.
///
/// `a` and `b` are near if `|a - b|` is at most `absolute`, or at most `relative` times the larger
/// magnitude.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Allowed distance as a fraction of the larger magnitude.
    pub relative: f64,
    /// Allowed distance in the unit of the values themselves.
    pub absolute: f64,
}

impl Default for Tolerance {
    /// Returns 1e-9 relative: enough for sums added up in another order, too little for a lost row.
    fn default() -> Self {
        Self { relative: 1e-9, absolute: 0.0 }
    }
}

impl Tolerance {
    /// Returns whether two values, where `None` is NULL, count as equal.
    fn near(&self, a: Option<f64>, b: Option<f64>) -> bool {
        let (Some(a), Some(b)) = (a, b) else {
            return a.is_none() && b.is_none();
        };
        if a == b || (a.is_nan() && b.is_nan()) {
            return true;
        }
        // An infinity is infinitely far from all other values; without this check, inf <= 1e-9 *
        // inf would accept anything.
        if a.is_infinite() || b.is_infinite() {
            return false;
        }
        let distance = (a - b).abs();
        distance <= self.absolute || distance <= self.relative * a.abs().max(b.abs())
    }
}

/// Compares a result with the expected one under the default [`Tolerance`].
///
/// # Errors
///
/// The [`Difference`], whose `Display` is a sentence for a person. If it
/// [needs the unlimited result](Difference::needs_unlimited), repeat with
/// [`Comparison::unlimited`].
///
/// # Example
///
/// ```
/// use std::sync::Arc;
/// use arrow::array::{ArrayRef, Int64Array, RecordBatch};
/// use gatework_sql::verify::{ResultOrder, compare};
///
/// let batch = |values: Vec<i64>| {
///     let column: ArrayRef = Arc::new(Int64Array::from(values));
///     RecordBatch::try_from_iter([("n", column)]).expect("one column")
/// };
/// let order = ResultOrder::unordered();
/// assert!(compare(&[batch(vec![1]), batch(vec![2])], &[batch(vec![2, 1])], &order).is_ok());
/// assert!(compare(&[batch(vec![1, 1])], &[batch(vec![2, 1])], &order).is_err());
/// ```
pub fn compare(
    actual: &[RecordBatch],
    expected: &[RecordBatch],
    order: &ResultOrder,
) -> Result<(), Difference> {
    Comparison::new(order).check(actual, expected)
}

/// A comparison with more options than [`compare`]: another tolerance, or the reference's result
/// without its limit.
#[derive(Debug, Clone)]
pub struct Comparison<'a> {
    order: &'a ResultOrder,
    tolerance: Tolerance,
    unlimited: Option<&'a [RecordBatch]>,
    num_hidden_keys: usize,
}

impl<'a> Comparison<'a> {
    /// Creates a comparison of results that have this order.
    pub fn new(order: &'a ResultOrder) -> Self {
        Self { order, tolerance: Tolerance::default(), unlimited: None, num_hidden_keys: 0 }
    }

    /// Replaces the tolerance for floats.
    #[must_use]
    pub fn tolerance(mut self, tolerance: Tolerance) -> Self {
        self.tolerance = tolerance;
        self
    }

    /// Adds the reference's result without `LIMIT` and `OFFSET`; its plan comes from
    /// [`without_limit`].
    #[must_use]
    pub fn unlimited(mut self, batches: &'a [RecordBatch]) -> Self {
        self.unlimited = Some(batches);
        self
    }

    /// Declares the last `count` columns of the expected rows as order keys that the actual rows
    /// lack; [`with_hidden_keys`] adds such columns. Rows are ties only if these keys are equal,
    /// too.
    #[must_use]
    pub fn hidden_keys(mut self, count: usize) -> Self {
        self.num_hidden_keys = count;
        self
    }

    /// Compares the actual rows with the expected ones.
    ///
    /// # Errors
    ///
    /// The [`Difference`].
    pub fn check(
        &self,
        actual: &[RecordBatch],
        expected: &[RecordBatch],
    ) -> Result<(), Difference> {
        let (expected, hidden_keys) = &self.split(expected)?;
        // A result without any batch has no schema to compare, only the fact that it has no rows.
        let Some(schema) = expected.first().or(actual.first()).map(RecordBatch::schema) else {
            return Ok(());
        };
        let layout = Layout::new(&schema, self.order)?;
        let actual = layout.table("actual", actual)?;
        let expected = layout.table("expected", expected)?;
        let unlimited = self
            .unlimited
            .map(|batches| layout.table("unlimited", &self.split(batches)?.0))
            .transpose()?;
        let (order, tolerance) = (self.order, self.tolerance);
        let unordered = ResultOrder::unordered();
        let hidden_keys = match hidden_keys.first() {
            Some(first) => {
                Some(Layout::new(&first.schema(), &unordered)?.table("order keys", hidden_keys)?)
            }
            None => None,
        };
        OrderedMatch { actual, expected, unlimited, hidden_keys, order, tolerance }.check()
    }

    /// Splits the expected rows from their hidden keys.
    fn split(
        &self,
        expected: &[RecordBatch],
    ) -> Result<(Vec<RecordBatch>, Vec<RecordBatch>), Difference> {
        if self.num_hidden_keys == 0 {
            return Ok((expected.to_vec(), Vec::new()));
        }
        let split = |batch: &RecordBatch| {
            let columns = batch.num_columns();
            let shown = columns.checked_sub(self.num_hidden_keys).ok_or_else(|| {
                Difference::Schema(format!(
                    "{columns} columns cannot have {} keys",
                    self.num_hidden_keys
                ))
            })?;
            let part = |columns: Vec<usize>| {
                batch.project(&columns).map_err(|error| Difference::Incomparable(error.to_string()))
            };
            Ok((part((0..shown).collect())?, part((shown..columns).collect())?))
        };
        let parts = expected.iter().map(split).collect::<Result<Vec<_>, Difference>>()?;
        Ok(parts.into_iter().unzip())
    }
}

#[cfg(test)]
mod tests;
