//! Groups with partial states on their way from a sink to a source: in memory, or spilled.

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, RecordBatch, UInt32Array},
    compute::take,
    datatypes::{Field, Schema},
};
use gatework_runtime::{Result, pipeline::Reservation};

use super::config::AggregatePlan;
use crate::{
    ResultExt,
    batch_bytes::{MAX_BATCH_BYTES, rows_within},
    keys::{EncodedKeys, GroupValues},
    spill::gc_batch_views,
};

/// Groups of one hash partition: their keys, and the partial states of each aggregate.
pub(super) struct PartialStates {
    pub(super) keys: EncodedKeys,
    pub(super) hashes: Vec<u64>,
    pub(super) states: Vec<Vec<ArrayRef>>,
    /// Reservation of the above; released once the states were merged.
    pub(super) memory: Option<Reservation>,
}

/// Groups with their states, before they are partitioned.
pub(super) struct UnpartitionedStates {
    pub(super) plan: Arc<AggregatePlan>,
    pub(super) groups: UnpartitionedGroups,
    pub(super) states: Vec<Vec<ArrayRef>>,
    pub(super) level: u32,
    /// Whether the partitions share the buffers of long texts, which are then free only once all of
    /// them are: where no partition is spilled.
    pub(super) shares_texts: bool,
}

/// Keys and hashes that are not partitioned.
pub(super) enum UnpartitionedGroups {
    Table(GroupValues),
    /// Rows that bypassed the table.
    Rows(EncodedKeys, Vec<u64>),
}

impl UnpartitionedGroups {
    pub(super) fn keys(&self) -> &EncodedKeys {
        match self {
            Self::Table(table) => table.keys(),
            Self::Rows(keys, _) => keys,
        }
    }

    fn hashes(&self) -> &[u64] {
        match self {
            Self::Table(table) => table.hashes(),
            Self::Rows(_, hashes) => hashes,
        }
    }
}

impl UnpartitionedStates {
    /// Returns the partition of each group.
    pub(super) fn group_partitions(&self) -> impl Iterator<Item = usize> {
        // The top bits decide, because the table uses the low bits for its slots.
        let partitions = self.plan.partitions;
        let shift = 64 - partitions.trailing_zeros() * (self.level + 1);
        let partition_of =
            move |hash: &u64| hash.checked_shr(shift).unwrap_or(0) as usize & (partitions - 1);
        self.groups.hashes().iter().map(partition_of)
    }

    /// Returns the number of groups of each partition.
    pub(super) fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.plan.partitions];
        self.group_partitions().for_each(|partition| counts[partition] += 1);
        counts
    }

    /// Returns the groups of each partition.
    pub(super) fn indices(&self) -> Vec<Vec<u32>> {
        let mut indices: Vec<_> = self.counts().into_iter().map(Vec::with_capacity).collect();
        for (group, partition) in (0..).zip(self.group_partitions()) {
            indices[partition].push(group);
        }
        indices
    }

    /// Returns the groups at `indices` as partial states.
    pub(super) fn take_partition(&self, indices: Vec<u32>) -> Result<PartialStates> {
        let mut keys = self.plan.encoder.empty_keys();
        let (all_keys, all_hashes) = (self.groups.keys(), self.groups.hashes());
        match self.shares_texts {
            true => keys.extend_sharing(all_keys, &indices),
            false => {
                keys.reserve(indices.len());
                indices.iter().for_each(|index| keys.push_from(all_keys, *index as usize));
            }
        }
        let hashes = indices.iter().map(|index| all_hashes[*index as usize]).collect();
        let states = self.states_of(indices)?;
        Ok(PartialStates { keys, hashes, states, memory: None })
    }

    pub(super) fn states_of(&self, indices: Vec<u32>) -> Result<Vec<Vec<ArrayRef>>> {
        let indices = UInt32Array::from(indices);
        let gather = |columns: &Vec<ArrayRef>| {
            columns.iter().map(|column| take(column, &indices, None)).collect::<Result<_, _>>()
        };
        self.states.iter().map(gather).collect::<Result<_, _>>().query_err()
    }

    /// Returns the groups at `indices` as a batch to spill.
    pub(super) fn partition_batch(&self, indices: &[u32]) -> Result<RecordBatch> {
        let keys = self.plan.encoder.decode_indices(self.groups.keys(), indices).query_err()?;
        spilled_batch(keys, self.states_of(indices.to_vec())?)
    }
}

