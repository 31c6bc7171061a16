//! A hash table from keys to dense group numbers.
//!
//! Open addressing with linear probing. A slot combines a *tag*, half of the key's hash, with the
//! group's number plus one. Most probes are decided without reading the keys. A tag's upper bits
//! are its home slot, so slots are nearly sorted by tag. A table therefore grows in one
//! front-to-back pass over its slots. Slots by the hash's lower bits would make growth touch both
//! tables in random order. The hashes are kept, so that the table is partitioned without hashing
//! again.
//!
//! Keys of small ranges have a [`RangeIndex`] instead of slots.

use std::{convert::Infallible, hint::black_box};

use super::{EncodedKeys, KeyEncoder, WordKeys, fixed::PackedField, range_index::RangeIndex};

/// Groups, numbered in the order in which their keys were first seen.
#[derive(Debug)]
pub struct GroupValues {
    /// Empty until keys are looked up by hash.
    slots: Vec<u64>,
    hashes: Vec<u64>,
    keys: EncodedKeys,
    /// Finds all groups, if there is one.
    index: Option<RangeIndex>,
    /// Fields of the keys if they may have an index.
    range_fields: Option<Box<[PackedField]>>,
    /// Keys looked up before an index is tried.
    keys_before_index: usize,
    /// Hashes of the keys to look up; scratch memory.
    new_hashes: Vec<u64>,
}

/// Minimum number of slots.
const FIRST_SLOTS: usize = 1024;

/// Maximum number of slots at which growth enters the groups again, in group order. Such a table
/// stays within a core's own cache, where a scan for taken slots costs more.
const CACHED_SLOTS: usize = 1 << 17;

/// Minimum number of keys that are looked up by hash before another index is tried.
const KEYS_BEFORE_INDEX: usize = 1 << 14;

/// Slots that a growing table handles between two calls of `check`: one to two milliseconds.
const STEP_SLOTS: usize = 1 << 18;

impl GroupValues {
    /// Creates a table for keys of `encoder`.
    pub fn new(encoder: &KeyEncoder) -> Self {
        Self {
            slots: Vec::new(),
            hashes: Vec::new(),
            keys: encoder.empty_keys(),
            index: None,
            range_fields: encoder.range_fields().map(Into::into),
            keys_before_index: 0,
            new_hashes: Vec::new(),
        }
    }

    /// Returns the number of groups.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Returns whether there are no groups.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Returns whether groups are found at the values of their keys, without a hash.
    pub(crate) fn has_index(&self) -> bool {
        self.index.is_some()
    }

    /// Returns the memory of the table, in bytes.
    pub fn bytes(&self) -> usize {
        let hashes = self.hashes.capacity() + self.new_hashes.capacity();
        let index = self.index.as_ref().map_or(0, RangeIndex::bytes);
        8 * (self.slots.capacity() + hashes) + self.keys.bytes() + index
    }

    /// Returns the groups' keys.
    pub fn keys(&self) -> &EncodedKeys {
        &self.keys
    }

    /// Prepares the long texts of the keys for [`EncodedKeys::extend_sharing`].
    pub(crate) fn seal_texts(&mut self) {
        self.keys.seal_texts();
    }

    /// Returns the groups' hashes.
    pub fn hashes(&self) -> &[u64] {
        &self.hashes
    }

    /// Replaces `groups` by the group of each of `keys`. Unknown keys get new groups.
    ///
    /// # Panics
    /// If there are more than 2³² groups, or the keys come from another encoder.
    pub fn assign(&mut self, keys: &EncodedKeys, groups: &mut Vec<usize>) {
        if self.cover(keys) {
            return self.look_up_places(keys, groups);
        }
        let mut hashes = std::mem::take(&mut self.new_hashes);
        keys.hash_into(&mut hashes);
        self.intern(keys, &hashes, groups);
        self.new_hashes = hashes;
    }

