//! A batch of the right side on its way through a table.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, BooleanArray, RecordBatch, UInt32Array},
    buffer::BooleanBuffer,
    compute::filter,
};
use datafusion_common::JoinType;
use datafusion_physical_expr::PhysicalExpr;
use gatework_runtime::{
    Result,
    pipeline::{Batch, OperatorResult, TaskContext},
};

use gatework_shared_state::Gate;

use super::{
    config::Shared,
    lookup::{Cursor, Pairs, ProbeKeys, Wanted},
    output::{Rows, assemble},
    table::Table,
};
use crate::{
    OrFail,
    batch_bytes::MAX_BATCH_BYTES,
    chunked::{Side, longest_row, pairs_within},
    error::is_overflow,
    keys::NullKeys,
};

/// A batch of the right side that is being looked up.
pub(super) struct Probing {
    data: RecordBatch,
    sequence: u64,
    keys: ProbeKeys,
    cursor: Cursor,
    /// All pairs of the batch have been seen.
    done: bool,
    /// Pairs that have not been given.
    pairs: Option<Matches>,
    /// Bytes of the longest row of those columns that are output, once it is known.
    longest: Option<usize>,
    /// Rows that found a match, where that is asked for.
    pub(super) matched: Option<Vec<bool>>,
}

/// The columns that `keys` make of `rows`.
pub(super) fn evaluate<'a>(
    keys: impl Iterator<Item = &'a Arc<dyn PhysicalExpr>>,
    rows: &RecordBatch,
) -> Result<Vec<ArrayRef>> {
    let count = rows.num_rows();
    keys.map(|key| key.evaluate(rows)?.into_array_of_size(count))
        .collect::<Result<_, _>>()
        .or_fail()
}

/// What comes next of a batch.
pub(super) enum NextPairs {
    /// Pairs.
    Batch(Batch),
    /// Others are to have their turn first.
    Breath(Gate),
    /// It has had all.
    End,
}

impl Shared {
    /// The keys of `rows` of the right side.
    pub(super) fn right_keys(&self, rows: &RecordBatch) -> Result<Vec<ArrayRef>> {
        let columns = self.config.right_schema.fields().len();
        if self.keyed_schema.is_some() && rows.num_columns() > columns {
            return Ok(rows.columns()[columns..].to_vec());
        }
        evaluate(self.config.on.iter().map(|(_, right)| right), rows)
    }

    /// `rows` of the right side as they go to a file: with their `keys`, if these are volatile.
    pub(super) fn keyed(&self, rows: &RecordBatch, keys: &[ArrayRef]) -> Result<RecordBatch> {
        let Some(schema) = self.keyed_schema.as_ref().filter(|schema| {
            // Those that come from a file have them.
            schema.fields().len() > rows.num_columns()
        }) else {
            return Ok(rows.clone());
        };
        let columns = rows.columns().iter().chain(keys).cloned().collect();
        RecordBatch::try_new(schema.clone(), columns).or_fail()
    }

    /// Begins to look `data` up, whose keys are `columns`.
    pub(super) fn probe(
        &self,
        table: &Table,
        data: RecordBatch,
        sequence: u64,
        columns: &[ArrayRef],
    ) -> Result<Probing> {
        let skip_nulls = self.null_keys == NullKeys::AreSkipped;
        let keys = ProbeKeys::new(&self.encoder, columns, skip_nulls, table.index()).or_fail()?;
        let matched = self.marks_right().then(|| vec![false; data.num_rows()]);
        let (cursor, done) = (Cursor::default(), false);
        let (pairs, longest) = (None, None);
        Ok(Probing { data, sequence, keys, cursor, done, pairs, longest, matched })
    }

    /// The next pairs of a batch that are output.
    pub(super) fn next_pairs(
        &self,
        table: &Table,
        probing: &mut Probing,
        task: &TaskContext,
    ) -> Result<NextPairs> {
        let mut first = true;
        loop {
            if let Some(batch) = self.next_batch(table, probing)? {
                return Ok(NextPairs::Batch(batch));
            }
            if probing.done {
                return Ok(NextPairs::End);
            }
            task.check()?;
            if !std::mem::take(&mut first)
                && let Some(gate) = task.breath()
            {
                return Ok(NextPairs::Breath(gate));
            }
            let mut pairs = Pairs::default();
            let limit = self.config.batch_rows;
            let wanted = if self.first_match_suffices() {
                Wanted::One
            } else if self.only_marks() {
                Wanted::Unmarked(table)
            } else {
                Wanted::All
            };
            let cursor = &mut probing.cursor;
            probing.done = probing.keys.find(table.index(), cursor, wanted, limit, &mut pairs);
            let pairs = self.keep_matches(table, &probing.data, pairs, task)?;
            if self.marks_left() {
                pairs.left.values().iter().for_each(|row| table.mark(*row));
            }
            if let Some(matched) = &mut probing.matched {
                pairs.right.values().iter().for_each(|row| matched[*row as usize] = true);
            }
            if self.emits_pairs() && !pairs.left.is_empty() {
                probing.pairs = Some(pairs);
            }
        }
    }

