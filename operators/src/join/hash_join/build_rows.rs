//! Rows of a join's build side before they are in a table.

use std::collections::VecDeque;

use arrow::{
    array::{ArrayRef, BooleanArray, RecordBatch},
    buffer::NullBuffer,
    compute::{cast, nullif},
    datatypes::DataType,
    error::ArrowError,
};
use gatework_runtime::{
    Result,
    pipeline::{Batch, OutOfMemory, Reservation, column_bytes},
};

use super::{config::HashJoinPlan, index::JoinIndex, probe_batch::evaluate};
use crate::{
    ResultExt,
    keys::{EncodedKeys, KeyEncoder, KeyNulls},
    spill::try_resize_above,
};

/// Rows of the build side, with their encoded keys.
#[derive(Debug)]
pub(super) struct BuildRows {
    /// Per batch, the keys of its rows.
    pub(super) keys: VecDeque<EncodedKeys>,
    /// Per batch, the number of its rows and which of them have no NULL key. `None` if the batch
    /// has no NULL keys, or NULL keys match.
    pub(super) valid: VecDeque<(usize, Option<NullBuffer>)>,
    pub(super) batches: VecDeque<RecordBatch>,
    pub(super) reservation: Reservation,
    /// The smallest and the greatest key, if keys are `u64`.
    pub(super) range: Option<(u64, u64)>,
    /// Bytes of the batches, per column.
    column_bytes: Vec<usize>,
    /// Bytes of the keys.
    key_bytes: usize,
    /// Number of rows.
    rows: usize,
}

/// Rows taken out to be partitioned: with their key columns, their hashes and their reservation.
pub(super) type SpillBatch = (RecordBatch, Vec<u64>, Reservation);

impl BuildRows {
    pub(super) fn new(plan: &HashJoinPlan, reservation: Reservation) -> Self {
        Self {
            keys: VecDeque::new(),
            valid: VecDeque::new(),
            batches: VecDeque::new(),
            reservation,
            range: None,
            column_bytes: vec![0; plan.payload_columns.len()],
            key_bytes: 0,
            rows: 0,
        }
    }

    /// Returns the number of rows.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Adds rows by the columns that the table keeps, and by their keys.
    pub(super) fn push(
        &mut self,
        plan: &HashJoinPlan,
        payload: RecordBatch,
        keys: &[ArrayRef],
    ) -> Result<()> {
        let skips_nulls = plan.null_keys == KeyNulls::NeverMatch;
        let valid = if skips_nulls { KeyEncoder::without_nulls(keys) } else { None };
        let encoded = plan.encoder.encode(keys).query_err()?;
        if let EncodedKeys::U64(words) = &encoded {
            self.update_range(words, valid.as_ref());
        }
        self.rows += encoded.len();
        self.valid.push_back((encoded.len(), valid));
        // The keys outlive the columns of the batch.
        let keys = encoded.into_owned();
        self.key_bytes += keys.bytes();
        self.keys.push_back(keys);
        self.count(&payload);
        self.batches.push_back(payload);
        Ok(())
    }

    fn update_range(&mut self, words: &[u64], valid: Option<&NullBuffer>) {
        let words = words.iter().enumerate();
        let words = words.filter(|(row, _)| valid.is_none_or(|valid| valid.is_valid(*row)));
        for (_, word) in words {
            let (low, high) = self.range.get_or_insert((*word, *word));
            (*low, *high) = ((*low).min(*word), (*high).max(*word));
        }
    }

    fn count(&mut self, payload: &RecordBatch) {
        for (bytes, column) in self.column_bytes.iter_mut().zip(payload.columns()) {
            *bytes += column_bytes(column.as_ref());
        }
    }

    /// Returns the bytes of a table of these rows during its build. They are the rows, the index,
    /// and one copied column for each probe task.
    fn bytes(&self, plan: &HashJoinPlan) -> usize {
        let batches: usize = self.column_bytes.iter().sum();
        let widest = self.column_bytes.iter().max().copied().unwrap_or(0);
        let copies = widest.saturating_mul(plan.probe_tasks).min(batches);
        let match_bits =
            if plan.layout.tracks_build_matches() { self.rows().div_ceil(8) } else { 0 };
        let index = JoinIndex::bytes_for(self.rows(), self.range);
        batches + copies + match_bits + index + self.key_bytes
    }

