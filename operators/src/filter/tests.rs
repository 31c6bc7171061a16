//! NULL counts as false; predicates are evaluated only on rows that earlier filters kept.

use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch};
use datafusion_expr::Operator as BinaryOperator;
use datafusion_physical_expr::{
    PhysicalExpr,
    expressions::{BinaryExpr, Column, lit},
};
use gatework_runtime::{Result, pipeline::Operator, scheduler::SplitMix64};

use super::Filter;
use crate::test_support::{ints, result_of, rows, run, scan, table};

fn filtered(table: &RecordBatch, filters: Vec<Arc<dyn Operator>>) -> Result<Vec<RecordBatch>> {
    run(|graph| result_of(graph, 1, 1, scan(table, 3), filters))
}

fn column(index: usize) -> Arc<dyn PhysicalExpr> {
    Arc::new(Column::new("column", index))
}

fn compare(
    left: Arc<dyn PhysicalExpr>,
    operator: BinaryOperator,
    right: Arc<dyn PhysicalExpr>,
) -> Arc<dyn PhysicalExpr> {
    Arc::new(BinaryExpr::new(left, operator, right))
}

#[test]
fn null_is_false_and_columns_are_picked_after_the_test() {
    // The value under the NULL is true.
    let flags = BooleanArray::new(
        vec![true, true, false, true, true].into(),
        Some(vec![true, false, true, true, false].into()),
    );
    let table = table([("row", ints((0..5).map(Some))), ("flag", Arc::new(flags))]);
    let filter = Filter::new(column(1), Some([0].into()));
    assert_eq!(rows(&filtered(&table, vec![Arc::new(filter)]).unwrap()), ["0", "3"]);
    for (constant, passed) in [(lit(true), 5), (lit(false), 0)] {
        let filter = Arc::new(Filter::new(constant, None));
        assert_eq!(rows(&filtered(&table, vec![filter]).unwrap()).len(), passed);
    }
}

#[test]
fn a_predicate_never_sees_rows_that_were_taken_out() {
    let table = table([("divisor", ints([Some(0), Some(2), None, Some(5), Some(0), Some(50)]))]);
    let not_zero = compare(column(0), BinaryOperator::NotEq, lit(0));
    let quotient = compare(lit(10), BinaryOperator::Divide, column(0));
    let positive = compare(quotient, BinaryOperator::Gt, lit(0));
    let divides = Arc::new(Filter::new(positive, None));
    let guarded = vec![Arc::new(Filter::new(not_zero, None)) as _, divides.clone() as _];
    assert_eq!(rows(&filtered(&table, guarded).unwrap()), ["2", "5"]);
    let error = filtered(&table, vec![divides]).unwrap_err();
    assert!(error.to_string().contains("Divide by zero"), "{error}");
}

fn and(parts: impl IntoIterator<Item = Arc<dyn PhysicalExpr>>) -> Arc<dyn PhysicalExpr> {
    let parts = parts.into_iter();
    parts.reduce(|left, right| compare(left, BinaryOperator::And, right)).unwrap()
}

/// A fallible conjunct sees only rows that earlier conjuncts kept, whatever the order of infallible
/// ones.
#[test]
fn a_conjunct_is_asked_about_the_rows_that_are_left() {
    let table = table([
        ("divisor", ints([Some(0), Some(2), None, Some(5), Some(0), Some(50)])),
        ("value", ints([Some(1), Some(2), Some(3), Some(4), Some(5), Some(6)])),
    ]);
    let not_zero = || compare(column(0), BinaryOperator::NotEq, lit(0));
    let quotient = || compare(lit(10), BinaryOperator::Divide, column(0));
    let positive = || compare(quotient(), BinaryOperator::Gt, lit(0));
    let small = || compare(column(1), BinaryOperator::Lt, lit(4));
    for conjuncts in [[not_zero(), positive(), small()], [small(), not_zero(), positive()]] {
        let filter = Arc::new(Filter::new(and(conjuncts), None));
        assert_eq!(rows(&filtered(&table, vec![filter]).unwrap()), ["2|2"]);
    }
    let unguarded = Arc::new(Filter::new(and([small(), positive()]), None));
    let error = filtered(&table, vec![unguarded]).unwrap_err();
    assert!(error.to_string().contains("Divide by zero"), "{error}");
}

/// Conjuncts of any selectivity, reordered any number of times, keep the rows of a naive filter.
#[test]
fn conjuncts_in_any_order_leave_the_same_rows() {
    let mut rng = SplitMix64::new(11);
    let count = 100_000;
    let mut some = |below: i32| {
        ints((0..count).map(|_| {
            let value = rng.next_below(below as usize) as i32;
            (value % 17 != 3).then_some(value)
        }))
    };
    let table = table([("a", some(1000)), ("b", some(1000)), ("c", some(1000))]);
    let lines = rows(std::slice::from_ref(&table));
    for (a, b, c) in [(990, 10, 500), (10, 990, 990), (500, 500, 500), (999, 999, 999), (0, 5, 5)] {
        let below = |index, limit: i32| compare(column(index), BinaryOperator::Lt, lit(limit));
        // A sum may overflow, so it is evaluated last.
        let sum = compare(column(0), BinaryOperator::Plus, column(1));
        let sum = compare(sum, BinaryOperator::Lt, lit(1200));
        let predicate = and([sum, below(0, a), below(1, b), below(2, c)]);
        let filter = Filter::new(predicate, None);
        let expected: Vec<_> = lines
            .iter()
            .filter(|line| {
                let values: Vec<_> = line.split('|').map(|value| value.parse::<i32>()).collect();
                match values.as_slice() {
                    [Ok(x), Ok(y), Ok(z)] => *x < a && *y < b && *z < c && x + y < 1200,
                    _ => false,
                }
            })
            .cloned()
            .collect();
        let batches =
            run(|graph| result_of(graph, 1, 1, scan(&table, 4096), vec![Arc::new(filter) as _]));
        assert_eq!(rows(&batches.unwrap()), expected, "{a} {b} {c}");
    }
}
