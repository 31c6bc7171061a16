//! The real hash index: rows that two tasks add are all found, each by its key. Keys are Relaxed
//! data, so only the index's own ordering makes them visible.

use std::sync::Arc;

use gatework_shared_state::hash_index::HashIndex;
use loom::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use crate::support::{check, join_all};

/// An index, and the keys of its rows, which are not 0.
struct Table {
    index: HashIndex,
    keys: Vec<AtomicU64>,
}

impl Table {
    fn add(&self, row: usize, key: u64, hash: u64) {
        self.keys[row].store(key, Ordering::Relaxed);
        self.index.insert(hash, row as u32, |other| self.key(other) == key);
    }

    fn key(&self, row: u32) -> u64 {
        let key = self.keys[row as usize].load(Ordering::Relaxed);
        assert!(key != 0, "the key of a row is not visible");
        key
    }

    fn rows_of(&self, key: u64, hash: u64) -> Vec<u32> {
        let last = self.index.search(hash, |row| self.key(row) == key);
        let mut rows: Vec<u32> =
            std::iter::successors(last, |row| self.index.row_before(*row)).collect();
        rows.sort_unstable();
        rows
    }
}

/// Two tasks add these rows, keys with their hashes. Then each key is searched.
fn add(first: &'static [(u64, u64)], second: &'static [(u64, u64)]) {
    check(move || {
        let all = [first, second].concat();
        let keys = all.iter().map(|_| AtomicU64::new(0)).collect();
        let table = Arc::new(Table { index: HashIndex::with_rows(all.len()), keys });
        let add_rows = |rows: &'static [(u64, u64)], from: usize| {
            let table = table.clone();
            thread::spawn(move || {
                for (row, (key, hash)) in (from..).zip(rows) {
                    table.add(row, *key, *hash);
                }
            })
        };
        join_all([add_rows(first, 0), add_rows(second, first.len())]);
        for (key, hash) in &all {
            let rows = all.iter().zip(0..).filter(|((other, _), _)| other == key);
            let rows: Vec<u32> = rows.map(|(_, row)| row).collect();
            assert_eq!(table.rows_of(*key, *hash), rows, "rows of key {key}");
        }
        let distinct =
            all.iter().all(|(key, _)| table.rows_of(*key, hash_of(&all, *key)).len() == 1);
        assert_eq!(table.index.is_unique(), distinct);
    });
}

fn hash_of(rows: &[(u64, u64)], key: u64) -> u64 {
    rows.iter().find(|(other, _)| *other == key).map_or(0, |(_, hash)| *hash)
}

#[test]
fn rows_of_one_key_are_linked() {
    add(&[(1, 7)], &[(1, 7)]);
    add(&[(1, 7), (1, 7)], &[(1, 7)]);
}

#[test]
fn keys_with_one_hash_have_a_slot_each() {
    add(&[(1, 7)], &[(2, 7)]);
    add(&[(1, 7), (2, 7)], &[(2, 7)]);
}

#[test]
fn keys_with_one_slot_have_a_slot_each() {
    add(&[(1, 7)], &[(2, 7 | 1 << 32)]);
    add(&[(1, 7), (2, 7 | 1 << 32)], &[(2, 7 | 1 << 32)]);
}
