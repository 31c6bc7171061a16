//! Predicates on entries have the results of predicates on rows; batches lose their dictionaries
//! without a trace.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, DictionaryArray, RecordBatch, StringArray, StringViewArray, UInt32Array},
    datatypes::{DataType, Field, Schema, UInt32Type},
};
use datafusion_common::ScalarValue;
use datafusion_expr::Operator;
use datafusion_physical_expr::{
    PhysicalExpr,
    expressions::{BinaryExpr, Column, Literal},
};

use super::{EntryPredicate, TakenColumns, assemble, assemble_taken, decode_columns, plain_schema};
use crate::filter::evaluate_predicate;

fn encoded(codes: Vec<u32>, entries: &ArrayRef) -> ArrayRef {
    Arc::new(DictionaryArray::try_new(UInt32Array::from(codes), entries.clone()).unwrap())
}

#[test]
fn batches_are_decoded_to_their_schema() {
    let users = Field::new_dictionary("user", DataType::UInt32, DataType::Utf8, true);
    let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Utf8View, true), users]));
    let entries: ArrayRef = Arc::new(StringViewArray::from(vec![Some("x"), None]));
    let user: DictionaryArray<UInt32Type> =
        vec!["u", "v", "u"].into_iter().collect::<DictionaryArray<_>>();
    let user: ArrayRef = Arc::new(user);
    let plain: ArrayRef = Arc::new(StringViewArray::from(vec![None, Some("x"), Some("x")]));
    let expected = RecordBatch::try_new(schema.clone(), vec![plain, user.clone()]).unwrap();
    let batch = assemble(&schema, vec![encoded(vec![1, 0, 0], &entries), user], 3).unwrap();
    // A dictionary of the table stays one.
    assert_eq!(plain_schema(&batch).as_ref(), Some(&schema));
    assert_eq!(plain_schema(&expected), None);
    assert_eq!(decode_columns(batch, &schema).unwrap(), expected);
}

#[test]
fn dictionaries_that_are_not_taken_are_errors() {
    let field = |name| Field::new(name, DataType::Utf8, true);
    let schema = Arc::new(Schema::new(vec![field("a"), field("b")]));
    let entries: ArrayRef = Arc::new(StringArray::from(vec!["x", "y"]));
    let columns = || vec![encoded(vec![1, 0], &entries), encoded(vec![0, 0], &entries)];
    assert!(assemble_taken(&schema, columns(), 2, |_| true).is_ok());
    assert!(assemble_taken(&schema, columns(), 2, |index| index == 0).is_err());
    let columns = || vec![encoded(vec![1, 0], &entries), entries.clone()];
    let batch = assemble_taken(&schema, columns(), 2, |index| index == 0).unwrap();
    assert_eq!(plain_schema(&batch).as_ref(), Some(&schema));
}

#[test]
fn consumers_must_take_the_same_columns() {
    let taken = TakenColumns::default();
    assert!(!taken.contains(1));
    taken.record(&[1, 3]);
    taken.record(&[1, 3]);
    assert!(taken.contains(1) && !taken.contains(2) && taken.check().is_ok());
    taken.record(&[2]);
    assert!(taken.check().unwrap_err().to_string().contains("different columns as dictionaries"));
}

#[test]
fn predicates_on_entries_are_those_on_rows() {
    let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new("a", 0));
    let literal = Arc::new(Literal::new(ScalarValue::from("m")));
    let less = BinaryExpr::new(column, Operator::Lt, literal);
    let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Utf8, true)]));
    let names = |names: [Option<&str>; 4]| -> ArrayRef { Arc::new(StringArray::from_iter(names)) };
    let entries = [
        names([Some("a"), Some("z"), None, Some("l")]),
        names([Some("n"), None, Some("b"), Some("m")]),
    ];
    let mut predicate = EntryPredicate::default();
    let mut evaluated = 0;
    for (round, codes) in
        [vec![0], vec![3, 1], vec![2, 0, 0, 1], vec![], vec![1]].iter().enumerate()
    {
        let batch =
            assemble(&schema, vec![encoded(codes.clone(), &entries[round / 3])], codes.len());
        let batch = batch.unwrap();
        let plain = decode_columns(batch.clone(), &schema).unwrap();
        if let Some(bits) = predicate.evaluate(&less, &schema, &batch) {
            evaluated += 1;
            assert_eq!(bits, evaluate_predicate(&less, &plain).unwrap(), "round {round}");
        }
        assert_eq!(predicate.evaluate(&less, &schema, &plain), None);
    }
    // Not on the first row, nor on the rows of a new dictionary.
    assert_eq!(evaluated, 2);
}
