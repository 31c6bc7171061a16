//! Window functions over many complete window partitions at once.
//!
//! DataFusion evaluates an expression partition by partition, and a frame row by row through a
//! `ScalarValue`. A kernel computes a column of results for all rows: rank functions from the
//! starts of partitions and peers; `lag`, `first_value` and their like as indices of rows, whose
//! values are gathered once; framed aggregates with running sums and monotone queues (Leis et al.,
//! "Efficient Processing of Window Functions in Analytical SQL Queries", 2015). An expression
//! without a kernel is evaluated by DataFusion: user-defined functions, frames by values, DISTINCT,
//! FILTER, IGNORE NULLS. The planner tells which function an expression computes
//! ([`WindowExpression`]).

mod aggregate;
mod frame;
mod function;
mod streaming;

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch},
    compute::partition,
};
use datafusion_common::ScalarValue;
use datafusion_physical_expr::window::WindowExpr;
use gatework_runtime::{Result, pipeline::DriverContext};

use super::eval_strategy::is_unfiltered_aggregate;
use crate::ResultExt;
use frame::Frame;
use streaming::Carry;
pub(super) use streaming::KernelStream;

/// Rows between two checks for cancellation.
const CHECK_ROWS: usize = 1 << 16;

/// A window function that has a kernel, over values that are neither distinct nor filtered, and of
/// which no NULL is ignored.
#[derive(Debug, Clone, PartialEq)]
pub enum WindowFunction {
    /// `row_number`.
    RowNumber,
    /// `rank`.
    Rank,
    /// `dense_rank`.
    DenseRank,
    /// `percent_rank`.
    PercentRank,
    /// `cume_dist`.
    CumeDist,
    /// `ntile` with this number of buckets, at least 1.
    Ntile(u64),
    /// `lag`: the value `offset` rows before the current row, after it if negative (`lead`).
    Lag {
        /// Number of rows.
        offset: isize,
        /// Value where there is no such row, of the type of the result.
        default: ScalarValue,
    },
    /// `first_value`.
    First,
    /// `last_value`.
    Last,
    /// `nth_value` at this place of the frame, from 1 on, or from its end (-1) backwards.
    Nth(isize),
    /// `count` of one argument.
    Count,
    /// `sum`.
    Sum,
    /// `avg`.
    Avg,
    /// `min`.
    Min,
    /// `max`.
    Max,
}

/// A window expression, and the function that it computes, if a kernel can take its place.
///
/// ```
/// use gatework_operators::window::WindowExpression;
/// # use std::sync::Arc;
/// # use datafusion_physical_expr::window::WindowExpr;
/// # fn example(expr: Arc<dyn WindowExpr>) {
/// // DataFusion evaluates an expression of unknown function.
/// let expression = WindowExpression::from(expr);
/// assert!(expression.function.is_none());
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct WindowExpression {
    /// The expression.
    pub expr: Arc<dyn WindowExpr>,
    /// The function, whose arguments are those of the expression; `None` if it is not known.
    pub function: Option<WindowFunction>,
}

impl From<Arc<dyn WindowExpr>> for WindowExpression {
    fn from(expr: Arc<dyn WindowExpr>) -> Self {
        Self { expr, function: None }
    }
}

/// The kernel of a window expression.
#[derive(Debug)]
pub(super) struct Kernel {
    expr: Arc<dyn WindowExpr>,
    function: WindowFunction,
    frame: Frame,
}

/// Rows of complete window partitions.
pub(super) struct Partitions<'a> {
    rows: &'a RecordBatch,
    /// Values of the partition keys.
    keys: &'a [ArrayRef],
    ranges: &'a [Range<usize>],
}

impl<'a> Partitions<'a> {
    pub(super) fn new(
        rows: &'a RecordBatch,
        keys: &'a [ArrayRef],
        ranges: &'a [Range<usize>],
    ) -> Self {
        Self { rows, keys, ranges }
    }
}

impl Kernel {
    /// Returns the kernel of `expression`, if there is one.
    pub(super) fn of(expression: &WindowExpression) -> Option<Self> {
        let frame = Frame::of(expression.expr.get_window_frame())?;
        let function = expression.function.clone()?;
        if function.is_aggregate() && !is_unfiltered_aggregate(&expression.expr) {
            return None;
        }
        Some(Self { frame, function, expr: expression.expr.clone() })
    }

    /// Returns the results for all rows; `None` if the types of the values are not supported.
    pub(super) fn evaluate(
        &self,
        partitions: &Partitions<'_>,
        task: &DriverContext,
    ) -> Result<Option<ArrayRef>> {
        let evaluated = self.evaluate_after(partitions, &Carry::default(), true, 0, task)?;
        Ok(evaluated.map(|(results, _)| results))
    }

