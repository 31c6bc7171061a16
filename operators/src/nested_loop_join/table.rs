//! The collected left side of a nested-loop join, and which of its rows met a match.

use std::sync::atomic::{AtomicU64, Ordering};

use arrow::{array::RecordBatch, buffer::BooleanBuffer};
use gatework_runtime::{Result, pipeline::Reservation};

/// What one build task collected.
#[derive(Debug)]
pub(super) struct BuildPart {
    pub(super) chunks: Vec<RecordBatch>,
    pub(super) memory: Reservation,
}

/// A piece of the left side, small enough to be tested and given as one batch.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) rows: RecordBatch,
    /// A bit per row, set once any prober found a match; empty if nobody asks.
    matched: Box<[AtomicU64]>,
}

#[derive(Debug)]
pub(super) struct Table {
    pub(super) chunks: Vec<Chunk>,
    /// Given back with the table.
    _memory: Vec<Reservation>,
}

impl Table {
    /// A table of `parts`, with bits for matched rows if `track` says so; they are charged to
    /// `memory`.
    pub(super) fn new(parts: Vec<BuildPart>, track: bool, mut memory: Reservation) -> Result<Self> {
        let mut chunks = Vec::new();
        let mut reservations = Vec::with_capacity(parts.len() + 1);
        for part in parts {
            reservations.push(part.memory);
            for rows in part.chunks {
                let words = if track { rows.num_rows().div_ceil(64) } else { 0 };
                memory.grow(8 * words)?;
                let matched = (0..words).map(|_| AtomicU64::new(0)).collect();
                chunks.push(Chunk { rows, matched });
            }
        }
        reservations.push(memory);
        Ok(Self { chunks, _memory: reservations })
    }
}

// All accesses are relaxed: bits only ever become set, a prober that misses another's bit tests a
// pair too many, and who reads them for good does so after `finish_probe` of every prober, whose lock
// orders all that was written before it.
impl Chunk {
    /// Whether `row` is known to have a match.
    pub(super) fn is_matched(&self, row: u32) -> bool {
        let word = &self.matched[row as usize / 64];
        word.load(Ordering::Relaxed) & (1 << (row % 64)) != 0
    }

    /// Notes a match of `row`.
    pub(super) fn mark_matched(&self, row: u32) {
        // The test keeps the cache line shared when a row has many matches.
        if !self.is_matched(row) {
            self.matched[row as usize / 64].fetch_or(1 << (row % 64), Ordering::Relaxed);
        }
    }

    /// Notes a match of all rows.
    pub(super) fn mark_all_matched(&self) {
        for word in &self.matched {
            if word.load(Ordering::Relaxed) != u64::MAX {
                word.store(u64::MAX, Ordering::Relaxed);
            }
        }
    }

    /// A bit per row.
    pub(super) fn matched(&self) -> BooleanBuffer {
        BooleanBuffer::collect_bool(self.rows.num_rows(), |row| self.is_matched(row as u32))
    }
}
