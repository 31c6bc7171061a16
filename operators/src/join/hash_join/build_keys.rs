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
const CHUNK_BITS: u32 = if cfg!(test) { 6 } else { 14 };
/// Rows of each chunk but the last.
pub(super) const CHUNK_ROWS: usize = 1 << CHUNK_BITS;
const CHUNK_MASK: usize = CHUNK_ROWS - 1;

/// The keys of all rows.
#[derive(Debug)]
pub(super) struct KeyChunks {
    chunks: Box<[OnceLock<EncodedKeys>]>,
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
    keys: Mutex<Option<Arc<EncodedKeys>>>,
}

impl KeyChunks {
    /// Creates chunks for the keys of `pieces`. `empty` has no keys and the same encoder.
    pub(super) fn new(pieces: VecDeque<EncodedKeys>, empty: EncodedKeys) -> Self {
        let mut rows = 0;
        let piece = |keys: EncodedKeys| {
            let first = rows;
            rows += keys.len();
            let remaining = AtomicUsize::new(rows - first);
            Piece { rows: first..rows, remaining, keys: Mutex::new(Some(Arc::new(keys))) }
        };
        let pieces = pieces.into_iter().map(piece).collect();
        let chunks = (0..rows.div_ceil(CHUNK_ROWS)).map(|_| OnceLock::new()).collect();
        Self { chunks, pieces, empty, rows }
    }

    /// Returns the memory of the keys in chunks, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.chunks.iter().filter_map(OnceLock::get).map(EncodedKeys::bytes).sum()
    }

    /// Copies the keys of chunk `chunk` from their pieces, and returns them. Called by one build
    /// morsel per chunk.
    pub(super) fn fill(&self, chunk: usize) -> &EncodedKeys {
        let rows = chunk * CHUNK_ROWS..self.rows.min((chunk + 1) * CHUNK_ROWS);
        self.chunks[chunk].get_or_init(|| self.copy(&rows))
    }

    fn copy(&self, rows: &Range<usize>) -> EncodedKeys {
        let mut copied = self.empty.empty_like();
        copied.reserve(rows.len());
        let first = self.pieces.partition_point(|piece| piece.rows.end <= rows.start);
        for piece in self.pieces[first..].iter().take_while(|piece| piece.rows.start < rows.end) {
            let shared = rows.start.max(piece.rows.start)..rows.end.min(piece.rows.end);
            let source = piece.keys.lock().clone();
            let Some(source) = source else { continue };
            let range = shared.start - piece.rows.start..shared.end - piece.rows.start;
            copied.append_range(&source, range);
            drop(source);
            // AcqRel: the copy that drops the piece comes after all others.
            if piece.remaining.fetch_sub(shared.len(), Ordering::AcqRel) == shared.len() {
                *piece.keys.lock() = None;
            }
        }
        copied
    }

    /// Returns the keys of the chunk of `row`, and its place there; `None` while the chunk is not
    /// filled.
    pub(super) fn of(&self, row: u32) -> Option<(&EncodedKeys, usize)> {
        let (chunk, place) = place_of(row);
        Some((self.chunks[chunk].get()?, place))
    }

    /// Returns `of` each chunk. All chunks are filled.
    pub(super) fn each<'a, T>(&'a self, of: impl Fn(&'a EncodedKeys) -> Option<T>) -> Vec<T> {
        self.chunks.iter().filter_map(OnceLock::get).filter_map(of).collect()
    }
}

/// Returns the chunk of `row`, and its place there.
#[inline]
pub(super) fn place_of(row: u32) -> (usize, usize) {
    (row as usize >> CHUNK_BITS, row as usize & CHUNK_MASK)
}