    /// A batch of the pairs that have not been given: as many as it may hold.
    fn next_batch(&self, table: &Table, probing: &mut Probing) -> Result<Option<Batch>> {
        let Some(pairs) = probing.pairs.take() else { return Ok(None) };
        let count = pairs.left.len();
        let mut rows = self.within(table, probing, &pairs)?;
        loop {
            match self.pairs_batch(table, &probing.data, &pairs.slice(0, rows)) {
                Err(error) if rows > 1 && is_overflow(&error) => rows = rows.div_ceil(2),
                batch => {
                    probing.pairs = (rows < count).then(|| pairs.slice(rows, count - rows));
                    return Ok(Some(Batch::new(batch?).at(probing.sequence)));
                }
            }
        }
    }

    /// How many of `pairs` a batch may hold.
    fn within(&self, table: &Table, probing: &mut Probing, pairs: &Matches) -> Result<usize> {
        let (left, [left_columns, right_columns]) = (table.payload()?, &self.gathered);
        let data = &probing.data;
        let longest = *probing.longest.get_or_insert_with(|| longest_row(data, right_columns));
        let longest = longest + longest_row(left, left_columns);
        let sides: [Side<'_>; 2] = [
            (left, left_columns, pairs.left.values()),
            (data, right_columns, pairs.right.values()),
        ];
        Ok(pairs_within(MAX_BATCH_BYTES, longest, sides))
    }

    /// What a batch gives after all its pairs, by which of its rows found a match.
    pub(super) fn rest(&self, probing: Probing) -> Result<OperatorResult> {
        match probing.matched {
            None => Ok(OperatorResult::NeedInput),
            Some(matched) => self.rest_of_batch(&probing.data, matched, probing.sequence),
        }
    }
}

/// Pairs that passed the residual filter.
struct Matches {
    left: UInt32Array,
    right: UInt32Array,
}

impl Matches {
    fn slice(&self, first: usize, count: usize) -> Self {
        Self { left: self.left.slice(first, count), right: self.right.slice(first, count) }
    }
}

impl Shared {
    fn keep_matches(
        &self,
        table: &Table,
        data: &RecordBatch,
        pairs: Pairs,
        task: &TaskContext,
    ) -> Result<Matches> {
        let left = UInt32Array::from(pairs.left);
        let right = UInt32Array::from(pairs.right);
        let Some(residual) = &self.filter else { return Ok(Matches { left, right }) };
        if left.is_empty() {
            return Ok(Matches { left, right });
        }
        let keep = residual.evaluate(table.payload()?, data, &left, &right, task)?;
        let keep = BooleanArray::new(keep, None);
        Ok(Matches {
            left: filter(&left, &keep).or_fail()?.as_primitive().clone(),
            right: filter(&right, &keep).or_fail()?.as_primitive().clone(),
        })
    }

    fn pairs_batch(
        &self,
        table: &Table,
        data: &RecordBatch,
        pairs: &Matches,
    ) -> Result<RecordBatch> {
        let rows = pairs.left.len();
        let numbers = pairs.right.values();
        // Every probe row matched exactly once, as with a foreign key: nothing to gather.
        let whole = rows == data.num_rows() && numbers.iter().zip(0_u32..).all(|(n, i)| *n == i);
        let right = if whole { Rows::All(data) } else { Rows::At(data, &pairs.right) };
        let left = Rows::At(table.payload()?, &pairs.left);
        assemble(&self.config.schema, &self.output, &left, &right, None, rows)
    }

    /// What a probe batch gives after all its pairs: by which of its rows found a match.
    fn rest_of_batch(
        &self,
        data: &RecordBatch,
        matched: Vec<bool>,
        sequence: u64,
    ) -> Result<OperatorResult> {
        let matched = BooleanBuffer::from(matched);
        let selection = match self.config.join_type {
            JoinType::RightSemi => matched,
            JoinType::RightMark => {
                let mark = BooleanArray::new(matched, None);
                let (left, right) = (Rows::Null, Rows::All(data));
                let (schema, rows) = (&self.config.schema, data.num_rows());
                let batch = assemble(schema, &self.output, &left, &right, Some(&mark), rows)?;
                return Ok(OperatorResult::Batch(Batch::new(batch).at(sequence)));
            }
            _ => !&matched,
        };
        let rows = selection.count_set_bits();
        if rows == 0 {
            return Ok(OperatorResult::NeedInput);
        }
        let (schema, left) = (&self.config.schema, Rows::Null);
        // Rows are selected, not gathered: all columns of the batch, and NULLs for the left side.
        let rows = data.num_rows();
        let batch = assemble(schema, &self.output, &left, &Rows::All(data), None, rows)?;
        Ok(OperatorResult::Batch(Batch::with_selection(batch, selection).at(sequence)))
    }
}