    /// Reserves the bytes of a table of these rows.
    ///
    /// # Errors
    /// If the bytes are denied. The rows are kept all the same.
    pub(super) fn reserve(
        &mut self,
        plan: &HashJoinPlan,
        min_spill_bytes: usize,
    ) -> Result<(), OutOfMemory> {
        let bytes = self.bytes(plan);
        try_resize_above(&mut self.reservation, bytes, min_spill_bytes)
    }

    /// Adds all rows of another build task.
    pub(super) fn append(&mut self, mut other: Self) {
        self.range = match (self.range, other.range) {
            (Some((low, high)), Some((low2, high2))) => Some((low.min(low2), high.max(high2))),
            (ours, theirs) => ours.or(theirs),
        };
        for (bytes, more) in self.column_bytes.iter_mut().zip(&other.column_bytes) {
            *bytes += more;
        }
        self.rows += other.rows;
        self.key_bytes += other.key_bytes;
        self.keys.append(&mut other.keys);
        self.valid.append(&mut other.valid);
        self.batches.append(&mut other.batches);
        self.reservation.merge(other.reservation);
    }

    /// Takes out the first batch that was not taken yet, for partitioning.
    pub(super) fn take(&mut self, plan: &HashJoinPlan) -> Result<Option<SpillBatch>> {
        let (Some(payload), Some((rows, valid)), Some(encoded)) =
            (self.batches.pop_front(), self.valid.pop_front(), self.keys.pop_front())
        else {
            return Ok(None);
        };
        self.rows -= rows;
        self.key_bytes -= encoded.bytes();
        let mut hashes = Vec::new();
        encoded.hash_into(&mut hashes);
        let mut keys = plan.encoder.decode(&encoded).query_err()?;
        if let (Some(valid), Some(key)) = (valid, keys.first_mut()) {
            // One NULL key is enough for a row to match nothing.
            let null = BooleanArray::new(!valid.inner(), None);
            *key = nulled(key, &null).query_err()?;
        }
        let reservation = self.reservation.split(Batch::new(payload.clone()).bytes());
        let columns = payload.columns().iter().cloned().chain(keys).collect();
        let rows = RecordBatch::try_new(plan.spill_schema.clone(), columns).query_err()?;
        Ok(Some((rows, hashes, reservation)))
    }

    /// Adds rows that were taken out or spilled before.
    pub(super) fn push_restored(&mut self, plan: &HashJoinPlan, rows: &RecordBatch) -> Result<()> {
        let indices: Vec<usize> = (0..plan.payload_columns.len()).collect();
        let payload = rows.project(&indices).query_err()?;
        self.push(plan, payload, &rows.columns()[plan.payload_columns.len()..])
    }
}

/// Returns `key` with NULL where `null` is true.
fn nulled(key: &ArrayRef, null: &BooleanArray) -> Result<ArrayRef, ArrowError> {
    let DataType::RunEndEncoded(_, values) = key.data_type() else { return nullif(key, null) };
    // Run-end encoded arrays have their NULLs in the values.
    cast(&nullif(&cast(key, values.data_type())?, null)?, key.data_type())
}

impl HashJoinPlan {
    /// Returns the keys of `rows` of the build side.
    pub(super) fn build_keys(&self, rows: &RecordBatch) -> Result<Vec<ArrayRef>> {
        evaluate(self.config.on.iter().map(|(left, _)| left), rows)
    }

    /// Returns the hashes by which rows with these keys are partitioned.
    pub(super) fn hashes(&self, keys: &[ArrayRef]) -> Result<Vec<u64>> {
        let mut hashes = Vec::new();
        self.encoder.encode(keys).query_err()?.hash_into(&mut hashes);
        Ok(hashes)
    }

    /// Returns rows of `spill_schema`, made from `payload` and `keys`, and their hashes.
    pub(super) fn to_spill_rows(
        &self,
        payload: &RecordBatch,
        keys: Vec<ArrayRef>,
    ) -> Result<(RecordBatch, Vec<u64>)> {
        let hashes = self.hashes(&keys)?;
        let columns = payload.columns().iter().cloned().chain(keys).collect();
        Ok((RecordBatch::try_new(self.spill_schema.clone(), columns).query_err()?, hashes))
    }
}
