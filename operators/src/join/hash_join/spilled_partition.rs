//! Joins of spilled partitions, one by one.
//!
//! The build rows of a partition are restored into a table and the probe rows are looked up. Then
//! the table's unmatched rows are output. If the build rows do not fit, both sides are
//! repartitioned by other bits of the hash, and the results are joined in turn. Repartitioning does
//! not help if most rows have one key. The build rows are then joined in chunks that fit, each with
//! all probe rows. Which probe rows found a match is kept from chunk to chunk.

use std::sync::Arc;

use arrow::buffer::BooleanBuffer;
use gatework_runtime::{
    Result,
    pipeline::{Batch, DriverContext, OperatorContext, OperatorResult},
};
use gatework_shared_state::Gate;

use super::{
    build_rows::BuildRows,
    config::HashJoinPlan,
    lookup::DictionaryLookup,
    probe_batch::{NextMatches, ProbeBatch},
    table::JoinHashTable,
    unmatched_scan::BuildSideOutput,
};
use crate::chunked::LongestEntries;
use crate::spill::{MAX_SPILL_LEVELS, PartitionedSpill, ReadState, SpillReader, SpillSegment};

/// Rows of both sides that match no rows of other partitions.
struct SpilledPartition {
    build: Vec<SpillSegment>,
    probe: Vec<SpillSegment>,
    /// Spill level, which selects the hash bits by which they were partitioned.
    level: u32,
    /// Whether repartitioning may help.
    can_repartition: bool,
}

/// Next output of spilled partitions.
pub(super) enum JoinOutput {
    /// Output rows.
    Batch(Batch),
    /// Blocked on this gate.
    Blocked(Gate),
    /// The task should yield.
    Yield,
    /// No more output.
    End,
}

/// Phase of a partition's join.
enum Phase {
    /// Build rows are restored.
    Load(BuildRows),
    /// The build rows did not fit and are repartitioned.
    PartitionBuild(PartitionedSpill, Option<BuildRows>),
    /// Probe rows are repartitioned.
    PartitionProbe(PartitionedSpill, Vec<Vec<SpillSegment>>),
    /// Probe rows are looked up in a table: with the current batch, and its index.
    Probe(JoinHashTable, SpillReader, Option<Box<ProbeBatch>>, usize),
    /// Unmatched-scan rows are output: those of the current morsel, and the index of the next one.
    UnmatchedScan(JoinHashTable, BuildSideOutput, usize),
    /// The phase is over.
    Done,
}

/// A partition that is being joined.
struct PartitionJoinState {
    partition: SpilledPartition,
    /// Reader of build rows, or of probe rows that are repartitioned.
    reader: SpillReader,
    phase: Phase,
    /// Per probe batch, which rows have found a match so far; used if there are several chunks.
    matched: Vec<BooleanBuffer>,
    /// Whether the current chunk has the last build rows.
    last: bool,
}

/// Joins a spilled partition and the partitions made from it.
pub(super) struct SpilledPartitionJoin {
    plan: Arc<HashJoinPlan>,
    context: OperatorContext,
    partitions: Vec<SpilledPartition>,
    current: Option<Box<PartitionJoinState>>,
}

fn open_reader(context: &OperatorContext, segments: &[SpillSegment]) -> SpillReader {
    let mut reader = SpillReader::new(context.clone());
    for segment in segments {
        reader.push(&segment.file, segment.batches.clone());
    }
    reader
}

fn rows(segments: &[SpillSegment]) -> usize {
    segments.iter().map(|segment| segment.rows).sum()
}

impl SpilledPartitionJoin {
    pub(super) fn new(
        plan: Arc<HashJoinPlan>,
        context: OperatorContext,
        build: Vec<SpillSegment>,
        probe: Vec<SpillSegment>,
    ) -> Self {
        let partition = SpilledPartition { build, probe, level: 0, can_repartition: true };
        Self { plan, context, partitions: vec![partition], current: None }
    }

    pub(super) fn next(&mut self, task: &DriverContext) -> Result<JoinOutput> {
        loop {
            task.check_cancelled()?;
            if let Some(current) = &mut self.current {
                match current.poll(&self.plan, &self.context, &mut self.partitions, task)? {
                    Some(output) => return Ok(output),
                    None => self.current = None,
                }
            }
            let Some(partition) = self.partitions.pop() else { return Ok(JoinOutput::End) };
            if self.plan.has_output(rows(&partition.build), rows(&partition.probe)) {
                self.current =
                    Some(Box::new(PartitionJoinState::new(partition, &self.plan, &self.context)));
            }
        }
    }
}

