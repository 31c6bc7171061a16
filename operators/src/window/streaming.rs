//! Expressions that need to see only so much of their window partition, evaluated piece by piece.
//!
//! The expressions keep their own states (DataFusion's `evaluate_stateful`). What is kept here is the rows
//! that one of them may still look at, and the rows that one of them has no result for yet: with a frame
//! that ends at the current row's peers, these are the peers of the last row so far.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch},
    datatypes::SchemaRef,
};
use datafusion_expr::window_state::PartitionBatchState;
use datafusion_physical_expr::window::{
    PartitionBatches, PartitionKey, PartitionWindowAggStates, WindowEvalContext, WindowExpr,
    WindowState,
};
use gatework_runtime::Result;

use super::bytes;
use crate::{ResultExt, concat::concat_batches};

/// The state of a window partition of which not all rows have come.
pub(super) struct StreamingPartition {
    expressions: Vec<Arc<dyn WindowExpr>>,
    /// The rows that are still looked at: one entry, since there is one partition.
    partition: PartitionBatches,
    states: Vec<PartitionWindowAggStates>,
    /// Rows that have not been given.
    pending_rows: RecordBatch,
}

/// The one partition has no need of its key.
pub(super) const KEY: PartitionKey = Vec::new();

impl StreamingPartition {
    /// A partition of rows with this schema.
    pub(super) fn new(expressions: Vec<Arc<dyn WindowExpr>>, schema: &SchemaRef) -> Self {
        let mut partition = PartitionBatches::default();
        partition.insert(KEY, PartitionBatchState::new(schema.clone()));
        let states = expressions.iter().map(|_| PartitionWindowAggStates::default()).collect();
        Self {
            expressions,
            partition,
            states,
            pending_rows: RecordBatch::new_empty(schema.clone()),
        }
    }

    /// Bytes of the rows that are kept.
    pub(super) fn bytes(&self) -> usize {
        let looked_at = self.partition.values().map(|part| bytes(&part.record_batch));
        looked_at.sum::<usize>() + bytes(&self.pending_rows)
    }

    /// How many rows are kept.
    pub(super) fn buffered_rows(&self) -> usize {
        let looked_at = self.partition.values().map(|part| part.record_batch.num_rows());
        looked_at.sum::<usize>().max(self.pending_rows.num_rows())
    }

    /// Adds the next rows of the partition; with the `last` ones, all that are left get their results.
    /// Answers rows, and a column per expression.
    pub(super) fn push(
        &mut self,
        rows: &[RecordBatch],
        last: bool,
    ) -> Result<(RecordBatch, Vec<ArrayRef>)> {
        let rows =
            if rows.is_empty() { self.pending_rows.slice(0, 0) } else { concat_batches(rows)? };
        for part in self.partition.values_mut() {
            part.record_batch = append(&part.record_batch, &rows)?;
            part.is_end = last;
        }
        self.pending_rows = append(&self.pending_rows, &rows)?;
        let context = WindowEvalContext::default();
        for (expression, states) in self.expressions.iter().zip(&mut self.states) {
            expression.evaluate_stateful(&self.partition, states, &context).query_err()?;
        }
        let states = || self.states.iter().flat_map(PartitionWindowAggStates::values);
        let done = states().map(|of| of.state.out_col.len()).min().unwrap_or(0);
        let results = states().map(|of| of.state.out_col.slice(0, done)).collect();
        let rows = self.pending_rows.slice(0, done);
        self.prune(done);
        Ok((rows, results))
    }

    /// Drops `done` rows, which have been given, and rows that no expression looks at any more.
    fn prune(&mut self, done: usize) {
        self.pending_rows = skip_rows(&self.pending_rows, done);
        let states = || self.states.iter().flat_map(PartitionWindowAggStates::values);
        // Frames never move back, so what lies before all of them, and has its result, is not looked at.
        let passed = |WindowState { state, .. }: &WindowState| {
            state.window_frame_range.start.min(state.last_calculated_index)
        };
        let passed = states().map(passed).min().unwrap_or(0);
        for part in self.partition.values_mut() {
            part.record_batch = skip_rows(&part.record_batch, passed);
        }
        for of in self.states.iter_mut().flat_map(PartitionWindowAggStates::values_mut) {
            let results = &of.state.out_col;
            of.state.out_col = results.slice(done, results.len() - done);
            of.state.prune_state(passed);
        }
    }
}

/// `rows` behind those of `before`, which have the schema that counts.
fn append(before: &RecordBatch, rows: &RecordBatch) -> Result<RecordBatch> {
    match (before.num_rows(), rows.num_rows()) {
        (_, 0) => Ok(before.clone()),
        (0, _) => Ok(rows.clone()),
        _ => concat_batches(&[before.clone(), rows.clone()]),
    }
}

/// The rows of `rows` behind so many. An empty slice would keep all of them alive.
fn skip_rows(rows: &RecordBatch, count: usize) -> RecordBatch {
    match rows.num_rows() - count {
        0 => RecordBatch::new_empty(rows.schema()),
        remaining => rows.slice(count, remaining),
    }
}
