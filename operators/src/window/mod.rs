//! Window: evaluates window expressions over whole window partitions of sorted input.
//!
//! The sink cuts its input, which is sorted by partition keys and order keys, where one window
//! partition ends and the next begins, and hands over whole partitions, several small ones at a
//! time. The source of the same instance evaluates them and gives the rows in the order they came.
//! If no expression looks at a whole window partition, a long one is handed over and evaluated piece by
//! piece (`long.rs`); otherwise it must fit into memory.
//!
//! Two rows are of one partition as arrow's `partition` sees it: NULL equals NULL, -0 is not +0.

mod long;
mod sink;
mod source;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch},
    datatypes::SchemaRef,
};
use datafusion_physical_expr::{PhysicalExpr, window::WindowExpr};
use gatework_runtime::{
    Error, Result,
    pipeline::{Batch, Reservation},
};
use gatework_shared_state::{Payload, analytic};

pub use sink::WindowSink;
pub use source::WindowSource;

use crate::OrFail;

#[derive(Debug)]
struct Plan {
    expressions: Vec<Arc<dyn WindowExpr>>,
    partition_by: Vec<Arc<dyn PhysicalExpr>>,
    schema: SchemaRef,
    batch_size: usize,
    /// A window partition is long from so many bytes on; `None` if all must be whole.
    long_bytes: Option<usize>,
}

/// Window expressions with the same partitions, over input of `instances` tasks that is sorted as
/// they need it in each task, and whose window partitions are not spread over tasks. The output is
/// the input's columns and one column per expression, in batches of at most `batch_size` rows.
/// `limit_bytes` is what waits between sink and source, and what makes a window partition long.
///
/// # Errors
/// If there are no expressions, they have different partitions, or there are no instances.
pub fn new(
    expressions: Vec<Arc<dyn WindowExpr>>,
    schema: SchemaRef,
    batch_size: usize,
    instances: usize,
    limit_bytes: usize,
) -> Result<(WindowSink, WindowSource)> {
    let Some(first) = expressions.first().filter(|_| instances > 0 && batch_size > 0) else {
        let needs = "a window needs an expression, a task and a batch size";
        return Err(Error::Setup(needs.into()));
    };
    let partition_by = first.partition_by().to_vec();
    // The order of the keys does not matter: the same rows are a partition.
    let same = |one: &Arc<dyn WindowExpr>| {
        let keys = one.partition_by();
        keys.iter().all(|key| partition_by.contains(key))
            && partition_by.iter().all(|key| keys.contains(key))
    };
    if let Some(other) = expressions.iter().find(|expression| !same(expression)) {
        return Err(Error::Setup(format!(
            "window expression {} is partitioned unlike {}: give each its own window",
            other.name(),
            first.name()
        )));
    }
    let piecewise = expressions.iter().all(|expression| expression.uses_bounded_memory());
    let long_bytes = piecewise.then_some(limit_bytes);
    let plan = Arc::new(Plan { expressions, partition_by, schema, batch_size, long_bytes });
    let (sinks, sources) = (0..instances).map(|_| analytic::new("window", limit_bytes)).unzip();
    Ok((WindowSink::new(sinks, plan.clone()), WindowSource::new(sources, plan)))
}

impl Plan {
    /// The partition keys of `rows`.
    fn keys(&self, rows: &RecordBatch) -> Result<Vec<ArrayRef>> {
        let count = rows.num_rows();
        let key = |key: &Arc<dyn PhysicalExpr>| key.evaluate(rows)?.into_array_of_size(count);
        self.partition_by.iter().map(key).collect::<Result<_, _>>().or_fail()
    }
}

/// One or several whole window partitions, or a piece of a long one.
#[derive(Debug)]
struct Partitions {
    kind: Kind,
    batches: Vec<RecordBatch>,
    rows: usize,
    bytes: usize,
    /// Given back with the batches.
    _memory: Reservation,
}

impl Payload for Partitions {
    fn rows(&self) -> usize {
        self.rows
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Whole,
    Piece,
    /// It may have no rows.
    LastPiece,
}

fn bytes(rows: &RecordBatch) -> usize {
    Batch::new(rows.clone()).bytes()
}
