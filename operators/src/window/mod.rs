//! Window: evaluates window expressions over window partitions of sorted input.
//!
//! The sink cuts its input, which is sorted by partition keys and order keys, where one window
//! partition ends and the next begins, and hands over whole partitions, several small ones at a
//! time. The source of the same instance evaluates them and gives the rows in the order they came.
//!
//! A large window partition is never evaluated as one. If no expression looks at its end, it is handed over
//! and evaluated piece by piece (`streaming.rs`). Otherwise its rows are collected, and put away in files where they
//! do not fit into memory, while each expression takes from them what it needs (`buffered.rs`); once the partition
//! has ended, its rows are given with the results.
//!
//! Two rows are of one partition as arrow's `partition` sees it: NULL equals NULL, -0 is not +0.

mod buffered;
mod eval_strategy;
mod framed;
mod sink;
mod source;
mod streaming;

#[cfg(test)]
mod tests;

use std::{collections::VecDeque, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch},
    datatypes::SchemaRef,
};
use datafusion_physical_expr::{PhysicalExpr, window::WindowExpr};
use gatework_runtime::{
    Error, Result,
    pipeline::{Batch, Reservation},
};
use gatework_shared_state::{Gate, Payload, window};

pub use sink::WindowSink;
pub use source::WindowSource;

use crate::ResultExt;
use buffered::BufferedPartition;
use eval_strategy::EvalStrategy;

#[derive(Debug)]
struct WindowPlan {
    expressions: Vec<Arc<dyn WindowExpr>>,
    /// How each of them is evaluated over a large window partition.
    strategies: Vec<EvalStrategy>,
    partition_by: Vec<Arc<dyn PhysicalExpr>>,
    schema: SchemaRef,
    batch_size: usize,
    /// A window partition is large from so many bytes on.
    large_bytes: usize,
}

/// Window expressions with the same partitions, over input of `num_tasks` tasks that is sorted as
/// they need it in each task, and whose window partitions are not spread over tasks. The output is
/// the input's columns and one column per expression, in batches of at most `batch_size` rows.
/// `limit_bytes` is what waits between sink and source, and what makes a window partition large.
///
/// # Errors
/// If there are no expressions, they have different partitions, or there are no instances.
pub fn new(
    expressions: Vec<Arc<dyn WindowExpr>>,
    schema: SchemaRef,
    batch_size: usize,
    num_tasks: usize,
    limit_bytes: usize,
) -> Result<(WindowSink, WindowSource)> {
    let Some(first) = expressions.first().filter(|_| num_tasks > 0 && batch_size > 0) else {
        let needs = "a window needs an expression, a task and a batch size";
        return Err(Error::InvalidConfiguration(needs.into()));
    };
    let partition_by = first.partition_by().to_vec();
    // The order of the keys does not matter: the same rows are a partition.
    let same = |one: &Arc<dyn WindowExpr>| {
        let keys = one.partition_by();
        keys.iter().all(|key| partition_by.contains(key))
            && partition_by.iter().all(|key| keys.contains(key))
    };
    if let Some(other) = expressions.iter().find(|expression| !same(expression)) {
        return Err(Error::InvalidConfiguration(format!(
            "window expression {} is partitioned unlike {}: give each its own window",
            other.name(),
            first.name()
        )));
    }
    let strategies = EvalStrategy::choose(&expressions);
    let large_bytes = limit_bytes;
    let plan = Arc::new(WindowPlan {
        expressions,
        strategies,
        partition_by,
        schema,
        batch_size,
        large_bytes,
    });
    let (sinks, sources) = (0..num_tasks).map(|_| window::new("window", limit_bytes)).unzip();
    Ok((WindowSink::new(sinks, plan.clone()), WindowSource::new(sources, plan)))
}

