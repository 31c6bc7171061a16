//! The shared table of a join's left side.
//!
//! Build units insert ranges of rows into its index (`index.rs`), and others copy a column each into
//! one piece; units never share a row.

use std::{
    collections::VecDeque,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use arrow::{array::ArrayRef, buffer::NullBuffer, datatypes::SchemaRef};
use datafusion_common::ScalarValue;
use gatework_runtime::{
    Error, Result,
    pipeline::{Reservation, TaskContext},
};
use parking_lot::Mutex;

use super::{collected::Collected, config::Shared, index::Index};
use crate::{
    OrFail,
    batch_bytes::MAX_ARRAY_BYTES,
    chunked::{Column, Columns},
    spilling::{SpilledPart, UnitSet},
};

/// Rows per build unit.
const UNIT_ROWS: usize = 1 << 14;

#[derive(Debug)]
pub(super) struct Table {
    rows: usize,
    index: Index,
    /// Rows with a NULL key that matches nothing; `None` if there are none.
    invalid: Option<Box<[bool]>>,
    schema: SchemaRef,
    columns: Box<[OnceLock<Column>]>,
    payload: OnceLock<Columns>,
    /// By column, what the build tasks had of it, until it is copied together.
    pieces: Box<[Mutex<Vec<ArrayRef>>]>,
    matched: Box<[AtomicU64]>,
    reservation: Mutex<Reservation>,
    can_spill: bool,
}

impl Table {
    /// Allocates a table for `collected`, whose reservation covers it, and says how many units fill it.
    pub(super) fn prepare(
        shared: &Shared,
        collected: Collected,
        can_spill: bool,
    ) -> Result<(Self, usize)> {
        let rows = collected.rows();
        if rows >= u32::MAX as usize {
            return Err(Error::Setup(format!(
                "the build side of a join has {rows} rows; at most 2^32 - 2 fit one table"
            )));
        }
        let Collected { keys, hashes, valid, batches, reservation, .. } = collected;
        let matched = if shared.marks_left() { rows.div_ceil(64) } else { 0 };
        let invalid = valid.iter().any(|(_, valid)| valid.is_some()).then(|| flags(&valid, rows));
        let left = &shared.config.left_schema;
        let schema = Arc::new(left.project(&shared.kept).or_fail()?);
        let columns = schema.fields().len();
        let column =
            |place: usize| batches.iter().map(|batch| batch.column(place).clone()).collect();
        let pieces = (0..columns).map(|place| Mutex::new(column(place))).collect();
        let table = Self {
            rows,
            index: Index::new(keys, hashes, invalid.as_deref()),
            invalid,
            schema,
            columns: (0..columns).map(|_| OnceLock::new()).collect(),
            payload: OnceLock::new(),
            pieces,
            matched: (0..matched).map(|_| AtomicU64::new(0)).collect(),
            reservation: Mutex::new(reservation),
            can_spill,
        };
        // One unit per range of rows, one per column, and at least one to finish the table.
        let units = (rows.div_ceil(UNIT_ROWS) + columns).max(1);
        Ok((table, units))
    }

    /// Rows in the table, NULL keys included.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Units in which the rows are drained.
    pub(super) fn drain_units(&self) -> usize {
        self.rows.div_ceil(DRAIN_ROWS)
    }

    /// Does build unit `unit`.
    pub(super) fn build(&self, unit: usize, task: &TaskContext) -> Result<()> {
        if let Some(column) = self.columns.get(unit) {
            return self.copy_column(unit, column, task);
        }
        let first = (unit - self.columns.len()) * UNIT_ROWS;
        let last = (first + UNIT_ROWS).min(self.rows());
        self.index.insert(first..last, self.invalid.as_deref());
        Ok(())
    }

    fn copy_column(
        &self,
        place: usize,
        column: &OnceLock<Column>,
        task: &TaskContext,
    ) -> Result<()> {
        let pieces = std::mem::take(&mut *self.pieces[place].lock());
        let whole = if pieces.is_empty() {
            Column::One(arrow::array::new_empty_array(self.schema.field(place).data_type()))
        } else {
            Column::concat(&pieces, MAX_ARRAY_BYTES, || task.check())?
        };
        let _first = column.set(whole);
        Ok(())
    }

    /// After the last unit: puts the columns together.
    pub(super) fn finish(&self) -> Result<()> {
        let columns = self.columns.iter().filter_map(OnceLock::get).cloned().collect();
        let payload = Columns::new(columns);
        let payload_bytes = payload.bytes();
        let _first = self.payload.set(payload);
        self.index.finish();
        let bytes = self.index.bytes() + 8 * self.matched.len() + payload_bytes;
        match self.reservation.lock().resize(bytes) {
            // It is less than was asked for, as far as that was granted.
            Err(Error::OutOfMemory { .. }) if self.can_spill => Ok(()),
            other => other,
        }
    }

    /// The kept columns of all rows.
    pub(super) fn payload(&self) -> Result<&Columns> {
        self.payload.get().ok_or_else(|| Error::Setup("the join's table is not finished".into()))
    }

    /// From keys to rows.
    pub(super) fn index(&self) -> &Index {
        &self.index
    }

    /// Notes that `row` found a match.
    #[inline]
    pub(super) fn mark(&self, row: u32) {
        let (word, bit) = (&self.matched[row as usize / 64], 1_u64 << (row % 64));
        // Most marks are repeated, and a load does not take the line from other cores.
        if word.load(Ordering::Relaxed) & bit == 0 {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// Whether `row` found a match.
    pub(super) fn is_marked(&self, row: usize) -> bool {
        self.matched[row / 64].load(Ordering::Relaxed) & (1 << (row % 64)) != 0
    }

    /// Whether `row` has a NULL key that matches nothing.
    pub(super) fn has_null_key(&self, row: usize) -> bool {
        self.invalid.as_ref().is_some_and(|invalid| invalid[row])
    }
}

/// What is known of a join's left side: the table of the rows that fit, and rows in files.
#[derive(Debug)]
pub(super) struct Joined {
    /// Until nobody needs it.
    table: Mutex<Option<Arc<Table>>>,
    rows: usize,
    pub(super) bounds: Option<Bounds>,
    pub(super) has_null: bool,
    /// The units whose rows are in files.
    pub(super) away: UnitSet,
    build: Mutex<Vec<Vec<SpilledPart>>>,
    probe: Mutex<Vec<Vec<SpilledPart>>>,
    /// Tasks that have not ended their probe.
    probing: AtomicUsize,
    drain_units: usize,
    drained: AtomicUsize,
}

/// Left rows per drain unit.
pub(super) const DRAIN_ROWS: usize = 8192;

/// Both sides of a unit that is in files.
pub(super) type UnitParts = (Vec<SpilledPart>, Vec<SpilledPart>);

impl Joined {
    pub(super) fn new(
        shared: &Shared,
        table: Table,
        bounds: Option<Bounds>,
        has_null: bool,
        build: Vec<Vec<SpilledPart>>,
    ) -> Self {
        let in_files: usize = build.iter().flatten().map(|part| part.rows).sum();
        let drain_units = if shared.marks_left() { table.drain_units() } else { 0 };
        Self {
            rows: table.rows() + in_files,
            table: Mutex::new(Some(Arc::new(table))),
            bounds,
            has_null,
            away: shared.away(),
            build: Mutex::new(build),
            probe: Mutex::default(),
            probing: AtomicUsize::new(shared.probe_tasks),
            drain_units,
            drained: AtomicUsize::new(0),
        }
    }

    /// Rows of the left side.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// The table of the rows that fit.
    pub(super) fn table(&self) -> Result<Arc<Table>> {
        let table = self.table.lock().clone();
        table.ok_or_else(|| Error::Setup("the join's table is no longer needed".into()))
    }

    /// A probe task has had all of its input, and put `parts` of each unit into files. Answers how many
    /// units there are to drain: those of the table, then those in files.
    pub(super) fn end_probe(&self, parts: Vec<Vec<SpilledPart>>) -> usize {
        {
            let mut probe = self.probe.lock();
            let units = probe.len().max(parts.len());
            probe.resize_with(units, Vec::new);
            for (all, parts) in probe.iter_mut().zip(parts) {
                all.extend(parts);
            }
        }
        if self.probing.fetch_sub(1, Ordering::AcqRel) == 1 && self.drain_units == 0 {
            *self.table.lock() = None;
        }
        self.drain_units + self.away.units().count()
    }

    /// The table, if `unit` is one of its.
    pub(super) fn drained_table(&self, unit: usize) -> Result<Option<Arc<Table>>> {
        if unit >= self.drain_units {
            return Ok(None);
        }
        let table = self.table()?;
        if self.drained.fetch_add(1, Ordering::AcqRel) + 1 == self.drain_units {
            *self.table.lock() = None;
        }
        Ok(Some(table))
    }

    /// The rows of a unit to drain that is in files.
    pub(super) fn take_unit(&self, unit: usize) -> Option<UnitParts> {
        let unit = self.away.units().nth(unit.checked_sub(self.drain_units)?)?;
        let take = |side: &Mutex<Vec<Vec<SpilledPart>>>| {
            side.lock().get_mut(unit).map(std::mem::take).unwrap_or_default()
        };
        Some((take(&self.build), take(&self.probe)))
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

/// The bounds of both; unknown if either is.
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
