//! The shared table of a join's left side.
//!
//! Build units insert ranges of rows into its index (`index.rs`), and others copy a column each into
//! one piece; units never share a row.

use std::sync::{
    OnceLock,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use arrow::{
    array::{ArrayRef, RecordBatch, RecordBatchOptions},
    buffer::NullBuffer,
    datatypes::SchemaRef,
};
use datafusion_common::ScalarValue;
use gatework_runtime::{
    Error, Result,
    pipeline::{Batch, Reservation},
};
use parking_lot::Mutex;

use super::{config::Shared, index::Index};
use crate::{OrFail, concat::concat_arrays, keys::Keys};

/// Rows per build unit.
const UNIT_ROWS: usize = 1 << 16;

/// What one build task collected.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) keys: Keys,
    /// Of keys that are costly to compare.
    pub(super) hashes: Vec<u64>,
    /// Which rows have no NULL key; only where NULL keys never match, and if there are any.
    pub(super) valid: Vec<(usize, Option<NullBuffer>)>,
    pub(super) batches: Vec<RecordBatch>,
    /// Bounds per key, if they are noted and known.
    pub(super) bounds: Option<Vec<(ScalarValue, ScalarValue)>>,
    pub(super) has_null: bool,
    pub(super) reservation: Reservation,
}

#[derive(Debug)]
pub(super) struct Table {
    rows: usize,
    index: Index,
    /// Rows with a NULL key that matches nothing; `None` if there are none.
    invalid: Option<Box<[bool]>>,
    schema: SchemaRef,
    columns: Box<[OnceLock<ArrayRef>]>,
    payload: OnceLock<RecordBatch>,
    /// The build tasks' batches, until they are copied together.
    pieces: Mutex<Vec<RecordBatch>>,
    matched: Box<[AtomicU64]>,
    pub(super) bounds: Option<Vec<(ScalarValue, ScalarValue)>>,
    pub(super) has_null: bool,
    pub(super) probe_saw_null: AtomicBool,
    pub(super) probe_saw_rows: AtomicBool,
    reservation: Mutex<Reservation>,
}

impl Table {
    /// Allocates a table for `parts`, and says how many units fill it.
    pub(super) fn prepare(shared: &Shared, parts: Vec<Part>) -> Result<(Self, usize)> {
        let rows: usize = parts.iter().map(|part| part.keys.len()).sum();
        if rows >= u32::MAX as usize {
            return Err(Error::Setup(format!(
                "the build side of a join has {rows} rows; at most 2^32 - 2 fit one table"
            )));
        }
        let mut parts = parts.into_iter();
        let Some(first) = parts.next() else {
            return Err(Error::Setup("a join without build tasks".into()));
        };
        let mut reservation = first.reservation;
        let (mut keys, mut hashes) = (first.keys, first.hashes);
        let (mut pieces, mut valid) = (first.batches, first.valid);
        let (mut bounds, mut has_null) = (first.bounds, first.has_null);
        for mut part in parts {
            keys.append(&part.keys);
            hashes.extend_from_slice(&part.hashes);
            pieces.append(&mut part.batches);
            valid.append(&mut part.valid);
            bounds = merge_bounds(bounds, part.bounds);
            has_null |= part.has_null;
            reservation.grow(part.reservation.bytes())?;
        }
        let copies: usize = if pieces.len() > 1 {
            pieces.iter().map(|piece| Batch::new(piece.clone()).bytes()).sum()
        } else {
            0
        };
        let matched = if shared.marks_left() { rows.div_ceil(64) } else { 0 };
        reservation.grow(Index::bytes_for(&keys) + copies + 8 * matched)?;
        let invalid = valid.iter().any(|(_, valid)| valid.is_some()).then(|| flags(&valid, rows));
        let left = &shared.config.left_schema;
        let schema = std::sync::Arc::new(left.project(&shared.kept).or_fail()?);
        let columns = schema.fields().len();
        let table = Self {
            rows,
            index: Index::new(keys, hashes, invalid.as_deref()),
            invalid,
            schema,
            columns: (0..columns).map(|_| OnceLock::new()).collect(),
            payload: OnceLock::new(),
            pieces: Mutex::new(pieces),
            matched: (0..matched).map(|_| AtomicU64::new(0)).collect(),
            bounds,
            has_null,
            probe_saw_null: AtomicBool::new(false),
            probe_saw_rows: AtomicBool::new(false),
            reservation: Mutex::new(reservation),
        };
        // One unit per range of rows, one per column, and at least one to finish the table.
        let units = (rows.div_ceil(UNIT_ROWS) + columns).max(1);
        Ok((table, units))
    }

    /// Rows in the table, NULL keys included.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Does build unit `unit`.
    pub(super) fn build(&self, unit: usize) -> Result<()> {
        if let Some(column) = self.columns.get(unit) {
            return self.copy_column(unit, column);
        }
        let first = (unit - self.columns.len()) * UNIT_ROWS;
        let last = (first + UNIT_ROWS).min(self.rows());
        self.index.insert(first..last, self.invalid.as_deref());
        Ok(())
    }

    fn copy_column(&self, place: usize, column: &OnceLock<ArrayRef>) -> Result<()> {
        let pieces: Vec<ArrayRef> = {
            let pieces = self.pieces.lock();
            pieces.iter().map(|piece| piece.column(place).clone()).collect()
        };
        let whole = if pieces.is_empty() {
            arrow::array::new_empty_array(self.schema.field(place).data_type())
        } else {
            concat_arrays(&pieces)?
        };
        let _first = column.set(whole);
        Ok(())
    }

    /// After the last unit: lets go of what was copied.
    pub(super) fn finish(&self) -> Result<()> {
        let pieces = std::mem::take(&mut *self.pieces.lock());
        let columns = self.columns.iter().filter_map(OnceLock::get).cloned().collect();
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows()));
        let payload = RecordBatch::try_new_with_options(self.schema.clone(), columns, &options);
        let payload = payload.or_fail()?;
        let payload_bytes = Batch::new(payload.clone()).bytes();
        let _first = self.payload.set(payload);
        drop(pieces);
        self.index.finish();
        let fixed = self.index.bytes() + 8 * self.matched.len();
        self.reservation.lock().resize(fixed + payload_bytes)
    }

    /// The kept columns of all rows.
    pub(super) fn payload(&self) -> Result<&RecordBatch> {
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

fn flags(valid: &[(usize, Option<NullBuffer>)], rows: usize) -> Box<[bool]> {
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
type Bounds = Vec<Bound>;

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
