//! Rows partitioned by bits of their hash; some partitions are spilled.
//!
//! Rows are staged until they reach [`STAGING_BYTES`]. Then each partition gets a batch with
//! buffers of its own, so spilling a partition releases all of its memory. Rows that are
//! repartitioned use other hash bits (a *level*).

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{RecordBatch, UInt32Array},
    compute::take_record_batch,
};
use gatework_runtime::{
    Result,
    pipeline::{Batch, OperatorContext, OutOfMemory, Reservation, SpilledBatches},
};
use gatework_shared_state::Gate;

use super::{SpillWriter, WriteState, gc_batch_views, try_resize_above};
use crate::{ResultExt, concat::concat_batches, keys::partition_indices};

const BITS: u32 = 5;

/// Number of partitions per level.
pub(crate) const NUM_PARTITIONS: usize = 1 << BITS;

/// Maximum number of partitioning levels. Hash tables use the lower half of a hash and its upper
/// four bits.
pub(crate) const MAX_SPILL_LEVELS: u32 = 5;

/// Returns the partition of rows with `hash` at `level`.
pub(crate) fn partition_of(hash: u64, level: u32) -> usize {
    (hash >> (60 - BITS * (level + 1))) as usize & (NUM_PARTITIONS - 1)
}

/// Set of partitions, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct PartitionSet(pub(crate) u32);

impl PartitionSet {
    /// All partitions.
    pub(crate) const ALL: Self = Self(u32::MAX);

    /// Returns true if the set is empty.
    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns true if `partition` is in the set.
    pub(crate) fn contains(self, partition: usize) -> bool {
        self.0 >> partition & 1 == 1
    }

    /// Returns the indices of the partitions in the set.
    pub(crate) fn partitions(self) -> impl Iterator<Item = usize> {
        (0..NUM_PARTITIONS).filter(move |partition| self.contains(*partition))
    }

    /// Returns this set with more partitions: half of all if it is empty, else a quarter of the
    /// others.
    pub(crate) fn extended(self) -> Self {
        let remaining = self.0.count_zeros();
        let more = if self.is_empty() { remaining / 2 } else { remaining.div_ceil(4) };
        let added =
            (0..NUM_PARTITIONS).filter(|partition| !self.contains(*partition)).take(more as usize);
        Self(added.fold(self.0, |set, partition| set | 1 << partition))
    }
}

/// Rows of one partition in a spill file.
#[derive(Debug, Clone)]
pub(crate) struct SpillSegment {
    pub(crate) file: Arc<dyn SpilledBatches>,
    pub(crate) batches: Range<usize>,
    pub(crate) rows: usize,
}

/// Bytes of staged rows from which they are partitioned.
const STAGING_BYTES: usize = 4 << 20;

/// One task's rows, by partition.
pub(crate) struct PartitionedSpill {
    context: OperatorContext,
    level: u32,
    /// Bytes that a row needs in memory in addition to its own bytes.
    row_bytes: usize,
    /// Rows that are not yet partitioned, and the partition of each.
    staged: Vec<RecordBatch>,
    partition_of_row: Vec<u8>,
    staged_bytes: usize,
    memory: Reservation,
    /// True if a reservation for rows in memory was denied.
    denied: bool,
    in_memory: Vec<Vec<(RecordBatch, Reservation)>>,
    /// Bytes reserved for `in_memory`.
    in_memory_bytes: usize,
    spilled: Vec<Vec<SpillSegment>>,
    /// Writer tagged with the partition, batch range and row count of each segment of the file.
    writer: SpillWriter<Vec<(usize, Range<usize>, usize)>>,
}

impl PartitionedSpill {
    /// Creates an empty `PartitionedSpill` that partitions at `level`.
    pub(crate) fn new(context: OperatorContext, level: u32, row_bytes: usize) -> Self {
        Self {
            level,
            row_bytes,
            staged: Vec::new(),
            partition_of_row: Vec::new(),
            staged_bytes: 0,
            memory: context.reservation(),
            denied: false,
            in_memory: (0..NUM_PARTITIONS).map(|_| Vec::new()).collect(),
            in_memory_bytes: 0,
            spilled: (0..NUM_PARTITIONS).map(|_| Vec::new()).collect(),
            writer: SpillWriter::new(context.clone()),
            context,
        }
    }

    /// Adds `rows`, which `reservation` may cover already. The caller then calls
    /// [`poll`](Self::poll).
    pub(crate) fn add(
        &mut self,
        rows: RecordBatch,
        hashes: &[u64],
        reservation: Option<Reservation>,
    ) -> Result<()> {
        debug_assert_eq!(rows.num_rows(), hashes.len());
        self.staged_bytes += Batch::new(rows.clone()).bytes();
        self.partition_of_row
            .extend(hashes.iter().map(|hash| partition_of(*hash, self.level) as u8));
        self.staged.push(rows);
        if let Some(reservation) = reservation {
            self.memory.merge(reservation);
        }
        let wanted = self.staged_bytes.max(self.memory.bytes());
        let min_bytes = self.context.min_spill_bytes();
        self.denied |= try_resize_above(&mut self.memory, wanted, min_bytes).is_err();
        Ok(())
    }

