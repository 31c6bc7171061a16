//! Window: evaluates window expressions over window partitions of sorted input.
//!
//! The sink splits its input at window partition boundaries; the input is sorted by partition keys
//! and order keys. It hands over whole partitions, several small ones at a time. The source with
//! the same task index evaluates them and returns the rows in input order.
//!
//! A large window partition is never evaluated as one. If no expression reads its end, it is handed
//! over and evaluated in chunks (`streaming.rs`). Otherwise its rows are buffered, and spilled
//! where they do not fit into memory, while each expression takes from them what it needs
//! (`buffered.rs`). Once the partition has ended, its rows are emitted with the results.
//!
//! Where the function of an expression is known, a kernel evaluates it over many partitions at once
//! (`kernels/`).
//!
//! Partition equality is that of arrow's `partition`: NULL equals NULL, -0 is not +0.

mod buffered;
mod emitter;
mod eval_strategy;
mod framed;
mod kernels;
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

pub use kernels::{WindowExpression, WindowFunction};
pub use sink::WindowSink;
pub use source::WindowSource;

use crate::ResultExt;
use buffered::BufferedPartition;
use eval_strategy::EvalStrategy;
use kernels::Kernel;

#[derive(Debug)]
struct WindowPlan {
    expressions: Vec<Arc<dyn WindowExpr>>,
    /// The kernel of each expression, if it has one.
    kernels: Vec<Option<Arc<Kernel>>>,
    /// Evaluation strategy of each expression over a large window partition.
    strategies: Vec<EvalStrategy>,
    partition_by: Vec<Arc<dyn PhysicalExpr>>,
    schema: SchemaRef,
    batch_size: usize,
    /// Bytes from which a window partition is large.
    large_bytes: usize,
}

/// Creates sink and source of window expressions with the same partition keys, with `num_tasks`
/// tasks each. An expression whose [`WindowFunction`] is known is evaluated by a kernel. Each
/// task's input is sorted as the expressions need it, and no window partition spans tasks. The
/// output is the input's columns and one column per expression, in batches of at most `batch_size`
/// rows. `limit_bytes` bounds the buffer between sink and source, and is the size of a large window
/// partition.
///
/// # Errors
/// If there are no expressions, if their partition keys differ, or if there are no tasks.
pub fn new(
    expressions: impl IntoIterator<Item = impl Into<WindowExpression>>,
    schema: SchemaRef,
    batch_size: usize,
    num_tasks: usize,
    limit_bytes: usize,
) -> Result<(WindowSink, WindowSource)> {
    let expressions: Vec<WindowExpression> = expressions.into_iter().map(Into::into).collect();
    let kernels = expressions.iter().map(|one| Kernel::of(one).map(Arc::new)).collect();
    let expressions: Vec<_> = expressions.into_iter().map(|one| one.expr).collect();
    let Some(first) = expressions.first().filter(|_| num_tasks > 0 && batch_size > 0) else {
        let needs = "a window needs at least one expression, one task and a batch size above 0";
        return Err(Error::InvalidConfiguration(needs.into()));
    };
    let partition_by = first.partition_by().to_vec();
    // The order of the keys does not matter: it does not change the partitions.
    let same = |one: &Arc<dyn WindowExpr>| {
        let keys = one.partition_by();
        keys.iter().all(|key| partition_by.contains(key))
            && partition_by.iter().all(|key| keys.contains(key))
    };
    if let Some(other) = expressions.iter().find(|expression| !same(expression)) {
        return Err(Error::InvalidConfiguration(format!(
            "window expression {} is not partitioned like {}: give each its own window",
            other.name(),
            first.name()
        )));
    }
    let strategies = EvalStrategy::choose(&expressions);
    let large_bytes = limit_bytes;
    let plan = Arc::new(WindowPlan {
        expressions,
        kernels,
        strategies,
        partition_by,
        schema,
        batch_size,
        large_bytes,
    });
    let (sinks, sources) = (0..num_tasks).map(|_| window::new("window", limit_bytes)).unzip();
    Ok((WindowSink::new(sinks, plan.clone()), WindowSource::new(sources, plan)))
}

