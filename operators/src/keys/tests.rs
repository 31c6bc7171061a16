//! Encoding and decoding yield the same columns; only equal keys share a group.

use std::{collections::HashSet, ops::Range, sync::Arc};

use arrow::{
    array::{
        ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, DictionaryArray,
        Float64Array, Int8Array, Int32Array, Int64Array, ListArray, StringArray, StringViewArray,
        UInt32Array,
    },
    compute::take,
    datatypes::{DataType, Int8Type},
    util::display::array_value_to_string,
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
    assert!(matches!(round_trip(&[decimals]), EncodedKeys::Words(_)));
    assert!(matches!(round_trip(&[strings, longs, ints, bools]), EncodedKeys::Words(_)));
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

/// Small numbers from a seed, so that rows repeat.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    /// Returns texts that often share their length or their beginning: none, short and long ones.
    fn texts(&mut self, rows: usize) -> Vec<Option<String>> {
        let mut text = || {
            let (kind, letter) = (self.below(8), ["a", "b"][self.below(2) as usize]);
            let more = "-".repeat(self.below(3) as usize * 7);
            (kind > 0)
                .then(|| ["", "same beginning", "x"][kind as usize % 3].to_owned() + &more + letter)
        };
        (0..rows).map(|_| text()).collect()
    }

    /// Returns columns that become words: texts of all types, and values of fixed width.
    fn columns(&mut self, rows: usize) -> Vec<ArrayRef> {
        let texts = self.texts(rows);
        let as_bytes = |text: &Option<String>| text.clone().map(String::into_bytes);
        let bytes: Vec<Option<Vec<u8>>> = self.texts(rows).iter().map(as_bytes).collect();
        let bytes: Vec<Option<&[u8]>> = bytes.iter().map(Option::as_deref).collect();
        let decimals = (0..rows).map(|_| (self.below(4) > 0).then_some(self.below(3) as i128 - 1));
        let decimals =
            Decimal128Array::from_iter(decimals).with_precision_and_scale(38, 2).unwrap();
        let ints = Int32Array::from_iter((0..rows).map(|_| (self.below(4) > 0).then_some(0)));
        vec![
            Arc::new(StringViewArray::from_iter(texts.iter().map(Option::as_deref))),
            Arc::new(ints),
            Arc::new(BinaryArray::from(bytes)),
            Arc::new(decimals),
            Arc::new(
                self.texts(rows)
                    .iter()
                    .map(Option::as_deref)
                    .collect::<DictionaryArray<Int8Type>>(),
            ),
        ]
    }
}

#[test]
fn keys_of_words_are_equal_if_their_rows_are() {
    let mut numbers = Numbers(7);
    for picked in [&[0][..], &[2], &[3], &[4], &[0, 1], &[1, 3, 2], &[0, 1, 2, 3, 4]] {
        let batch = |numbers: &mut Numbers, rows| -> Vec<ArrayRef> {
            let columns = numbers.columns(rows);
            picked.iter().map(|index| columns[*index].clone()).collect()
        };
        let encoder = encoder(&batch(&mut numbers, 1));
        // The keys of the first batch are stored in three ways.
        let columns = batch(&mut numbers, 200);
        let encoded = encoder.encode(&columns).unwrap();
        assert!(matches!(encoded, EncodedKeys::Words(_)), "{picked:?}");
        let (mut stored, mut pushed) = (encoder.empty_keys(), encoder.empty_keys());
        stored.append(&encoded);
        (0..200).rev().for_each(|index| pushed.push_from(&stored, index));
        pushed.append(&stored);
        let more = batch(&mut numbers, 200);
        let probe = encoder.encode(&more).unwrap();
        let rows = |columns: &[ArrayRef]| -> Vec<String> {
            let row = |row| {
                columns
                    .iter()
                    .map(|c| {
                        array_value_to_string(c, row).unwrap()
                            + if c.is_null(row) { " null," } else { "," }
                    })
                    .collect()
            };
            (0..columns[0].len()).map(row).collect()
        };
        let (known, probed) = (rows(&columns), rows(&more));
        let hashes = |keys: &EncodedKeys| {
            let mut hashes = Vec::new();
            keys.hash_into(&mut hashes);
            hashes
        };
        let (stored_hashes, probe_hashes) = (hashes(&stored), hashes(&probe));
        assert_eq!(hashes(&encoded), stored_hashes);
        for (a, known) in known.iter().enumerate() {
            for (b, probed) in probed.iter().enumerate() {
                let equal = known == probed;
                assert_eq!(stored.equals(a, &probe, b), equal, "{picked:?}: {known} {probed}");
                assert_eq!(pushed.equals(199 - a, &probe, b), equal);
                assert_eq!(pushed.equals(200 + a, &probe, b), equal);
                assert!(!equal || stored_hashes[a] == probe_hashes[b]);
            }
        }
        assert_eq!(rows(&encoder.decode(&stored).unwrap()), known);
        assert_eq!(rows(&encoder.decode_range(&pushed, 200..400).unwrap()), known);
        let (mut table, mut groups) = (GroupValues::new(&encoder), Vec::new());
        for (columns, keys, hashes) in
            [(&columns, &encoded, &stored_hashes), (&more, &probe, &probe_hashes)]
        {
            table.intern(keys, hashes, &mut groups);
            let groups: Vec<u32> = groups.iter().map(|group| *group as u32).collect();
            let decoded = encoder.decode_indices(table.keys(), &groups).unwrap();
            assert_eq!(rows(&decoded), rows(columns));
        }
        let distinct: HashSet<_> = known.iter().chain(&probed).collect();
        assert_eq!(table.len(), distinct.len());
    }
}

