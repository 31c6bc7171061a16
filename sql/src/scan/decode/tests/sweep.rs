//! Decoded values equal the written ones, for every type and every layout of a file.

use super::super::supports;
use super::common::{Layout, Random, array, metadata, open, selection, types, write};
use arrow::compute::filter;
use arrow_array::{Array, BooleanArray};
use gatework_operators::dictionary::decode;

const ROWS: usize = 4000;

#[test]
fn decodes_what_was_written() {
    let mut random = Random(42);
    for target in types() {
        for layout in Layout::all() {
            let distinct =
                if layout.overflow { 5000 } else { [1, 2, 7, 100, 3000][random.below(5)] };
            let expected = array(&mut random, &target, ROWS, layout.nullable, distinct);
            let file = write(&expected, &layout);
            let metadata = metadata(&file);
            let mut first = 0;
            for group in 0..metadata.num_row_groups() {
                assert!(supports(metadata.row_group(group).column(0), &target), "{target}");
                let rows = metadata.row_group(group).num_rows() as usize;
                let context = format!("{target} {layout:?} {distinct} group {group}");
                let part = expected.slice(first, rows);
                let whole = open(&file, &metadata, group, &target).read(rows, None).unwrap();
                whole.to_data().validate_full().unwrap();
                assert_eq!(&whole, &part, "{context}");
                for with_codes in [false, false, true, true] {
                    let mut decoder = open(&file, &metadata, group, &target);
                    if with_codes {
                        decoder = decoder.with_codes([3, 100, 10_000][random.below(3)]);
                    }
                    check_random_reads(&mut random, &mut decoder, &part, &context);
                }
                first += rows;
            }
            assert_eq!(first, ROWS);
        }
    }
}

fn check_random_reads(
    random: &mut Random,
    decoder: &mut super::super::ColumnDecoder,
    expected: &dyn Array,
    context: &str,
) {
    let limit = [40, 700, 3000][random.below(3)];
    let mut at = 0;
    while at < expected.len() {
        let rows = random.below(limit).min(expected.len() - at);
        if random.one_in(4) {
            decoder.skip(rows).unwrap();
        } else {
            let selection = selection(random, rows);
            let read = decoder.read(rows, selection.as_ref());
            let read = read.unwrap_or_else(|e| panic!("{context} at {at}: {e}"));
            read.to_data().validate_full().unwrap();
            assert!(
                read.data_type() == expected.data_type() || read.null_count() == 0,
                "{context}"
            );
            let read = decode(&read, expected.data_type()).unwrap();
            let mut part = expected.slice(at, rows);
            if let Some(selection) = selection {
                part = filter(&part, &BooleanArray::new(selection, None)).unwrap();
            }
            assert_eq!(&read, &part, "{context} at {at}");
        }
        at += rows;
    }
    assert!(decoder.read(1, None).is_err());
}
