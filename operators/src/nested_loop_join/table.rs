//! The build side of a nested-loop join, and which of its rows found a match.

use std::sync::atomic::{AtomicU64, Ordering};

use arrow::{array::RecordBatch, buffer::BooleanBuffer};
use gatework_runtime::{Result, pipeline::Reservation};

/// The chunks of one build task.
#[derive(Debug)]
pub(super) struct BuildPart {
    pub(super) chunks: Vec<RecordBatch>,
    pub(super) memory: Reservation,
}

/// A chunk of the build side, small enough to be tested and output as one batch.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) rows: RecordBatch,
    /// A bit per row, set once any probe task found a match; empty if the join type does not need
    /// it.
    matched: Box<[AtomicU64]>,
}

#[derive(Debug)]
pub(super) struct Table {
    pub(super) chunks: Vec<Chunk>,
    /// Released with the table.
    _memory: Vec<Reservation>,
}

impl Table {
    /// Creates a table of `parts`, with match bits if `track` is true; `memory` reserves these.
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

// Ordering: all accesses are relaxed. Bits are only ever set, so a probe task that misses another's
// bit tests a pair too many. The final reads happen after `finish_probe` of every probe task, whose
// lock orders all earlier writes.
impl Chunk {
    /// Returns whether `row` is known to have a match.
    pub(super) fn is_matched(&self, row: u32) -> bool {
        let word = &self.matched[row as usize / 64];
        word.load(Ordering::Relaxed) & (1 << (row % 64)) != 0
    }

    /// Records a match of `row`.
    pub(super) fn mark_matched(&self, row: u32) {
        // The test keeps the cache line shared when a row has many matches.
        if !self.is_matched(row) {
            self.matched[row as usize / 64].fetch_or(1 << (row % 64), Ordering::Relaxed);
        }
    }

    /// Records a match of all rows.
    pub(super) fn mark_all_matched(&self) {
        for word in &self.matched {
            if word.load(Ordering::Relaxed) != u64::MAX {
                word.store(u64::MAX, Ordering::Relaxed);
            }
        }
    }

    /// Returns the match bits, one per row.
    pub(super) fn matched(&self) -> BooleanBuffer {
        BooleanBuffer::collect_bool(self.rows.num_rows(), |row| self.is_matched(row as u32))
    }
}
