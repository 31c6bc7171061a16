//! Bytes of every kind of text, and the rows at which batches are split.

use std::sync::Arc;

use arrow::array::{
    BinaryArray, DictionaryArray, Int32Array, LargeStringArray, ListArray, RunArray, StringArray,
    StringViewArray, StructArray, UInt32Array,
};
use arrow::datatypes::{Field, Int32Type};

use super::*;

fn texts(lengths: &[usize]) -> Vec<String> {
    lengths.iter().map(|length| "x".repeat(*length)).collect()
}

#[test]
fn texts_count_by_their_lengths_and_slices_by_theirs() {
    let texts = texts(&[0, 100, 20, 3000]);
    let arrays: [ArrayRef; 4] = [
        Arc::new(StringArray::from(texts.clone())),
        Arc::new(LargeStringArray::from(texts.clone())),
        Arc::new(BinaryArray::from_iter_values(&texts)),
        Arc::new(StringViewArray::from_iter_values(&texts)),
    ];
    for array in arrays {
        assert_eq!(value_bytes(&array), 3120);
        assert_eq!(value_bytes(&array.slice(1, 2)), 120);
        let lengths = Lengths::of(&array);
        assert_eq!((lengths.at(2), lengths.longest()), (20, 3000));
        let slice = array.slice(1, 2);
        assert_eq!(Lengths::of(&slice).longest(), 100);
    }
    assert_eq!(value_bytes(&Int32Array::from(vec![1, 2])), 0);
}

#[test]
fn values_in_other_values_count() {
    let texts: ArrayRef = Arc::new(StringArray::from(texts(&[100, 300])));
    let keys = Int32Array::from(vec![0, 1, 1, 0, 1]);
    let dictionary = DictionaryArray::new(keys, texts.clone());
    assert_eq!(value_bytes(&dictionary), 5 * 200);
    let runs = RunArray::<Int32Type>::try_new(&Int32Array::from(vec![2, 10]), &texts).unwrap();
    assert_eq!(value_bytes(&runs), 10 * 200);
    let field = Arc::new(Field::new("s", DataType::Utf8, true));
    assert_eq!(value_bytes(&StructArray::from(vec![(field, texts)])), 400);
    let numbers = (0..3).map(|_| Some(vec![Some(1); 1000]));
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>(numbers);
    assert!(value_bytes(&list) >= 3 * 4000);
}

#[test]
fn long_views_are_seen_wherever_they_are() {
    // One long value in a thousand, which the sample misses.
    let mut lengths = vec![1; 1000];
    lengths[17] = 2 * MIN_EXACT_BYTES;
    let views: ArrayRef = Arc::new(StringViewArray::from_iter_values(texts(&lengths)));
    assert_eq!(value_bytes(&views), 2 * MIN_EXACT_BYTES + 999);
    // A small buffer to which all rows refer.
    let short: ArrayRef = Arc::new(StringViewArray::from_iter_values(texts(&[4000])));
    let rows = UInt32Array::from(vec![0; 1000]);
    let repeated = arrow::compute::take(&short, &rows, None).unwrap();
    assert_eq!(value_bytes(&repeated), 4_000_000);
}

#[test]
fn large_entries_are_seen_wherever_their_codes_are() {
    let mut lengths = vec![1; 3000];
    lengths[17] = 2 * MIN_EXACT_BYTES;
    // More entries than codes, and fewer.
    for count in [3000, 100] {
        let entries: ArrayRef =
            Arc::new(StringViewArray::from_iter_values(texts(&lengths[..count])));
        // The large entry once, between the rows of a sample.
        let codes = (0..1000_u32).map(|row| if row == 17 { 17 } else { row % 10 });
        let dictionary = DictionaryArray::new(UInt32Array::from_iter_values(codes), entries);
        assert_eq!(value_bytes(&dictionary), 2 * MIN_EXACT_BYTES + 999, "{count} entries");
        assert_eq!(value_bytes(&dictionary.slice(10, 10)), 2 * MIN_EXACT_BYTES + 9);
    }
    // The bound of short entries is that of the longest one.
    let entries: ArrayRef = Arc::new(StringArray::from(texts(&[2, 5])));
    let dictionary = DictionaryArray::new(UInt32Array::from(vec![0, 0, 1]), entries);
    assert_eq!(value_bytes(&dictionary), 3 * 5);
}

#[test]
fn rows_are_cut_where_they_pass_the_bound() {
    let column: ArrayRef = Arc::new(StringArray::from(texts(&[10, 10, 500, 10, 10, 10, 10, 10])));
    assert_eq!(slice_ranges(std::slice::from_ref(&column), 8, 600), None);
    let ranges = slice_ranges(std::slice::from_ref(&column), 8, 20).unwrap();
    assert_eq!(ranges, [0..2, 2..3, 3..4, 4..6, 6..8]);
    let lengths = [10, 10, 500, 10];
    assert_eq!(rows_within(20, 4, |row| lengths[row]), 2);
    assert_eq!(rows_within(1, 4, |row| lengths[row]), 1);
    assert_eq!(rows_within(530, 4, |row| lengths[row]), 4);
    assert_eq!(rows_within(530, 0, |row| lengths[row]), 0);
    let batch = RecordBatch::try_from_iter([("s", column)]).unwrap();
    let rows: Vec<usize> = split_by_bytes(&batch, 20).iter().map(RecordBatch::num_rows).collect();
    assert_eq!(rows, [2, 1, 1, 2, 2]);
}

#[test]
fn overflows_are_told_from_other_errors() {
    let overflow = DataFusionError::from(ArrowError::OffsetOverflowError(1 << 31));
    assert!(is_overflow(&overflow.context("somewhere")));
    assert!(is_overflow(&ArrowError::DictionaryKeyOverflowError.into()));
    assert!(is_overflow(&DataFusionError::Execution("byte array offset overflow".into())));
    assert!(!is_overflow(&ArrowError::DivideByZero.into()));
    assert!(!is_overflow(&DataFusionError::Execution("no such day".into())));
}
