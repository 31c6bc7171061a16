//! Keys of a join's build side, in chunks of equal size.
//!
//! A build task keeps the keys of each batch in the piece in which they were encoded. Build morsels
//! copy the pieces of all tasks into chunks, in parallel, and free each piece after its last row.
//! No vector has the keys of all rows, so none grows, and no task copies them alone. The key of a
//! row lies in chunk `row >> CHUNK_BITS`.
//!
//! Lock: `Piece::keys`, held to clone or to drop the reference to a piece. The chunk that copies a
//! piece's last row drops it: `Piece::remaining` reaches zero once.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;

use crate::keys::EncodedKeys;

/// Rows of a chunk, as a power of two.
pub(super) const CHUNK_BITS: u32 = if cfg!(test) { 6 } else { 14 };
/// Rows of each chunk but the last.
pub(super) const CHUNK_ROWS: usize = 1 << CHUNK_BITS;
const CHUNK_MASK: usize = CHUNK_ROWS - 1;

/// Keys of some rows.
#[derive(Debug)]
pub(super) struct HashedRows {
    pub(super) keys: EncodedKeys,
    /// Hashes of variable-length keys, which are costly to compare; empty for others.
    pub(super) hashes: Vec<u64>,
}

impl HashedRows {
    /// Returns rows with these keys, which do not depend on the columns of a batch.
    pub(super) fn new(keys: EncodedKeys) -> Self {
        let keys = keys.into_owned();
        let mut hashes = Vec::new();
        if keys.is_variable_length() {
            keys.hash_into(&mut hashes);
        }
        Self { keys, hashes }
    }

    /// Returns the memory of the keys, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.keys.bytes() + 8 * self.hashes.capacity()
    }

    /// Replaces `scratch` by the hashes of the keys, unless they are known. Returns the hashes.
    pub(super) fn hashes<'a>(&'a self, scratch: &'a mut Vec<u64>) -> &'a [u64] {
        if self.hashes.is_empty() {
            self.keys.hash_into(scratch);
            return scratch;
        }
        &self.hashes
    }
}

/// The keys of all rows.
#[derive(Debug)]
pub(super) struct KeyChunks {
    chunks: Box<[OnceLock<HashedRows>]>,
    /// The keys until they are in the chunks.
    pieces: Box<[Piece]>,
    /// No keys, in the layout of all.
    empty: EncodedKeys,
    rows: usize,
}

/// Keys of successive rows.
#[derive(Debug)]
struct Piece {
    rows: Range<usize>,
    /// Rows that are in no chunk yet.
    remaining: AtomicUsize,
    keys: Mutex<Option<Arc<HashedRows>>>,
}

impl KeyChunks {
    /// Creates chunks for the keys of `pieces`. `empty` has no keys and the same encoder.
    pub(super) fn new(pieces: VecDeque<HashedRows>, empty: EncodedKeys) -> Self {
        let mut rows = 0;
        let piece = |keys: HashedRows| {
            let first = rows;
            rows += keys.keys.len();
            let remaining = AtomicUsize::new(rows - first);
            Piece { rows: first..rows, remaining, keys: Mutex::new(Some(Arc::new(keys))) }
        };
        let pieces = pieces.into_iter().map(piece).collect();
        let chunks = (0..rows.div_ceil(CHUNK_ROWS)).map(|_| OnceLock::new()).collect();
        Self { chunks, pieces, empty, rows }
    }

    /// Returns the memory of the keys in chunks, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.chunks.iter().filter_map(OnceLock::get).map(HashedRows::bytes).sum()
    }

    /// Copies the keys of chunk `chunk` from their pieces, and returns them. Called by one build
    /// morsel per chunk.
    pub(super) fn fill(&self, chunk: usize) -> &HashedRows {
        let rows = chunk * CHUNK_ROWS..self.rows.min((chunk + 1) * CHUNK_ROWS);
        self.chunks[chunk].get_or_init(|| self.copy(&rows))
    }

    fn copy(&self, rows: &Range<usize>) -> HashedRows {
        let mut copied = HashedRows { keys: self.empty.empty_like(), hashes: Vec::new() };
        copied.keys.reserve(rows.len());
        let first = self.pieces.partition_point(|piece| piece.rows.end <= rows.start);
        for piece in self.pieces[first..].iter().take_while(|piece| piece.rows.start < rows.end) {
            let shared = rows.start.max(piece.rows.start)..rows.end.min(piece.rows.end);
            let source = piece.keys.lock().clone();
            let Some(source) = source else { continue };
            let range = shared.start - piece.rows.start..shared.end - piece.rows.start;
            copied.keys.append_range(&source.keys, range.clone());
            copied.hashes.extend(source.hashes.get(range).into_iter().flatten());
            drop(source);
            // AcqRel: the copy that drops the piece comes after all others.
            if piece.remaining.fetch_sub(shared.len(), Ordering::AcqRel) == shared.len() {
                *piece.keys.lock() = None;
            }
        }
        copied
    }

    /// Returns `of` each chunk. All chunks are filled.
    pub(super) fn each<'a, T>(&'a self, of: impl Fn(&'a HashedRows) -> Option<T>) -> Vec<T> {
        self.chunks.iter().filter_map(OnceLock::get).filter_map(of).collect()
    }
}

/// Returns the chunk of `row`, and its place there.
#[inline]
pub(super) fn place_of(row: u32) -> (usize, usize) {
    (row as usize >> CHUNK_BITS, row as usize & CHUNK_MASK)
}
