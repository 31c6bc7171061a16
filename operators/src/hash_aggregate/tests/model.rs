//! The naive model: rows with coded keys, and the expected groups as text.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int32Array, Int64Array, RecordBatch,
    StringArray,
};
use arrow::datatypes::{DataType, Int64Type};

use crate::test_support::{rows, table};

/// Number of key columns, and number of key codes.
pub(super) const KEYS: usize = 5;
pub(super) const CODES: u8 = 6;

/// Three key codes, a value and a flag.
pub(super) type Row = (Option<u8>, Option<u8>, Option<u8>, Option<i64>, Option<bool>);

const FLOATS: [f64; CODES as usize] = [0.0, -0.0, f64::NAN, 1.5, f64::NEG_INFINITY, -1.5];
const TEXTS: [&str; CODES as usize] = ["", "a", "ab", "b", "a rather long text, not inline", "z"];

/// Five key columns made from the codes, then `value`, `real` (`value` as a float), `flag`
/// and `label` (the text key).
pub(super) struct Input {
    pub(super) batch: RecordBatch,
    rows: Vec<Row>,
}

/// Returns the id of a grouping set: a set bit for each key that it leaves out.
pub(super) fn grouping_id(set: &[bool]) -> u64 {
    set.iter().fold(0, |id, out| 2 * id + u64::from(*out))
}

impl Input {
    pub(super) fn new(rows: &[Row]) -> Self {
        let int = rows.iter().map(|row| row.0.map(|code| i32::from(code) - 2));
        let text = rows.iter().map(|row| row.1.map(|code| TEXTS[usize::from(code)]));
        // What a function reads does not arrive as a dictionary.
        let label = text.clone();
        let float = rows.iter().map(|row| row.2.map(|code| FLOATS[usize::from(code)]));
        let flag = rows.iter().map(|row| row.0.map(|code| code % 2 == 1));
        let long = rows.iter().map(|row| row.1.map(|code| i64::from(code) << 40));
        let batch = table([
            ("int", Arc::new(int.collect::<Int32Array>())),
            ("text", Arc::new(text.collect::<StringArray>())),
            ("float", Arc::new(float.collect::<Float64Array>())),
            ("odd", Arc::new(flag.collect::<BooleanArray>())),
            ("long", Arc::new(long.collect::<Int64Array>())),
            ("value", Arc::new(rows.iter().map(|row| row.3).collect::<Int64Array>())),
            (
                "real",
                Arc::new(rows.iter().map(|row| row.3.map(|v| v as f64)).collect::<Float64Array>()),
            ),
            ("flag", Arc::new(rows.iter().map(|row| row.4).collect::<BooleanArray>())),
            ("label", Arc::new(label.collect::<StringArray>())),
        ]);
        Self { batch, rows: rows.to_vec() }
    }

    /// Returns the sorted rows of the aggregate over `keys`.
    pub(super) fn aggregate(&self, keys: &[usize], sets: Option<&[Vec<bool>]>) -> Vec<String> {
        let plain = vec![vec![false; keys.len()]];
        let mut answer = Vec::new();
        for set in sets.unwrap_or(&plain) {
            let mut groups: BTreeMap<String, Vec<&Row>> = BTreeMap::new();
            for (index, row) in self.rows.iter().enumerate() {
                groups.entry(self.key(index, keys, set)).or_default().push(row);
            }
            if self.rows.is_empty() && set.iter().all(|out| *out) {
                groups.insert("NULL|".repeat(keys.len()), vec![]);
            }
            let id = sets.map_or_else(String::new, |_| format!("{}|", grouping_id(set)));
            answer.extend(groups.iter().map(|(key, rows)| format!("{key}{id}{}", values(rows))));
        }
        answer.sort_unstable();
        answer
    }

    fn key(&self, row: usize, keys: &[usize], set: &[bool]) -> String {
        let row = self.batch.slice(row, 1);
        let key = |(column, out): (&usize, &bool)| {
            let text = rows(&[row.project(&[*column]).unwrap()]).remove(0);
            match out {
                true => "NULL|".to_owned(),
                false if text == "-0.0" => "0.0|".to_owned(),
                false => text + "|",
            }
        };
        keys.iter().zip(set).map(key).collect()
    }
}

/// Returns the values of the functions of `super::calls`, in that order.
fn values(rows: &[&Row]) -> String {
    fn text<T: ToString>(value: Option<T>) -> String {
        value.map_or_else(|| "NULL".to_owned(), |value| value.to_string())
    }
    let values: Vec<i64> = rows.iter().filter_map(|row| row.3).collect();
    let sum = |values: &[i64]| (!values.is_empty()).then(|| values.iter().sum::<i64>());
    let passed: Vec<_> = rows.iter().filter(|row| row.4 == Some(true)).collect();
    let passed_values: Vec<i64> = passed.iter().filter_map(|row| row.3).collect();
    let average = sum(&values).map(|sum| sum as f64 / values.len() as f64);
    let mut all: Vec<Option<i64>> = rows.iter().map(|row| row.3).collect();
    all.sort_unstable();
    [
        text(sum(&values)),
        values.len().to_string(),
        rows.len().to_string(),
        text(values.iter().min()),
        text(rows.iter().filter_map(|row| row.1).map(|code| TEXTS[usize::from(code)]).max()),
        average.map_or_else(|| "NULL".to_owned(), |average| format!("{average:?}")),
        values.iter().collect::<BTreeSet<_>>().len().to_string(),
        text(sum(&passed_values)),
        passed.len().to_string(),
        if all.is_empty() { "NULL".to_owned() } else { format!("{all:?}") },
    ]
    .join("|")
}

/// Returns the sorted rows of `batches`; the order of a list's values does not count.
pub(super) fn texts(batches: &[RecordBatch]) -> Vec<String> {
    let mut texts = Vec::new();
    for batch in batches {
        let last = batch.columns().last().unwrap();
        if !matches!(last.data_type(), DataType::List(_)) {
            texts.extend(rows(std::slice::from_ref(batch)));
            continue;
        }
        let others: Vec<usize> = (0..batch.num_columns() - 1).collect();
        let others = rows(&[batch.project(&others).unwrap()]);
        texts.extend(others.iter().zip(lists(last)).map(|(row, list)| format!("{row}|{list}")));
    }
    texts.sort_unstable();
    texts
}

fn lists(column: &ArrayRef) -> Vec<String> {
    let list = |values: Option<ArrayRef>| {
        let Some(values) = values else { return "NULL".to_owned() };
        let mut values: Vec<Option<i64>> = values.as_primitive::<Int64Type>().iter().collect();
        values.sort_unstable();
        format!("{values:?}")
    };
    column.as_list::<i32>().iter().map(list).collect()
}
