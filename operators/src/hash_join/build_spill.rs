//! The left side of a join that does not fit: rows are cut into units by bits of their keys' hashes, and
//! some of the units go to files.
//!
//! Which ones is the whole join's choice, so that a probe row knows where its matches are: whoever is
//! short of memory adds units to the set, and every build task writes what it has of them. Rows of the
//! others become the table. (Hybrid hash join: DeWitt et al., "Implementation Techniques for Main Memory
//! Database Systems", 1984.)

use std::{fmt, mem, sync::Arc};

use arrow::array::{ArrayRef, RecordBatch};
use gatework_runtime::{Error, Result, pipeline::OperatorContext};
use gatework_shared_state::Gate;

use super::{
    build_rows::BuildRows,
    config::HashJoinPlan,
    index::JoinIndex,
    table::{Bounds, BuildSide, JoinHashTable, merge_bounds},
};
use crate::spill::{PartitionSet, PartitionedSpill, SpillSegment};

/// What one build task has of the left side.
#[derive(Debug)]
pub(super) struct BuildPart {
    pub(super) rows: BuildRows,
    /// Rows in files, by unit, and the units that all rows are in files of; empty if nothing was spilled.
    pub(super) spilled: Vec<Vec<SpillSegment>>,
    pub(super) spilled_partitions: PartitionSet,
    /// Bounds per key, if they are noted and known.
    pub(super) bounds: Option<Bounds>,
    pub(super) has_null: bool,
}

/// What a join's table is made of: parts, and a table that somebody began to make, who has left.
#[derive(Debug)]
pub(super) enum BuildInput {
    Part(Box<BuildPart>),
    Unfinished(Box<TableFinalizer>),
}

/// Cuts rows of the left side into units.
pub(super) struct BuildSpiller {
    shared: Arc<HashJoinPlan>,
    partitions: PartitionedSpill,
    /// Rows that were collected before.
    unpartitioned: Option<BuildRows>,
    spilled: Vec<Vec<SpillSegment>>,
}

impl BuildSpiller {
    /// Cuts what was `rows`, and more; rows `spilled` are in files already.
    pub(super) fn new(
        shared: Arc<HashJoinPlan>,
        setup: OperatorContext,
        rows: BuildRows,
        spilled: Vec<Vec<SpillSegment>>,
    ) -> Self {
        let partitions = PartitionedSpill::new(setup, 0, JoinIndex::MAX_ROW_BYTES);
        Self { shared, partitions, unpartitioned: Some(rows), spilled }
    }

    /// Adds rows of the left side. [`poll`](Self::poll) is to follow.
    pub(super) fn add(&mut self, payload: &RecordBatch, keys: Vec<ArrayRef>) -> Result<()> {
        let (rows, hashes) = self.shared.to_spill_rows(payload, keys)?;
        self.partitions.add(rows, &hashes, None)
    }

    /// The rows, as they are cut.
    pub(super) fn partitions(&mut self) -> &mut PartitionedSpill {
        &mut self.partitions
    }

    /// Goes on; a gate: to be called again. With `end`, all rows are where they belong afterwards.
    pub(super) fn poll(&mut self, end: bool) -> Result<Option<Gate>> {
        let shared = self.shared.clone();
        loop {
            let gate = self.partitions.poll(
                || shared.spilled_partitions(),
                |set| shared.spill_more_partitions(set),
                end && self.unpartitioned.is_none(),
            )?;
            if gate.is_some() {
                return Ok(gate);
            }
            let Some(unpartitioned) = &mut self.unpartitioned else { return Ok(None) };
            match unpartitioned.take(&shared)? {
                Some((rows, hashes, reservation)) => {
                    self.partitions.add(rows, &hashes, Some(reservation))?
                }
                None => self.unpartitioned = None,
            }
        }
    }

    /// After all is settled: the rows that stay, in `in_memory`, and those in files.
    pub(super) fn take(self) -> Result<(BuildRows, Vec<Vec<SpillSegment>>)> {
        let setup = self.partitions.setup().clone();
        let mut in_memory = BuildRows::new(&self.shared, setup.reservation());
        let (batches, mut spilled) = self.partitions.into_parts();
        for (rows, reservation) in batches {
            in_memory.push_restored(&self.shared, &rows)?;
            in_memory.reservation.merge(reservation);
        }
        // It is reserved but for what is needed while columns are copied.
        match in_memory.reserve(&self.shared, 0) {
            Err(Error::OutOfMemory { .. }) => {}
            other => other?,
        }
        for (spilled, before) in spilled.iter_mut().zip(self.spilled) {
            spilled.extend(before);
        }
        Ok((in_memory, spilled))
    }
}

/// Makes one table of all parts, after rows of units that others sent away have been as well.
pub(super) struct TableFinalizer {
    shared: Arc<HashJoinPlan>,
    setup: OperatorContext,
    parts: Vec<BuildPart>,
    /// With the bounds of the part, and whether it has a NULL.
    spilling: Option<(BuildSpiller, Option<Bounds>, bool)>,
}

impl fmt::Debug for TableFinalizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableFinalizer").field("parts", &self.parts.len()).finish_non_exhaustive()
    }
}

/// How the table is getting on.
pub(super) enum FinalizeResult {
    /// Not before this opens.
    Blocked(Gate),
    /// There it is, with the number of its build units.
    Table(BuildSide, usize),
}

impl TableFinalizer {
    /// What is to be made of these; what is begun already goes on.
    pub(super) fn new(
        shared: Arc<HashJoinPlan>,
        setup: OperatorContext,
        inputs: Vec<BuildInput>,
    ) -> Box<Self> {
        let mut finalizer = Box::new(Self { shared, setup, parts: Vec::new(), spilling: None });
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
            let spilled_partitions = self.shared.spilled_partitions();
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
                    self.shared.clone(),
                    self.setup.clone(),
                    part.rows,
                    part.spilled,
                );
                self.spilling = Some((spiller, part.bounds, part.has_null));
                continue;
            }
            let mut part = self.merge(spilled_partitions);
            let can_spill = self.shared.can_spill(&self.setup);
            let min_spill_bytes = if can_spill { self.setup.min_spill_bytes() } else { 0 };
            match part.rows.reserve(&self.shared, min_spill_bytes) {
                // One table may need more than its parts reserved: an index over keys that lie far apart.
                Err(Error::OutOfMemory { .. })
                    if can_spill && spilled_partitions != PartitionSet::ALL =>
                {
                    self.shared.spill_more_partitions(spilled_partitions);
                    self.parts.push(part);
                    continue;
                }
                // All rows are in files, and an empty table is small.
                Err(Error::OutOfMemory { .. }) if can_spill => {}
                other => other?,
            }
            let (table, morsels) = JoinHashTable::allocate(&self.shared, part.rows, can_spill)?;
            let build_side =
                BuildSide::new(&self.shared, table, part.bounds, part.has_null, part.spilled);
            return Ok(FinalizeResult::Table(build_side, morsels));
        }
    }

    /// All parts as one.
    fn merge(&mut self, spilled_partitions: PartitionSet) -> BuildPart {
        let mut rows = BuildRows::new(&self.shared, self.setup.reservation());
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
