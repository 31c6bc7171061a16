//! Spilling of a build side that does not fit: rows are partitioned by bits of their keys' hashes,
//! and some of the partitions are spilled.
//!
//! All tasks of the join share one set of spilled partitions, so that a probe row's partition tells
//! where its matches are. A build task that is denied memory adds partitions to the set. Every
//! build task then spills its rows of these partitions. Rows of the other partitions become the
//! table. (Hybrid hash join: DeWitt et al., "Implementation Techniques for Main Memory Database
//! Systems", 1984.)

use std::{fmt, mem, sync::Arc};

use arrow::array::{ArrayRef, RecordBatch};
use gatework_runtime::{Result, pipeline::OperatorContext};
use gatework_shared_state::Gate;

use super::{
    build_rows::BuildRows,
    config::HashJoinPlan,
    index::JoinIndex,
    table::{Bounds, BuildSide, JoinHashTable, merge_bounds},
};
use crate::spill::{PartitionSet, PartitionedSpill, SpillSegment};

/// The rows of one build task.
#[derive(Debug)]
pub(super) struct BuildPart {
    pub(super) rows: BuildRows,
    /// Spilled rows, by partition; empty if none were spilled.
    pub(super) spilled: Vec<Vec<SpillSegment>>,
    /// Partitions whose rows are all spilled.
    pub(super) spilled_partitions: PartitionSet,
    /// Bounds per key, if they are recorded and known.
    pub(super) bounds: Option<Bounds>,
    pub(super) has_null: bool,
}

/// Input of a join's table: the rows of a build task, or the unfinished work of a probe task that
/// was dropped.
#[derive(Debug)]
pub(super) enum BuildInput {
    Part(Box<BuildPart>),
    Unfinished(Box<TableFinalizer>),
}

/// Partitions and spills rows of the build side.
pub(super) struct BuildSpiller {
    plan: Arc<HashJoinPlan>,
    partitions: PartitionedSpill,
    /// Rows collected before spilling started, which are not partitioned yet.
    unpartitioned: Option<BuildRows>,
    spilled: Vec<Vec<SpillSegment>>,
}

impl BuildSpiller {
    /// Creates a spiller for `rows` and rows added later. `spilled` rows were spilled before.
    pub(super) fn new(
        plan: Arc<HashJoinPlan>,
        context: OperatorContext,
        rows: BuildRows,
        spilled: Vec<Vec<SpillSegment>>,
    ) -> Self {
        let partitions = PartitionedSpill::new(context, 0, JoinIndex::MAX_ROW_BYTES);
        Self { plan, partitions, unpartitioned: Some(rows), spilled }
    }

    /// Adds rows of the build side. Call [`poll`](Self::poll) afterwards.
    pub(super) fn add(&mut self, payload: &RecordBatch, keys: Vec<ArrayRef>) -> Result<()> {
        let (rows, hashes) = self.plan.to_spill_rows(payload, keys)?;
        self.partitions.add(rows, &hashes, None)
    }

    /// Returns the partitioned rows.
    pub(super) fn partitions(&self) -> &PartitionedSpill {
        &self.partitions
    }

    /// Returns the partitioned rows.
    pub(super) fn partitions_mut(&mut self) -> &mut PartitionedSpill {
        &mut self.partitions
    }

    /// Advances the spill. Returns the gate to wait at before the next call. With `end`, all rows
    /// are in their place once no gate is returned.
    pub(super) fn poll(&mut self, end: bool) -> Result<Option<Gate>> {
        let plan = self.plan.clone();
        loop {
            let gate = self.partitions.poll(
                || plan.spilled_partitions(),
                |set| plan.spill_more_partitions(set),
                end && self.unpartitioned.is_none(),
            )?;
            if gate.is_some() {
                return Ok(gate);
            }
            let Some(unpartitioned) = &mut self.unpartitioned else { return Ok(None) };
            match unpartitioned.take(&plan)? {
                Some((rows, hashes, reservation)) => {
                    self.partitions.add(rows, &hashes, Some(reservation))?
                }
                None => self.unpartitioned = None,
            }
        }
    }

    /// Returns the rows that stay in memory, and the spilled ones. Called after `poll(true)`
    /// returned no gate.
    pub(super) fn take(self) -> Result<(BuildRows, Vec<Vec<SpillSegment>>)> {
        let context = self.partitions.context().clone();
        let mut in_memory = BuildRows::new(&self.plan, context.reservation());
        let (batches, mut spilled) = self.partitions.into_parts();
        for (rows, reservation) in batches {
            in_memory.push_restored(&self.plan, &rows)?;
            in_memory.reservation.merge(reservation);
        }
        // The rows are reserved; the bytes to copy columns may be denied.
        let _reserved = in_memory.reserve(&self.plan, 0);
        for (spilled, before) in spilled.iter_mut().zip(self.spilled) {
            spilled.extend(before);
        }
        Ok((in_memory, spilled))
    }
}

