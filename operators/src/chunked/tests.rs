//! Rows of columns in several arrays equal rows of columns in one array.

use std::sync::Arc;

use arrow::array::{Array, DictionaryArray, Int8Array, ListArray, StringArray};
use arrow::compute::concat;
use arrow::datatypes::{Field, Int32Type, Schema};

use super::*;
use crate::dictionary::assemble;

fn whole(chunks: &[ArrayRef]) -> ArrayRef {
    let chunks: Vec<&dyn Array> = chunks.iter().map(AsRef::as_ref).collect();
    concat(&chunks).unwrap()
}

fn chunks() -> [Vec<ArrayRef>; 2] {
    let text = |index: usize| -> ArrayRef {
        let text = |row| (row % 3 > 0).then(|| format!("{index}:{}", "x".repeat(row)));
        Arc::new(StringArray::from_iter((0..10 * (index % 3)).map(text)))
    };
    let list = |index: usize| -> ArrayRef {
        let list = |row| (row % 3 > 0).then(|| vec![Some(index as i32); row]);
        let lists = (0..10 * (index % 3)).map(list);
        Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(lists))
    };
    [(0..9).map(text).collect(), (0..9).map(list).collect()]
}

#[test]
fn arrays_are_within_the_bound_and_give_the_same_rows() {
    for chunks in chunks() {
        let whole = whole(&chunks);
        let rows = UInt32Array::from_iter_values((0..whole.len() as u32).rev().step_by(2));
        let expected = take(&whole, &rows, None).unwrap();
        for bound in [1, 100, 300, 1 << 20] {
            let column = Column::concat(&chunks, bound, || Ok(())).unwrap();
            let count = column.arrays().len();
            assert_eq!(count == 1, bound == 1 << 20, "{count} arrays for {bound}");
            if let Column::Several { arrays, .. } = &column {
                // No chunk is split.
                let longest = chunks.iter().map(|piece| value_bytes(piece)).max().unwrap();
                assert!(arrays.iter().all(|array| value_bytes(array) <= bound.max(longest)));
            }
            assert_eq!(&column.take(&rows).unwrap(), &expected);
        }
    }
}

#[test]
fn dictionaries_with_more_values_than_keys_stay_apart() {
    let piece = |piece: usize| -> ArrayRef {
        let values = StringArray::from_iter_values((0..100).map(|n| format!("{piece}-{n}")));
        Arc::new(DictionaryArray::new(Int8Array::from_iter_values(0..100), Arc::new(values)))
    };
    let chunks = [piece(0), piece(1)];
    let column = Column::concat(&chunks, usize::MAX, || Ok(())).unwrap();
    let rows = UInt32Array::from(vec![199, 0, 100, 3]);
    let taken = column.take(&rows).unwrap();
    let values = taken.as_any().downcast_ref::<DictionaryArray<arrow::datatypes::Int8Type>>();
    let values = values.unwrap().downcast_dict::<StringArray>().unwrap();
    let values: Vec<_> = values.into_iter().flatten().collect();
    assert_eq!(values, ["1-99", "0-0", "1-0", "0-3"]);
}

#[test]
fn pairs_are_cut_by_what_both_sides_have() {
    let [texts, _] = chunks();
    let columns = Columns::new(vec![Column::concat(&texts, 100, || Ok(())).unwrap()]);
    let whole = whole(&texts);
    let one: ArrayRef = Arc::new(StringArray::from(vec!["x".repeat(50)]));
    let right = RecordBatch::try_from_iter([("s", one)]).unwrap();
    let rows: Vec<u32> = (0..whole.len() as u32).collect();
    let zeros = vec![0; rows.len()];
    let sides: [Side<'_>; 2] = [(&columns, &[0], &rows), (&right, &[0], &zeros)];
    let longest = longest_row(&columns, &[0]) + longest_row(&right, &[0]);
    assert_eq!(longest, "1:".len() + 19 + 50);
    assert_eq!(pairs_within(1 << 20, longest, sides), rows.len());
    for bound in [1, 51, 200, 999] {
        let within = pairs_within(bound, longest, sides);
        let bytes = |rows: usize| Lengths::of(&whole.slice(0, rows)).sum(rows) + 50 * rows;
        assert!(within == 1 || bytes(within) <= bound, "{within} rows for {bound}");
        assert!(bytes(within + 1) > bound, "{within} rows for {bound}");
    }
}

#[test]
fn codes_count_as_their_entries() {
    let entries: ArrayRef = Arc::new(StringArray::from(vec!["x".repeat(50), "y".repeat(3)]));
    let codes = UInt32Array::from_iter_values((0..100).map(|row| row % 2));
    let column: ArrayRef = Arc::new(DictionaryArray::new(codes, entries));
    let schema = Arc::new(Schema::new(vec![Field::new("s", DataType::Utf8, true)]));
    let encoded = assemble(&schema, vec![column.clone()], 100).unwrap();
    assert_eq!(longest_row(&encoded, &[0]), 50);
    let rows: Vec<u32> = (0..100).collect();
    let sides: [Side<'_>; 2] = [(&encoded, &[0], &rows), (&encoded, &[], &rows)];
    let bytes = |rows: usize| 53 * (rows / 2) + 50 * (rows % 2);
    assert_eq!(pairs_within(1 << 20, 50, sides), 100);
    for bound in [1, 51, 200, 999] {
        let within = pairs_within(bound, 50, sides);
        assert!(within == 1 || bytes(within) <= bound, "{within} rows for {bound}");
        assert!(bytes(within + 1) > bound, "{within} rows for {bound}");
    }
    // Rows of a table's own dictionary stay codes.
    let own = RecordBatch::try_from_iter([("s", column)]).unwrap();
    assert_eq!(longest_row(&own, &[0]), 0);
}

#[test]
fn the_longest_entry_is_found_once() {
    let texts = (0..1000).map(|row| "x".repeat(row % 10));
    let entries: ArrayRef = Arc::new(StringArray::from_iter_values(texts));
    let schema = Arc::new(Schema::new(vec![Field::new("s", DataType::Utf8, true)]));
    let batch = |codes: Vec<u32>, entries: &ArrayRef| {
        let rows = codes.len();
        let codes = DictionaryArray::new(UInt32Array::from(codes), entries.clone());
        let column: ArrayRef = Arc::new(codes);
        assemble(&schema, vec![column], rows).unwrap()
    };
    let mut longest = LongestEntries::default();
    // Up to as many rows as entries, only the entries of the rows are read.
    assert_eq!(longest.longest_row(&batch(vec![3; 600], &entries), &[0]), 3);
    assert_eq!(longest.longest_row(&batch(vec![5; 600], &entries), &[0]), 9);
    assert_eq!(longest.longest_row(&batch(vec![3], &entries), &[0]), 9);
    assert_eq!(longest.longest_row(&batch(vec![3], &entries.slice(0, 5)), &[0]), 3);
    let plain = RecordBatch::try_new(schema.clone(), vec![entries.slice(0, 5)]).unwrap();
    assert_eq!(longest.longest_row(&plain, &[0]), longest_row(&plain, &[0]));
}

impl Lengths<'_> {
    fn sum(&self, rows: usize) -> usize {
        (0..rows).map(|row| self.at(row)).sum()
    }
}
