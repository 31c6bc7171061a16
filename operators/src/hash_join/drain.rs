//! Left rows that are given after the probe, by which of them found a match.

use std::sync::atomic::Ordering;

use arrow::array::{BooleanArray, RecordBatch, UInt32Array};
use datafusion_common::JoinType;
use gatework_runtime::Result;

use super::{
    config::Shared,
    output::{Rows, assemble},
    table::{DRAIN_ROWS, Table},
};
use crate::{
    batch_bytes::MAX_BATCH_BYTES,
    chunked::{Side, longest_row, pairs_within},
    error::is_overflow,
};

impl Shared {
    /// The left rows of drain unit `unit` that are output.
    pub(super) fn drain_unit(&self, table: &Table, unit: usize) -> Drained {
        let first = unit * DRAIN_ROWS;
        let last = (first + DRAIN_ROWS).min(table.rows());
        let null_aware = self.config.null_aware;
        if null_aware && self.probe_saw_null.load(Ordering::Relaxed) {
            return Drained::default();
        }
        let no_null_keys = null_aware && self.probe_saw_rows.load(Ordering::Relaxed);
        let wanted = |row: &usize| match self.config.join_type {
            JoinType::LeftSemi => table.is_marked(*row),
            JoinType::LeftMark => true,
            _ => !(table.is_marked(*row) || no_null_keys && table.has_null_key(*row)),
        };
        let rows = (first..last).filter(wanted).map(|row| row as u32);
        Drained { rows: rows.collect(), given: 0 }
    }

    /// The next rows of a unit that is drained: as many as a batch may hold.
    pub(super) fn next_drained(
        &self,
        table: &Table,
        drained: &mut Drained,
    ) -> Result<Option<RecordBatch>> {
        if drained.is_done() {
            return Ok(None);
        }
        let (payload, [columns, _]) = (table.payload()?, &self.gathered);
        let left = &drained.rows[drained.given..];
        let longest = longest_row(payload, columns);
        let sides: [Side<'_>; 2] = [(payload, columns, left), (payload, &[], left)];
        let mut rows = pairs_within(MAX_BATCH_BYTES, longest, sides);
        loop {
            match self.left_batch(table, &left[..rows]) {
                Err(error) if rows > 1 && is_overflow(&error) => rows = rows.div_ceil(2),
                batch => {
                    drained.given += rows;
                    return batch.map(Some);
                }
            }
        }
    }

    /// These rows of the left side, and whether they found a match.
    fn left_batch(&self, table: &Table, rows: &[u32]) -> Result<RecordBatch> {
        let marked = rows.iter().map(|row| Some(table.is_marked(*row as usize)));
        let mark = BooleanArray::from_iter(marked);
        let numbers = UInt32Array::from(rows.to_vec());
        let left = Rows::At(table.payload()?, &numbers);
        let (schema, columns) = (&self.config.schema, &self.output);
        assemble(schema, columns, &left, &Rows::Null, Some(&mark), rows.len())
    }
}

/// Rows of a drain unit, and how many of them have been given.
#[derive(Debug, Default)]
pub(super) struct Drained {
    rows: Vec<u32>,
    given: usize,
}

impl Drained {
    /// Whether all have been given.
    pub(super) fn is_done(&self) -> bool {
        self.given == self.rows.len()
    }
}
