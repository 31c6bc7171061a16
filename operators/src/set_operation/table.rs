//! Table of a set operation: how often each distinct row is still to be output.
//!
//! Like [`GroupValues`](crate::keys::GroupValues), with a lookup that enters no key: rows that only
//! the other children have take no memory.

use gatework_runtime::pipeline::{OutOfMemory, Reservation};

use super::SetKind;
use crate::{
    batch_bytes::MAX_BATCH_BYTES,
    keys::{EncodedKeys, KeyEncoder},
};

#[derive(Debug)]
pub(super) struct CountTable {
    /// The index of a key plus one; 0 for an empty slot. Linear probing.
    slots: Vec<u32>,
    hashes: Vec<u64>,
    keys: EncodedKeys,
    /// How often each key is to be output.
    counts: Vec<u64>,
    /// How often the current child had each key, at most its count; intersections only.
    hits: Vec<u64>,
    count_total: u64,
    hit_total: u64,
    memory: Option<Reservation>,
}

const FIRST_SLOTS: usize = 1024;

impl CountTable {
    pub(super) fn new(encoder: &KeyEncoder) -> Self {
        Self {
            slots: Vec::new(),
            hashes: Vec::new(),
            keys: encoder.empty_keys(),
            counts: Vec::new(),
            hits: Vec::new(),
            count_total: 0,
            hit_total: 0,
            memory: None,
        }
    }

    /// Sets the reservation of the table's bytes.
    pub(super) fn reserve_in(&mut self, memory: Reservation) {
        self.memory = Some(memory);
    }

    /// Adjusts the reservation to the table's bytes.
    pub(super) fn update_reservation(&mut self) -> Result<(), OutOfMemory> {
        let bytes = 4 * self.slots.capacity()
            + 8 * (self.hashes.capacity() + self.counts.capacity() + self.hits.capacity())
            + self.keys.bytes();
        self.memory.as_mut().map_or(Ok(()), |memory| memory.resize(bytes))
    }

    /// Counts the rows of the first child.
    pub(super) fn insert(&mut self, keys: &EncodedKeys, hashes: &[u64], kind: SetKind) {
        self.reserve_slots(keys.len());
        for (row, hash) in hashes.iter().enumerate() {
            match self.find(keys, row, *hash) {
                Ok(known) if matches!(kind, SetKind::IntersectAll | SetKind::ExceptAll) => {
                    self.counts[known] += 1;
                }
                Ok(_) => continue,
                Err(slot) => {
                    self.keys.push_from(keys, row);
                    self.hashes.push(*hash);
                    self.counts.push(1);
                    self.hits.push(0);
                    self.slots[slot] = self.counts.len() as u32;
                }
            }
            self.count_total += 1;
        }
        assert!(self.counts.len() < u32::MAX as usize, "more than 2^32 distinct rows in one set");
    }

    /// Counts rows of another child.
    pub(super) fn probe(&mut self, keys: &EncodedKeys, hashes: &[u64], kind: SetKind) {
        self.reserve_slots(0);
        for (row, hash) in hashes.iter().enumerate() {
            let Ok(known) = self.find(keys, row, *hash) else { continue };
            let remaining = self.counts[known];
            match kind {
                SetKind::Intersect | SetKind::IntersectAll => {
                    let more = u64::from(self.hits[known] < remaining);
                    self.hits[known] += more;
                    self.hit_total += more;
                }
                SetKind::Except | SetKind::ExceptAll => {
                    self.counts[known] = remaining.saturating_sub(1);
                    self.count_total -= remaining.min(1);
                }
            }
        }
    }

    /// Applies the counts at the end of another child.
    pub(super) fn end_child(&mut self, kind: SetKind) {
        if matches!(kind, SetKind::Intersect | SetKind::IntersectAll) {
            std::mem::swap(&mut self.counts, &mut self.hits);
            self.hits.fill(0);
            self.count_total = std::mem::take(&mut self.hit_total);
        }
    }

    /// Returns whether no further row of the current child can change the result.
    pub(super) fn cannot_change(&self, kind: SetKind) -> bool {
        match kind {
            SetKind::Intersect | SetKind::IntersectAll => self.hit_total == self.count_total,
            SetKind::Except | SetKind::ExceptAll => self.count_total == 0,
        }
    }

    /// Appends up to `max_rows` of the output rows to `keys`, from key and repetition `next` on.
    /// Appends fewer if the keys are long.
    pub(super) fn rows_from(
        &self,
        next: &mut (usize, u64),
        max_rows: usize,
        mut keys: EncodedKeys,
    ) -> EncodedKeys {
        let (mut capacity, mut bytes) = (max_rows as u64, MAX_BATCH_BYTES);
        while capacity > 0 && bytes > 0 && next.0 < self.counts.len() {
            let length = self.keys.length(next.0);
            // A key that is too long for a batch is one by itself.
            let at_least = usize::from(keys.is_empty());
            let within = (bytes / length.max(1)).max(at_least) as u64;
            if within == 0 {
                break;
            }
            let count = (self.counts[next.0] - next.1).min(capacity).min(within);
            (0..count).for_each(|_| keys.push_from(&self.keys, next.0));
            capacity -= count;
            bytes = bytes.saturating_sub(length * count as usize);
            next.1 += count;
            if next.1 == self.counts[next.0] {
                *next = (next.0 + 1, 0);
            }
        }
        keys
    }

    /// Returns the index of key `row` of `keys`, or else the slot to enter it.
    fn find(&self, keys: &EncodedKeys, row: usize, hash: u64) -> Result<usize, usize> {
        let mask = self.slots.len() - 1;
        let mut slot = hash as usize & mask;
        loop {
            match self.slots[slot].checked_sub(1).map(|index| index as usize) {
                None => return Err(slot),
                Some(known) if self.hashes[known] == hash && self.keys.equals(known, keys, row) => {
                    return Ok(known);
                }
                Some(_) => slot = (slot + 1) & mask,
            }
        }
    }

    /// Reserves slots for `more` keys at a load factor of at most one half.
    fn reserve_slots(&mut self, more: usize) {
        let wanted = (2 * (self.hashes.len() + more)).max(FIRST_SLOTS);
        if wanted <= self.slots.len() {
            return;
        }
        let mut slots = vec![0; wanted.next_power_of_two()];
        let mask = slots.len() - 1;
        for (entry, hash) in (1_u32..).zip(&self.hashes) {
            let mut slot = *hash as usize & mask;
            while slots[slot] != 0 {
                slot = (slot + 1) & mask;
            }
            slots[slot] = entry;
        }
        self.slots = slots;
    }
}
