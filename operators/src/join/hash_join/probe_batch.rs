//! Lookup of a probe batch in a table.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, BooleanArray, RecordBatch, UInt32Array},
    buffer::BooleanBuffer,
    compute::{filter, take},
    datatypes::UInt32Type,
};
use datafusion_common::JoinSide;
use datafusion_physical_expr::PhysicalExpr;
use gatework_runtime::{
    Result,
    pipeline::{Batch, DriverContext, OperatorResult},
};

use super::{
    config::HashJoinPlan,
    lookup::{DictionaryLookup, MatchMode, ProbeCursor, ProbeKeys, RowPairs},
    table::JoinHashTable,
};
use crate::{
    ResultExt,
    batch_bytes::MAX_BATCH_BYTES,
    chunked::{LongestEntries, Side, longest_row, pairs_within},
    dictionary::marked_codes,
    error::is_overflow,
    join::layout::RowSource,
    keys::KeyNulls,
};

/// A probe batch that is being looked up.
pub(super) struct ProbeBatch {
    data: RecordBatch,
    sequence: u64,
    keys: ProbeKeys,
    cursor: ProbeCursor,
    /// Whether all pairs of the batch were found.
    done: bool,
    /// Pairs that are not emitted yet.
    pairs: Option<Matches>,
    /// Bytes of the longest row of the output columns, once computed.
    longest: Option<usize>,
    /// Per row, whether it found a match; `None` if the join type does not need it.
    pub(super) matched: Option<Vec<bool>>,
}

/// Returns the columns of `keys` evaluated over `rows`.
pub(super) fn evaluate<'a>(
    keys: impl Iterator<Item = &'a Arc<dyn PhysicalExpr>>,
    rows: &RecordBatch,
) -> Result<Vec<ArrayRef>> {
    let count = rows.num_rows();
    keys.map(|key| key.evaluate(rows)?.into_array_of_size(count))
        .collect::<Result<_, _>>()
        .query_err()
}

/// Next result of a probe batch.
pub(super) enum NextMatches {
    /// Output pairs.
    Batch(Batch),
    /// The task should yield.
    Yield,
    /// The batch is done.
    End,
}

impl HashJoinPlan {
    /// Returns the keys of `rows` of the probe side.
    pub(super) fn probe_keys(&self, rows: &RecordBatch) -> Result<Vec<ArrayRef>> {
        let columns = self.config.right_schema.fields().len();
        if self.keyed_schema.is_some() && rows.num_columns() > columns {
            return Ok(rows.columns()[columns..].to_vec());
        }
        evaluate(self.config.on.iter().map(|(_, right)| right), rows)
    }

    /// Returns probe rows as they are spilled: with their `keys` if one of these is volatile.
    pub(super) fn keyed(&self, rows: &RecordBatch, keys: &[ArrayRef]) -> Result<RecordBatch> {
        let Some(schema) = self.keyed_schema.as_ref().filter(|schema| {
            // Restored rows have their keys.
            schema.fields().len() > rows.num_columns()
        }) else {
            return Ok(rows.clone());
        };
        let columns = rows.columns().iter().chain(keys).cloned().collect();
        RecordBatch::try_new(schema.clone(), columns).query_err()
    }

    /// Looks up the keys of `rows`, which are `columns`. Those of a dictionary are looked up once
    /// by `dictionary`.
    pub(super) fn look_up(
        &self,
        table: &JoinHashTable,
        rows: &RecordBatch,
        mut columns: Vec<ArrayRef>,
        dictionary: &mut DictionaryLookup,
    ) -> Result<ProbeKeys> {
        let (index, skip_nulls) = (table.index(), self.null_keys == KeyNulls::NeverMatch);
        if let Some(key) = self.probe_key_column()
            && marked_codes(rows, key).is_some()
            && let Some(column) = columns[0].as_dictionary_opt::<UInt32Type>()
        {
            let (codes, values) = (column.keys(), column.values());
            let keys = dictionary.probe_keys(&self.encoder, codes, values, skip_nulls, index);
            if let Some(keys) = keys.query_err()? {
                return Ok(keys);
            }
            columns[0] = take(values, codes, None).query_err()?;
        }
        ProbeKeys::new(&self.encoder, &columns, skip_nulls, index).query_err()
    }

    /// Starts a batch of `data` with these keys.
    pub(super) fn probe_batch(
        &self,
        data: RecordBatch,
        sequence: u64,
        keys: ProbeKeys,
    ) -> ProbeBatch {
        let matched = self.layout.tracks_probe_matches().then(|| vec![false; data.num_rows()]);
        let (cursor, done) = (ProbeCursor::default(), false);
        let (pairs, longest) = (None, None);
        ProbeBatch { data, sequence, keys, cursor, done, pairs, longest, matched }
    }

