//! Emits the groups of a table, batch by batch.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use gatework_runtime::{Result, pipeline::Reservation};

use super::config::AggregatePlan;
use crate::{
    ResultExt,
    batch_bytes::{Lengths, MAX_BATCH_BYTES, rows_within, sum_of},
    error::is_overflow,
    keys::EncodedKeys,
};

/// Emitter of the groups of a table.
pub(super) struct GroupEmitter {
    plan: Arc<AggregatePlan>,
    keys: EncodedKeys,
    values: Vec<ArrayRef>,
    /// Whether the keys and values of all groups together fit into one batch.
    fits_one_batch: bool,
    /// Number of groups emitted so far.
    emitted: usize,
    _memory: Reservation,
}

impl GroupEmitter {
    pub(super) fn new(
        plan: Arc<AggregatePlan>,
        keys: EncodedKeys,
        values: Vec<ArrayRef>,
        memory: Reservation,
    ) -> Self {
        let fits_one_batch = keys.text_bytes() + sum_of(&values) <= MAX_BATCH_BYTES;
        Self { plan, keys, values, fits_one_batch, emitted: 0, _memory: memory }
    }

    /// Returns the next batch of output rows. Keys are decoded per batch, because to decode
    /// millions of keys takes seconds.
    pub(super) fn next(&mut self) -> Result<Option<RecordBatch>> {
        let mut rows = self.within(self.plan.config.batch_rows.min(self.remaining()));
        if rows == 0 {
            return Ok(None);
        }
        loop {
            match self.batch(rows) {
                // A dictionary's key type may be too small for the values of all rows.
                Err(error) if rows > 1 && is_overflow(&error) => rows = rows.div_ceil(2),
                batch => {
                    self.emitted += rows;
                    return batch.map(Some);
                }
            }
        }
    }

    fn batch(&self, rows: usize) -> Result<RecordBatch> {
        let range = self.emitted..self.emitted + rows;
        let mut columns = self.plan.encoder.decode_range(&self.keys, range).query_err()?;
        columns.extend(self.values.iter().map(|values| values.slice(self.emitted, rows)));
        super::source::build_output_batch(&self.plan.config.schema, columns, rows)
    }

    /// Returns how many of the next `max_rows` groups fit into a batch.
    fn within(&self, max_rows: usize) -> usize {
        if self.fits_one_batch {
            return max_rows;
        }
        let values: Vec<Lengths<'_>> =
            self.values.iter().map(|values| Lengths::of(values)).collect();
        rows_within(MAX_BATCH_BYTES, max_rows, |row| {
            let row = self.emitted + row;
            self.keys.length(row) + values.iter().map(|values| values.at(row)).sum::<usize>()
        })
    }

    /// Returns the number of groups that are not emitted yet.
    pub(super) fn remaining(&self) -> usize {
        self.keys.len() - self.emitted
    }
}
