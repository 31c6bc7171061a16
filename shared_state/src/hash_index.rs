//! Hash index: from hashes to rows, filled by several tasks at a time.
//!
//! Open addressing with linear probing, at most half full. A slot is one word: the upper half of
//! the hash (*tag*) and the index of a row, plus one. A key is one slot. Its rows are linked: the
//! slot leads to the last one added, `next[row]` to the one before. The index knows no keys: its
//! user compares them where two tags are equal, and a search compares about one key. While no key
//! has two rows there are no links, and a found row is the only one. (Leis et al., "Morsel-Driven
//! Parallelism", SIGMOD 2014, for the lock-free insertion; tags as in Swiss tables.)
//!
//! # Protocol
//!
//! [`HashIndex::insert`] claims an empty slot, or replaces the row of its key's slot, by a
//! compare-and-swap. A slot never becomes empty, and its key never changes, so a search that passed
//! a slot with another key need not return to it. Two tasks that add one key meet at its slot: both
//! start at the slot of the hash, and the one whose swap fails reads what the other one wrote.
//!
//! A task writes a row's key before it adds the row. The swap releases the key, and the load that
//! finds the row acquires it; so a key may be compared as soon as its row is found. Links are read
//! only after all rows are added, and the caller orders the two: as the join bridge does, by its
//! lock.

#[cfg(test)]
mod tests;

use std::sync::OnceLock;

use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// A hash index. Rows are added by any number of tasks, and then searched.
///
/// Memory: 16 to 32 bytes per row, and 4 more if two rows have one key.
///
/// ```
/// use gatework_shared_state::hash_index::HashIndex;
///
/// let keys = ["a", "b", "a"];
/// let hash = |key: &str| key.bytes().fold(7, |hash: u64, byte| hash * 31 + u64::from(byte));
/// let index = HashIndex::with_rows(keys.len());
/// for (row, key) in keys.iter().enumerate() {
///     index.insert(hash(key), row as u32, |other| keys[other as usize] == *key);
/// }
/// let last = index.search(hash("a"), |row| keys[row as usize] == "a");
/// assert_eq!(last, Some(2));
/// assert_eq!(index.row_before(2), Some(0));
/// assert_eq!(index.row_before(0), None);
/// assert_eq!(index.search(hash("c"), |row| keys[row as usize] == "c"), None);
/// ```
#[derive(Debug)]
pub struct HashIndex {
    slots: Box<[AtomicU64]>,
    /// Per row, the row of its key that was added before it, plus one, or 0. Absent while no two
    /// rows have one key.
    next: OnceLock<Box<[AtomicU32]>>,
    /// Whether two rows have one key.
    is_linked: AtomicBool,
    rows: usize,
}

/// The part of a slot that is the row plus one; the others are the tag.
const ROW_BITS: u64 = 0xFFFF_FFFF;
/// Minimum number of slots.
const MIN_SLOTS: usize = 4;
/// Number of slots, 128 KiB, up to which an index has [`SPARSE_SLOTS_PER_ROW`]. Most searches for
/// keys that it does not have then end at the first slot, and a core's own cache has all slots.
const MAX_SPARSE_SLOTS: usize = 1 << 14;
const SPARSE_SLOTS_PER_ROW: usize = 16;

impl HashIndex {
    /// Maximum memory per row, in bytes, of all but small indexes: four slots and a link.
    pub const MAX_ROW_BYTES: usize = 4 * 8 + 4;

    /// Creates an index for `rows` rows, fewer than 2³² − 1.
    pub fn with_rows(rows: usize) -> Self {
        let sparse = MAX_SPARSE_SLOTS.min(SPARSE_SLOTS_PER_ROW * rows);
        let slots = (2 * rows).max(sparse).next_power_of_two().max(MIN_SLOTS);
        let (next, is_linked) = (OnceLock::new(), AtomicBool::new(false));
        // loom does not know that the cell orders its initialization.
        #[cfg(loom)]
        next.get_or_init(|| zeroed(rows));
        Self { slots: zeroed(slots), next, is_linked, rows }
    }

    /// Returns the maximum memory of an index for `rows` rows, in bytes.
    pub fn max_bytes(rows: usize) -> usize {
        Self::MAX_ROW_BYTES * rows + 8 * MAX_SPARSE_SLOTS.min(2 * SPARSE_SLOTS_PER_ROW * rows)
    }

