//! A hash table from keys to dense group numbers.
//!
//! Open addressing with linear probing. A slot is the upper half of the key's hash and the group's
//! number plus one, so most probes are decided without touching the keys; the hashes are kept to
//! grow the table and to cut it into partitions without hashing again.

use super::{KeyEncoder, Keys};

/// Groups in the order in which their keys were first seen.
#[derive(Debug)]
pub struct GroupTable {
    slots: Vec<u64>,
    hashes: Vec<u64>,
    keys: Keys,
}

const FIRST_SLOTS: usize = 1024;

impl GroupTable {
    /// A table for keys of `encoder`.
    pub fn new(encoder: &KeyEncoder) -> Self {
        Self { slots: vec![0; FIRST_SLOTS], hashes: Vec::new(), keys: encoder.no_keys() }
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
    pub fn keys(&self) -> &Keys {
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
    pub fn intern(&mut self, keys: &Keys, hashes: &[u64], groups: &mut Vec<usize>) {
        groups.clear();
        groups.reserve(keys.len());
        self.reserve(keys.len());
        let Self { slots, hashes: known, keys: store } = self;
        match (store, keys) {
            (Keys::Word(store), Keys::Word(keys)) => {
                intern_values((slots, known, store), (keys, hashes), groups);
            }
            (Keys::Pair(store), Keys::Pair(keys)) => {
                intern_values((slots, known, store), (keys, hashes), groups);
            }
            (Keys::Rows(store), Keys::Rows(keys)) => {
                for (key, hash) in keys.iter().zip(hashes) {
                    let next = known.len();
                    let group = find_or_insert(slots, *hash, next, |at| store.row(at) == key);
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

    /// Makes room for `more` groups at a load of at most one half.
    fn reserve(&mut self, more: usize) {
        let wanted = 2 * (self.hashes.len() + more);
        if wanted <= self.slots.len() {
            return;
        }
        let mut slots = vec![0; wanted.next_power_of_two()];
        for (group, hash) in self.hashes.iter().enumerate() {
            find_or_insert(&mut slots, *hash, group, |_| false);
        }
        self.slots = slots;
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
                let group = find_or_insert(slots, *hash, next, |at| store[at] == *key);
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

/// The group with this hash for which `equal` holds, or `next`, entered.
#[inline]
fn find_or_insert(
    slots: &mut [u64],
    hash: u64,
    next: usize,
    equal: impl Fn(usize) -> bool,
) -> usize {
    let mask = slots.len() - 1;
    let tag = hash & 0xFFFF_FFFF_0000_0000;
    let mut slot = hash as usize & mask;
    loop {
        let entry = slots[slot];
        if entry == 0 {
            slots[slot] = tag | (next as u64 + 1);
            return next;
        }
        if entry & 0xFFFF_FFFF_0000_0000 == tag {
            let group = (entry as u32 - 1) as usize;
            if equal(group) {
                return group;
            }
        }
        slot = (slot + 1) & mask;
    }
}