/// A key of a dictionary may refer to a NULL among its values.
#[test]
fn nulls_among_the_values_of_a_dictionary() {
    let values = StringArray::from(vec![None, Some(""), Some("a")]);
    let keys = Int8Array::from(vec![Some(0), Some(1), None, Some(2)]);
    let texts: ArrayRef = Arc::new(DictionaryArray::new(keys, Arc::new(values)));
    let lists = ListArray::from_iter_primitive::<Int8Type, _, _>([[Some(1)], [None]].map(Some));
    let lists = take(&lists, &UInt32Array::from(vec![0, 0, 0, 1]), None).unwrap();
    for columns in [vec![texts.clone()], vec![texts, lists]] {
        let encoder = encoder(&columns);
        let keys = encoder.encode(&columns).unwrap();
        let (mut hashes, mut groups) = (Vec::new(), Vec::new());
        keys.hash_into(&mut hashes);
        GroupValues::new(&encoder).intern(&keys, &hashes, &mut groups);
        assert_eq!(groups, [0, 1, 0, 2]);
        let decoded = encoder.decode_indices(&keys, &[2, 3]).unwrap();
        assert_eq!(decoded[0].data_type(), columns[0].data_type());
        assert_eq!(array_value_to_string(&decoded[0], 1).unwrap(), "a");
        assert!(decoded[0].logical_nulls().unwrap().is_null(0));
    }
}

#[test]
fn long_texts_fill_several_buffers() {
    let texts = |first: usize| -> ArrayRef {
        let text = |n: usize| format!("{n:08}{}", "~".repeat(n % 5 * 4000));
        Arc::new(StringArray::from_iter_values((first..first + 600).map(text)))
    };
    let encoder = encoder(&[texts(0)]);
    let mut keys = encoder.empty_keys();
    for first in [0, 600] {
        let mut part = encoder.empty_keys();
        part.append(&encoder.encode(&[texts(first)]).unwrap());
        keys.append(&part);
    }
    assert!(keys.bytes() > 9_000_000 && keys.length(4) == 16_008 && keys.length(5) == 0);
    assert_eq!(encoder.decode_range(&keys, 0..600).unwrap(), [texts(0)]);
    assert_eq!(encoder.decode_range(&keys, 600..1200).unwrap(), [texts(600)]);
}

