//! Tests of the row comparison: the differences that it must detect, and those that it must ignore.

use std::sync::Arc;

use arrow::array::{Float64Array, Int64Array, RecordBatch, StringArray};

use crate::harness::{Row, rows_of, same_rows, same_sequence};

fn table() -> Vec<Row> {
    let batch = RecordBatch::try_from_iter([
        ("n", Arc::new(Int64Array::from(vec![Some(1), Some(1), Some(2), None])) as _),
        ("f", Arc::new(Float64Array::from(vec![0.1, 0.1, f64::NAN, 3e300])) as _),
        ("s", Arc::new(StringArray::from(vec![Some("a"), Some("a"), None, Some("")])) as _),
    ]);
    rows_of(&[batch.unwrap()]).unwrap()
}

fn with_float(mut rows: Vec<Row>, row: usize, float: f64) -> Vec<Row> {
    rows[row][1] = float.into();
    rows
}

#[test]
fn mutated_rows_are_seen() {
    let rows = table();
    let mut doubled = rows.clone();
    doubled.push(rows[0].clone());
    let mut replaced = rows.clone();
    replaced[1] = rows[2].clone();
    let mut null = rows.clone();
    null[3][2] = datafusion_common::ScalarValue::Utf8(None);
    let wrong = [
        rows[1..].to_vec(),
        doubled,
        replaced,
        null,
        with_float(rows.clone(), 0, 0.1 + 1e-8),
        with_float(rows.clone(), 3, f64::INFINITY),
        with_float(rows.clone(), 2, 0.0),
    ];
    for actual in wrong {
        assert!(same_rows(&rows, &actual).is_err(), "{actual:?}");
        assert!(same_sequence(&rows, &actual).is_err(), "{actual:?}");
    }
}

#[test]
fn order_and_last_digits_are_overlooked_where_they_may_differ() {
    let rows = table();
    let digits = with_float(rows.clone(), 0, 0.1 + 1e-12);
    assert_eq!(same_rows(&rows, &digits), Ok(()));
    assert_eq!(same_sequence(&rows, &digits), Ok(()));
    let mut swapped = digits;
    swapped.swap(0, 2);
    assert_eq!(same_rows(&rows, &swapped), Ok(()));
    assert!(same_sequence(&rows, &swapped).unwrap_err().starts_with("row 0 is"));
}
