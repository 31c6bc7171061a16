//! A batch of the right side on its way through a table.

use std::sync::{Arc, atomic::Ordering};

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
    table::{DRAIN_ROWS, Table},
};
use crate::{OrFail, keys::NullKeys};

/// A batch of the right side that is being looked up.
pub(super) struct Probing {
    data: RecordBatch,
    sequence: u64,
    keys: ProbeKeys,
    cursor: Cursor,
    /// All pairs of the batch have been seen.
    done: bool,
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
        evaluate(self.config.on.iter().map(|(_, right)| right), rows)
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
        Ok(Probing { data, sequence, keys, cursor: Cursor::default(), done: false, matched })
    }

    /// The next pairs of a batch that are output.
    pub(super) fn next_pairs(
        &self,
        table: &Table,
        probing: &mut Probing,
        task: &TaskContext,
    ) -> Result<NextPairs> {
        let mut first = true;
        while !probing.done {
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
            let pairs = self.keep_matches(table, &probing.data, pairs)?;
            if self.marks_left() {
                pairs.left.values().iter().for_each(|row| table.mark(*row));
            }
            if let Some(matched) = &mut probing.matched {
                pairs.right.values().iter().for_each(|row| matched[*row as usize] = true);
            }
            if self.emits_pairs() && !pairs.left.is_empty() {
                let batch = self.pairs_batch(table, &probing.data, &pairs)?;
                return Ok(NextPairs::Batch(Batch::new(batch).at(probing.sequence)));
            }
        }
        Ok(NextPairs::End)
    }

    /// What a batch gives after all its pairs, by which of its rows found a match.
    pub(super) fn rest(&self, probing: Probing) -> Result<OperatorResult> {
        match probing.matched {
            None => Ok(OperatorResult::NeedInput),
            Some(matched) => self.rest_of_batch(&probing.data, matched, probing.sequence),
        }
    }

    /// The left rows of drain unit `unit` that are output, or `None`.
    pub(super) fn drain_unit(&self, table: &Table, unit: usize) -> Result<Option<RecordBatch>> {
        let first = unit * DRAIN_ROWS;
        let last = (first + DRAIN_ROWS).min(table.rows());
        let null_aware = self.config.null_aware;
        if null_aware && self.probe_saw_null.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let no_null_keys = null_aware && self.probe_saw_rows.load(Ordering::Relaxed);
        let wanted = |row: &usize| match self.config.join_type {
            JoinType::LeftSemi => table.is_marked(*row),
            JoinType::LeftMark => true,
            _ => !(table.is_marked(*row) || no_null_keys && table.has_null_key(*row)),
        };
        let rows: Vec<usize> = (first..last).filter(wanted).collect();
        if rows.is_empty() {
            return Ok(None);
        }
        let mark = BooleanArray::from_iter(rows.iter().map(|row| Some(table.is_marked(*row))));
        let numbers = UInt32Array::from_iter_values(rows.iter().map(|row| *row as u32));
        let left = Rows::At(table.payload()?, &numbers);
        let (schema, columns) = (&self.config.schema, &self.output);
        Ok(Some(assemble(schema, columns, &left, &Rows::Null, Some(&mark), rows.len())?))
    }
}

/// Pairs that passed the residual filter.
struct Matches {
    left: UInt32Array,
    right: UInt32Array,
}

impl Shared {
    fn keep_matches(&self, table: &Table, data: &RecordBatch, pairs: Pairs) -> Result<Matches> {
        let left = UInt32Array::from(pairs.left);
        let right = UInt32Array::from(pairs.right);
        let Some(residual) = &self.filter else { return Ok(Matches { left, right }) };
        if left.is_empty() {
            return Ok(Matches { left, right });
        }
        let keep = residual.evaluate(table.payload()?, data, &left, &right)?;
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