    /// Partitions the staged rows once they reach [`STAGING_BYTES`], or all of them `at_end`.
    /// Spills the partitions in `spilled_set()`; calls `spill_more` to extend that set if the other
    /// rows do not fit. Returns a gate after which the caller calls again.
    pub(crate) fn poll(
        &mut self,
        spilled_set: impl Fn() -> PartitionSet,
        spill_more: impl Fn(PartitionSet),
        at_end: bool,
    ) -> Result<Option<Gate>> {
        loop {
            let set = spilled_set();
            let stale = set.partitions().any(|partition| !self.in_memory[partition].is_empty());
            let full = self.staged_bytes >= STAGING_BYTES;
            let leftover = at_end && (!self.staged.is_empty() || self.writer.is_writing());
            if !(stale || full || leftover || self.denied) {
                return Ok(None);
            }
            if let Some(gate) = self.poll_write()? {
                return Ok(Some(gate));
            }
            if let Some(denied) = self.flush_staged(set)? {
                if set == PartitionSet::ALL {
                    return Err(denied.into());
                }
                self.denied = true;
                spill_more(set);
            }
        }
    }

    /// Polls like [`poll`](Self::poll), with all partitions spilled.
    pub(crate) fn poll_all(&mut self, at_end: bool) -> Result<Option<Gate>> {
        self.poll(|| PartitionSet::ALL, |_| {}, at_end)
    }

    /// Partitions all staged rows, and starts writing the rows of `set`. Returns the denial if the
    /// reservation of the other rows, which are all in memory, is denied.
    fn flush_staged(&mut self, set: PartitionSet) -> Result<Option<OutOfMemory>> {
        self.denied = false;
        let (mut batches, mut reservations, mut segments) = (Vec::new(), Vec::new(), Vec::new());
        for partition in set.partitions() {
            let first = batches.len();
            let mut rows = 0;
            for (batch, reservation) in self.in_memory[partition].drain(..) {
                rows += batch.num_rows();
                self.in_memory_bytes -= reservation.bytes();
                batches.push(batch);
                reservations.push(reservation);
            }
            if rows > 0 {
                segments.push((partition, first..batches.len(), rows));
            }
        }
        let mut denial = None;
        if !self.staged.is_empty() {
            let staged = concat_batches(&std::mem::take(&mut self.staged))?;
            let row_partitions = std::mem::take(&mut self.partition_of_row);
            self.staged_bytes = 0;
            let indices = partition_indices(
                row_partitions.iter().map(|partition| usize::from(*partition)),
                NUM_PARTITIONS,
            );
            for (partition, indices) in indices.into_iter().enumerate() {
                if indices.is_empty() {
                    continue;
                }
                let rows = take_record_batch(&staged, &UInt32Array::from(indices)).query_err()?;
                let rows = gc_batch_views(&rows)?;
                let (count, bytes) = (rows.num_rows(), Batch::new(rows.clone()).bytes());
                let mut reservation = self.memory.split(bytes);
                if set.contains(partition) {
                    segments.push((partition, batches.len()..batches.len() + 1, count));
                    batches.push(rows);
                    reservations.push(reservation);
                    continue;
                }
                let wanted = bytes + count * self.row_bytes;
                denial = reservation.resize(wanted.max(reservation.bytes())).err().or(denial);
                self.in_memory_bytes += reservation.bytes();
                self.in_memory[partition].push((rows, reservation));
            }
        }
        self.memory.resize(0)?;
        if !batches.is_empty() {
            self.writer.write_batches(batches, reservations, segments)?;
        }
        Ok(denial)
    }

    /// Returns the gate of a file that is being written.
    fn poll_write(&mut self) -> Result<Option<Gate>> {
        match self.writer.poll()? {
            WriteState::Idle => {}
            WriteState::Blocked(gate) => return Ok(Some(gate)),
            WriteState::Finished(file, segments) => {
                for (partition, batches, rows) in segments {
                    self.spilled[partition].push(SpillSegment {
                        file: file.clone(),
                        batches,
                        rows,
                    });
                }
            }
        }
        Ok(None)
    }

    /// Returns the rows in memory, and the spilled segments by partition. Requires a finished
    /// `poll` at the end.
    pub(crate) fn into_parts(self) -> (Vec<(RecordBatch, Reservation)>, Vec<Vec<SpillSegment>>) {
        debug_assert!(self.staged.is_empty() && !self.writer.is_writing());
        (self.in_memory.into_iter().flatten().collect(), self.spilled)
    }

    /// Returns the bytes reserved for partitioned rows in memory.
    pub(crate) fn reserved_bytes(&self) -> usize {
        self.in_memory_bytes
    }

    /// Returns true if rows are being written.
    pub(crate) fn is_writing(&mut self) -> Result<bool> {
        Ok(self.poll_write()?.is_some())
    }

    /// Returns the operator context passed to `new`.
    pub(crate) fn context(&self) -> &OperatorContext {
        &self.context
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_extended_until_it_is_whole() {
        let mut sets = vec![PartitionSet::default()];
        while sets.last() != Some(&PartitionSet::ALL) {
            let last = sets[sets.len() - 1];
            assert_eq!(last.extended().0 & last.0, last.0);
            sets.push(last.extended());
        }
        assert_eq!(sets[1].partitions().count(), NUM_PARTITIONS / 2);
        assert!(sets.len() < 16, "{}", sets.len());
        assert_eq!(PartitionSet::ALL.extended(), PartitionSet::ALL);
    }

    #[test]
    fn levels_take_bits_of_their_own() {
        for level in 0..MAX_SPILL_LEVELS {
            let hash = 21 << (60 - BITS * (level + 1));
            let partitions: Vec<usize> =
                (0..MAX_SPILL_LEVELS).map(|level| partition_of(hash, level)).collect();
            assert!(
                partitions
                    .iter()
                    .enumerate()
                    .all(|(index, partition)| (*partition == 21) == (index == level as usize))
            );
            assert!((1 << 32..1 << 60).contains(&hash));
        }
    }
}
