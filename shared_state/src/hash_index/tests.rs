use std::{collections::HashMap, iter::successors, thread};

use super::HashIndex;

/// Hashes of `keys` to which several tasks add rows, by a rule that makes some of them meet.
fn check(keys: &[u32], hash: impl Fn(u32) -> u64 + Sync, tasks: usize) {
    let index = HashIndex::with_rows(keys.len());
    thread::scope(|scope| {
        for task in 0..tasks {
            let (index, hash) = (&index, &hash);
            scope.spawn(move || {
                for (row, key) in keys.iter().enumerate().skip(task).step_by(tasks) {
                    index.insert(hash(*key), row as u32, |other| keys[other as usize] == *key);
                }
            });
        }
    });
    let mut expected: HashMap<u32, Vec<u32>> = HashMap::new();
    for (row, key) in keys.iter().enumerate() {
        expected.entry(*key).or_default().push(row as u32);
    }
    for (key, rows) in &expected {
        let last = index.search(hash(*key), |row| keys[row as usize] == *key);
        let mut found: Vec<u32> = successors(last, |row| index.row_before(*row)).collect();
        found.sort_unstable();
        assert_eq!(&found, rows, "rows of key {key}");
    }
    assert_eq!(index.is_unique(), expected.len() == keys.len());
    let absent = keys.iter().max().map_or(0, |key| key + 1);
    assert_eq!(index.search(hash(absent), |row| keys[row as usize] == absent), None);
}

/// Returns keys below `distinct`, the same in each run.
fn keys(rows: u32, distinct: u32) -> Vec<u32> {
    (0..rows).map(|row| row.wrapping_mul(2_654_435_761) % distinct).collect()
}

fn spread(key: u32) -> u64 {
    u64::from(key).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

#[test]
fn every_row_is_found_by_its_key() {
    for tasks in [1, 2, 8] {
        check(&keys(10_000, u32::MAX), spread, tasks);
        check(&keys(10_000, 3_000), spread, tasks);
        check(&keys(10_000, 2), spread, tasks);
    }
}

#[test]
fn keys_whose_hashes_meet_stay_apart() {
    for tasks in [1, 8] {
        // One slot for all, tags apart.
        check(&keys(500, 300), |key| u64::from(key) << 32, tasks);
        // One tag for all, slots apart.
        check(&keys(500, 300), u64::from, tasks);
        // Few hashes in all.
        check(&keys(500, 300), |key| spread(key % 7), tasks);
    }
}

#[test]
fn an_index_without_rows_finds_nothing() {
    let index = HashIndex::with_rows(0);
    assert_eq!(index.search(5, |_| true), None);
    assert!(index.is_unique());
    assert!(index.bytes() > 0);
}

#[test]
fn memory_is_within_its_bound() {
    for rows in [2, 3, 100, 1_000, 1_025] {
        let index = HashIndex::with_rows(rows);
        (0..rows as u32).for_each(|row| index.insert(7, row, |_| true));
        assert!(index.bytes() <= HashIndex::max_bytes(rows), "{rows} rows");
    }
}
