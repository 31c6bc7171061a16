//! NULL counts as false; predicates see only rows that earlier filters let through.

use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch};
use datafusion_expr::Operator as BinaryOperator;
use datafusion_physical_expr::{
    PhysicalExpr,
    expressions::{BinaryExpr, Column, lit},
};
use gatework_runtime::{Result, pipeline::Operator};

use super::Filter;
use crate::rig::{ints, result_of, rows, run, scan, table};

fn filtered(table: &RecordBatch, filters: Vec<Arc<dyn Operator>>) -> Result<Vec<RecordBatch>> {
    run(|graph| result_of(graph, 1, 1, scan(table, 3), filters))
}

fn column(place: usize) -> Arc<dyn PhysicalExpr> {
    Arc::new(Column::new("column", place))
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
    // A value lies under the NULL, and it is true.
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