    /// Returns the next output pairs of a batch.
    pub(super) fn next_matches(
        &self,
        table: &JoinHashTable,
        probe_batch: &mut ProbeBatch,
        entries: &mut LongestEntries,
        task: &DriverContext,
    ) -> Result<NextMatches> {
        let mut first = true;
        loop {
            if let Some(batch) = self.next_batch(table, probe_batch, entries)? {
                return Ok(NextMatches::Batch(batch));
            }
            if probe_batch.done {
                return Ok(NextMatches::End);
            }
            task.check_cancelled()?;
            if !std::mem::take(&mut first) && task.should_yield() {
                return Ok(NextMatches::Yield);
            }
            let mut pairs = RowPairs::default();
            let limit = self.config.batch_rows;
            let mode = if self.first_match_suffices() {
                MatchMode::First
            } else if self.only_tracks_build_matches() {
                MatchMode::UnmatchedBuildRows(table)
            } else {
                MatchMode::All
            };
            let cursor = &mut probe_batch.cursor;
            probe_batch.done =
                probe_batch.keys.find(table.index(), cursor, mode, limit, &mut pairs);
            let pairs = self.keep_matches(table, &probe_batch.data, pairs, task)?;
            if self.layout.tracks_build_matches() {
                pairs.build_rows.values().iter().for_each(|row| table.matched().set(*row));
            }
            if let Some(matched) = &mut probe_batch.matched {
                pairs.probe_rows.values().iter().for_each(|row| matched[*row as usize] = true);
            }
            if self.layout.emits_pairs() && !pairs.build_rows.is_empty() {
                probe_batch.pairs = Some(pairs);
            }
        }
    }

    /// Returns a batch of the pending pairs: as many as fit into one.
    fn next_batch(
        &self,
        table: &JoinHashTable,
        probe_batch: &mut ProbeBatch,
        entries: &mut LongestEntries,
    ) -> Result<Option<Batch>> {
        let Some(pairs) = probe_batch.pairs.take() else { return Ok(None) };
        let count = pairs.build_rows.len();
        let mut rows = self.within(table, probe_batch, entries, &pairs)?;
        loop {
            match self.pairs_batch(table, &probe_batch.data, &pairs.slice(0, rows)) {
                Err(error) if rows > 1 && is_overflow(&error) => rows = rows.div_ceil(2),
                batch => {
                    probe_batch.pairs = (rows < count).then(|| pairs.slice(rows, count - rows));
                    return Ok(Some(Batch::new(batch?).with_sequence(probe_batch.sequence)));
                }
            }
        }
    }

    /// Returns how many of `pairs` fit into a batch.
    fn within(
        &self,
        table: &JoinHashTable,
        probe_batch: &mut ProbeBatch,
        entries: &mut LongestEntries,
        pairs: &Matches,
    ) -> Result<usize> {
        let (build, [build_columns, probe_columns]) = (table.payload()?, &self.gathered);
        let data = &probe_batch.data;
        let longest =
            probe_batch.longest.get_or_insert_with(|| entries.longest_row(data, probe_columns));
        let longest = *longest + longest_row(build, build_columns);
        let sides: [Side<'_>; 2] = [
            (build, build_columns, pairs.build_rows.values()),
            (data, probe_columns, pairs.probe_rows.values()),
        ];
        Ok(pairs_within(MAX_BATCH_BYTES, longest, sides))
    }

    /// Returns the output of a batch after all its pairs, by which of its rows found a match.
    pub(super) fn unmatched_probe_rows(&self, probe_batch: ProbeBatch) -> Result<OperatorResult> {
        let ProbeBatch { data, sequence, matched, .. } = probe_batch;
        let Some(matched) = matched else { return Ok(OperatorResult::NeedInput) };
        let rows = self.layout.one_side(JoinSide::Right, &data, BooleanBuffer::from(matched))?;
        Ok(match rows {
            Some(rows) => OperatorResult::Batch(rows.with_sequence(sequence)),
            None => OperatorResult::NeedInput,
        })
    }
}

/// Pairs that passed the residual filter.
struct Matches {
    build_rows: UInt32Array,
    probe_rows: UInt32Array,
}

impl Matches {
    fn slice(&self, first: usize, count: usize) -> Self {
        Self {
            build_rows: self.build_rows.slice(first, count),
            probe_rows: self.probe_rows.slice(first, count),
        }
    }
}

impl HashJoinPlan {
    fn keep_matches(
        &self,
        table: &JoinHashTable,
        data: &RecordBatch,
        pairs: RowPairs,
        task: &DriverContext,
    ) -> Result<Matches> {
        let build_rows = UInt32Array::from(pairs.build_rows);
        let probe_rows = UInt32Array::from(pairs.probe_rows);
        let Some(residual) = &self.filter else { return Ok(Matches { build_rows, probe_rows }) };
        if build_rows.is_empty() {
            return Ok(Matches { build_rows, probe_rows });
        }
        let keep = residual.evaluate(table.payload()?, data, &build_rows, &probe_rows, task)?;
        let keep = BooleanArray::new(keep, None);
        Ok(Matches {
            build_rows: filter(&build_rows, &keep).query_err()?.as_primitive().clone(),
            probe_rows: filter(&probe_rows, &keep).query_err()?.as_primitive().clone(),
        })
    }

    fn pairs_batch(
        &self,
        table: &JoinHashTable,
        data: &RecordBatch,
        pairs: &Matches,
    ) -> Result<RecordBatch> {
        let rows = pairs.build_rows.len();
        let indices = pairs.probe_rows.values();
        // Every probe row matched exactly once, as with a foreign key: nothing to gather.
        let whole = rows == data.num_rows() && indices.iter().zip(0_u32..).all(|(n, i)| *n == i);
        let probe =
            if whole { RowSource::All(data) } else { RowSource::Take(data, &pairs.probe_rows) };
        let build = RowSource::Take(table.payload()?, &pairs.build_rows);
        self.layout.batch(&build, &probe, None, rows)
    }
}
