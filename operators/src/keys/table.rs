//! A hash table from keys to dense group numbers.
//!
//! Open addressing with linear probing. A slot is a *tag*, half of the key's hash, and the group's number plus
//! one, so most probes are decided without touching the keys. A tag's upper bits say where its slot is: slots are
//! in the order of their tags, nearly, and a table grows by one pass over them, from front to back, where it would
//! touch both tables in random order if they were in that of the hashes' lower bits. Hashes are kept to cut the table
//! into partitions without hashing again.

use std::convert::Infallible;

use super::{EncodedKeys, KeyEncoder};

/// Groups in the order in which their keys were first seen.
#[derive(Debug)]
pub struct GroupValues {
    slots: Vec<u64>,
    hashes: Vec<u64>,
    keys: EncodedKeys,
}

const FIRST_SLOTS: usize = 1024;

/// Up to so many slots, which stay within a core's own cache, to find out which are taken costs more than to enter
/// groups in their order.
const CACHED_SLOTS: usize = 1 << 17;

/// Slots after which a table that grows asks whether to go on: a millisecond or two.
const STEP_SLOTS: usize = 1 << 18;

impl GroupValues {
    /// A table for keys of `encoder`.
    pub fn new(encoder: &KeyEncoder) -> Self {
        Self { slots: vec![0; FIRST_SLOTS], hashes: Vec::new(), keys: encoder.empty_keys() }
    }

    /// The number of groups.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether there are no groups.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// The bytes it takes.
    pub fn bytes(&self) -> usize {
        8 * (self.slots.capacity() + self.hashes.capacity()) + self.keys.bytes()
    }

    /// The groups' keys.
    pub fn keys(&self) -> &EncodedKeys {
        &self.keys
    }

    /// The groups' hashes.
    pub fn hashes(&self) -> &[u64] {
        &self.hashes
    }

    /// Replaces `groups` by the group of each of `keys`, with new groups for unknown keys.
    ///
    /// # Panics
    /// If there are more than 2³² groups, or the keys are of another encoder.
    pub fn intern(&mut self, keys: &EncodedKeys, hashes: &[u64], groups: &mut Vec<usize>) {
        groups.clear();
        groups.reserve(keys.len());
        let Ok(()) = self.reserve(keys.len(), || Ok::<_, Infallible>(()));
        let Self { slots, hashes: known, keys: store } = self;
        match (store, keys) {
            (EncodedKeys::U64(store), EncodedKeys::U64(keys)) => {
                intern_values((slots, known, store), (keys, hashes), groups);
            }
            (EncodedKeys::U128(store), EncodedKeys::U128(keys)) => {
                intern_values((slots, known, store), (keys, hashes), groups);
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
            _ => panic!("keys of another encoder"),
        }
        assert!(self.hashes.len() <= u32::MAX as usize, "more than 2^32 groups in one table");
    }

    /// Makes room for `more` groups at a load of at most one half. Asks `check` now and then.
    ///
    /// # Errors
    /// That of `check`; the table has the groups it had.
    pub fn reserve<E>(&mut self, more: usize, check: impl Fn() -> Result<(), E>) -> Result<(), E> {
        if self.hashes.len() > CACHED_SLOTS {
            // Each of them copies what there is when it is full, all at the same time.
            check()?;
            self.hashes.reserve(more);
            check()?;
            self.keys.reserve(more);
            check()?;
        }
        let wanted = 2 * (self.hashes.len() + more);
        if wanted <= self.slots.len() {
            return Ok(());
        }
        let wanted = wanted.next_power_of_two();
        if wanted <= CACHED_SLOTS {
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

    /// Has no groups any more, and keeps its memory; of rows only a part.
    pub fn clear(&mut self) {
        self.slots.fill(0);
        self.hashes.clear();
        self.keys.clear();
    }

    /// The groups' keys, without the table.
    pub fn into_keys(self) -> EncodedKeys {
        self.keys
    }
}

/// Keys that are values. Rows often come in the order of theirs, or nearly: the one before is looked at first.
fn intern_values<K: Copy + PartialEq>(
    (slots, known, store): (&mut [u64], &mut Vec<u64>, &mut Vec<K>),
    (keys, hashes): (&[K], &[u64]),
    groups: &mut Vec<usize>,
) {
    let mut last = None;
    for (key, hash) in keys.iter().zip(hashes) {
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

const TAG: u64 = 0xFFFF_FFFF_0000_0000;

/// The half of `hash` that slots have, in their upper half: its lower one, since partitions are cut by the first bits of
/// the other, with its bytes in reverse.
#[inline]
fn tag_of(hash: u64) -> u64 {
    hash.swap_bytes() & TAG
}

/// What is left of a tag when it is shifted by so much is where the search for it begins. There is more than one slot,
/// and a power of two.
fn shift_of(slots: &[u64]) -> u32 {
    64 - slots.len().trailing_zeros()
}

/// The group with this hash for which `equal` holds, or `next`, entered.
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

/// Enters what is in none of the slots.
fn enter(slots: &mut [u64], entry: u64) {
    let mask = slots.len() - 1;
    let mut slot = ((entry & TAG) >> shift_of(slots)) as usize;
    while slots[slot] != 0 {
        slot = (slot + 1) & mask;
    }
    slots[slot] = entry;
}
