//! Spilling of groups that do not fit into memory.
//!
//! A sink whose reservation is denied empties its table into partial states and spills all its
//! parts. The states are partitioned while they are written, so that a batch belongs to one
//! partition. A source that is denied memory while it merges a partition spills that partition by
//! other bits of the hash. It then merges the sub-partitions. (Graefe, "Query Evaluation Techniques
//! for Large Databases", 1993: hybrid hashing, with recursion.)

use std::{ops::Range, sync::Arc};

use gatework_runtime::{
    Error, Result,
    pipeline::{OperatorContext, OutOfMemory, SpillInput},
};
use gatework_shared_state::Gate;

use super::{
    config::AggregatePlan,
    groups::{AggregateHashTable, AggregatePart},
    partial_states::{PartialStates, UnpartitionedStates},
};
use crate::{
    batch_bytes::MAX_BATCH_BYTES,
    spill::{SpillWriter, WriteState},
};

/// Holds parts of groups by partition, and spills them when memory is short.
pub(super) struct AggregateSpiller {
    plan: Arc<AggregatePlan>,
    context: OperatorContext,
    /// Number of times these groups were partitioned before; selects the hash bits.
    level: u32,
    parts: Vec<Vec<AggregatePart>>,
    /// Writer of the spill file, with the batch range of each partition.
    writer: SpillWriter<Vec<Range<usize>>>,
    spilled: bool,
}

impl AggregateSpiller {
    pub(super) fn new(plan: Arc<AggregatePlan>, context: OperatorContext, level: u32) -> Self {
        let parts = empty_parts(&plan);
        let writer = SpillWriter::new(context.clone());
        Self { plan, context, level, parts, writer, spilled: false }
    }

    /// Returns whether anything was spilled.
    pub(super) fn is_spilled(&self) -> bool {
        self.spilled
    }

    /// Returns the bytes reserved for parts in memory.
    pub(super) fn reserved(&self) -> usize {
        let states = |part: &AggregatePart| match part {
            AggregatePart::States(states) => states.reserved(),
            _ => 0,
        };
        self.parts.iter().flatten().map(states).sum()
    }

    /// Empties `groups` into parts. `more` says whether more groups will follow. Returns the denial
    /// if the parts' reservation is denied.
    pub(super) fn partition(
        &mut self,
        groups: &mut AggregateHashTable,
        more: bool,
    ) -> Result<Option<OutOfMemory>> {
        groups.partition(self.level, &mut self.parts, more)
    }

    /// Starts to spill `groups` and all parts. Returns false if spilling cannot help.
    pub(super) fn spill(&mut self, groups: &mut AggregateHashTable) -> Result<bool> {
        let bits = self.plan.partitions.trailing_zeros();
        // Groups that share this many hash bits are few and large.
        if !self.context.can_spill() || bits * (self.level + 1) > 60 {
            return Ok(false);
        }
        let unpartitioned = groups.take_unpartitioned(self.level)?;
        // If it is denied: the write below releases memory.
        let _reserved = groups.release_unused();
        let counts =
            unpartitioned.as_ref().map_or(Vec::new(), |(unpartitioned, _)| unpartitioned.counts());
        let (mut rows, mut ranges) = (counts.iter().sum::<usize>(), Vec::new());
        let bytes = unpartitioned.as_ref().map_or(0, |(_, memory)| memory.bytes());
        let rows_of =
            |max_bytes: usize| max_bytes.saturating_mul(rows).checked_div(bytes).unwrap_or(rows);
        let max_rows =
            rows_of(SPILL_BATCH_BYTES).max(MIN_BATCH_ROWS.min(rows_of(MAX_BATCH_BYTES))).max(1);
        let (mut jobs, mut reservations, mut count) = (Vec::new(), Vec::new(), 0);
        let parts = std::mem::replace(&mut self.parts, empty_parts(&self.plan));
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
            return Ok(false);
        }
        self.spilled = true;
        let plan = self.plan.clone();
        let unpartitioned = unpartitioned.map(|(unpartitioned, memory)| {
            reservations.push(memory);
            unpartitioned
        });
        self.writer.write_iter(
            rows,
            spill_batches(plan, jobs, unpartitioned),
            reservations,
            ranges,
        )?;
        Ok(true)
    }

    /// Returns the gate of a write in progress. Adds the file of a finished write to the parts.
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

    /// Takes the parts of each partition.
    pub(super) fn take(&mut self) -> Vec<Vec<AggregatePart>> {
        std::mem::replace(&mut self.parts, empty_parts(&self.plan))
    }
}

/// Approximate bytes of a spilled batch, 2 MiB. The writer checks for cancellation between batches.
const SPILL_BATCH_BYTES: usize = if cfg!(test) { 512 } else { 2 << 20 };
const MIN_BATCH_ROWS: usize = if cfg!(test) { 3 } else { 1024 };

/// Groups that become batches of a spill file.
enum SpillJob {
    /// One batch per range of the groups.
    States(PartialStates, Vec<Range<usize>>),
    /// A range of a partition's groups, from states that are not partitioned yet.
    Partition(usize, Range<usize>),
}

/// Returns the batches. The writer creates them lazily: to partition millions of groups takes
/// longer than a time slice.
fn spill_batches(
    plan: Arc<AggregatePlan>,
    jobs: Vec<SpillJob>,
    unpartitioned: Option<UnpartitionedStates>,
) -> SpillInput {
    let mut partitions = Vec::new();
    Box::new(jobs.into_iter().flat_map(move |job| -> SpillInput {
        match (job, &unpartitioned) {
            (SpillJob::States(states, batch_ranges), _) => {
                Box::new(states.into_batches(batch_ranges, plan.clone()))
            }
            (SpillJob::Partition(partition, range), Some(unpartitioned)) => {
                if partitions.is_empty() {
                    partitions = unpartitioned.indices();
                }
                Box::new(std::iter::once(
                    unpartitioned.partition_batch(&partitions[partition][range]),
                ))
            }
            (SpillJob::Partition(..), None) => Box::new(std::iter::once(Err(Error::Internal(
                "groups of a spill job are missing".into(),
            )))),
        }
    }))
}

fn empty_parts(plan: &AggregatePlan) -> Vec<Vec<AggregatePart>> {
    (0..plan.partitions).map(|_| Vec::new()).collect()
}
