//! Join index: maps keys to rows of the table.
//!
//! Integer keys of a small range have an index of their own ([`RankIndex`]), others a
//! [`HashIndex`]. Either leads to the last row added of a key, and from each row to the one before
//! it. Keys are compared when a probe batch is looked up, once per row, however many build rows
//! the key has.
//!
//! Ordering: links are written relaxed. Probe tasks read them after they take the table from the
//! join bridge, whose lock orders all build morsels before them.

use std::{
    collections::VecDeque,
    hint::black_box,
    ops::Range,
    sync::atomic::{AtomicU32, Ordering},
};

use arrow::buffer::{BooleanBuffer, NullBuffer};
use gatework_shared_state::hash_index::HashIndex;
use parking_lot::RwLock;

use super::{
    build_keys::{CHUNK_ROWS, KeyChunks, place_of},
    rank_index::RankIndex,
};
use crate::keys::{EncodedKeys, KeyRows, WordKeys};

#[derive(Debug)]
pub(super) enum JoinIndex {
    Rank {
        rank: RankIndex,
        /// Per row, the row of its key that was added before it, plus one, or 0. Empty if no two
        /// rows have one key.
        next: Box<[AtomicU32]>,
        /// Keys for the build morsels; empty once these are done.
        keys: RwLock<Vec<u64>>,
    },
    Hash {
        index: HashIndex,
        keys: KeyChunks,
    },
}

/// Rows whose places in memory are read at once, before they are used one after the other. No read
/// depends on another one, so the memory answers many at a time.
pub(super) const PRELOADED: usize = 128;
/// Minimum number of rows of a table that does not lie in a core's own cache.
const UNCACHED_ROWS: usize = if cfg!(test) { 10 } else { 1 << 15 };

impl JoinIndex {
    /// Maximum bytes of all but small indexes per row, without keys.
    pub(super) const MAX_ROW_BYTES: usize = HashIndex::MAX_ROW_BYTES;

    /// Creates an empty index for the keys of `pieces`. `empty` has no keys and the same encoder.
    /// `range` is the smallest and the greatest key, if keys are `u64`.
    pub(super) fn new(
        mut pieces: VecDeque<EncodedKeys>,
        empty: EncodedKeys,
        range: Option<(u64, u64)>,
        invalid: Option<&[bool]>,
    ) -> Self {
        let rows = pieces.iter().map(EncodedKeys::len).sum();
        if range.is_some_and(|(low, high)| RankIndex::bytes_for(rows, high - low).is_some()) {
            let mut words = Vec::with_capacity(rows);
            for piece in pieces.drain(..) {
                if let EncodedKeys::U64(keys) = piece {
                    words.extend_from_slice(&keys);
                }
            }
            if let Some(rank) = RankIndex::new(&words, invalid) {
                let linked = if rank.is_unique() { 0 } else { rows };
                let next = (0..linked).map(|_| AtomicU32::new(0)).collect();
                return Self::Rank { rank, next, keys: RwLock::new(words) };
            }
            pieces.push_back(EncodedKeys::U64(words));
        }
        Self::Hash { index: HashIndex::with_rows(rows), keys: KeyChunks::new(pieces, empty) }
    }

    /// Returns the maximum bytes of an index over `rows` keys, without keys. `range` is the
    /// smallest and the greatest key, if keys are `u64`.
    pub(super) fn bytes_for(rows: usize, range: Option<(u64, u64)>) -> usize {
        let rank = range.and_then(|(low, high)| RankIndex::bytes_for(rows, high - low));
        rank.map_or(HashIndex::max_bytes(rows), |rank| rank + 4 * rows)
    }

