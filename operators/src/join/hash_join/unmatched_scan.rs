//! Build rows that are output after the probe, by which of them found a match.

use std::sync::atomic::Ordering;

use arrow::array::{BooleanArray, RecordBatch, UInt32Array};
use datafusion_common::JoinType;
use gatework_runtime::Result;

use super::{
    config::HashJoinPlan,
    table::{JoinHashTable, UNMATCHED_SCAN_ROWS},
};
use crate::{
    batch_bytes::MAX_BATCH_BYTES,
    chunked::{Side, longest_row, pairs_within},
    error::is_overflow,
    join::layout::RowSource,
};

impl HashJoinPlan {
    /// Returns the build rows of unmatched-scan morsel `morsel` that are output.
    pub(super) fn build_side_output(
        &self,
        table: &JoinHashTable,
        morsel: usize,
    ) -> BuildSideOutput {
        let first = morsel * UNMATCHED_SCAN_ROWS;
        let last = (first + UNMATCHED_SCAN_ROWS).min(table.rows());
        let null_aware = self.config.null_aware;
        if null_aware && self.probe_saw_null.load(Ordering::Relaxed) {
            return BuildSideOutput::default();
        }
        let no_null_keys = null_aware && self.probe_saw_rows.load(Ordering::Relaxed);
        let wanted = |row: &u32| match self.config.join_type {
            JoinType::LeftSemi => table.matched().is_set(*row),
            JoinType::LeftMark => true,
            _ => {
                !(table.matched().is_set(*row) || no_null_keys && table.has_null_key(*row as usize))
            }
        };
        let rows = (first as u32..last as u32).filter(wanted);
        BuildSideOutput { rows: rows.collect(), emitted: 0 }
    }

    /// Returns the next rows of an unmatched-scan morsel: as many as fit into a batch.
    pub(super) fn next_build_side_batch(
        &self,
        table: &JoinHashTable,
        output: &mut BuildSideOutput,
    ) -> Result<Option<RecordBatch>> {
        if output.is_done() {
            return Ok(None);
        }
        let (payload, [columns, _]) = (table.payload()?, &self.gathered);
        let remaining = &output.rows[output.emitted..];
        let longest = longest_row(payload, columns);
        let sides: [Side<'_>; 2] = [(payload, columns, remaining), (payload, &[], remaining)];
        let mut rows = pairs_within(MAX_BATCH_BYTES, longest, sides);
        loop {
            match self.build_side_batch(table, &remaining[..rows]) {
                Err(error) if rows > 1 && is_overflow(&error) => rows = rows.div_ceil(2),
                batch => {
                    output.emitted += rows;
                    return batch.map(Some);
                }
            }
        }
    }

    /// Returns a batch of these build rows, and whether they found a match.
    fn build_side_batch(&self, table: &JoinHashTable, rows: &[u32]) -> Result<RecordBatch> {
        let matched = rows.iter().map(|row| Some(table.matched().is_set(*row)));
        let mark = BooleanArray::from_iter(matched);
        let indices = UInt32Array::from(rows.to_vec());
        let build = RowSource::Take(table.payload()?, &indices);
        self.layout.batch(&build, &RowSource::Nulls, Some(&mark), rows.len())
    }
}

/// Output rows of an unmatched-scan morsel, and how many of them were emitted.
#[derive(Debug, Default)]
pub(super) struct BuildSideOutput {
    rows: Vec<u32>,
    emitted: usize,
}

impl BuildSideOutput {
    /// Returns whether all rows were emitted.
    pub(super) fn is_done(&self) -> bool {
        self.emitted == self.rows.len()
    }
}
