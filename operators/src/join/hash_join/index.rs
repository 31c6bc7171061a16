//! Join index: maps keys to rows of the table.
//!
//! Rows with equal keys, or in one slot, are chained: the index leads to the first row, `next[row]`
//! to the next. Integer keys of a small range have an index of their own ([`RankIndex`]). For other
//! keys, `heads[slot]` combines a 16-bit filter of the chain's hashes with the first row's index
//! plus one. Most probes without a match therefore touch one word.
//!
//! Ordering: build morsels write relaxed. Probe tasks read after they take the table from the join
//! bridge, whose lock orders all build morsels before them.

use std::{
    collections::VecDeque,
    hint::black_box,
    ops::Range,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use arrow::buffer::NullBuffer;
use parking_lot::RwLock;

use super::{
    build_keys::{HashedRows, KeyChunks},
    rank_index::RankIndex,
};
use crate::keys::EncodedKeys;

#[derive(Debug)]
pub(super) struct JoinIndex {
    kind: IndexKind,
    /// Next row in each row's chain, plus one; empty if no two rows share a chain.
    next: Box<[AtomicU32]>,
}

#[derive(Debug)]
pub(super) enum IndexKind {
    Dense {
        dense: RankIndex,
        /// Keys for the build morsels; empty once these are done.
        keys: RwLock<Vec<u64>>,
    },
    Hashed {
        keys: KeyChunks,
        heads: Box<[AtomicU64]>,
    },
}

/// Rows whose places in memory are read at once, before they are used one after the other. No read
/// depends on another one, so the memory answers many at a time.
pub(super) const PRELOADED: usize = 128;
/// Minimum number of rows of a table whose links take 128 KiB.
const UNCACHED_ROWS: usize = if cfg!(test) { 10 } else { 1 << 15 };

const ROW_BITS: u64 = 0xFFFF_FFFF;

/// Returns one of 16 filter bits in the upper end of a head, chosen by hash bits that slots do not
/// use.
fn filter_bit(hash: u64) -> u64 {
    1 << (48 + (hash >> 60))
}

impl JoinIndex {
    /// Creates an empty index for the keys of `pieces`. `empty` has no keys and the same encoder.
    /// `range` is the smallest and the greatest key, if keys are `u64`.
    pub(super) fn new(
        mut pieces: VecDeque<HashedRows>,
        empty: EncodedKeys,
        range: Option<(u64, u64)>,
        invalid: Option<&[bool]>,
    ) -> Self {
        let rows = pieces.iter().map(|piece| piece.keys.len()).sum();
        let chains = || (0..rows).map(|_| AtomicU32::new(0)).collect();
        if range.is_some_and(|(low, high)| RankIndex::bytes_for(rows, high - low).is_some()) {
            let mut words = Vec::with_capacity(rows);
            for piece in pieces.drain(..) {
                if let EncodedKeys::U64(keys) = piece.keys {
                    words.extend_from_slice(&keys);
                }
            }
            if let Some(dense) = RankIndex::new(&words, invalid) {
                let next = if dense.is_unique() { Box::default() } else { chains() };
                let kind = IndexKind::Dense { dense, keys: RwLock::new(words) };
                return Self { kind, next };
            }
            pieces.push_back(HashedRows::new(EncodedKeys::U64(words)));
        }
        let keys = KeyChunks::new(pieces, empty);
        let heads = (0..Self::slots(rows)).map(|_| AtomicU64::new(0)).collect();
        Self { kind: IndexKind::Hashed { keys, heads }, next: chains() }
    }

    fn slots(rows: usize) -> usize {
        (2 * rows).next_power_of_two().max(16)
    }

    /// Maximum bytes of an index per row, without keys and hashes: four slots and a link.
    pub(super) const MAX_ROW_BYTES: usize = 4 * 8 + 4;

    /// Returns the maximum bytes of an index over `rows` keys, without keys and hashes. `range` is
    /// the smallest and the greatest key, if keys are `u64`.
    pub(super) fn bytes_for(rows: usize, range: Option<(u64, u64)>) -> usize {
        let dense = range.and_then(|(low, high)| RankIndex::bytes_for(rows, high - low));
        dense.map_or(Self::MAX_ROW_BYTES * rows, |dense| dense + 4 * rows)
    }

    /// Returns the memory of the index, in bytes, keys included.
    pub(super) fn bytes(&self) -> usize {
        let kind = match &self.kind {
            IndexKind::Dense { dense, keys } => dense.bytes() + 8 * keys.read().capacity(),
            IndexKind::Hashed { keys, heads } => keys.bytes() + 8 * heads.len(),
        };
        kind + 4 * self.next.len()
    }

    /// Adds the rows of chunk `chunk`, which no other build morsel adds.
    pub(super) fn insert(&self, chunk: usize, rows: Range<usize>, invalid: Option<&[bool]>) {
        let is_valid = |row: usize| invalid.is_none_or(|invalid| !invalid[row]);
        match &self.kind {
            IndexKind::Dense { dense, keys } => {
                let keys = keys.read();
                for row in rows.filter(|row| is_valid(*row)) {
                    let after = dense.insert(keys[row], row as u32);
                    if let Some(next) = self.next.get(row) {
                        next.store(after, Ordering::Relaxed);
                    }
                }
            }
            IndexKind::Hashed { keys, heads } => {
                let mut scratch = Vec::new();
                let hashes = keys.fill(chunk).hashes(&mut scratch);
                let mask = heads.len() - 1;
                for (first, hashes) in rows.step_by(PRELOADED).zip(hashes.chunks(PRELOADED)) {
                    let heads_of = hashes.iter().map(|hash| &heads[*hash as usize & mask]);
                    black_box(heads_of.fold(0, |read, head| read ^ head.load(Ordering::Relaxed)));
                    for (row, hash) in (first..).zip(hashes).filter(|(row, _)| is_valid(*row)) {
                        let entry = |old: u64| {
                            Some((old & !ROW_BITS) | filter_bit(*hash) | (row as u64 + 1))
                        };
                        let head = &heads[*hash as usize & mask];
                        // `fetch_update` with a closure that always returns `Some` cannot fail.
                        let old = head.fetch_update(Ordering::Relaxed, Ordering::Relaxed, entry);
                        if let Ok(old) = old {
                            self.next[row].store((old & ROW_BITS) as u32, Ordering::Relaxed);
                        }
                    }
                }
            }
        }
    }

    /// Releases what only build morsels need. Called after the last build morsel.
    pub(super) fn finish(&self) {
        if let IndexKind::Dense { keys, .. } = &self.kind {
            *keys.write() = Vec::new();
        }
    }

    pub(super) fn kind(&self) -> &IndexKind {
        &self.kind
    }

    /// Returns whether chains are followed faster if their first rows are read in advance: the
    /// links do not lie in a core's own cache.
    pub(super) fn is_large(&self) -> bool {
        self.next.len() >= UNCACHED_ROWS
    }

    /// Returns whether every chain is one row with the key that was looked up.
    pub(super) fn is_exact(&self) -> bool {
        self.next.is_empty()
    }

    /// Replaces `entries` by the first row of each key's chain plus one, or 0. The loads are
    /// independent of each other, so that the memory system overlaps them.
    pub(super) fn lookup_chains(
        &self,
        keys: &EncodedKeys,
        valid: Option<&NullBuffer>,
        hashes: &mut Vec<u64>,
        entries: &mut Vec<u32>,
    ) {
        entries.clear();
        match (&self.kind, keys) {
            (IndexKind::Dense { dense, .. }, EncodedKeys::U64(keys)) => {
                entries.extend(keys.iter().map(|key| dense.first(*key)));
            }
            (IndexKind::Dense { .. }, _) => entries.resize(keys.len(), 0),
            (IndexKind::Hashed { heads, .. }, keys) => {
                keys.hash_into(hashes);
                let mask = heads.len() - 1;
                entries.extend(hashes.iter().map(|hash| {
                    let head = heads[*hash as usize & mask].load(Ordering::Relaxed);
                    if head & filter_bit(*hash) == 0 { 0 } else { (head & ROW_BITS) as u32 }
                }));
            }
        }
        let Some(valid) = valid else { return };
        for (row, entry) in entries.iter_mut().enumerate() {
            if valid.is_null(row) {
                *entry = 0;
            }
        }
    }

    /// Returns the row after `row` in its chain, plus one; 0 at the end.
    #[inline]
    pub(super) fn next_in_chain(&self, row: u32) -> u32 {
        self.next.get(row as usize).map_or(0, |next| next.load(Ordering::Relaxed))
    }
}