/// Whether one of these expressions, evaluated together, keeps something of each row of a large window partition in
/// memory, where the rows may go to files: the columns that it looks at, and its results.
pub fn buffers_columns(expressions: &[Arc<dyn WindowExpr>]) -> bool {
    EvalStrategy::choose(expressions)
        .iter()
        .any(|strategy| matches!(strategy, EvalStrategy::PartitionColumns { .. }))
}

impl WindowPlan {
    /// The partition keys of `rows`.
    fn keys(&self, rows: &RecordBatch) -> Result<Vec<ArrayRef>> {
        let count = rows.num_rows();
        let key = |key: &Arc<dyn PhysicalExpr>| key.evaluate(rows)?.into_array_of_size(count);
        self.partition_by.iter().map(key).collect::<Result<_, _>>().query_err()
    }

    /// Whether no expression looks at the end of its window partition.
    fn is_streaming(&self) -> bool {
        self.strategies.iter().all(|strategy| matches!(strategy, EvalStrategy::Streaming))
    }

    /// The expressions that do not, of a large window partition.
    fn streaming_expressions(&self) -> Vec<Arc<dyn WindowExpr>> {
        let pairs = self.expressions.iter().zip(&self.strategies);
        let streaming = pairs.filter(|(_, strategy)| matches!(strategy, EvalStrategy::Streaming));
        streaming.map(|(expression, _)| expression.clone()).collect()
    }

    /// Input `rows` with the columns of the expressions.
    fn output(&self, rows: &RecordBatch, results: Vec<ArrayRef>) -> Result<RecordBatch> {
        let columns = rows.columns().iter().cloned().chain(results).collect();
        RecordBatch::try_new(self.schema.clone(), columns).query_err()
    }
}

/// What is handed over.
#[derive(Debug)]
struct WindowItem {
    content: PartitionData,
    rows: usize,
    /// In memory and in files, so that those are bounded as well.
    bytes: usize,
    /// Given back with the rows.
    memory: Reservation,
}

#[derive(Debug)]
enum PartitionData {
    /// One or several window partitions, none of them large.
    Complete(Vec<RecordBatch>),
    /// The next rows of a window partition, if there are any, and whether it ends with them.
    Streaming(Vec<RecordBatch>, bool),
    /// A window partition; the gate opens when it has been given.
    Buffered(Box<BufferedPartition>, ReadyOnDrop),
}

/// Opens a gate when it is dropped.
#[derive(Debug)]
struct ReadyOnDrop(Gate);

impl Drop for ReadyOnDrop {
    fn drop(&mut self) {
        self.0.set_always_ready();
    }
}

impl Payload for WindowItem {
    fn rows(&self) -> usize {
        self.rows
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Rows of a large window partition that are evaluated at a time, at the least: between two steps a
/// task checks whether its query goes on.
const STEP_ROWS: usize = if cfg!(test) { 64 } else { 1 << 16 };

/// Rows of a large window partition, evaluated step by step.
#[derive(Debug, Default)]
struct Steps(VecDeque<RecordBatch>);

impl Steps {
    /// Whether there are no rows.
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The rows of the next step, of which there are `least` at the least, if there are as many:
    /// where kept rows are copied for each step, that many, so that all steps together copy no more
    /// than a few times what there is.
    fn next(&mut self, min_rows: usize) -> Vec<RecordBatch> {
        let (mut step, mut remaining) = (Vec::new(), STEP_ROWS.max(min_rows));
        while remaining > 0
            && let Some(rows) = self.0.pop_front()
        {
            let count = rows.num_rows().min(remaining);
            if count < rows.num_rows() {
                self.0.push_front(rows.slice(count, rows.num_rows() - count));
            }
            step.push(rows.slice(0, count));
            remaining -= count;
        }
        step
    }
}

/// Bytes that a result takes for a row, if it is no copy of a value.
const RESULT_BYTES: usize = 16;

/// The states of a few totals, or their results, which nobody could do without: they are there without a reservation.
const STATE_BYTES: usize = 4096;

fn bytes(rows: &RecordBatch) -> usize {
    Batch::new(rows.clone()).bytes()
}