    /// Returns the memory of the index, in bytes, keys included.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Rank { rank, next, keys } => {
                rank.bytes() + 4 * next.len() + 8 * keys.read().capacity()
            }
            Self::Hash { index, keys } => index.bytes() + keys.bytes(),
        }
    }

    /// Adds the rows of chunk `chunk`, which no other build morsel adds.
    pub(super) fn insert(&self, chunk: usize, rows: Range<usize>, invalid: Option<&[bool]>) {
        let is_valid = |row: usize| invalid.is_none_or(|invalid| !invalid[row]);
        match self {
            Self::Rank { rank, next, keys } => {
                let keys = keys.read();
                for row in rows.filter(|row| is_valid(*row)) {
                    let before = rank.insert(keys[row], row as u32);
                    if let Some(next) = next.get(row) {
                        next.store(before, Ordering::Relaxed);
                    }
                }
            }
            Self::Hash { index, keys } => {
                let own = keys.fill(chunk);
                let (mut hashes, mut touched) = (Vec::new(), 0);
                own.hash_into(&mut hashes);
                for (block, hashes) in hashes.chunks(PRELOADED).enumerate() {
                    for hash in hashes {
                        touched ^= index.touch(*hash);
                    }
                    // The key that each row is compared with, if its key is not new.
                    for row in hashes.iter().filter_map(|hash| index.candidate(*hash)) {
                        touched ^= keys.of(row).map_or(0, |(keys, place)| keys.touch(place));
                    }
                    let first = block * PRELOADED;
                    for (place, hash) in (first..).zip(hashes) {
                        let row = chunk * CHUNK_ROWS + place;
                        if is_valid(row) {
                            index.insert(*hash, row as u32, |other| {
                                let other = keys.of(other);
                                other.is_some_and(|(keys, other)| keys.equals(other, own, place))
                            });
                        }
                    }
                }
                black_box(touched);
            }
        }
    }

    /// Releases what only build morsels need. Called after the last build morsel, before probes.
    pub(super) fn finish(&self) {
        if let Self::Rank { rank, keys, .. } = self {
            rank.finish();
            *keys.write() = Vec::new();
        }
    }

    /// Returns whether links are followed faster if they are read in advance: they do not lie in a
    /// core's own cache.
    pub(super) fn has_uncached_links(&self) -> bool {
        match self {
            Self::Rank { next, .. } => next.len() >= UNCACHED_ROWS,
            Self::Hash { index, .. } => !index.is_unique() && index.rows() >= UNCACHED_ROWS,
        }
    }

    /// Returns whether no two rows have one key.
    pub(super) fn is_unique(&self) -> bool {
        match self {
            Self::Rank { next, .. } => next.is_empty(),
            Self::Hash { index, .. } => index.is_unique(),
        }
    }

    /// Returns the row of the same key that was added before `row`, plus one; 0 if there is none.
    #[inline]
    pub(super) fn entry_before(&self, row: u32) -> u32 {
        match self {
            Self::Rank { next, .. } => {
                next.get(row as usize).map_or(0, |next| next.load(Ordering::Relaxed))
            }
            Self::Hash { index, .. } => index.row_before(row).map_or(0, |row| row + 1),
        }
    }

    /// Returns per key its last row plus one, or 0 if it has none. `valid`, if given, says which
    /// keys may have rows.
    pub(super) fn look_up(&self, keys: &EncodedKeys, valid: Option<&NullBuffer>) -> Vec<u32> {
        let mut entries = match (self, keys) {
            (Self::Rank { rank, .. }, EncodedKeys::U64(keys)) => rank.look_up(keys),
            (Self::Rank { .. }, keys) => vec![0; keys.len()],
            (Self::Hash { index, keys: build }, EncodedKeys::U64(probe)) => {
                let build = build.each(|chunk| match chunk {
                    EncodedKeys::U64(keys) => Some(keys.as_slice()),
                    _ => None,
                });
                search_all(index, keys, &Fixed { build, probe })
            }
            (Self::Hash { index, keys: build }, EncodedKeys::U128(probe)) => {
                let build = build.each(|chunk| match chunk {
                    EncodedKeys::U128(keys) => Some(keys.as_slice()),
                    _ => None,
                });
                search_all(index, keys, &Fixed { build, probe })
            }
            (Self::Hash { index, keys: build }, EncodedKeys::Words(probe)) => {
                let build = build.each(|chunk| match chunk {
                    EncodedKeys::Words(keys) => Some(keys),
                    _ => None,
                });
                search_all(index, keys, &Words { build, probe })
            }
            (Self::Hash { index, keys: build }, EncodedKeys::Rows(probe)) => {
                let build = build.each(|chunk| match chunk {
                    EncodedKeys::Rows(keys) => Some(keys),
                    _ => None,
                });
                search_all(index, keys, &Rows { build, probe })
            }
        };
        if let Some(valid) = valid {
            let entries = entries.iter_mut().zip(valid.iter());
            entries.filter(|(_, valid)| !valid).for_each(|(entry, _)| *entry = 0);
        }
        entries
    }

    /// Returns one bit per key: whether it has a row. `valid` as for [`look_up`](Self::look_up).
    pub(super) fn contains_keys(
        &self,
        keys: &EncodedKeys,
        valid: Option<&NullBuffer>,
    ) -> BooleanBuffer {
        if let (Self::Rank { rank, .. }, EncodedKeys::U64(keys)) = (self, keys) {
            let found = rank.contains_keys(keys);
            return valid.map_or_else(|| found.clone(), |valid| &found & valid.inner());
        }
        let entries = self.look_up(keys, valid);
        BooleanBuffer::collect_bool(entries.len(), |row| entries[row] != 0)
    }
}