    /// Returns whether there is an index with places for `keys`.
    fn cover(&mut self, keys: &EncodedKeys) -> bool {
        if self.index.is_none() {
            let Some(fields) = &self.range_fields else { return false };
            if self.keys_before_index > 0 {
                self.keys_before_index = self.keys_before_index.saturating_sub(keys.len());
                return false;
            }
            self.index = Some(RangeIndex::new(fields));
        }
        let Some(index) = &mut self.index else { return false };
        let covers = match (&self.keys, keys) {
            (EncodedKeys::U64(known), EncodedKeys::U64(keys)) => index.cover(known, keys),
            (EncodedKeys::U128(known), EncodedKeys::U128(keys)) => index.cover(known, keys),
            _ => false,
        };
        if covers {
            self.slots = Vec::new();
        } else {
            self.leave_index();
        }
        covers
    }

    /// Replaces `groups` by the groups of `keys`, for which the index has places.
    fn look_up_places(&mut self, keys: &EncodedKeys, groups: &mut Vec<usize>) {
        let Self { index: Some(index), keys: known, hashes, .. } = self else { return };
        match (known, keys) {
            (EncodedKeys::U64(known), EncodedKeys::U64(keys)) => {
                index.assign(keys, (known, hashes), groups);
            }
            (EncodedKeys::U128(known), EncodedKeys::U128(keys)) => {
                index.assign(keys, (known, hashes), groups);
            }
            _ => {}
        }
    }

    /// Drops the index. The groups are entered into slots when these are reserved.
    fn leave_index(&mut self) {
        self.index = None;
        self.keys_before_index = KEYS_BEFORE_INDEX.max(7 * self.keys.len());
    }

    /// Replaces `groups` by the group of each of `keys`, which have these hashes. Unknown keys get
    /// new groups.
    ///
    /// # Panics
    /// If there are more than 2³² groups, or the keys come from another encoder.
    pub fn intern(&mut self, keys: &EncodedKeys, hashes: &[u64], groups: &mut Vec<usize>) {
        if self.index.is_some() {
            self.leave_index();
        }
        groups.clear();
        groups.reserve(keys.len());
        let Ok(()) = self.reserve(keys.len(), || Ok::<_, Infallible>(()));
        let Self { slots, hashes: known, keys: store, .. } = self;
        match (store, keys) {
            (EncodedKeys::U64(store), EncodedKeys::U64(keys)) => {
                intern_values((slots, known, store), (keys, hashes), groups);
            }
            (EncodedKeys::U128(store), EncodedKeys::U128(keys)) => {
                intern_values((slots, known, store), (keys, hashes), groups);
            }
            (EncodedKeys::Words(store), EncodedKeys::Words(keys)) => {
                match (keys.plain_words(), keys.width()) {
                    (Some(words), 1) => {
                        intern_values((slots, known, store.words_mut()), (words, hashes), groups);
                    }
                    (Some(words), 2) => {
                        let keys = words.as_chunks::<2>().0;
                        intern_arrays((slots, known, store.words_mut()), (keys, hashes), groups);
                    }
                    (Some(words), 3) => {
                        let keys = words.as_chunks::<3>().0;
                        intern_arrays((slots, known, store.words_mut()), (keys, hashes), groups);
                    }
                    _ => intern_words((slots, known, store), (keys, hashes), groups),
                }
            }
            (EncodedKeys::Rows(store), EncodedKeys::Rows(keys)) => {
                for (key, hash) in keys.iter().zip(hashes) {
                    let next = known.len();
                    let group = find_or_insert(slots, *hash, next, |index| store.row(index) == key);
                    if group == next {
                        store.push(key);
                        known.push(*hash);
                    }
                    groups.push(group);
                }
            }
            _ => panic!("the keys come from another encoder"),
        }
        assert!(self.hashes.len() <= u32::MAX as usize, "more than 2^32 groups in one table");
    }

