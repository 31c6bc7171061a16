//! Encoding and decoding yield the same columns; only equal keys share a group.

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{
        ArrayRef, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int32Array, Int64Array,
        StringArray, UInt32Array,
    },
    compute::take,
    datatypes::DataType,
};

use super::{EncodedKeys, GroupValues, KeyEncoder, KeyNulls};

fn encoder(columns: &[ArrayRef]) -> KeyEncoder {
    let types: Vec<_> = columns.iter().map(|column| (column.data_type().clone(), true)).collect();
    KeyEncoder::new(&types, KeyNulls::Equal).unwrap()
}

fn round_trip(columns: &[ArrayRef]) -> EncodedKeys {
    let encoder = encoder(columns);
    let keys = encoder.encode(columns).unwrap();
    let decoded = encoder.decode(&keys).unwrap();
    assert_eq!(decoded, columns);
    keys
}

#[test]
fn columns_survive_encoding() {
    let ints: ArrayRef = Arc::new(Int32Array::from(vec![Some(-1), None, Some(i32::MIN), Some(0)]));
    let bools: ArrayRef =
        Arc::new(BooleanArray::from(vec![None, Some(true), Some(false), Some(true)]));
    let longs: ArrayRef = Arc::new(Int64Array::from(vec![Some(i64::MAX), None, None, Some(-5)]));
    let dates: ArrayRef = Arc::new(Date32Array::from(vec![1, 2, 3, 4]));
    let decimals: ArrayRef = Arc::new(
        Decimal128Array::from(vec![Some(-7), None, Some(i128::MAX), Some(1)])
            .with_data_type(DataType::Decimal128(38, 2)),
    );
    let strings: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None, Some(""), Some("b")]));
    assert!(matches!(round_trip(&[ints.clone(), bools.clone()]), EncodedKeys::U64(_)));
    assert!(matches!(round_trip(&[longs.clone(), dates]), EncodedKeys::U128(_)));
    assert!(matches!(round_trip(&[decimals]), EncodedKeys::Rows(_)));
    assert!(matches!(round_trip(&[strings, longs, ints, bools]), EncodedKeys::Rows(_)));
}

#[test]
fn slices_encode_their_own_rows() {
    let ints: ArrayRef =
        Arc::new(Int32Array::from_iter((0..100).map(|n| (n % 7 != 0).then_some(n))));
    let slice = ints.slice(13, 50);
    round_trip(&[slice]);
}

#[test]
fn zeros_are_equal_and_nans_are_by_their_bits() {
    let floats: ArrayRef = Arc::new(Float64Array::from(vec![0.0, -0.0, f64::NAN, f64::NAN, 1.0]));
    let encoder = encoder(std::slice::from_ref(&floats));
    let keys = encoder.encode(&[floats]).unwrap();
    let mut hashes = Vec::new();
    keys.hash_into(&mut hashes);
    let mut groups = Vec::new();
    GroupValues::new(&encoder).intern(&keys, &hashes, &mut groups);
    assert_eq!(groups, [0, 0, 1, 1, 2]);
}

#[test]
fn a_null_equals_only_a_null() {
    // The value below the NULL is 0; the NULL must not become equal to 0.
    let ints: ArrayRef = Arc::new(Int64Array::from(vec![None, Some(0), None, Some(1)]));
    let encoder = encoder(std::slice::from_ref(&ints));
    let keys = encoder.encode(&[ints]).unwrap();
    let mut hashes = Vec::new();
    keys.hash_into(&mut hashes);
    let mut groups = Vec::new();
    GroupValues::new(&encoder).intern(&keys, &hashes, &mut groups);
    assert_eq!(groups, [0, 1, 0, 2]);
}

fn longs(range: Range<i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(range))
}

fn texts(range: Range<i64>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(range.map(|number| number.to_string())))
}

/// Interns `rows` rows in batches and asserts that row n becomes group n.
fn enter(
    table: &mut GroupValues,
    encoder: &KeyEncoder,
    column: fn(Range<i64>) -> ArrayRef,
    rows: i64,
) {
    let (mut hashes, mut groups) = (Vec::new(), Vec::new());
    for start in (0..rows).step_by(1000) {
        let keys = encoder.encode(&[column(start..start + 1000)]).unwrap();
        keys.hash_into(&mut hashes);
        table.intern(&keys, &hashes, &mut groups);
        let expected: Vec<usize> = (start as usize..start as usize + 1000).collect();
        assert_eq!(groups, expected);
    }
    assert_eq!(table.len(), rows as usize);
}

/// More groups than a table of `CACHED_SLOTS` slots has, so that growth scans slots.
const MANY: i64 = 300_000;

#[test]
fn a_table_grows_and_keeps_its_groups() {
    for column in [longs, texts] {
        let encoder = encoder(&[column(0..0)]);
        let mut table = GroupValues::new(&encoder);
        for rows in [MANY, MANY, 50_000] {
            if rows < MANY {
                let bytes = table.bytes();
                table.clear();
                assert!(table.is_empty() && table.bytes() <= bytes);
            }
            enter(&mut table, &encoder, column, rows);
            assert_eq!(encoder.decode(table.keys()).unwrap(), [column(0..rows)]);
        }
        assert_eq!(encoder.decode(&table.into_keys()).unwrap(), [column(0..50_000)]);
    }
}

#[test]
fn a_table_whose_growth_is_stopped_is_as_it_was() {
    let encoder = encoder(&[longs(0..0)]);
    let mut table = GroupValues::new(&encoder);
    enter(&mut table, &encoder, longs, MANY);
    for steps in 0..7 {
        let remaining = std::cell::Cell::new(steps);
        let check = || match remaining.get() {
            0 => Err("stop"),
            more => {
                remaining.set(more - 1);
                Ok(())
            }
        };
        assert_eq!(table.reserve(10 * MANY as usize, check), Err("stop"));
    }
    enter(&mut table, &encoder, longs, MANY);
}

#[test]
fn some_keys_are_decoded() {
    let columns = [texts(0..40_000), longs(0..40_000)];
    for columns in [&columns[..], &columns[1..]] {
        let encoder = encoder(columns);
        let keys = encoder.encode(columns).unwrap();
        let decoded = encoder.decode_indices(&keys, &[39_999, 0, 20_000, 0]).unwrap();
        let indices = UInt32Array::from(vec![39_999, 0, 20_000, 0]);
        let expected: Vec<_> = columns.iter().map(|c| take(c, &indices, None).unwrap()).collect();
        assert_eq!(decoded, expected);
    }
}

#[test]
fn more_rows_than_a_chunk() {
    for rows in [16_383, 16_384, 16_385, 32_768, 40_000] {
        let columns = [texts(0..rows), longs(0..rows)];
        let encoder = encoder(&columns);
        let keys = encoder.encode(&columns).unwrap();
        assert_eq!(keys.len(), rows as usize);
        assert_eq!(encoder.decode(&keys).unwrap(), columns);
        let mut copy = encoder.empty_keys();
        copy.append(&keys);
        copy.push_from(&keys, 7);
        assert!(copy.equals(16_382, &keys, 16_382) && copy.equals(rows as usize, &keys, 7));
        assert!(copy.bytes() > 20 * rows as usize);
        let range = 10_000..16_383;
        let found = encoder.decode_range(&copy, 10_000..16_383).unwrap();
        assert_eq!(found, [texts(range.clone()), longs(range)]);
    }
}
