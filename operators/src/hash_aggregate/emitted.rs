//! The groups of a table on their way out, batch by batch.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use gatework_runtime::{Result, pipeline::Reservation};

use super::config::Shared;
use crate::{
    OrFail,
    batch_bytes::{Lengths, MAX_BATCH_BYTES, rows_within, sum_of},
    error::is_overflow,
    keys::Keys,
};

/// The groups of a table on their way out.
pub(super) struct Emitted {
    shared: Arc<Shared>,
    keys: Keys,
    values: Vec<ArrayRef>,
    /// A batch may hold the texts of any of them.
    short: bool,
    /// How many have been given.
    given: usize,
    _memory: Reservation,
}

impl Emitted {
    pub(super) fn new(
        shared: Arc<Shared>,
        keys: Keys,
        values: Vec<ArrayRef>,
        memory: Reservation,
    ) -> Self {
        let short = keys.text_bytes() + sum_of(&values) <= MAX_BATCH_BYTES;
        Self { shared, keys, values, short, given: 0, _memory: memory }
    }

    /// Returns the next of them as output rows: a batch at a time, since to decode the keys of
    /// millions takes seconds.
    pub(super) fn next(&mut self) -> Result<Option<RecordBatch>> {
        let mut rows = self.within(self.shared.config.batch_rows.min(self.left()));
        if rows == 0 {
            return Ok(None);
        }
        loop {
            match self.batch(rows) {
                // A dictionary's keys may count fewer values.
                Err(error) if rows > 1 && is_overflow(&error) => rows = rows.div_ceil(2),
                batch => {
                    self.given += rows;
                    return batch.map(Some);
                }
            }
        }
    }

    fn batch(&self, rows: usize) -> Result<RecordBatch> {
        let range = self.given..self.given + rows;
        let mut columns = self.shared.encoder.decode_range(&self.keys, range).or_fail()?;
        columns.extend(self.values.iter().map(|values| values.slice(self.given, rows)));
        super::output::assemble(&self.shared.config.schema, columns, rows)
    }

    /// Returns how many of the next `most` a batch may hold.
    fn within(&self, most: usize) -> usize {
        if self.short {
            return most;
        }
        let values: Vec<Lengths<'_>> =
            self.values.iter().map(|values| Lengths::of(values)).collect();
        rows_within(MAX_BATCH_BYTES, most, |row| {
            let row = self.given + row;
            self.keys.length(row) + values.iter().map(|values| values.at(row)).sum::<usize>()
        })
    }

    /// Returns how many there are to come.
    pub(super) fn left(&self) -> usize {
        self.keys.len() - self.given
    }
}
