//! Expressions that need a bounded part of their window partition, evaluated in chunks.
//!
//! This module buffers the rows that an expression may still read, and the rows for which an
//! expression has no result yet. With a frame that ends at the current row's peers, the latter are
//! the peers of the last row so far. A kernel evaluates all buffered rows, and carries over what it
//! needs of the rows before (`kernels/streaming.rs`). An expression without a kernel keeps its own
//! state (DataFusion's `evaluate_stateful`).

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
use gatework_runtime::{
    Result,
    pipeline::{DriverContext, column_bytes},
};

use super::{
    bytes,
    kernels::{Kernel, KernelStream},
};
use crate::{ResultExt, concat::concat_batches};

/// State of a window partition that has not ended.
pub(super) struct StreamingPartition {
    expressions: Vec<StreamingExpression>,
    /// Rows that are still read: one entry, since there is one partition.
    partition: PartitionBatches,
    /// Rows that have not been returned.
    pending_rows: RecordBatch,
}

/// An expression, and its results that have not been returned.
enum StreamingExpression {
    Kernel(KernelStream),
    Stateful(Arc<dyn WindowExpr>, PartitionWindowAggStates),
}

/// Key of the only partition; empty, since it needs none.
pub(super) const KEY: PartitionKey = Vec::new();

impl StreamingExpression {
    fn new(expression: &Arc<dyn WindowExpr>, kernel: Option<&Arc<Kernel>>) -> Self {
        let stream = kernel.and_then(|kernel| KernelStream::new(kernel.clone()));
        stream.map_or_else(|| Self::stateful(expression), Self::Kernel)
    }

    fn stateful(expression: &Arc<dyn WindowExpr>) -> Self {
        Self::Stateful(expression.clone(), PartitionWindowAggStates::default())
    }

    /// Evaluates the rows that can be evaluated; `last` if no more rows follow.
    fn evaluate(
        &mut self,
        partition: &PartitionBatches,
        last: bool,
        task: &DriverContext,
    ) -> Result<()> {
        if let Self::Kernel(stream) = self {
            for part in partition.values() {
                if !stream.evaluate(&part.record_batch, last, task)? {
                    // The first rows have shown that the types are not supported.
                    *self = Self::stateful(stream.expression());
                    return self.evaluate(partition, last, task);
                }
            }
            return Ok(());
        }
        if let Self::Stateful(expression, states) = self {
            let context = WindowEvalContext::default();
            expression.evaluate_stateful(partition, states, &context).query_err()?;
        }
        Ok(())
    }

    /// Returns the results that have not been returned; `None` before the first evaluation.
    fn results(&self) -> Option<&ArrayRef> {
        match self {
            Self::Kernel(stream) => stream.results(),
            Self::Stateful(_, states) => states.values().map(|of| &of.state.out_col).next(),
        }
    }

    /// Returns the number of buffered rows that are not read any more.
    fn passed(&self) -> usize {
        match self {
            Self::Kernel(stream) => stream.passed(),
            // Frames never move back, so no expression reads rows that lie before all frames and
            // have their results.
            Self::Stateful(_, states) => {
                let passed = |WindowState { state, .. }: &WindowState| {
                    state.window_frame_range.start.min(state.last_calculated_index)
                };
                states.values().map(passed).min().unwrap_or(0)
            }
        }
    }

    /// Drops the first `done` results, and the first `passed` buffered rows.
    fn prune(&mut self, done: usize, passed: usize) {
        match self {
            Self::Kernel(stream) => stream.prune(passed, done),
            Self::Stateful(_, states) => {
                for of in states.values_mut() {
                    let results = &of.state.out_col;
                    of.state.out_col = results.slice(done, results.len() - done);
                    of.state.prune_state(passed);
                }
            }
        }
    }
}

impl StreamingPartition {
    /// Creates a partition of rows with this schema. The expressions come with their kernels.
    pub(super) fn new<'a>(
        expressions: impl Iterator<Item = (&'a Arc<dyn WindowExpr>, Option<&'a Arc<Kernel>>)>,
        schema: &SchemaRef,
    ) -> Self {
        let mut partition = PartitionBatches::default();
        partition.insert(KEY, PartitionBatchState::new(schema.clone()));
        Self {
            expressions: expressions
                .map(|(expression, kernel)| StreamingExpression::new(expression, kernel))
                .collect(),
            partition,
            pending_rows: RecordBatch::new_empty(schema.clone()),
        }
    }

    /// Returns the bytes of the buffered rows.
    pub(super) fn bytes(&self) -> usize {
        let looked_at = self.partition.values().map(|part| bytes(&part.record_batch));
        let results = self.expressions.iter().filter_map(StreamingExpression::results);
        let results = results.map(|results| column_bytes(results.as_ref()));
        looked_at.sum::<usize>() + bytes(&self.pending_rows) + results.sum::<usize>()
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
        task: &DriverContext,
    ) -> Result<(RecordBatch, Vec<ArrayRef>)> {
        let rows =
            if rows.is_empty() { self.pending_rows.slice(0, 0) } else { concat_batches(rows)? };
        for part in self.partition.values_mut() {
            part.record_batch = append(&part.record_batch, &rows)?;
            part.is_end = last;
        }
        self.pending_rows = append(&self.pending_rows, &rows)?;
        for expression in &mut self.expressions {
            expression.evaluate(&self.partition, last, task)?;
        }
        let results = || self.expressions.iter().filter_map(StreamingExpression::results);
        let done = results().map(|results| results.len()).min().unwrap_or(0);
        let results = results().map(|results| results.slice(0, done)).collect();
        let rows = self.pending_rows.slice(0, done);
        self.prune(done);
        Ok((rows, results))
    }

    /// Drops `done` rows, which have been returned, and rows that no expression reads any more.
    fn prune(&mut self, done: usize) {
        self.pending_rows = skip_rows(&self.pending_rows, done);
        let passed = self.expressions.iter().map(StreamingExpression::passed).min().unwrap_or(0);
        for expression in &mut self.expressions {
            expression.prune(done, passed);
        }
        for part in self.partition.values_mut() {
            part.record_batch = skip_rows(&part.record_batch, passed);
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