    /// Reserves capacity for `more` groups at a load factor of at most one half. Calls `check`
    /// periodically, so that growth can be cancelled.
    ///
    /// # Errors
    /// Returns the error of `check`; the groups are unchanged.
    pub fn reserve<E>(&mut self, more: usize, check: impl Fn() -> Result<(), E>) -> Result<(), E> {
        if self.hashes.len() > CACHED_SLOTS {
            // Both vectors copy their contents as they grow, and both grow at the same length.
            check()?;
            self.hashes.reserve(more);
            check()?;
            self.keys.reserve(more);
            check()?;
        }
        if self.index.is_some() {
            return Ok(());
        }
        let wanted = FIRST_SLOTS.max(2 * (self.hashes.len() + more));
        if wanted <= self.slots.len() {
            return Ok(());
        }
        let wanted = wanted.next_power_of_two();
        if wanted <= CACHED_SLOTS || self.slots.is_empty() {
            self.slots = vec![0; wanted];
            for (group, hash) in (1..).zip(&self.hashes) {
                enter(&mut self.slots, tag_of(*hash) | group);
            }
            return Ok(());
        }
        let mut slots = Vec::with_capacity(wanted);
        while slots.len() < wanted {
            check()?;
            slots.resize(wanted.min(slots.len() + STEP_SLOTS), 0);
        }
        for old in self.slots.chunks(STEP_SLOTS) {
            check()?;
            old.iter().filter(|entry| **entry != 0).for_each(|entry| enter(&mut slots, *entry));
        }
        self.slots = slots;
        Ok(())
    }

    /// Removes all groups. Keeps the memory, except that of variable-length keys beyond one chunk.
    pub fn clear(&mut self) {
        self.index = None;
        self.slots.fill(0);
        self.hashes.clear();
        self.keys.clear();
        self.keys_before_index = 0;
    }

    /// Returns the groups' keys and drops the table.
    pub fn into_keys(self) -> EncodedKeys {
        self.keys
    }
}

/// Interns fixed-width keys. Rows often arrive in key order, or nearly: each key is compared with
/// the previous row's first.
fn intern_values<K: Copy + PartialEq>(
    (slots, known, store): (&mut [u64], &mut Vec<u64>, &mut Vec<K>),
    (keys, hashes): (&[K], &[u64]),
    groups: &mut Vec<usize>,
) {
    let mut last = None;
    for (index, (key, hash)) in keys.iter().zip(hashes).enumerate() {
        if index % PRELOADED == 0 {
            let chunk = &hashes[index..hashes.len().min(index + PRELOADED)];
            preload(slots, chunk, |group| store[group] == *key);
        }
        let group = match last {
            Some((last, group)) if last == *key => group,
            _ => {
                let next = store.len();
                let group = find_or_insert(slots, *hash, next, |index| store[index] == *key);
                if group == next {
                    store.push(*key);
                    known.push(*hash);
                }
                last = Some((*key, group));
                group
            }
        };
        groups.push(group);
    }
}

/// Interns keys of `N` words without long texts.
fn intern_arrays<const N: usize>(
    (slots, known, store): (&mut [u64], &mut Vec<u64>, &mut Vec<u128>),
    (keys, hashes): (&[[u128; N]], &[u64]),
    groups: &mut Vec<usize>,
) {
    let mut last = None;
    for (index, (key, hash)) in keys.iter().zip(hashes).enumerate() {
        if index % PRELOADED == 0 {
            let chunk = &hashes[index..hashes.len().min(index + PRELOADED)];
            preload(slots, chunk, |group| store[group * N] == key[0]);
        }
        let group = match last {
            Some((last, group)) if last == key => group,
            _ => {
                let next = known.len();
                let equal = |group: usize| store[group * N..group * N + N] == *key;
                let group = find_or_insert(slots, *hash, next, equal);
                if group == next {
                    store.extend_from_slice(key);
                    known.push(*hash);
                }
                last = Some((key, group));
                group
            }
        };
        groups.push(group);
    }
}

