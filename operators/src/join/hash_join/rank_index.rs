//! A key index for integers from a small range: no hashes, no comparisons.
//!
//! One bit per value of the range says whether a row has it. The bits before it, counted per word,
//! number the distinct keys. `heads` maps a key's number to its rows. Close keys are close in
//! memory, so probes in key order read memory sequentially. A range of a million values takes 256
//! KiB. (Rank over a bit vector: Jacobson, "Space-efficient static trees and graphs", 1989.)

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use arrow::buffer::BooleanBuffer;

/// 64 values of the range.
#[derive(Debug, Clone, Copy, Default)]
struct Word {
    bits: u64,
    /// Distinct keys in the words before this one.
    before: u32,
}

#[derive(Debug)]
pub(super) struct RankIndex {
    low: u64,
    words: Box<[Word]>,
    /// First row of each key, by the key's rank, plus one.
    heads: Box<[AtomicU32]>,
    unique: bool,
    /// Whether the rows are in the order of their keys, so that a key's number is its row.
    in_order: AtomicBool,
}

/// Maximum values of the range per row: 32 bytes of words, about the size of a hash table and its
/// keys.
const VALUES_PER_ROW: u64 = 128;
/// A range of this size is always small enough: its words, 256 KiB, stay in a core's own cache.
const SMALL_RANGE: u64 = 1 << 20;

impl RankIndex {
    /// Creates an index for `keys`, without those that `invalid` marks; `None` if their range is
    /// too large or there are none.
    pub(super) fn new(keys: &[u64], invalid: Option<&[bool]>) -> Option<Self> {
        let is_valid = |row: usize| invalid.is_none_or(|invalid| !invalid[row]);
        let (mut low, mut high, mut count) = (u64::MAX, 0, 0_usize);
        for (row, &key) in keys.iter().enumerate() {
            if is_valid(row) {
                low = low.min(key);
                high = high.max(key);
                count += 1;
            }
        }
        let last = high.checked_sub(low)?;
        Self::bytes_for(keys.len(), last)?;
        let mut words = vec![Word::default(); (last / 64 + 1) as usize];
        for (row, key) in keys.iter().enumerate() {
            if is_valid(row) {
                let offset = key - low;
                words[(offset / 64) as usize].bits |= 1 << (offset % 64);
            }
        }
        let mut distinct = 0;
        for word in &mut words {
            word.before = distinct;
            distinct += word.bits.count_ones();
        }
        let heads = (0..distinct).map(|_| AtomicU32::new(0)).collect();
        let (unique, in_order) = (distinct as usize == count, AtomicBool::new(false));
        Some(Self { low, words: words.into(), heads, unique, in_order })
    }

    /// Returns whether no two rows have the same key.
    pub(super) fn is_unique(&self) -> bool {
        self.unique
    }

    /// Returns the maximum bytes of an index over `rows` keys whose greatest exceeds the smallest
    /// by `last`. `None` if that range is too large.
    pub(super) fn bytes_for(rows: usize, last: u64) -> Option<usize> {
        let max_range = (rows as u64).saturating_mul(VALUES_PER_ROW).max(SMALL_RANGE);
        (last < max_range).then(|| size_of::<Word>() * (last / 64 + 1) as usize + 4 * rows)
    }

    /// Returns the memory of the index, in bytes.
    pub(super) fn bytes(&self) -> usize {
        size_of_val::<[Word]>(&self.words) + 4 * self.heads.len()
    }

    /// Puts `row` at the head of its key's chain. Returns the next row of the chain plus one, or 0.
    pub(super) fn insert(&self, key: u64, row: u32) -> u32 {
        match self.rank(key) {
            Some(rank) => self.heads[rank as usize].swap(row + 1, Ordering::Relaxed),
            None => 0,
        }
    }

    #[inline]
    fn rank(&self, key: u64) -> Option<u32> {
        let offset = key.wrapping_sub(self.low);
        let word = self.words.get((offset / 64) as usize)?;
        let bit = 1_u64 << (offset % 64);
        let rank = word.before + (word.bits & (bit - 1)).count_ones();
        (word.bits & bit != 0).then_some(rank)
    }