impl HashJoinPlan {
    /// Returns whether these numbers of build and probe rows may have output.
    fn has_output(&self, build_rows: usize, probe_rows: usize) -> bool {
        match (build_rows, probe_rows) {
            (0, 0) => false,
            (0, _) => self.layout.preserves_probe_rows(),
            (_, 0) => self.layout.tracks_build_matches(),
            _ => true,
        }
    }
}

impl PartitionJoinState {
    fn new(partition: SpilledPartition, plan: &HashJoinPlan, context: &OperatorContext) -> Self {
        let reader = open_reader(context, &partition.build);
        let phase = Phase::Load(BuildRows::new(plan, context.reservation()));
        Self { partition, reader, phase, matched: Vec::new(), last: false }
    }

    /// Returns the next output; `None` when this partition is done. Adds its sub-partitions to
    /// `partitions`.
    fn poll(
        &mut self,
        plan: &HashJoinPlan,
        context: &OperatorContext,
        partitions: &mut Vec<SpilledPartition>,
        task: &DriverContext,
    ) -> Result<Option<JoinOutput>> {
        loop {
            task.check_cancelled()?;
            let gate = match &mut self.phase {
                Phase::Load(_) => self.load(plan, context, task)?,
                Phase::PartitionBuild(..) => self.partition_build(plan, context)?,
                Phase::PartitionProbe(..) => match self.partition_probe(plan)? {
                    Some(gate) => Some(gate),
                    None => {
                        self.add_partitions(partitions);
                        return Ok(None);
                    }
                },
                Phase::Probe(..) => match self.probe(plan, task)? {
                    Some(next) => return Ok(Some(next)),
                    None => None,
                },
                Phase::UnmatchedScan(table, output, morsel)
                    if plan.layout.tracks_build_matches()
                        && (!output.is_done() || *morsel < table.num_unmatched_morsels()) =>
                {
                    if output.is_done() {
                        *output = plan.build_side_output(table, *morsel);
                        *morsel += 1;
                    }
                    match plan.next_build_side_batch(table, output)? {
                        Some(rows) => return Ok(Some(JoinOutput::Batch(Batch::new(rows)))),
                        None => None,
                    }
                }
                Phase::UnmatchedScan(..) if self.last => return Ok(None),
                Phase::Done => return Ok(None),
                Phase::UnmatchedScan(..) => {
                    self.phase = Phase::Load(BuildRows::new(plan, context.reservation()));
                    None
                }
            };
            if let Some(gate) = gate {
                return Ok(Some(JoinOutput::Blocked(gate)));
            }
            if task.should_yield() {
                return Ok(Some(JoinOutput::Yield));
            }
        }
    }

    /// Restores build rows until all are in memory or no more fit.
    fn load(
        &mut self,
        plan: &HashJoinPlan,
        context: &OperatorContext,
        task: &DriverContext,
    ) -> Result<Option<Gate>> {
        let Phase::Load(rows) = &mut self.phase else { return Ok(None) };
        let full = loop {
            task.check_cancelled()?;
            match self.reader.poll()? {
                ReadState::Blocked(gate) => return Ok(Some(gate)),
                ReadState::End => {
                    self.last = true;
                    break false;
                }
                ReadState::Batch(batch) => rows.push_restored(plan, &batch)?,
            }
            if rows.reserve(plan, context.min_spill_bytes()).is_err() {
                break true;
            }
        };
        let Phase::Load(rows) = std::mem::replace(&mut self.phase, Phase::Done) else {
            return Ok(None);
        };
        self.phase = if full
            && self.partition.can_repartition
            && self.partition.level + 1 < MAX_SPILL_LEVELS
        {
            let partitions = PartitionedSpill::new(context.clone(), self.partition.level + 1, 0);
            Phase::PartitionBuild(partitions, Some(rows))
        } else {
            let (table, morsels) = JoinHashTable::allocate(plan, rows, true)?;
            (0..morsels).try_for_each(|morsel| {
                task.check_cancelled().and_then(|()| table.build(morsel, task))
            })?;
            table.finish()?;
            Phase::Probe(table, open_reader(context, &self.partition.probe), None, 0)
        };
        Ok(None)
    }

