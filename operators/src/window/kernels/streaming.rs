//! Kernels over a window partition that arrives in chunks.
//!
//! A kernel is evaluated over the buffered rows as if they were the partition. A frame that reaches
//! back to the start of the partition, and a rank, take over what the rows before have left: a
//! [`Carry`].

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::UInt64Type;
use datafusion_physical_expr::window::WindowExpr;
use datafusion_physical_expr_common::physical_expr::is_volatile;
use gatework_runtime::{Result, pipeline::DriverContext};

use super::{super::STEP_ROWS, Kernel, Partitions, WindowFunction, aggregate};
use crate::{ResultExt, concat::concat_arrays};

/// What the rows before the buffered ones leave to them.
#[derive(Debug, Clone)]
pub(super) struct Carry {
    /// Number of rows before.
    pub(super) rows: u64,
    /// Rank of the first buffered row.
    pub(super) rank: u64,
    /// Number of values before, and their sum as an array of one value; `None` if there are none.
    pub(super) count: u64,
    pub(super) sum: Option<ArrayRef>,
}

impl Default for Carry {
    fn default() -> Self {
        Self { rows: 0, rank: 1, count: 0, sum: None }
    }
}

/// One expression over the partition's rows so far.
pub(in super::super) struct KernelStream {
    kernel: Arc<Kernel>,
    /// Number of rows before a row, and after it, that its result depends on.
    before: usize,
    after: usize,
    /// First buffered row that is still read, and what the rows before leave to it.
    start: usize,
    carry: Carry,
    /// Number of buffered rows that have a result.
    computed: usize,
    /// Results that have not been returned.
    results: Option<ArrayRef>,
}

impl KernelStream {
    /// Returns the stream of a kernel; `None` if it reads too many rows around each, or if what it
    /// carries would not be what its results were computed from: volatile arguments, and floats
    /// that DataFusion adds in another order.
    pub(in super::super) fn new(kernel: Arc<Kernel>) -> Option<Self> {
        let (before, after) = kernel.reach()?;
        if before.saturating_add(after) > STEP_ROWS
            || kernel.expr.expressions().iter().any(is_volatile)
            || kernel.adds_peers_of_floats()
        {
            return None;
        }
        let carry = Carry::default();
        Some(Self { kernel, before, after, start: 0, carry, computed: 0, results: None })
    }

    pub(in super::super) fn expression(&self) -> &Arc<dyn WindowExpr> {
        &self.kernel.expr
    }

    /// Evaluates the buffered `rows` that have no result; `last` if no more rows follow. Returns
    /// false if the types of the values are not supported.
    pub(in super::super) fn evaluate(
        &mut self,
        rows: &RecordBatch,
        last: bool,
        task: &DriverContext,
    ) -> Result<bool> {
        let rows = rows.slice(self.start, rows.num_rows() - self.start);
        let whole = 0..rows.num_rows();
        let partitions = Partitions::new(&rows, &[], std::slice::from_ref(&whole));
        let Some((all, complete)) =
            self.kernel.evaluate_after(&partitions, &self.carry, last, self.after, task)?
        else {
            return Ok(false);
        };
        let complete = (self.start + complete).max(self.computed);
        let new = all.slice(self.computed - self.start, complete - self.computed);
        self.results = Some(match self.results.take().filter(|results| !results.is_empty()) {
            Some(results) => concat_arrays(&[results, new])?,
            None => new,
        });
        self.computed = complete;
        let passed = complete.saturating_sub(self.before).saturating_sub(self.start);
        self.advance(&rows.slice(0, passed), &all)?;
        Ok(true)
    }

    /// Moves the start past the rows `passed`. `results` are those from the start on.
    fn advance(&mut self, passed: &RecordBatch, results: &ArrayRef) -> Result<()> {
        let count = passed.num_rows();
        if count == 0 {
            return Ok(());
        }
        self.start += count;
        self.carry.rows += count as u64;
        match self.kernel.function {
            WindowFunction::Rank | WindowFunction::DenseRank => {
                let ranks = results.as_primitive_opt::<UInt64Type>();
                if let Some(ranks) = ranks.filter(|ranks| count < ranks.len()) {
                    self.carry.rank = ranks.value(count);
                }
            }
            WindowFunction::Count | WindowFunction::Sum | WindowFunction::Avg
                if self.kernel.frame.starts_at_partition() =>
            {
                let values = self.kernel.expr.evaluate_args(passed).query_err()?;
                aggregate::add_to_carry(&values, &mut self.carry)?;
            }
            _ => {}
        }
        Ok(())
    }

    pub(in super::super) fn results(&self) -> Option<&ArrayRef> {
        self.results.as_ref()
    }

    /// Returns the number of buffered rows that are not read any more.
    pub(in super::super) fn passed(&self) -> usize {
        self.start
    }

    /// Drops the first `done` results, and the first `passed` buffered rows.
    pub(in super::super) fn prune(&mut self, passed: usize, done: usize) {
        if let Some(results) = &mut self.results {
            *results = results.slice(done, results.len() - done);
        }
        self.start -= passed;
        self.computed -= passed;
    }
}
