//! Inputs for tests of operators.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Int64Array, RecordBatch, StringArray},
    buffer::NullBuffer,
    datatypes::{DataType, Field, Schema},
};

/// Creates batches of at most `rows` rows with one column, `n`: these numbers.
///
/// ```
/// let batches = gatework_operators::harness::numbers(0..10, 4);
/// assert_eq!(batches.iter().map(|batch| batch.num_rows()).collect::<Vec<_>>(), [4, 4, 2]);
/// ```
///
/// # Panics
/// If `rows` is 0.
pub fn numbers(numbers: impl IntoIterator<Item = i64>, rows: usize) -> Vec<RecordBatch> {
    let numbers: Vec<i64> = numbers.into_iter().collect();
    let batch =
        |numbers: &[i64]| batch("n", DataType::Int64, Arc::new(Int64Array::from(numbers.to_vec())));
    numbers.chunks(rows).map(batch).collect()
}

/// Creates batches of at most `rows` rows with one column, `n`: `count` numbers, of which nine in
/// ten are 0 and the others differ. Batches of one key only are among them.
///
/// # Panics
/// If `rows` is 0.
pub fn skewed_numbers(count: usize, rows: usize) -> Vec<RecordBatch> {
    numbers((0..count).map(|n| if n % 10 == 9 { n as i64 } else { 0 }), rows)
}

/// Creates batches of at most `rows` rows with one column, `n`: `count` numbers, every third of
/// them NULL. The value below a NULL is not 0.
///
/// # Panics
/// If `rows` is 0.
pub fn numbers_with_nulls(count: usize, rows: usize) -> Vec<RecordBatch> {
    let numbers: Vec<i64> = (0..count as i64).collect();
    let batch = |numbers: &[i64]| {
        let nulls = NullBuffer::from_iter(numbers.iter().map(|n| n % 3 != 2));
        let column = Int64Array::new(numbers.to_vec().into(), Some(nulls));
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
        batch_of(schema, Arc::new(column))
    };
    numbers.chunks(rows).map(batch).collect()
}

/// Creates batches of at most `rows` rows with one column, `t`: `count` texts. The first of each
/// batch is empty, the second has `bytes` bytes, and the others have a few.
///
/// # Panics
/// If `rows` is 0.
pub fn huge_texts(count: usize, rows: usize, bytes: usize) -> Vec<RecordBatch> {
    let text = |n: usize| match n % rows {
        0 => String::new(),
        1 => format!("{n} {}", "x".repeat(bytes)),
        _ => format!("text {n}"),
    };
    let texts: Vec<String> = (0..count).map(text).collect();
    let batch = |texts: &[String]| {
        batch("t", DataType::Utf8, Arc::new(StringArray::from_iter_values(texts)))
    };
    texts.chunks(rows).map(batch).collect()
}

fn batch(name: &str, kind: DataType, column: ArrayRef) -> RecordBatch {
    batch_of(Arc::new(Schema::new(vec![Field::new(name, kind, false)])), column)
}

fn batch_of(schema: Arc<Schema>, column: ArrayRef) -> RecordBatch {
    match RecordBatch::try_new(schema, vec![column]) {
        Ok(batch) => batch,
        Err(error) => unreachable!("one column for one field: {error}"),
    }
}
