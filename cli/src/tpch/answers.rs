//! The second oracle: the answers of the specification for scale factor 1, which tpchgen ships.
//!
//! The answers are padded text, `name |name` and then `value |value`, with decimals rounded to two
//! digits. They become Arrow batches of the result's types and go through the same comparator as
//! other results, with these rules:
//! * decimals and floats become floats on both sides, and may differ by half a unit of the answer's
//!   last digit, the precision of a rounded answer;
//! * strings lose trailing blanks on both sides, because padding cannot be told from blanks;
//! * column names do not count, since the answers abbreviate them;
//! * two answers are flawed; [`TRUNCATED_KEYS`] and [`RATIO`] define which parts of them count.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::compute::{CastOptions, cast, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use gatework::verify::{Comparison, ResultOrder, Tolerance};
use tpchgen::q_and_a::answers_sf1;

/// Half a unit of the second digit, plus the rounding error of a float.
const ROUNDED: Tolerance = Tolerance { relative: 1e-12, absolute: 0.005 + 1e-9 };

/// The query whose part keys the shipped answer truncates to the first four of six right-justified
/// places. The keys of the result are truncated likewise. Their values, and the comparison with
/// DataFusion, verify the rest.
const TRUNCATED_KEYS: u32 = 11;

/// The query whose answer, 348406.02, is not the exact ratio, 2438842.38 / 7 = 348406.054…, which
/// all systems with decimal arithmetic return. The specification (clause 2.1.3.5) allows a relative
/// error of a hundredth; this check allows a millionth.
const RATIO: u32 = 17;

/// Compares a result with the answer to this query.
pub(super) fn check(
    number: u32,
    actual: &[RecordBatch],
    order: &ResultOrder,
) -> Result<(), String> {
    let text = i32::try_from(number).ok().and_then(answers_sf1::answer);
    let text = text.ok_or_else(|| format!("tpchgen ships no answer to query {number}"))?;
    let Some(first) = actual.first() else {
        return Err("the result has no rows, but the answer has some".to_owned());
    };
    let schema = schema(number, &first.schema());
    let unreadable = |error: ArrowError| format!("the answer cannot be compared: {error}");
    let actual = actual
        .iter()
        .map(|batch| plain(number, batch, &schema))
        .collect::<Result<Vec<_>, _>>()
        .map_err(unreadable)?;
    let expected = parse(text, &schema)?;
    let tolerance = if number == RATIO { Tolerance { relative: 1e-6, ..ROUNDED } } else { ROUNDED };
    let comparison = Comparison::new(order).tolerance(tolerance);
    comparison.check(&actual, &[expected]).map_err(|difference| difference.to_string())
}

/// The schema in which result and answer are compared.
fn schema(number: u32, result: &Schema) -> SchemaRef {
    let plain = |(column, field): (usize, &Arc<Field>)| {
        let data_type = match field.data_type() {
            _ if number == TRUNCATED_KEYS && column == 0 => DataType::Utf8,
            data_type if data_type.is_decimal() || data_type.is_floating() => DataType::Float64,
            data_type if data_type.is_integer() => DataType::Int64,
            data_type if data_type.is_string() => DataType::Utf8,
            data_type => data_type.clone(),
        };
        Field::new(field.name(), data_type, true)
    };
    Arc::new(Schema::new(result.fields().iter().enumerate().map(plain).collect::<Vec<_>>()))
}

/// Casts a batch of the result to that schema.
fn plain(number: u32, batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns = batch.columns().iter().zip(schema.fields()).enumerate().map(
        |(position, (column, field))| {
            let column = cast(column, field.data_type())?;
            Ok(match field.data_type() {
                _ if number == TRUNCATED_KEYS && position == 0 => truncate_keys(&column),
                DataType::Utf8 => trimmed(&column),
                _ => column,
            })
        },
    );
    RecordBatch::try_new(Arc::clone(schema), columns.collect::<Result<_, ArrowError>>()?)
}

fn trimmed(column: &ArrayRef) -> ArrayRef {
    let values = column.as_string::<i32>().iter().map(|value| value.map(str::trim_end));
    Arc::new(values.collect::<StringArray>())
}

/// Truncates keys to the first four of six places, as the answer with [`TRUNCATED_KEYS`] does.
fn truncate_keys(column: &ArrayRef) -> ArrayRef {
    let cut = |key: &str| format!("{key:>6}").chars().take(4).collect::<String>();
    let keys = column.as_string::<i32>().iter().map(|key| key.map(cut));
    Arc::new(keys.collect::<StringArray>())
}

/// Parses the answer into that schema.
fn parse(text: &str, schema: &SchemaRef) -> Result<RecordBatch, String> {
    // The first non-empty line has the column names.
    let lines = text.lines().filter(|line| !line.trim().is_empty()).skip(1);
    let width = schema.fields().len();
    let mut columns = vec![Vec::new(); width];
    for line in lines {
        let cells: Vec<_> = line.split('|').collect();
        if cells.len() != width {
            return Err(format!(
                "the result has {width} columns, but the answer has {}",
                cells.len()
            ));
        }
        columns.iter_mut().zip(cells).for_each(|(column, cell)| column.push(cell));
    }
    let columns =
        columns.into_iter().zip(schema.fields()).map(|(cells, field)| parse_column(&cells, field));
    let columns = columns.collect::<Result<Vec<_>, _>>();
    let batch = columns.and_then(|columns| RecordBatch::try_new(Arc::clone(schema), columns));
    batch.map_err(|error| format!("the answer cannot be read: {error}"))
}

/// Parses a column. Strings are left-justified, so leading blanks belong to them; numbers have
/// none.
fn parse_column(cells: &[&str], field: &Field) -> Result<ArrayRef, ArrowError> {
    if *field.data_type() == DataType::Utf8 {
        return Ok(Arc::new(StringArray::from_iter_values(
            cells.iter().map(|cell| cell.trim_end()),
        )));
    }
    let text: ArrayRef =
        Arc::new(StringArray::from_iter_values(cells.iter().map(|cell| cell.trim())));
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    let column = cast_with_options(&text, field.data_type(), &strict)?;
    debug_assert_eq!(column.null_count(), 0, "answers hold no NULL");
    Ok(column)
}

#[cfg(test)]
mod tests;
