//! Keys as arrow rows, stored in chunks.

use std::ops::Range;

use arrow_row::{Row, Rows};

/// Rows per chunk, as a power of two.
const CHUNK_BITS: u32 = 14;
const CHUNK: usize = 1 << CHUNK_BITS;

/// Encoded rows of one converter, which growth never moves. Copying gigabytes would take seconds,
/// in which a task neither yields nor checks for cancellation.
#[derive(Debug)]
pub struct KeyRows {
    /// Chunks, at least one; all but the last are full.
    chunks: Vec<Rows>,
    /// Bytes of the full chunks.
    full_bytes: usize,
    /// An empty chunk, cloned to start the next one.
    empty: Rows,
}

impl KeyRows {
    /// Creates keys from `rows`. `empty` has no rows and comes from the same converter.
    pub(super) fn new(rows: Rows, empty: Rows) -> Self {
        if rows.num_rows() <= CHUNK {
            return Self { chunks: vec![rows], full_bytes: 0, empty };
        }
        let mut keys = Self { chunks: vec![empty.clone()], full_bytes: 0, empty };
        rows.iter().for_each(|row| keys.push(row));
        keys
    }

    /// Returns no keys, for rows of the same converter.
    pub(super) fn empty_like(&self) -> Self {
        Self::new(self.empty.clone(), self.empty.clone())
    }

    /// Returns row `index`.
    #[inline]
    pub fn row(&self, index: usize) -> Row<'_> {
        self.chunks[index >> CHUNK_BITS].row(index & (CHUNK - 1))
    }

    /// Returns the number of rows.
    pub fn len(&self) -> usize {
        let last = self.chunks.last().map_or(0, Rows::num_rows);
        (self.chunks.len().saturating_sub(1) << CHUNK_BITS) + last
    }

    /// Returns whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Removes all rows; keeps the memory of the first chunk.
    pub fn clear(&mut self) {
        self.chunks.truncate(1);
        self.chunks.iter_mut().for_each(Rows::clear);
        self.full_bytes = 0;
    }

    /// Returns the memory of the rows, in bytes.
    pub fn bytes(&self) -> usize {
        self.full_bytes + self.chunks.last().map_or(0, Rows::size)
    }

    /// Iterates over all rows.
    pub fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        self.chunks.iter().flat_map(Rows::iter)
    }

    /// Iterates over the rows of `range`.
    pub fn range(&self, range: Range<usize>) -> impl Iterator<Item = Row<'_>> {
        range.map(|index| self.row(index))
    }

    /// Appends a row from the same converter.
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