/// Returns a batch to spill: keys first, then states.
fn spilled_batch(mut columns: Vec<ArrayRef>, states: Vec<Vec<ArrayRef>>) -> Result<RecordBatch> {
    columns.extend(states.into_iter().flatten());
    let field = |(index, column): (usize, &ArrayRef)| {
        Field::new(format!("column {index}"), column.data_type().clone(), true)
    };
    let fields: Vec<_> = columns.iter().enumerate().map(field).collect();
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).query_err()?;
    // Gathered view arrays keep all buffers of their source.
    gc_batch_views(&batch)
}

impl PartialStates {
    /// Returns the range of groups of each batch to spill.
    pub(super) fn batch_ranges(&self) -> Vec<Range<usize>> {
        let (mut ranges, mut first) = (Vec::new(), 0);
        let fits_one_batch = self.keys.text_bytes() <= MAX_BATCH_BYTES;
        while first < self.len() {
            let remaining = self.len() - first;
            let rows = match fits_one_batch {
                true => remaining,
                false => {
                    rows_within(MAX_BATCH_BYTES, remaining, |row| self.keys.length(first + row))
                }
            };
            ranges.push(first..first + rows);
            first += rows;
        }
        ranges
    }

    /// Returns the groups of `range` as a batch to spill.
    fn batch(&self, range: Range<usize>, plan: &AggregatePlan) -> Result<RecordBatch> {
        let keys = plan.encoder.decode_range(&self.keys, range.clone()).query_err()?;
        let slice = |column: &ArrayRef| column.slice(range.start, range.len());
        let states = self.states.iter().map(|columns| columns.iter().map(slice).collect());
        spilled_batch(keys, states.collect())
    }

    /// Returns the groups of each of `ranges` as a batch to spill.
    pub(super) fn into_batches(
        self,
        ranges: Vec<Range<usize>>,
        plan: Arc<AggregatePlan>,
    ) -> impl Iterator<Item = Result<RecordBatch>> {
        ranges.into_iter().map(move |range| self.batch(range, &plan))
    }

    /// Takes the reservation out of the states.
    pub(super) fn take_reservation(&mut self) -> Option<Reservation> {
        self.memory.take()
    }

    /// Decodes a restored batch.
    pub(super) fn from_batch(batch: &RecordBatch, plan: &AggregatePlan) -> Result<Self> {
        let (keys, mut states) = batch.columns().split_at(plan.encoder.types().len());
        let keys = plan.encoder.encode(keys).query_err()?;
        let mut hashes = Vec::new();
        keys.hash_into(&mut hashes);
        let mut states_by_aggregate = Vec::with_capacity(plan.config.aggregates.len());
        for call in &plan.config.aggregates {
            let count = call.function.state_fields().query_err()?.len();
            let (own, rest) = states.split_at(count.min(states.len()));
            states_by_aggregate.push(own.to_vec());
            states = rest;
        }
        Ok(Self { keys, hashes, states: states_by_aggregate, memory: None })
    }

    /// Returns the number of groups.
    pub(super) fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Returns the bytes reserved for the groups.
    pub(super) fn reserved(&self) -> usize {
        self.memory.as_ref().map_or(0, Reservation::bytes)
    }

    pub(super) fn bytes(&self) -> usize {
        let columns = self.states.iter().flatten();
        let states: usize = columns.map(|column| column.get_array_memory_size()).sum();
        self.keys.bytes() + 8 * self.hashes.capacity() + states
    }
}