    fn partition_build(
        &mut self,
        plan: &HashJoinPlan,
        context: &OperatorContext,
    ) -> Result<Option<Gate>> {
        let Phase::PartitionBuild(partitions, unpartitioned) = &mut self.phase else {
            return Ok(None);
        };
        loop {
            if let Some(gate) = partitions.poll_all(false)? {
                return Ok(Some(gate));
            }
            if let Some(rows) = unpartitioned {
                match rows.take(plan)? {
                    Some((rows, hashes, reservation)) => {
                        partitions.add(rows, &hashes, Some(reservation))?
                    }
                    None => *unpartitioned = None,
                }
                continue;
            }
            match self.reader.poll()? {
                ReadState::Blocked(gate) => return Ok(Some(gate)),
                ReadState::End => break,
                ReadState::Batch(rows) => {
                    let hashes = plan.hashes(&rows.columns()[plan.payload_columns.len()..])?;
                    partitions.add(rows, &hashes, None)?;
                }
            }
        }
        if let Some(gate) = partitions.poll_all(true)? {
            return Ok(Some(gate));
        }
        if let Phase::PartitionBuild(partitions, _) =
            std::mem::replace(&mut self.phase, Phase::Done)
        {
            let (_, build) = partitions.into_parts();
            self.reader = open_reader(context, &self.partition.probe);
            let partitions = PartitionedSpill::new(context.clone(), self.partition.level + 1, 0);
            self.phase = Phase::PartitionProbe(partitions, build);
        }
        Ok(None)
    }

    fn partition_probe(&mut self, plan: &HashJoinPlan) -> Result<Option<Gate>> {
        let Phase::PartitionProbe(partitions, _) = &mut self.phase else { return Ok(None) };
        loop {
            if let Some(gate) = partitions.poll_all(false)? {
                return Ok(Some(gate));
            }
            match self.reader.poll()? {
                ReadState::Blocked(gate) => return Ok(Some(gate)),
                ReadState::End => return partitions.poll_all(true),
                ReadState::Batch(rows) => {
                    let hashes = plan.hashes(&plan.probe_keys(&rows)?)?;
                    partitions.add(rows, &hashes, None)?;
                }
            }
        }
    }

    /// Adds the sub-partitions of a repartitioned partition.
    fn add_partitions(&mut self, partitions: &mut Vec<SpilledPartition>) {
        let phase = std::mem::replace(&mut self.phase, Phase::Done);
        let Phase::PartitionProbe(probe, build) = phase else { return };
        let (_, probe) = probe.into_parts();
        let all = rows(&self.partition.build);
        partitions.extend(build.into_iter().zip(probe).map(|(build, probe)| {
            // A sub-partition with nearly all rows has one key, or few.
            let can_repartition = rows(&build) < all / 8 * 7;
            SpilledPartition { build, probe, level: self.partition.level + 1, can_repartition }
        }));
    }

    /// Returns the next output of the probe rows; `None` when they are done.
    fn probe(&mut self, plan: &HashJoinPlan, task: &DriverContext) -> Result<Option<JoinOutput>> {
        let Phase::Probe(table, probe_reader, probe_batch, batch_index) = &mut self.phase else {
            return Ok(None);
        };
        loop {
            if let Some(batch) = probe_batch {
                match plan.next_matches(table, batch, &mut LongestEntries::default(), task)? {
                    NextMatches::Batch(pairs) => return Ok(Some(JoinOutput::Batch(pairs))),
                    NextMatches::Yield => return Ok(Some(JoinOutput::Yield)),
                    NextMatches::End => {}
                }
            }
            if let Some(probed) = probe_batch.take() {
                *batch_index += 1;
                if self.last {
                    if let OperatorResult::Batch(unmatched) = plan.unmatched_probe_rows(*probed)? {
                        return Ok(Some(JoinOutput::Batch(unmatched)));
                    }
                } else if let Some(matched) = probed.matched {
                    let matched = BooleanBuffer::from(matched);
                    match self.matched.get_mut(*batch_index - 1) {
                        Some(known) => *known = matched,
                        None => self.matched.push(matched),
                    }
                }
            }
            match probe_reader.poll()? {
                ReadState::Blocked(gate) => return Ok(Some(JoinOutput::Blocked(gate))),
                ReadState::End => break,
                ReadState::Batch(rows) => {
                    let keys = plan.probe_keys(&rows)?;
                    let mut dictionary = DictionaryLookup::default();
                    let keys = plan.look_up(table, &rows, keys, &mut dictionary)?;
                    let mut next = plan.probe_batch(rows, 0, keys);
                    if let Some(known) = self.matched.get(*batch_index) {
                        next.matched = Some(known.iter().collect());
                    }
                    *probe_batch = Some(Box::new(next));
                    if task.should_yield() {
                        return Ok(Some(JoinOutput::Yield));
                    }
                }
            }
        }
        if let Phase::Probe(table, ..) = std::mem::replace(&mut self.phase, Phase::Done) {
            self.phase = Phase::UnmatchedScan(table, BuildSideOutput::default(), 0);
        }
        Ok(None)
    }
}