/// Keys of the build rows, by chunk, and of a probe batch.
trait BothKeys {
    /// Reads a part of the key of a build row.
    fn touch(&self, row: u32) -> u64;

    /// Reads a part of the memory that the key of a build row refers to.
    fn touch_text(&self, _row: u32) -> u64 {
        0
    }

    fn equal(&self, row: u32, probe_row: usize) -> bool;
}

struct Fixed<'a, T> {
    build: Vec<&'a [T]>,
    probe: &'a [T],
}

impl<T: Copy + PartialEq> Fixed<'_, T> {
    #[inline]
    fn key(&self, row: u32) -> T {
        let (chunk, place) = place_of(row);
        self.build[chunk][place]
    }
}

impl BothKeys for Fixed<'_, u64> {
    #[inline]
    fn touch(&self, row: u32) -> u64 {
        self.key(row)
    }

    #[inline]
    fn equal(&self, row: u32, probe_row: usize) -> bool {
        self.key(row) == self.probe[probe_row]
    }
}

impl BothKeys for Fixed<'_, u128> {
    #[inline]
    fn touch(&self, row: u32) -> u64 {
        self.key(row) as u64
    }

    #[inline]
    fn equal(&self, row: u32, probe_row: usize) -> bool {
        self.key(row) == self.probe[probe_row]
    }
}

struct Words<'a> {
    build: Vec<&'a WordKeys>,
    probe: &'a WordKeys,
}

impl BothKeys for Words<'_> {
    #[inline]
    fn touch(&self, row: u32) -> u64 {
        let (chunk, place) = place_of(row);
        self.build[chunk].touch(place)
    }

    #[inline]
    fn touch_text(&self, row: u32) -> u64 {
        let (chunk, place) = place_of(row);
        self.build[chunk].touch_text(place)
    }

    #[inline]
    fn equal(&self, row: u32, probe_row: usize) -> bool {
        let (chunk, place) = place_of(row);
        self.build[chunk].equals(place, self.probe, probe_row)
    }
}

struct Rows<'a> {
    build: Vec<&'a KeyRows>,
    probe: &'a KeyRows,
}

impl BothKeys for Rows<'_> {
    #[inline]
    fn touch(&self, row: u32) -> u64 {
        let (chunk, place) = place_of(row);
        self.build[chunk].row(place).data().first().copied().unwrap_or_default().into()
    }

    #[inline]
    fn equal(&self, row: u32, probe_row: usize) -> bool {
        let (chunk, place) = place_of(row);
        self.build[chunk].row(place) == self.probe.row(probe_row)
    }
}

/// Returns per probe key its last row plus one, or 0.
fn search_all(index: &HashIndex, probe: &EncodedKeys, keys: &impl BothKeys) -> Vec<u32> {
    let mut hashes = Vec::new();
    probe.hash_into(&mut hashes);
    let search = |hash: u64, probe_row: usize| {
        index.search(hash, |row| keys.equal(row, probe_row)).map_or(0, |row| row + 1)
    };
    if index.rows() < UNCACHED_ROWS {
        return hashes.iter().zip(0..).map(|(hash, row)| search(*hash, row)).collect();
    }
    let mut entries = Vec::with_capacity(hashes.len());
    let mut touched = 0;
    for hashes in hashes.chunks(PRELOADED) {
        let first = entries.len();
        hashes.iter().for_each(|hash| touched ^= index.touch(*hash));
        entries.extend(hashes.iter().map(|hash| index.candidate(*hash).map_or(0, |row| row + 1)));
        let block = &mut entries[first..];
        // Without branches: a key without a candidate reads row 0.
        block.iter().for_each(|entry| touched ^= keys.touch(entry.saturating_sub(1)));
        block.iter().for_each(|entry| touched ^= keys.touch_text(entry.saturating_sub(1)));
        for ((entry, hash), probe_row) in block.iter_mut().zip(hashes).zip(first..) {
            if *entry != 0 && !keys.equal(*entry - 1, probe_row) {
                *entry = search(*hash, probe_row);
            }
        }
    }
    black_box(touched);
    entries
}
