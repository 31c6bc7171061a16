//! The shared hash table of a join's build side.
//!
//! A build morsel either inserts a range of rows into the index (`index.rs`) or concatenates one
//! column. No two morsels share a row.

use std::{
    collections::VecDeque,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use arrow::{array::ArrayRef, buffer::NullBuffer, datatypes::SchemaRef};
use datafusion_common::ScalarValue;
use gatework_runtime::{
    Error, Result,
    pipeline::{DriverContext, Reservation},
};
use parking_lot::Mutex;

use super::{
    build_keys::CHUNK_ROWS, build_rows::BuildRows, config::HashJoinPlan, index::JoinIndex,
};
use crate::{
    ResultExt,
    batch_bytes::MAX_ARRAY_BYTES,
    chunked::{Column, Columns},
    join::layout::MatchBits,
    spill::{PartitionSet, SpillSegment},
};

#[derive(Debug)]
pub(super) struct JoinHashTable {
    rows: usize,
    index: JoinIndex,
    /// Whether each row has a NULL key that matches nothing; `None` if no row has one.
    invalid: Option<Box<[bool]>>,
    schema: SchemaRef,
    columns: Box<[OnceLock<Column>]>,
    payload: OnceLock<Columns>,
    /// Per column, the chunks of the build tasks until they are concatenated.
    column_chunks: Box<[Mutex<Vec<ArrayRef>>]>,
    matched: MatchBits,
    reservation: Mutex<Reservation>,
    can_spill: bool,
}

impl JoinHashTable {
    /// Allocates a table for `build_rows`, whose reservation covers it. Returns the table and the
    /// number of build morsels that fill it.
    pub(super) fn allocate(
        plan: &HashJoinPlan,
        build_rows: BuildRows,
        can_spill: bool,
    ) -> Result<(Self, usize)> {
        let rows = build_rows.rows();
        if rows >= u32::MAX as usize {
            return Err(Error::InvalidConfiguration(format!(
                "the build side of a join has {rows} rows; at most 2^32 - 2 fit one table"
            )));
        }
        let BuildRows { keys, valid, batches, range, reservation, .. } = build_rows;
        let tracked_rows = if plan.layout.tracks_build_matches() { rows } else { 0 };
        let invalid = valid.iter().any(|(_, valid)| valid.is_some()).then(|| flags(&valid, rows));
        let left = &plan.config.left_schema;
        let schema = Arc::new(left.project(&plan.payload_columns).query_err()?);
        let columns = schema.fields().len();
        let column =
            |index: usize| batches.iter().map(|batch| batch.column(index).clone()).collect();
        let column_chunks = (0..columns).map(|index| Mutex::new(column(index))).collect();
        let table = Self {
            rows,
            index: JoinIndex::new(keys, plan.encoder.empty_keys(), range, invalid.as_deref()),
            invalid,
            schema,
            columns: (0..columns).map(|_| OnceLock::new()).collect(),
            payload: OnceLock::new(),
            column_chunks,
            matched: MatchBits::new(tracked_rows),
            reservation: Mutex::new(reservation),
            can_spill,
        };
        // One morsel per chunk of rows, one per column, and at least one to finish the table.
        let morsels = (rows.div_ceil(CHUNK_ROWS) + columns).max(1);
        Ok((table, morsels))
    }

    /// Returns the number of rows in the table, including those with NULL keys.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the number of unmatched-scan morsels.
    pub(super) fn num_unmatched_morsels(&self) -> usize {
        self.rows.div_ceil(UNMATCHED_SCAN_ROWS)
    }

    /// Runs build morsel `morsel`.
    pub(super) fn build(&self, morsel: usize, task: &DriverContext) -> Result<()> {
        if let Some(column) = self.columns.get(morsel) {
            return self.concat_column(morsel, column, task);
        }
        let chunk = morsel - self.columns.len();
        let rows = chunk * CHUNK_ROWS..self.rows().min((chunk + 1) * CHUNK_ROWS);
        if rows.is_empty() {
            // The morsel of a table without rows and columns.
            return Ok(());
        }
        self.index.insert(chunk, rows, self.invalid.as_deref());
        Ok(())
    }

    fn concat_column(
        &self,
        index: usize,
        column: &OnceLock<Column>,
        task: &DriverContext,
    ) -> Result<()> {
        let chunks = std::mem::take(&mut *self.column_chunks[index].lock());
        let whole = if chunks.is_empty() {
            Column::One(arrow::array::new_empty_array(self.schema.field(index).data_type()))
        } else {
            Column::concat(&chunks, MAX_ARRAY_BYTES, || task.check_cancelled())?
        };
        let _first = column.set(whole);
        Ok(())
    }

    /// Assembles the payload and resizes the reservation. Called after the last build morsel.
    pub(super) fn finish(&self) -> Result<()> {
        let columns = self.columns.iter().filter_map(OnceLock::get).cloned().collect();
        let payload = Columns::new(columns);
        let payload_bytes = payload.bytes();
        let _first = self.payload.set(payload);
        self.index.finish();
        let bytes = self.index.bytes() + self.matched.bytes() + payload_bytes;
        let resized = self.reservation.lock().resize(bytes);
        // Otherwise it is less than was requested, as far as the request was granted.
        if !self.can_spill {
            resized?;
        }
        Ok(())
    }

    /// Returns the payload columns of all rows.
    pub(super) fn payload(&self) -> Result<&Columns> {
        self.payload
            .get()
            .ok_or_else(|| Error::InvalidConfiguration("the join's table is not finished".into()))
    }

    /// Returns the index from keys to rows.
    pub(super) fn index(&self) -> &JoinIndex {
        &self.index
    }

    /// Returns which rows have found a match; without bits if the join type does not need them.
    pub(super) fn matched(&self) -> &MatchBits {
        &self.matched
    }

    /// Returns whether `row` has a NULL key that matches nothing.
    pub(super) fn has_null_key(&self, row: usize) -> bool {
        self.invalid.as_ref().is_some_and(|invalid| invalid[row])
    }
}

/// State of a join's build side: the table of the rows in memory, and the spilled rows.
#[derive(Debug)]
pub(super) struct BuildSide {
    /// The table; `None` once neither the probe nor an unmatched-scan morsel needs it.
    table: Mutex<Option<Arc<JoinHashTable>>>,
    rows: usize,
    pub(super) bounds: Option<Bounds>,
    pub(super) has_null: bool,
    /// Partitions whose rows are spilled.
    pub(super) spilled_partitions: PartitionSet,
    spilled_build: Mutex<Vec<Vec<SpillSegment>>>,
    spilled_probe: Mutex<Vec<Vec<SpillSegment>>>,
    /// Number of tasks that have not finished their probe.
    probing_tasks: AtomicUsize,
    num_unmatched_morsels: usize,
    claimed_morsels: AtomicUsize,
}

/// Build rows per unmatched-scan morsel.
pub(super) const UNMATCHED_SCAN_ROWS: usize = 8192;

/// Both sides of a spilled partition.
pub(super) type PartitionSegments = (Vec<SpillSegment>, Vec<SpillSegment>);

impl BuildSide {
    pub(super) fn new(
        plan: &HashJoinPlan,
        table: JoinHashTable,
        bounds: Option<Bounds>,
        has_null: bool,
        spilled_build: Vec<Vec<SpillSegment>>,
    ) -> Self {
        let spilled_rows: usize = spilled_build.iter().flatten().map(|segment| segment.rows).sum();
        let num_unmatched_morsels =
            if plan.layout.tracks_build_matches() { table.num_unmatched_morsels() } else { 0 };
        Self {
            rows: table.rows() + spilled_rows,
            table: Mutex::new(Some(Arc::new(table))),
            bounds,
            has_null,
            spilled_partitions: plan.spilled_partitions(),
            spilled_build: Mutex::new(spilled_build),
            spilled_probe: Mutex::default(),
            probing_tasks: AtomicUsize::new(plan.probe_tasks),
            num_unmatched_morsels,
            claimed_morsels: AtomicUsize::new(0),
        }
    }

    /// Returns the number of rows of the build side.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the table of the rows in memory.
    pub(super) fn table(&self) -> Result<Arc<JoinHashTable>> {
        let table = self.table.lock().clone();
        table.ok_or_else(|| {
            Error::InvalidConfiguration("the join's hash table was read after its release".into())
        })
    }

    /// Adds the spilled `segments` of each partition of a probe task, which calls this after its
    /// input. Returns the number of unmatched-scan morsels: those of the table, then the spilled
    /// partitions.
    pub(super) fn finish_probe(&self, segments: Vec<Vec<SpillSegment>>) -> usize {
        {
            let mut spilled_probe = self.spilled_probe.lock();
            let partitions = spilled_probe.len().max(segments.len());
            spilled_probe.resize_with(partitions, Vec::new);
            for (all, segments) in spilled_probe.iter_mut().zip(segments) {
                all.extend(segments);
            }
        }
        if self.probing_tasks.fetch_sub(1, Ordering::AcqRel) == 1 && self.num_unmatched_morsels == 0
        {
            *self.table.lock() = None;
        }
        self.num_unmatched_morsels + self.spilled_partitions.partitions().count()
    }

    /// Returns the table if `morsel` is one of its morsels. The last claim drops the table from
    /// this state.
    pub(super) fn table_of_morsel(&self, morsel: usize) -> Result<Option<Arc<JoinHashTable>>> {
        if morsel >= self.num_unmatched_morsels {
            return Ok(None);
        }
        let table = self.table()?;
        if self.claimed_morsels.fetch_add(1, Ordering::AcqRel) + 1 == self.num_unmatched_morsels {
            *self.table.lock() = None;
        }
        Ok(Some(table))
    }

    /// Takes the rows of the spilled partition of `morsel`.
    pub(super) fn take_partition(&self, morsel: usize) -> Option<PartitionSegments> {
        let partition = self
            .spilled_partitions
            .partitions()
            .nth(morsel.checked_sub(self.num_unmatched_morsels)?)?;
        let take = |side: &Mutex<Vec<Vec<SpillSegment>>>| {
            side.lock().get_mut(partition).map(std::mem::take).unwrap_or_default()
        };
        Some((take(&self.spilled_build), take(&self.spilled_probe)))
    }
}

fn flags(valid: &VecDeque<(usize, Option<NullBuffer>)>, rows: usize) -> Box<[bool]> {
    let mut flags = Vec::with_capacity(rows);
    for (rows, valid) in valid {
        match valid {
            Some(valid) => flags.extend((0..*rows).map(|row| valid.is_null(row))),
            None => flags.resize(flags.len() + rows, false),
        }
    }
    flags.into()
}

type Bound = (ScalarValue, ScalarValue);
pub(super) type Bounds = Vec<Bound>;

/// Merges two bounds; unknown if either is.
pub(super) fn merge_bounds(ours: Option<Bounds>, theirs: Option<Bounds>) -> Option<Bounds> {
    let (ours, theirs) = (ours?, theirs?);
    // NULL stands for "no value yet", which any value replaces.
    let pick = |ours: ScalarValue, theirs: ScalarValue, theirs_is_wider: bool| {
        if ours.is_null() || (!theirs.is_null() && theirs_is_wider) { theirs } else { ours }
    };
    let wider = |((low, high), (low2, high2)): (Bound, Bound)| {
        let (lower, higher) = (low2 < low, high2 > high);
        (pick(low, low2, lower), pick(high, high2, higher))
    };
    Some(ours.into_iter().zip(theirs).map(wider).collect())
}