/// Assigns batches of rows of `columns` to groups, and compares with groups by text.
fn assert_groups(columns: &[ArrayRef], batches: &[Range<usize>], reads_hashes: bool) {
    let encoder = encoder(columns);
    let mut table = GroupValues::new(&encoder);
    let (mut known, mut groups) = (std::collections::HashMap::new(), Vec::new());
    for rows in batches {
        let slices: Vec<_> = columns.iter().map(|it| it.slice(rows.start, rows.len())).collect();
        let keys = encoder.encode(&slices).unwrap();
        if reads_hashes && rows.start % 3 == 0 {
            let mut hashes = Vec::new();
            keys.hash_into(&mut hashes);
            table.intern(&keys, &hashes, &mut groups);
        } else {
            table.assign(&keys, &mut groups);
        }
        let text = |row| -> Vec<String> {
            slices.iter().map(|it| array_value_to_string(it, row).unwrap()).collect()
        };
        let expected = (0..rows.len()).map(|row| {
            let next = known.len();
            *known.entry(text(row)).or_insert(next)
        });
        assert_eq!(groups, expected.collect::<Vec<_>>());
        assert_eq!(table.len(), known.len());
    }
    let mut hashes = Vec::new();
    table.keys().hash_into(&mut hashes);
    assert_eq!(table.hashes(), hashes);
    table.clear();
    assert!(table.is_empty());
    let keys = encoder.encode(columns).unwrap();
    table.assign(&keys, &mut groups);
    assert_eq!(table.len(), groups.iter().max().unwrap() + 1);
    assert!(table.len() >= known.len());
}

fn in_batches(rows: usize, of: usize) -> Vec<Range<usize>> {
    (0..rows).step_by(of).map(|first| first..rows.min(first + of)).collect()
}

/// A number below `below` that looks random.
fn noise(number: usize, below: i64) -> i64 {
    ((number as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33) as i64 % below
}

#[test]
fn ranges_follow_the_keys() {
    const ROWS: usize = 20_000;
    let column = |value: fn(usize) -> Option<i64>| -> ArrayRef {
        Arc::new(Int64Array::from_iter((0..ROWS).map(value)))
    };
    let narrow = column(|row| Some(noise(row, 100) - 50));
    let with_nulls = column(|row| (row % 5 > 0).then(|| noise(row, 1000)));
    let nulls_first = column(|row| (row > 3000).then(|| noise(row, 40)));
    let upwards = column(|row| Some(row as i64 / 4));
    let downwards = column(|row| Some(-(row as i64) / 3));
    let suddenly_far = column(|row| Some(if row == 9000 { i64::MAX } else { noise(row, 300) }));
    let extremes = column(|row| Some([i64::MIN, i64::MAX, -1, 0, 1][row % 5]));
    let sparse = column(|row| Some(noise(row, 5) * 1_000_000_007));
    let small: ArrayRef =
        Arc::new(Int8Array::from_iter_values((0..ROWS).map(|row| noise(row, 256) as u8 as i8)));
    let unsigned: ArrayRef =
        Arc::new(UInt32Array::from_iter_values((0..ROWS).map(|row| u32::MAX - row as u32 % 9)));
    let flags: ArrayRef = Arc::new(BooleanArray::from_iter(
        (0..ROWS).map(|row| (row % 7 > 0).then_some(row % 2 > 0)),
    ));
    for keys in [
        vec![&narrow],
        vec![&with_nulls],
        vec![&nulls_first],
        vec![&upwards],
        vec![&downwards],
        vec![&suddenly_far],
        vec![&extremes],
        vec![&sparse],
        vec![&small],
        vec![&unsigned, &flags],
        vec![&small, &flags, &unsigned],
        vec![&flags],
    ] {
        let keys: Vec<ArrayRef> = keys.into_iter().cloned().collect();
        for of in [7, 1000, 8192] {
            assert_groups(&keys, &in_batches(ROWS, of), false);
            assert_groups(&keys, &in_batches(ROWS, of), true);
        }
    }
}

#[test]
fn an_index_takes_memory_by_the_number_of_groups() {
    let far: ArrayRef = Arc::new(Int64Array::from_iter_values((0..1000).map(|n| n * 1_000_000)));
    let near: ArrayRef = Arc::new(Int64Array::from_iter_values(0..1000));
    for column in [far, near] {
        let encoder = encoder(std::slice::from_ref(&column));
        let mut table = GroupValues::new(&encoder);
        table.assign(&encoder.encode(&[column]).unwrap(), &mut Vec::new());
        assert!(table.bytes() < 256 << 10, "{} bytes", table.bytes());
    }
}