/// Interns keys of many words, or with long texts.
fn intern_words(
    (slots, known, store): (&mut [u64], &mut Vec<u64>, &mut WordKeys),
    (keys, hashes): (&WordKeys, &[u64]),
    groups: &mut Vec<usize>,
) {
    let shared = store.share_texts_of(keys);
    // A row for some hashes: a text that comes from a dictionary, or from a join's build side, has
    // the same word in each row, and is not compared again.
    let mut seen = [u32::MAX; SEEN_ROWS];
    for (row, hash) in hashes.iter().enumerate() {
        if row % PRELOADED == 0 {
            let chunk = &hashes[row..hashes.len().min(row + PRELOADED)];
            preload(slots, chunk, |group| store.touch(group) == 0);
        }
        let last_seen = &mut seen[*hash as usize % SEEN_ROWS];
        let group = match groups.get(*last_seen as usize) {
            Some(group) if keys.has_words_of(row, *last_seen as usize) => *group,
            _ => {
                *last_seen = row as u32;
                let next = known.len();
                let equal = |index| store.equals(index, keys, row);
                let group = find_or_insert(slots, *hash, next, equal);
                if group == next {
                    match shared {
                        Some(first_buffer) => store.push_shared(keys, row, first_buffer),
                        None => store.push_from(keys, row),
                    }
                    known.push(*hash);
                }
                group
            }
        };
        groups.push(group);
    }
}

/// Number of rows of a batch whose groups are remembered.
const SEEN_ROWS: usize = 1024;

/// Keys whose slots and groups are loaded at once.
const PRELOADED: usize = 128;

/// Minimum number of slots, 1 MiB, of a table that does not lie in a core's own cache.
const UNCACHED_SLOTS: usize = 1 << 17;

/// Reads the slots of `hashes`, and then by `load` the groups in them, into the cache. No read
/// depends on another one, so the memory answers many at a time. (Kersten et al., "Everything You
/// Always Wanted to Know About Compiled and Vectorized Queries", 2018.)
#[inline]
fn preload(slots: &[u64], hashes: &[u64], load: impl Fn(usize) -> bool) {
    if slots.len() < UNCACHED_SLOTS {
        return;
    }
    let shift = shift_of(slots);
    let slot = |hash: u64| slots[(tag_of(hash) >> shift) as usize];
    let read = hashes.iter().fold(0, |read, hash| read ^ slot(*hash));
    black_box(read);
    let same_tag = |hash: &u64| (slot(*hash) ^ tag_of(*hash)) & TAG == 0 && slot(*hash) != 0;
    let groups = hashes.iter().filter(|hash| same_tag(hash));
    let loaded = groups.fold(false, |loaded, hash| loaded ^ load(slot(*hash) as u32 as usize - 1));
    black_box(loaded);
}

const TAG: u64 = 0xFFFF_FFFF_0000_0000;

/// Returns the tag of `hash`: its lower half with the bytes reversed, in the upper 32 bits. The
/// lower half is used because partitions are chosen by the top bits of the upper half.
#[inline]
fn tag_of(hash: u64) -> u64 {
    hash.swap_bytes() & TAG
}

/// Returns the right shift that turns a tag into its home slot. The number of slots is a power of
/// two greater than one.
fn shift_of(slots: &[u64]) -> u32 {
    64 - slots.len().trailing_zeros()
}

/// Returns the group with this hash for which `equal` holds; without one, enters and returns
/// `next`.
#[inline]
fn find_or_insert(
    slots: &mut [u64],
    hash: u64,
    next: usize,
    equal: impl Fn(usize) -> bool,
) -> usize {
    let tag = tag_of(hash);
    let mask = slots.len() - 1;
    let mut slot = (tag >> shift_of(slots)) as usize;
    loop {
        let entry = slots[slot];
        if entry == 0 {
            slots[slot] = tag | (next as u64 + 1);
            return next;
        }
        if entry & TAG == tag {
            let group = (entry as u32 - 1) as usize;
            if equal(group) {
                return group;
            }
        }
        slot = (slot + 1) & mask;
    }
}

/// Enters `entry`, which is in none of the slots.
fn enter(slots: &mut [u64], entry: u64) {
    let mask = slots.len() - 1;
    let mut slot = ((entry & TAG) >> shift_of(slots)) as usize;
    while slots[slot] != 0 {
        slot = (slot + 1) & mask;
    }
    slots[slot] = entry;
}