/// Returns true if an expression, evaluated with the others, buffers data in memory for each row of
/// a large window partition. The data are the columns that it reads, and its results. The rows
/// themselves may be spilled.
pub fn buffers_columns(expressions: &[Arc<dyn WindowExpr>]) -> bool {
    EvalStrategy::choose(expressions)
        .iter()
        .any(|strategy| matches!(strategy, EvalStrategy::PartitionColumns { .. }))
}

impl WindowPlan {
    /// Evaluates the partition keys of `rows`.
    fn keys(&self, rows: &RecordBatch) -> Result<Vec<ArrayRef>> {
        let count = rows.num_rows();
        let key = |key: &Arc<dyn PhysicalExpr>| key.evaluate(rows)?.into_array_of_size(count);
        self.partition_by.iter().map(key).collect::<Result<_, _>>().query_err()
    }

    /// Returns true if no expression reads the end of its window partition.
    fn is_streaming(&self) -> bool {
        self.strategies.iter().all(|strategy| matches!(strategy, EvalStrategy::Streaming))
    }

    /// Returns the streaming expressions and their kernels.
    fn streaming_expressions(
        &self,
    ) -> impl Iterator<Item = (&Arc<dyn WindowExpr>, Option<&Arc<Kernel>>)> {
        let kernels = self.kernels.iter().map(Option::as_ref);
        let all = self.expressions.iter().zip(kernels).zip(&self.strategies);
        let streaming = all.filter(|(_, strategy)| matches!(strategy, EvalStrategy::Streaming));
        streaming.map(|(expression, _)| expression)
    }

    /// Appends the result columns to the input `rows`.
    fn output(&self, rows: &RecordBatch, results: Vec<ArrayRef>) -> Result<RecordBatch> {
        let columns = rows.columns().iter().cloned().chain(results).collect();
        RecordBatch::try_new(self.schema.clone(), columns).query_err()
    }
}

/// Item that the sink hands to the source.
#[derive(Debug)]
struct WindowItem {
    content: PartitionData,
    rows: usize,
    /// Bytes in memory and spilled, so that spilled rows are bounded as well.
    bytes: usize,
    /// Reservation, released with the rows.
    memory: Reservation,
}

#[derive(Debug)]
enum PartitionData {
    /// One or several complete window partitions, none of them large.
    Complete(Vec<RecordBatch>),
    /// Next rows of a window partition, possibly none, and whether it ends with them.
    Streaming(Vec<RecordBatch>, bool),
    /// Complete large window partition; the guard's gate becomes ready when it has been emitted.
    Buffered(Box<BufferedPartition>, ReadyOnDrop),
}

/// Guard that makes a gate ready when it is dropped.
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

/// Minimum number of rows of a large window partition that one step evaluates. Between two steps a
/// task checks for cancellation.
const STEP_ROWS: usize = if cfg!(test) { 64 } else { 1 << 16 };

/// Rows of a large window partition, evaluated step by step.
#[derive(Debug, Default)]
struct Steps(VecDeque<RecordBatch>);

impl Steps {
    /// Returns true if there are no rows.
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the rows of the next step, at least `min_rows` if that number is available. Each
    /// step copies the buffered rows. A caller passes their number, so that all steps together copy
    /// at most a small multiple of all rows.
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

/// Bytes per row of a result that is not a copy of a value.
const RESULT_BYTES: usize = 16;

/// Bytes of the states or results of a few totals. An operator cannot run with less, so they need
/// no reservation.
const STATE_BYTES: usize = 4096;

fn bytes(rows: &RecordBatch) -> usize {
    Batch::new(rows.clone()).bytes()
}
