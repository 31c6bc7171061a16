//! Expressions that need a bounded part of their window partition, evaluated in chunks.
//!
//! The expressions keep their own states (DataFusion's `evaluate_stateful`). This module buffers
//! the rows that an expression may still read, and the rows for which an expression has no result
//! yet. With a frame that ends at the current row's peers, the latter are the peers of the last row
//! so far.

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

/// State of a window partition that has not ended.
pub(super) struct StreamingPartition {
    expressions: Vec<Arc<dyn WindowExpr>>,
    /// Rows that are still read: one entry, since there is one partition.
    partition: PartitionBatches,
    states: Vec<PartitionWindowAggStates>,
    /// Rows that have not been returned.
    pending_rows: RecordBatch,
}

/// Key of the only partition; empty, since it needs none.
pub(super) const KEY: PartitionKey = Vec::new();

impl StreamingPartition {
    /// Creates a partition of rows with this schema.
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

    /// Returns the bytes of the buffered rows.
    pub(super) fn bytes(&self) -> usize {
        let looked_at = self.partition.values().map(|part| bytes(&part.record_batch));
        looked_at.sum::<usize>() + bytes(&self.pending_rows)
    }

    /// Returns the number of buffered rows.
    pub(super) fn buffered_rows(&self) -> usize {
        let looked_at = self.partition.values().map(|part| part.record_batch.num_rows());
        looked_at.sum::<usize>().max(self.pending_rows.num_rows())
    }

    /// Adds the next rows of the partition; with the `last` ones, all remaining rows get their
    /// results. Returns rows, and a column per expression.
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

    /// Drops `done` rows, which have been returned, and rows that no expression reads any more.
    fn prune(&mut self, done: usize) {
        self.pending_rows = skip_rows(&self.pending_rows, done);
        let states = || self.states.iter().flat_map(PartitionWindowAggStates::values);
        // Frames never move back, so no expression reads rows that lie before all frames and have
        // their results.
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

/// Appends `rows` to `before`. If both have rows, the result has the column names of `before`.
fn append(before: &RecordBatch, rows: &RecordBatch) -> Result<RecordBatch> {
    match (before.num_rows(), rows.num_rows()) {
        (_, 0) => Ok(before.clone()),
        (0, _) => Ok(rows.clone()),
        _ => concat_batches(&[before.clone(), rows.clone()]),
    }
}

/// Skips the first `count` rows. An empty slice would keep all rows alive.
fn skip_rows(rows: &RecordBatch, count: usize) -> RecordBatch {
    match rows.num_rows() - count {
        0 => RecordBatch::new_empty(rows.schema()),
        remaining => rows.slice(count, remaining),
    }
}