    /// Returns the memory of the index, in bytes.
    pub fn bytes(&self) -> usize {
        8 * self.slots.len() + 4 * self.next.get().map_or(0, |next| next.len())
    }

    /// Returns the number of rows that the index was created for.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns whether no two rows have one key. Called after all rows are added.
    pub fn is_unique(&self) -> bool {
        !self.is_linked.load(Ordering::Relaxed)
    }

    fn first_slot(&self, hash: u64) -> usize {
        hash as usize & (self.slots.len() - 1)
    }

    fn slot_after(&self, slot: usize) -> usize {
        (slot + 1) & (self.slots.len() - 1)
    }

    /// Adds `row`, whose key has this hash. No other call adds it. `equal` returns whether another
    /// row has the same key; keys with different hashes are different.
    pub fn insert(&self, hash: u64, row: u32, mut equal: impl FnMut(u32) -> bool) {
        let entry = (hash & !ROW_BITS) | (u64::from(row) + 1);
        let mut slot = self.first_slot(hash);
        // Acquire pairs with the swap that put a row into the slot: its key is compared.
        let mut old = self.slots[slot].load(Ordering::Acquire);
        // Whether the slot's key is known to be that of the row.
        let mut same = false;
        loop {
            same = same || (old != 0 && is_candidate(old, hash) && equal(row_of(old)));
            if old != 0 && !same {
                slot = self.slot_after(slot);
                old = self.slots[slot].load(Ordering::Acquire);
                continue;
            }
            if old != 0 {
                let next = self.next.get_or_init(|| zeroed(self.rows));
                // Relaxed: links are read after all rows are added.
                if !self.is_linked.load(Ordering::Relaxed) {
                    self.is_linked.store(true, Ordering::Relaxed);
                }
                next[row as usize].store((old & ROW_BITS) as u32, Ordering::Relaxed);
            }
            // Release: the key of the row. Acquire: the key of the row that came first.
            let swap = self.slots[slot].compare_exchange_weak(
                old,
                entry,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            match swap {
                Ok(_) => return,
                Err(other) => old = other,
            }
        }
    }

    /// Returns the last row added of the key with this hash; `equal` compares it with a row's key.
    #[inline]
    pub fn search(&self, hash: u64, mut equal: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut slot = self.first_slot(hash);
        loop {
            // Acquire pairs with the swap that put the row there: its key is compared.
            let entry = self.slots[slot].load(Ordering::Acquire);
            if entry == 0 {
                return None;
            }
            if is_candidate(entry, hash) && equal(row_of(entry)) {
                return Some(row_of(entry));
            }
            slot = self.slot_after(slot);
        }
    }

    /// Returns a row whose key probably has this hash: the only one to compare, but for one search
    /// in billions.
    #[inline]
    pub fn candidate(&self, hash: u64) -> Option<u32> {
        self.search(hash, |_| true)
    }

    /// Reads the slot at which the search for a hash begins. A caller that does so for many hashes,
    /// before it searches one after the other, waits for the memory once and not for each hash.
    #[inline]
    pub fn touch(&self, hash: u64) -> u64 {
        self.slots[self.first_slot(hash)].load(Ordering::Relaxed)
    }

    /// Returns the row of the same key that was added before `row`. Called after all rows are
    /// added.
    #[inline]
    pub fn row_before(&self, row: u32) -> Option<u32> {
        self.next.get()?[row as usize].load(Ordering::Relaxed).checked_sub(1)
    }
}

/// Returns whether the key of a used slot may have this hash.
#[inline]
fn is_candidate(entry: u64, hash: u64) -> bool {
    (entry ^ hash) & !ROW_BITS == 0
}

/// Returns the row of a used slot.
#[inline]
fn row_of(entry: u64) -> u32 {
    (entry & ROW_BITS) as u32 - 1
}

/// Returns zeros, in pages that the system zeroes on first use, each by the task that uses it.
#[cfg(not(any(loom, shuttle)))]
fn zeroed<T: bytemuck::Zeroable>(length: usize) -> Box<[T]> {
    bytemuck::zeroed_slice_box(length)
}

/// Returns zeros.
#[cfg(any(loom, shuttle))]
fn zeroed<T: Default>(length: usize) -> Box<[T]> {
    (0..length).map(|_| T::default()).collect()
}
