//! Corrupt bytes yield an error or other values, never a panic or an endless loop.

use super::super::ColumnDecoder;
use super::common::{Layout, Random, array, metadata, selection, types, write};
use arrow_array::Array;
use bytes::Bytes;

const ROWS: usize = 1200;

#[test]
fn corrupt_bytes_do_not_panic() {
    let mut random = Random(99);
    let (mut errors, mut reads) = (0, 0);
    for target in types() {
        for layout in Layout::all() {
            let array = array(&mut random, &target, ROWS, layout.nullable, 300);
            let file = write(&array, &layout);
            let metadata = metadata(&file);
            let group = metadata.row_group(0);
            let chunk = group.column(0);
            let (start, len) = chunk.byte_range();
            let good = file[start as usize..(start + len) as usize].to_vec();
            for _ in 0..40 {
                let mut bytes = good.clone();
                damage(&mut random, &mut bytes);
                let rows = group.num_rows() as usize;
                let decoder =
                    ColumnDecoder::new(chunk, rows, Bytes::from(bytes), start, target.clone());
                let read = decoder.and_then(|mut decoder| {
                    let half = rows / 2;
                    let selection = selection(&mut random, half);
                    let first = decoder.read(half, selection.as_ref())?;
                    first.to_data().validate_full().unwrap();
                    let second = decoder.read(rows - half, None);
                    if let Ok(second) = &second {
                        second.to_data().validate_full().unwrap();
                        assert_eq!(second.len(), rows - half);
                    } else {
                        decoder.read(0, None).map(|_| ()).ok();
                    }
                    second
                });
                reads += 1;
                errors += usize::from(read.is_err());
            }
        }
    }
    // The seed is fixed, so this holds in every run or in none.
    assert!(errors > reads / 10, "{errors} errors in {reads} reads");
}

fn damage(random: &mut Random, bytes: &mut Vec<u8>) {
    // Headers, levels and lengths are small and lie at the front of pages.
    let limit = if random.one_in(2) { 60.min(bytes.len()) } else { bytes.len() };
    match random.below(5) {
        0 => bytes.truncate(random.below(bytes.len())),
        1 => {
            let at = random.below(limit);
            bytes[at] ^= 1 << random.below(8);
        }
        2 => {
            let at = random.below(limit);
            let end = (at + 1 + random.below(8)).min(bytes.len());
            bytes[at..end].fill(if random.one_in(2) { 0xff } else { 0 });
        }
        _ => {
            for _ in 0..1 + random.below(4) {
                let at = random.below(limit);
                bytes[at] = random.next() as u8;
            }
        }
    }
}
