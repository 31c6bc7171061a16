//! Evaluation strategies for an expression over a window partition too large to be evaluated at
//! once.

use std::sync::Arc;

use datafusion_expr::{WindowFrameBound, WindowFrameUnits};
use datafusion_physical_expr::{
    PhysicalExpr,
    expressions::Literal,
    utils::collect_columns,
    window::{
        PlainAggregateWindowExpr, SlidingAggregateWindowExpr, StandardWindowExpr, WindowExpr,
    },
};

/// Rows and columns of its window partition that an expression needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EvalStrategy {
    /// Some rows around each row: the expression is evaluated while rows arrive (a running total, a
    /// rank).
    Streaming,
    /// All rows, one batch at a time, for a result that is the same for each row (a total).
    PartitionTotal,
    /// These columns of all rows at once (a percent rank); `None` if the columns are unknown.
    PartitionColumns {
        columns: Option<Vec<usize>>,
        /// True if a frame moves through the rows, so that results are computed one by one.
        by_frame: bool,
    },
}

impl EvalStrategy {
    /// Chooses the strategies of `expressions`, which are evaluated together.
    ///
    /// If no expression reads the end of its window partition, all are streaming, as in
    /// DataFusion's `BoundedWindowAggExec`. Otherwise DataFusion evaluates all expressions over the
    /// whole partition. Some results then differ (a frame among NULLs, `lead` that ignores NULLs).
    /// Only expressions whose results cannot differ are then streaming.
    pub(super) fn choose(expressions: &[Arc<dyn WindowExpr>]) -> Vec<Self> {
        let bounded =
            |one: &Arc<dyn WindowExpr>| one.uses_bounded_memory() && !is_partition_total(one);
        let all_bounded = expressions.iter().all(bounded);
        let strategy = |one: &Arc<dyn WindowExpr>| match one {
            _ if all_bounded => Self::Streaming,
            _ if is_partition_total(one) => Self::PartitionTotal,
            _ if needs_prefix_only(one) => Self::Streaming,
            _ => Self::columns_of(one),
        };
        expressions.iter().map(strategy).collect()
    }

    fn columns_of(expression: &Arc<dyn WindowExpr>) -> Self {
        let function = expression.as_any().downcast_ref::<StandardWindowExpr>();
        let evaluator = function.map(|one| one.get_standard_func_expr().create_evaluator());
        // An error recurs when the expression is evaluated.
        let by_frame = !matches!(evaluator, Some(Ok(one)) if !one.uses_window_frame());
        if function.is_none() && !is_unfiltered_aggregate(expression) {
            return Self::PartitionColumns { columns: None, by_frame };
        }
        let order_by = expression.order_by().iter().map(|key| &key.expr);
        let indices = |needed: &Arc<dyn PhysicalExpr>| {
            collect_columns(needed).into_iter().map(|column| column.index())
        };
        let needed = expression.expressions();
        let columns = needed.iter().chain(order_by).flat_map(indices).collect();
        Self::PartitionColumns { columns: Some(columns), by_frame }
    }
}

/// Returns true if `expression` is an aggregate whose frame is always the whole window partition.
fn is_partition_total(expression: &Arc<dyn WindowExpr>) -> bool {
    let frame = expression.get_window_frame();
    // Without an order, all rows are peers of the current row. The planner writes a constant for no
    // order.
    let mut order_by = expression.order_by().iter();
    let unordered = match is_unfiltered_aggregate(expression) {
        true => order_by.all(|key| key.expr.is::<Literal>()),
        false => order_by.len() == 0,
    };
    let all_peers = frame.units == WindowFrameUnits::Range && unordered;
    let reaches_the_end = |bound: &WindowFrameBound| {
        bound.is_unbounded() || all_peers && matches!(bound, WindowFrameBound::CurrentRow)
    };
    expression.as_any().is::<PlainAggregateWindowExpr>()
        && reaches_the_end(&frame.start_bound)
        && reaches_the_end(&frame.end_bound)
}

/// Returns true if a row's result depends only on a state and the row: a row number, a rank, a
/// running total over rows.
fn needs_prefix_only(expression: &Arc<dyn WindowExpr>) -> bool {
    if !expression.uses_bounded_memory() {
        return false;
    }
    if let Some(function) = expression.as_any().downcast_ref::<StandardWindowExpr>() {
        let evaluator = function.get_standard_func_expr().create_evaluator();
        let reads_no_others = expression.expressions().is_empty();
        return evaluator
            .is_ok_and(|one| one.include_rank() || reads_no_others && !one.uses_window_frame());
    }
    let frame = expression.get_window_frame();
    expression.as_any().is::<PlainAggregateWindowExpr>()
        && frame.units == WindowFrameUnits::Rows
        && frame.start_bound.is_unbounded()
        && frame.end_bound == WindowFrameBound::CurrentRow
}

/// Returns true if `expression` is an aggregate without a filter. The filter is visible only in the
/// debug output. If that output changes, every aggregate counts as filtered, which costs only time
/// and memory.
pub(super) fn is_unfiltered_aggregate(expression: &Arc<dyn WindowExpr>) -> bool {
    let any = expression.as_any();
    (any.is::<PlainAggregateWindowExpr>() || any.is::<SlidingAggregateWindowExpr>())
        && format!("{expression:?}").ends_with("filter: None }")
}
