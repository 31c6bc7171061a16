//! Keys as rows of bytes, in chunks.

use std::ops::Range;

use arrow_row::{Row, Rows};

/// The rows of a chunk, as a power of two.
const CHUNK_BITS: u32 = 14;
const CHUNK: usize = 1 << CHUNK_BITS;

/// Encoded rows of one converter, which do not move as they become more: to copy gigabytes takes seconds, in which a task
/// neither yields nor hears of a cancel.
#[derive(Debug)]
pub struct KeyRows {
    /// All full but the last; at least one.
    chunks: Vec<Rows>,
    /// What the full ones take.
    full_bytes: usize,
    /// None, as which a chunk begins.
    empty: Rows,
}

impl KeyRows {
    /// These `rows`; `empty` is of no rows, and of the same converter.
    pub(super) fn new(rows: Rows, empty: Rows) -> Self {
        if rows.num_rows() <= CHUNK {
            return Self { chunks: vec![rows], full_bytes: 0, empty };
        }
        let mut keys = Self { chunks: vec![empty.clone()], full_bytes: 0, empty };
        rows.iter().for_each(|row| keys.push(row));
        keys
    }

    /// Row `index`.
    #[inline]
    pub fn row(&self, index: usize) -> Row<'_> {
        self.chunks[index >> CHUNK_BITS].row(index & (CHUNK - 1))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        let last = self.chunks.last().map_or(0, Rows::num_rows);
        (self.chunks.len().saturating_sub(1) << CHUNK_BITS) + last
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Has none any more.
    pub fn clear(&mut self) {
        self.chunks.truncate(1);
        self.chunks.iter_mut().for_each(Rows::clear);
        self.full_bytes = 0;
    }

    /// The bytes they take.
    pub fn bytes(&self) -> usize {
        self.full_bytes + self.chunks.last().map_or(0, Rows::size)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        self.chunks.iter().flat_map(Rows::iter)
    }

    /// Those of `range`.
    pub fn range(&self, range: Range<usize>) -> impl Iterator<Item = Row<'_>> {
        range.map(|index| self.row(index))
    }

    /// Appends a row of the same converter.
    #[inline]
    pub fn push(&mut self, row: Row<'_>) {
        if let Some(last) = self.chunks.last_mut()
            && last.num_rows() < CHUNK
        {
            return last.push(row);
        }
        self.push_to_next(row);
    }

    #[cold]
    fn push_to_next(&mut self, row: Row<'_>) {
        let mut next = self.empty.clone();
        if let Some(last) = self.chunks.last() {
            self.full_bytes += last.size();
            next.reserve(CHUNK, last.lengths().sum());
        }
        next.push(row);
        self.chunks.push(next);
    }
}