    /// Returns the number of rows before and after a row that its result depends on, beside the
    /// ranks, sums and counts that a [`Carry`] has, and beside its peers; `None` if there is no
    /// bound.
    fn reach(&self) -> Option<(usize, usize)> {
        use WindowFunction as F;
        match &self.function {
            F::RowNumber => Some((0, 0)),
            F::Rank | F::DenseRank => Some((1, 0)),
            F::PercentRank | F::CumeDist | F::Ntile(_) => None,
            F::Lag { offset, .. } if *offset >= 0 => Some((offset.unsigned_abs(), 0)),
            F::Lag { offset, .. } => Some((0, offset.unsigned_abs())),
            F::Count | F::Sum | F::Avg => self.frame.reach(true),
            F::First | F::Last | F::Nth(_) | F::Min | F::Max => self.frame.reach(false),
        }
    }

    /// Returns whether the kernel adds floats, several at a time.
    fn adds_peers_of_floats(&self) -> bool {
        let adds = matches!(self.function, WindowFunction::Sum | WindowFunction::Avg);
        let result = self.expr.field();
        let is_float = result.is_ok_and(|field| field.data_type().is_floating());
        adds && is_float && !self.frame.grows_by_rows()
    }

    /// Returns the results for all rows, to which `carry` is left by rows before, and the number of
    /// those that later rows cannot change. Each result depends on `after` rows behind its own;
    /// there are none behind the `last` rows.
    fn evaluate_after(
        &self,
        partitions: &Partitions<'_>,
        carry: &Carry,
        last: bool,
        after: usize,
        task: &DriverContext,
    ) -> Result<Option<(ArrayRef, usize)>> {
        task.check_cancelled()?;
        let rows = partitions.rows;
        // Indices of rows have 32 bits.
        if rows.num_rows() > u32::MAX as usize {
            return Ok(None);
        }
        let peers = match self.function.needs_peers(&self.frame) {
            true => {
                let columns = self.expr.order_by_columns(rows).query_err()?;
                peers(partitions, columns.into_iter().map(|column| column.values).collect())?
            }
            false => Vec::new(),
        };
        let context = Evaluation {
            partitions: partitions.ranges,
            peers: &peers,
            frame: &self.frame,
            expr: &self.expr,
            rows: rows.num_rows(),
            carry,
            task,
        };
        let complete = match last {
            true => rows.num_rows(),
            // The last peers may be more.
            false if self.frame.ends_with_peers() && !self.function.ignores_frame() => {
                peers.last().map_or(0, |peers| peers.start)
            }
            false => rows.num_rows().saturating_sub(after),
        };
        let values = self.expr.evaluate_args(rows).query_err()?;
        let results = self.function.evaluate(&values, &context)?;
        Ok(results.map(|results| (results, complete)))
    }
}

/// Returns the ranges of rows that are equal in partition keys and order keys.
fn peers(partitions: &Partitions<'_>, order_by: Vec<ArrayRef>) -> Result<Vec<Range<usize>>> {
    let columns: Vec<ArrayRef> = partitions.keys.iter().cloned().chain(order_by).collect();
    if columns.is_empty() || partitions.rows.num_rows() == 0 {
        return Ok(partitions.ranges.to_vec());
    }
    Ok(partition(&columns).query_err()?.ranges())
}

/// What a kernel computes its results from, beside values.
struct Evaluation<'a> {
    partitions: &'a [Range<usize>],
    /// Ranges of peers of all partitions, if they are needed.
    peers: &'a [Range<usize>],
    frame: &'a Frame,
    expr: &'a Arc<dyn WindowExpr>,
    rows: usize,
    carry: &'a Carry,
    task: &'a DriverContext,
}

impl Evaluation<'_> {
    /// Calls `f` with the frame of each row; neither its start nor its end moves back within a
    /// partition. `begin` is called at the start of each partition.
    fn for_each_frame<S>(
        &self,
        state: &mut S,
        mut begin: impl FnMut(&mut S),
        mut f: impl FnMut(&mut S, Range<usize>),
    ) -> Result<()> {
        let mut peers = self.peers.iter();
        let mut peer = 0..0;
        for partition in self.partitions {
            begin(state);
            for row in partition.clone() {
                if row % CHECK_ROWS == 0 {
                    self.task.check_cancelled()?;
                }
                while peer.end <= row
                    && let Some(next) = peers.next()
                {
                    peer = next.clone();
                }
                f(state, self.frame.rows(row, partition, &peer));
            }
        }
        Ok(())
    }

    /// Calls `f` with each partition and its ranges of peers.
    fn for_each_partition(&self, mut f: impl FnMut(&Range<usize>, &[Range<usize>])) -> Result<()> {
        let mut first = 0;
        for partition in self.partitions {
            if partition.start / CHECK_ROWS != partition.end / CHECK_ROWS {
                self.task.check_cancelled()?;
            }
            let rest = &self.peers[first..];
            let count = rest.iter().take_while(|peer| peer.end <= partition.end).count();
            f(partition, &rest[..count]);
            first += count;
        }
        Ok(())
    }
}
