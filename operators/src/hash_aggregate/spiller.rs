//! Groups that do not fit into memory: cut into units, and written to files.
//!
//! A sink that gets no memory for its table empties it into partial states, which are cut into batches of a unit each
//! where they are written, and spills all parts it has. A source that gets none while it merges a unit does the same with the unit, cut by
//! other bits of the hash, and merges the units of the unit after it. (Graefe, "Query Evaluation
//! Techniques for Large Databases", 1993: hybrid hashing, with recursion.)

use std::{ops::Range, sync::Arc};

use gatework_runtime::{
    Error, Result,
    pipeline::{OperatorContext, SpillInput},
};
use gatework_shared_state::Gate;

use super::{
    config::AggregatePlan,
    groups::{AggregateHashTable, AggregatePart, PartialStates, UnpartitionedStates},
};
use crate::{
    batch_bytes::MAX_BATCH_BYTES,
    spill::{SpillWriter, WriteState, nothing_to_spill_error},
};

/// Parts of groups, by unit, that go to files when memory is short.
pub(super) struct AggregateSpiller {
    shared: Arc<AggregatePlan>,
    setup: OperatorContext,
    /// How often the groups have been cut into units before.
    level: u32,
    parts: Vec<Vec<AggregatePart>>,
    /// With the batches of each unit.
    writer: SpillWriter<Vec<Range<usize>>>,
    spilled: bool,
}

impl AggregateSpiller {
    pub(super) fn new(shared: Arc<AggregatePlan>, setup: OperatorContext, level: u32) -> Self {
        let parts = empty_parts(&shared);
        let writer = SpillWriter::new(setup.clone());
        Self { shared, setup, level, parts, writer, spilled: false }
    }

    /// Whether anything has been spilled.
    pub(super) fn is_spilled(&self) -> bool {
        self.spilled
    }

    /// Bytes that are reserved for parts in memory.
    pub(super) fn reserved(&self) -> usize {
        let states = |part: &AggregatePart| match part {
            AggregatePart::States(states) => states.reserved(),
            _ => 0,
        };
        self.parts.iter().flatten().map(states).sum()
    }

    /// Empties `groups` into parts; `more` may be to come.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if these take more memory than there is, although they are made.
    pub(super) fn partition(&mut self, groups: &mut AggregateHashTable, more: bool) -> Result<()> {
        groups.partition(self.level, &mut self.parts, more)
    }

    /// Begins to write `groups` and all parts to a file because of `error`, unless that does not help.
    pub(super) fn spill(&mut self, groups: &mut AggregateHashTable, error: Error) -> Result<()> {
        let bits = self.shared.partitions.trailing_zeros();
        // Groups whose hashes are equal so far are few, and large.
        if !self.setup.can_spill() || bits * (self.level + 1) > 60 {
            return Err(error);
        }
        let unpartitioned = groups.take_unpartitioned(self.level)?;
        match groups.release_unused() {
            // What is written next gives memory back.
            Ok(()) | Err(Error::OutOfMemory { .. }) => {}
            Err(error) => return Err(error),
        }
        let counts =
            unpartitioned.as_ref().map_or(Vec::new(), |(unpartitioned, _)| unpartitioned.counts());
        let (mut rows, mut ranges) = (counts.iter().sum::<usize>(), Vec::new());
        let bytes = unpartitioned.as_ref().map_or(0, |(_, memory)| memory.bytes());
        let rows_of =
            |max_bytes: usize| max_bytes.saturating_mul(rows).checked_div(bytes).unwrap_or(rows);
        let max_rows =
            rows_of(SPILL_BATCH_BYTES).max(MIN_BATCH_ROWS.min(rows_of(MAX_BATCH_BYTES))).max(1);
        let (mut jobs, mut reservations, mut count) = (Vec::new(), Vec::new(), 0);
        let parts = std::mem::replace(&mut self.parts, empty_parts(&self.shared));
        for (partition, parts) in parts.into_iter().enumerate() {
            let first = count;
            for part in parts {
                match part {
                    AggregatePart::States(mut states) => {
                        rows += states.len();
                        reservations.extend(states.take_reservation());
                        let batch_ranges = states.batch_ranges();
                        count += batch_ranges.len();
                        jobs.push(SpillJob::States(states, batch_ranges));
                    }
                    other => self.parts[partition].push(other),
                }
            }
            let groups = counts.get(partition).copied().unwrap_or(0);
            let starts = (0..groups).step_by(max_rows);
            count += starts.len();
            jobs.extend(
                starts.map(|start| {
                    SpillJob::Partition(partition, start..groups.min(start + max_rows))
                }),
            );
            ranges.push(first..count);
        }
        if jobs.is_empty() {
            return Err(error);
        }
        self.spilled = true;
        let shared = self.shared.clone();
        let unpartitioned = unpartitioned.map(|(unpartitioned, memory)| {
            reservations.push(memory);
            unpartitioned
        });
        self.writer.write_iter(
            rows,
            spill_batches(shared, jobs, unpartitioned),
            reservations,
            ranges,
        )
    }

    /// The gate of a file that is still being written.
    pub(super) fn poll_write(&mut self) -> Result<Option<Gate>> {
        let (file, ranges) = match self.writer.poll()? {
            WriteState::Idle => return Ok(None),
            WriteState::Blocked(gate) => return Ok(Some(gate)),
            WriteState::Finished(file, ranges) => (file, ranges),
        };
        for (parts, range) in self.parts.iter_mut().zip(ranges) {
            if !range.is_empty() {
                parts.push(AggregatePart::Spilled(file.clone(), range));
            }
        }
        Ok(None)
    }

    /// The parts of each unit.
    pub(super) fn take(&mut self) -> Vec<Vec<AggregatePart>> {
        std::mem::replace(&mut self.parts, empty_parts(&self.shared))
    }
}

/// Bytes of groups that become one batch in a file, about: whoever writes it hears of a cancel between two.
const SPILL_BATCH_BYTES: usize = if cfg!(test) { 512 } else { 2 << 20 };
const MIN_BATCH_ROWS: usize = if cfg!(test) { 3 } else { 1024 };

/// What becomes batches in a file.
enum SpillJob {
    /// One for each range of the groups.
    States(PartialStates, Vec<Range<usize>>),
    /// Some of the groups of a unit that have not been cut.
    Partition(usize, Range<usize>),
}

/// The batches, made where they are written: to cut millions of groups takes longer than a task may go on for.
fn spill_batches(
    shared: Arc<AggregatePlan>,
    jobs: Vec<SpillJob>,
    unpartitioned: Option<UnpartitionedStates>,
) -> SpillInput {
    let mut partitions = Vec::new();
    Box::new(jobs.into_iter().flat_map(move |job| -> SpillInput {
        match (job, &unpartitioned) {
            (SpillJob::States(states, batch_ranges), _) => {
                Box::new(states.into_batches(batch_ranges, shared.clone()))
            }
            (SpillJob::Partition(partition, range), Some(unpartitioned)) => {
                if partitions.is_empty() {
                    partitions = unpartitioned.indices();
                }
                Box::new(std::iter::once(
                    unpartitioned.partition_batch(&partitions[partition][range]),
                ))
            }
            (SpillJob::Partition(..), None) => {
                Box::new(std::iter::once(Err(nothing_to_spill_error())))
            }
        }
    }))
}

fn empty_parts(shared: &AggregatePlan) -> Vec<Vec<AggregatePart>> {
    (0..shared.partitions).map(|_| Vec::new()).collect()
}
