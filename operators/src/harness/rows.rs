//! Comparison of rows, as a multiset or as a sequence; values are exact, floats within 1e-9.
//!
//! It is made for the harness's small inputs. SQL results are compared by the planner's own
//! comparator, which handles order keys and ties.

use std::collections::HashMap;

use arrow::array::RecordBatch;
use datafusion_common::{DataFusionError, ScalarValue};

/// Row as a list of values.
pub type Row = Vec<ScalarValue>;

/// Returns the rows of `batches`, in order.
///
/// # Errors
/// If a column has a type without scalar values.
pub fn rows_of(batches: &[RecordBatch]) -> Result<Vec<Row>, DataFusionError> {
    let mut rows = Vec::new();
    for batch in batches {
        for row in 0..batch.num_rows() {
            let values = batch.columns().iter();
            rows.push(
                values
                    .map(|column| ScalarValue::try_from_array(column, row))
                    .collect::<Result<Row, _>>()?,
            );
        }
    }
    Ok(rows)
}

/// Checks that both have the same rows, each with the same multiplicity, in any order.
///
/// # Errors
/// The missing and the surplus rows.
///
/// ```
/// use gatework_operators::harness::{numbers, rows_of, same_rows};
/// let rows = rows_of(&numbers(0..3, 2))?;
/// let mut turned = rows.clone();
/// turned.reverse();
/// assert!(same_rows(&rows, &turned).is_ok());
/// assert!(same_rows(&rows, &turned[1..]).is_err());
/// # Ok::<(), datafusion_common::DataFusionError>(())
/// ```
pub fn same_rows(expected: &[Row], actual: &[Row]) -> Result<(), String> {
    let (missing, surplus) = differences(expected, actual);
    if missing.is_empty() && surplus.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{} of {} rows are missing{}; {} of {} are unexpected{}",
        missing.len(),
        expected.len(),
        preview(&missing),
        surplus.len(),
        actual.len(),
        preview(&surplus),
    ))
}

/// Checks that `expected` contains each row of `actual`, at least as often.
///
/// # Errors
/// The rows that it does not contain.
pub(super) fn contained_rows(expected: &[Row], actual: &[Row]) -> Result<(), String> {
    let (_, surplus) = differences(expected, actual);
    match surplus.len() {
        0 => Ok(()),
        count => {
            Err(format!("{count} of {} rows are unexpected{}", actual.len(), preview(&surplus)))
        }
    }
}

/// Returns the rows that only `expected` has, and those that only `actual` has.
fn differences<'a>(expected: &'a [Row], actual: &'a [Row]) -> (Vec<&'a Row>, Vec<&'a Row>) {
    let mut counts: HashMap<&Row, i64> = HashMap::new();
    for row in expected {
        *counts.entry(row).or_default() += 1;
    }
    for row in actual {
        *counts.entry(row).or_default() -= 1;
    }
    let (mut missing, mut surplus) = (Vec::new(), Vec::new());
    for (row, count) in counts {
        let side = if count > 0 { &mut missing } else { &mut surplus };
        side.extend((0..count.unsigned_abs()).map(|_| row));
    }
    pair_off(&mut missing, &mut surplus);
    (missing, surplus)
}

/// Checks that both have the same rows in the same order.
///
/// # Errors
/// The first difference.
pub fn same_sequence(expected: &[Row], actual: &[Row]) -> Result<(), String> {
    let differ = |(one, other): (&Row, &Row)| !close(one, other);
    if let Some(index) = expected.iter().zip(actual).position(differ) {
        return Err(format!(
            "row {index} is {} instead of {}",
            text(&actual[index]),
            text(&expected[index])
        ));
    }
    if expected.len() == actual.len() {
        return Ok(());
    }
    Err(format!("there are {} rows instead of {}", actual.len(), expected.len()))
}

/// Removes pairs of rows that are equal up to the last digits of their floats.
fn pair_off(missing: &mut Vec<&Row>, surplus: &mut Vec<&Row>) {
    let has_floats = |row: &Row| row.iter().any(|value| float(value).is_some());
    if !surplus.iter().any(|row| has_floats(row)) {
        return;
    }
    missing.retain(|row| match surplus.iter().position(|other| close(row, other)) {
        Some(index) => {
            surplus.swap_remove(index);
            false
        }
        None => true,
    });
}

fn close(one: &Row, other: &Row) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).all(|(one, other)| match (float(one), float(other)) {
            (Some(one), Some(other)) => close_floats(one, other),
            _ => one == other,
        })
}

fn close_floats(one: f64, other: f64) -> bool {
    const RELATIVE: f64 = 1e-9;
    one == other
        || (one.is_nan() && other.is_nan())
        || (one - other).abs() <= RELATIVE * one.abs().max(other.abs())
            && one.is_finite()
            && other.is_finite()
}

fn float(value: &ScalarValue) -> Option<f64> {
    match value {
        ScalarValue::Float64(value) => *value,
        ScalarValue::Float32(value) => value.map(f64::from),
        _ => None,
    }
}

/// Returns the row's text.
pub(super) fn text(row: &Row) -> String {
    let values: Vec<String> = row.iter().map(ToString::to_string).collect();
    format!("({})", values.join(", "))
}

/// Formats up to three of `rows` for a message.
fn preview(rows: &[&Row]) -> String {
    const SHOWN: usize = 3;
    let mut shown: Vec<String> = rows.iter().map(|row| text(row)).collect();
    shown.sort();
    shown.truncate(SHOWN);
    if shown.is_empty() { String::new() } else { format!(" ({}…)", shown.join(", ")) }
}
