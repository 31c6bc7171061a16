//! Plain columns keep the selection; computed columns are evaluated on selected rows only.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, DictionaryArray, RecordBatch},
    datatypes::{DataType, Field, Schema, UInt32Type},
};
use datafusion_expr::Operator as BinaryOperator;
use datafusion_physical_expr::{
    PhysicalExpr,
    expressions::{BinaryExpr, Column, lit},
};
use gatework_runtime::pipeline::{Operator, OperatorResult};

use super::Projection;
use crate::{
    dictionary::assemble,
    filter::Filter,
    harness::contexts,
    test_support::{ints, result_of, rows, run, scan, table},
};

fn column(index: usize) -> Arc<dyn PhysicalExpr> {
    Arc::new(Column::new("column", index))
}

/// Projects the rows of two columns whose second column is not 0.
fn projected(expressions: Vec<Arc<dyn PhysicalExpr>>) -> Vec<RecordBatch> {
    let table = table([
        ("a", ints([Some(10), Some(20), None, Some(40)])),
        ("b", ints([Some(2), Some(0), Some(1), Some(4)])),
    ]);
    let fields: Vec<_> = (0..expressions.len())
        .map(|index| Field::new(format!("out{index}"), DataType::Int32, true))
        .collect();
    let projection = Projection::new(expressions, Arc::new(Schema::new(fields)));
    let not_zero = BinaryExpr::new(column(1), BinaryOperator::NotEq, lit(0));
    let filter = Filter::new(Arc::new(not_zero), None);
    run(|graph| {
        let operators = vec![Arc::new(filter) as _, Arc::new(projection) as _];
        result_of(graph, 1, 1, scan(&table, 3), operators)
    })
    .unwrap()
}

#[test]
fn plain_columns_keep_the_selection() {
    assert_eq!(
        rows(&projected(vec![column(1), column(0), column(1)])),
        ["2|10|2", "1|NULL|1", "4|40|4"]
    );
}

#[test]
fn expressions_are_computed_for_selected_rows_only() {
    let quotient = Arc::new(BinaryExpr::new(column(0), BinaryOperator::Divide, column(1)));
    assert_eq!(rows(&projected(vec![quotient, lit(7)])), ["5|7", "NULL|7", "10|7"]);
}

#[test]
fn rows_without_columns_are_still_rows() {
    let batches = projected(vec![]);
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 3);
}

#[test]
fn dictionaries_without_their_mark_are_errors() {
    let schema = Arc::new(Schema::new(vec![Field::new("out", DataType::Utf8, true)]));
    let codes: DictionaryArray<UInt32Type> = vec!["x", "y", "x"].into_iter().collect();
    let codes: ArrayRef = Arc::new(codes);
    let marked = assemble(&schema, vec![codes.clone()], 3).unwrap();
    let unmarked = table([("out", codes)]);
    let (context, task) = contexts().unwrap();
    let mut projection = Projection::new(vec![column(0)], schema).local(context).unwrap();
    assert!(projection.execute(Some(unmarked.into()), &task).is_err());
    let passed = projection.execute(Some(marked.clone().into()), &task).unwrap();
    let OperatorResult::Batch(passed) = passed else { panic!("{passed:?}") };
    assert_eq!(passed.data(), &marked);
}