/// Makes one table of all parts. First spills rows of partitions that other tasks added to the
/// spilled set.
pub(super) struct TableFinalizer {
    plan: Arc<HashJoinPlan>,
    context: OperatorContext,
    parts: Vec<BuildPart>,
    /// The part being spilled: its spiller, its bounds, and whether it has a NULL key.
    spilling: Option<(BuildSpiller, Option<Bounds>, bool)>,
}

impl fmt::Debug for TableFinalizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableFinalizer").field("parts", &self.parts.len()).finish_non_exhaustive()
    }
}

/// Progress of the table.
pub(super) enum FinalizeResult {
    /// Blocked on this gate.
    Blocked(Gate),
    /// The build side with its allocated table, and the number of its build morsels.
    Table(BuildSide, usize),
}

impl TableFinalizer {
    /// Creates the finalizer of `inputs`; continues an unfinished one among them.
    pub(super) fn new(
        plan: Arc<HashJoinPlan>,
        context: OperatorContext,
        inputs: Vec<BuildInput>,
    ) -> Box<Self> {
        let mut finalizer = Box::new(Self { plan, context, parts: Vec::new(), spilling: None });
        for input in inputs {
            match input {
                BuildInput::Part(part) => finalizer.parts.push(*part),
                BuildInput::Unfinished(unfinished) => finalizer = unfinished,
            }
        }
        finalizer
    }

    pub(super) fn poll(&mut self) -> Result<FinalizeResult> {
        loop {
            let spilled_partitions = self.plan.spilled_partitions();
            if let Some((spiller, _, _)) = &mut self.spilling
                && let Some(gate) = spiller.poll(true)?
            {
                return Ok(FinalizeResult::Blocked(gate));
            }
            if let Some((spiller, bounds, has_null)) = self.spilling.take() {
                let (rows, spilled) = spiller.take()?;
                self.parts.push(BuildPart { rows, spilled, spilled_partitions, bounds, has_null });
                continue;
            }
            if let Some(index) =
                self.parts.iter().position(|part| part.spilled_partitions != spilled_partitions)
            {
                let part = self.parts.swap_remove(index);
                let spiller = BuildSpiller::new(
                    self.plan.clone(),
                    self.context.clone(),
                    part.rows,
                    part.spilled,
                );
                self.spilling = Some((spiller, part.bounds, part.has_null));
                continue;
            }
            let mut part = self.merge(spilled_partitions);
            let can_spill = self.plan.can_spill(&self.context);
            let min_spill_bytes = if can_spill { self.context.min_spill_bytes() } else { 0 };
            if let Err(denied) = part.rows.reserve(&self.plan, min_spill_bytes) {
                if !can_spill {
                    return Err(denied.into());
                }
                // One table may need more than its parts reserved, because its keys may span a
                // wider range. If all rows are spilled, the empty table is small.
                if spilled_partitions != PartitionSet::ALL {
                    self.plan.spill_more_partitions(spilled_partitions);
                    self.parts.push(part);
                    continue;
                }
            }
            let (table, morsels) = JoinHashTable::allocate(&self.plan, part.rows, can_spill)?;
            let build_side =
                BuildSide::new(&self.plan, table, part.bounds, part.has_null, part.spilled);
            return Ok(FinalizeResult::Table(build_side, morsels));
        }
    }

    /// Merges all parts into one.
    fn merge(&mut self, spilled_partitions: PartitionSet) -> BuildPart {
        let mut rows = BuildRows::new(&self.plan, self.context.reservation());
        let (mut spilled, mut bounds, mut has_null) = (Vec::new(), None, false);
        for (index, mut part) in mem::take(&mut self.parts).into_iter().enumerate() {
            rows.append(part.rows);
            bounds = if index == 0 { part.bounds } else { merge_bounds(bounds, part.bounds) };
            has_null |= part.has_null;
            spilled.resize_with(spilled.len().max(part.spilled.len()), Vec::new);
            for (all, parts) in spilled.iter_mut().zip(&mut part.spilled) {
                all.append(parts);
            }
        }
        BuildPart { rows, spilled, spilled_partitions, bounds, has_null }
    }
}
