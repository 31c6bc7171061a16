//! The build side of a nested-loop join, and which of its rows found a match.

use arrow::{array::RecordBatch, buffer::BooleanBuffer};
use gatework_runtime::{Result, pipeline::Reservation};

use super::range::SortedKeys;
use crate::join::layout::MatchBits;

/// The chunks of one build task.
#[derive(Debug)]
pub(super) struct BuildPart {
    pub(super) chunks: Vec<BuildChunk>,
    pub(super) memory: Reservation,
}

/// Rows of the build side, and their order if the join needs it.
#[derive(Debug)]
pub(super) struct BuildChunk {
    pub(super) rows: RecordBatch,
    pub(super) sorted: Option<SortedKeys>,
}

/// A chunk of the build side, small enough to be tested and output as one batch.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) rows: RecordBatch,
    /// The rows in the order of the key that the filter bounds, if it bounds one.
    pub(super) sorted: Option<SortedKeys>,
    /// Which rows have found a match; without bits if the join type does not need them.
    pub(super) matched: MatchBits,
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
            for BuildChunk { rows, sorted } in part.chunks {
                let matched = MatchBits::new(if track { rows.num_rows() } else { 0 });
                memory.grow(matched.bytes())?;
                chunks.push(Chunk { rows, sorted, matched });
            }
        }
        reservations.push(memory);
        Ok(Self { chunks, _memory: reservations })
    }
}

impl Chunk {
    /// Returns which rows have found a match, one bit each.
    pub(super) fn matched_rows(&self) -> BooleanBuffer {
        BooleanBuffer::collect_bool(self.rows.num_rows(), |row| self.matched.is_set(row as u32))
    }
}
