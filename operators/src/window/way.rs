//! How an expression is evaluated over a window partition that is too large to be looked at as one.

use std::sync::Arc;

use datafusion_expr::{WindowFrameBound, WindowFrameUnits};
use datafusion_physical_expr::{
    PhysicalExpr,
    utils::collect_columns,
    window::{PlainAggregateWindowExpr, StandardWindowExpr, WindowExpr},
};

/// What an expression needs of its window partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Way {
    /// Some rows around each row: it is evaluated as they pass (a running total, a rank).
    Piecewise,
    /// All rows, one after the other, for a result that is the same for each (a total).
    Total,
    /// These columns of all rows at once (a percent rank). The whole rows, if a frame that moves through them is
    /// filtered, which cannot be seen from outside.
    Columns(Option<Vec<usize>>),
}

impl Way {
    /// That of `expression`.
    pub(super) fn of(expression: &Arc<dyn WindowExpr>) -> Self {
        if is_total(expression) {
            return Self::Total;
        }
        if expression.uses_bounded_memory() {
            return Self::Piecewise;
        }
        if !expression.as_any().is::<StandardWindowExpr>() {
            return Self::Columns(None);
        }
        let order_by = expression.order_by().iter().map(|key| &key.expr);
        let places = |needed: &Arc<dyn PhysicalExpr>| {
            collect_columns(needed).into_iter().map(|column| column.index())
        };
        let mut columns: Vec<usize> =
            expression.expressions().iter().chain(order_by).flat_map(places).collect();
        columns.sort_unstable();
        columns.dedup();
        Self::Columns(Some(columns))
    }
}

/// Whether it is an aggregate whose frame is always all of the window partition.
fn is_total(expression: &Arc<dyn WindowExpr>) -> bool {
    let frame = expression.get_window_frame();
    // Without an order, all rows are peers of the current one.
    let all_peers = frame.units == WindowFrameUnits::Range && expression.order_by().is_empty();
    let reaches_the_end = |bound: &WindowFrameBound| {
        bound.is_unbounded() || all_peers && matches!(bound, WindowFrameBound::CurrentRow)
    };
    expression.as_any().is::<PlainAggregateWindowExpr>()
        && reaches_the_end(&frame.start_bound)
        && reaches_the_end(&frame.end_bound)
}
