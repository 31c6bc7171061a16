use std::sync::Arc;

use arrow::{
    array::{
        ArrayRef, BinaryArray, Date32Array, Float64Array, Int8Array, Int64Array, LargeStringArray,
        StringArray, StringViewArray, UInt16Array,
    },
    record_batch::RecordBatch,
};
use proptest::prelude::*;

use super::*;

fn rows(columns: &[ArrayRef]) -> RecordBatch {
    let name = |index: usize| format!("c{index}");
    let named = columns.iter().enumerate().map(|(index, array)| (name(index), array.clone(), true));
    RecordBatch::try_from_iter_with_nullable(named).unwrap()
}

fn buckets_of(columns: &[ArrayRef], count: usize) -> Vec<u32> {
    let names = (0..columns.len()).map(|index| format!("c{index}")).collect();
    Bucketing::new(names, count).unwrap().buckets_of(&rows(columns)).unwrap()
}

/// Files outlive programs: the expected hashes come from another implementation of the
/// specification.
#[test]
fn buckets_are_for_ever() {
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![Some(0), Some(1), Some(-1), None]));
    assert_eq!(buckets_of(&[numbers], 1000), [ZERO, ONE, MINUS_ONE, 0]);
    let words: ArrayRef = Arc::new(StringArray::from(vec!["", "gatework"]));
    assert_eq!(buckets_of(&[words], 1000), [EMPTY, GATEWORK]);
}

const ZERO: u32 = 579;
const ONE: u32 = 269;
const MINUS_ONE: u32 = 761;
const EMPTY: u32 = 921;
const GATEWORK: u32 = 288;

#[test]
fn the_type_does_not_matter() {
    let wide: ArrayRef = Arc::new(Int64Array::from(vec![Some(7), None, Some(100)]));
    let others: [ArrayRef; 3] = [
        Arc::new(Int8Array::from(vec![Some(7), None, Some(100)])),
        Arc::new(UInt16Array::from(vec![Some(7), None, Some(100)])),
        Arc::new(Date32Array::from(vec![Some(7), None, Some(100)])),
    ];
    for other in others {
        assert_eq!(buckets_of(&[other], 4096), buckets_of(std::slice::from_ref(&wide), 4096));
    }
    let words = vec![Some("a"), None, Some("a word of more than twelve bytes")];
    let plain: ArrayRef = Arc::new(StringArray::from(words.clone()));
    let bytes: Vec<_> = words.iter().map(|word| word.map(str::as_bytes)).collect();
    let others: [ArrayRef; 3] = [
        Arc::new(StringViewArray::from(words.clone())),
        Arc::new(LargeStringArray::from(words)),
        Arc::new(BinaryArray::from(bytes)),
    ];
    for other in others {
        assert_eq!(buckets_of(&[other], 4096), buckets_of(std::slice::from_ref(&plain), 4096));
    }
}

#[test]
fn what_makes_no_buckets_is_refused() {
    let error = |bucketing: Result<Bucketing>| bucketing.unwrap_err().to_string();
    assert!(error(Bucketing::new(vec![], 3)).contains("at least one column"));
    assert!(error(Bucketing::new(vec!["k".into()], 0)).contains("from 1 to 4096"));
    assert!(error(Bucketing::new(vec!["k".into()], 5000)).contains("from 1 to 4096"));
    let by = |name: &str| Bucketing::new(vec![name.into()], 3).unwrap();
    let floats: ArrayRef = Arc::new(Float64Array::from(vec![0.0, -0.0]));
    let batch = rows(&[floats]);
    let error = |name| by(name).buckets_of(&batch).unwrap_err().to_string();
    assert!(error("c0").contains("Float64: use integers, days, strings or binary"));
    assert!(error("x").contains("none of the columns [\"c0\"]"));
}

proptest! {
    /// Each row is in exactly one part, that of its bucket, and parts keep the order of the rows.
    #[test]
    fn rows_are_partitioned(
        keys in prop::collection::vec(prop::option::of(0i64..50), 0..200),
        count in 1usize..20,
    ) {
        let row_indices: ArrayRef = Arc::new(Int64Array::from_iter_values(0..keys.len() as i64));
        let keys: ArrayRef = Arc::new(Int64Array::from(keys));
        let by = Bucketing::new(vec!["c0".into()], count).unwrap();
        let batch = rows(&[keys, row_indices]);
        let whole = by.buckets_of(&batch).unwrap();
        let mut seen = 0;
        for (bucket, part) in by.partition(&batch).unwrap() {
            prop_assert!(part.num_rows() > 0);
            let row_indices = part.column(1).as_primitive::<Int64Type>().values();
            prop_assert!(row_indices.is_sorted());
            for row in row_indices {
                prop_assert_eq!(whole[*row as usize] as usize, bucket);
            }
            seen += part.num_rows();
        }
        prop_assert_eq!(seen, batch.num_rows());
    }
}