    /// Finds out whether the rows are in the order of their keys. Called after all are inserted.
    pub(super) fn finish(&self) {
        let heads = self.heads.iter().zip(1..);
        let in_order = heads.into_iter().all(|(head, row)| head.load(Ordering::Relaxed) == row);
        self.in_order.store(in_order && self.unique, Ordering::Relaxed);
    }

    /// Returns the first row of each of `keys`, plus one; 0 if there is none.
    pub(super) fn look_up(&self, keys: &[u64]) -> Vec<u32> {
        if self.in_order.load(Ordering::Relaxed) {
            return keys.iter().map(|key| self.rank(*key).map_or(0, |rank| rank + 1)).collect();
        }
        keys.iter().map(|key| self.first(*key)).collect()
    }

    /// Returns the first row with `key`, plus one; 0 if there is none.
    #[inline]
    fn first(&self, key: u64) -> u32 {
        self.rank(key).map_or(0, |rank| self.heads[rank as usize].load(Ordering::Relaxed))
    }

    /// Returns which of `keys` are in the index.
    pub(super) fn contains_keys(&self, keys: &[u64]) -> BooleanBuffer {
        BooleanBuffer::collect_bool(keys.len(), |row| {
            let offset = keys[row].wrapping_sub(self.low);
            let word = self.words.get((offset / 64) as usize);
            word.is_some_and(|word| word.bits >> (offset % 64) & 1 == 1)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(keys: &[u64], invalid: Option<&[bool]>) -> Option<RankIndex> {
        let dense = RankIndex::new(keys, invalid)?;
        for (row, key) in keys.iter().enumerate() {
            if invalid.is_none_or(|invalid| !invalid[row]) {
                dense.insert(*key, row as u32);
            }
        }
        Some(dense)
    }

    #[test]
    fn finds_what_was_inserted() {
        let keys: Vec<u64> = (0..5000).map(|n| 1_000_000 + 7 * n).collect();
        let dense = filled(&keys, None).unwrap();
        assert!(dense.is_unique());
        let probes: Vec<u64> = (999_990..1_035_100).collect();
        let contained = dense.contains_keys(&probes);
        for (index, probe) in probes.iter().enumerate() {
            let row = keys.binary_search(probe).map_or(0, |row| row as u32 + 1);
            assert_eq!(dense.first(*probe), row, "{probe}");
            assert_eq!(contained.value(index), row > 0, "{probe}");
        }
        assert_eq!((dense.first(0), dense.first(u64::MAX)), (0, 0));
        let expected: Vec<u32> = probes.iter().map(|probe| dense.first(*probe)).collect();
        assert_eq!(dense.look_up(&probes), expected);
        dense.finish();
        assert!(dense.in_order.load(Ordering::Relaxed));
        assert_eq!(dense.look_up(&probes), expected);
    }

    #[test]
    fn rows_in_another_order_and_equal_keys_are_not_in_order() {
        let flags = [false, false, true];
        for (keys, invalid) in [(vec![5, 9, 7], None), (vec![5, 9, 5], None), (vec![4, 6, 9], None)]
            .into_iter()
            .chain([(vec![4, 6, 5], Some(&flags[..]))])
        {
            let dense = filled(&keys, invalid).unwrap();
            dense.finish();
            let in_order = keys.is_sorted() || invalid.is_some();
            assert_eq!(dense.in_order.load(Ordering::Relaxed), in_order, "{keys:?}");
            let expected: Vec<u32> = keys.iter().map(|key| dense.first(*key)).collect();
            assert_eq!(dense.look_up(&keys), expected);
        }
    }

    #[test]
    fn chains_equal_keys() {
        let dense = RankIndex::new(&[5, 9, 5], None).unwrap();
        assert!(!dense.is_unique());
        assert_eq!([dense.insert(5, 0), dense.insert(9, 1), dense.insert(5, 2)], [0, 0, 1]);
        assert_eq!([dense.first(5), dense.first(9)], [3, 2]);
    }

    #[test]
    fn ignores_invalid_rows_and_refuses_wide_ranges() {
        let dense = filled(&[0, 5, u64::MAX], Some(&[false, false, true])).unwrap();
        assert_eq!(dense.first(u64::MAX), 0);
        assert!(RankIndex::new(&[0, 5, u64::MAX], None).is_none());
        assert!(RankIndex::new(&[1], Some(&[true])).is_none());
        assert!(RankIndex::new(&[], None).is_none());
    }
}
