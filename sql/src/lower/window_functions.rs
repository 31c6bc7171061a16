//! The window functions of DataFusion for which gatework has a kernel.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::{
    functions_aggregate::{
        average::Avg,
        count::Count,
        min_max::{Max, Min},
        sum::Sum,
    },
    functions_window::{
        cume_dist::CumeDist,
        lead_lag::{WindowShift, WindowShiftKind},
        nth_value::{NthValue, NthValueKind},
        ntile::Ntile,
        rank::Rank,
        row_number::RowNumber,
    },
    physical_expr::{
        PhysicalExpr,
        aggregate::AggregateFunctionExpr,
        expressions::Literal,
        window::{
            PlainAggregateWindowExpr, SlidingAggregateWindowExpr, StandardWindowExpr, WindowExpr,
        },
    },
    physical_plan::windows::WindowUDFExpr,
    scalar::ScalarValue,
};
use gatework_operators::window::{WindowExpression, WindowFunction};

/// Returns `expr` with its function, if that has a kernel.
pub(super) fn with_function(expr: Arc<dyn WindowExpr>) -> WindowExpression {
    let any = expr.as_any();
    let function = if let Some(standard) = any.downcast_ref::<StandardWindowExpr>() {
        let function = standard.get_standard_func_expr();
        function.as_any().downcast_ref::<WindowUDFExpr>().and_then(|it| window_function(&expr, it))
    } else if let Some(plain) = any.downcast_ref::<PlainAggregateWindowExpr>() {
        aggregate_function(plain.get_aggregate_expr())
    } else if let Some(sliding) = any.downcast_ref::<SlidingAggregateWindowExpr>() {
        aggregate_function(sliding.get_aggregate_expr())
    } else {
        None
    };
    WindowExpression { expr, function }
}

fn aggregate_function(aggregate: &AggregateFunctionExpr) -> Option<WindowFunction> {
    let is_plain = aggregate.expressions().len() == 1
        && !aggregate.is_distinct()
        && !aggregate.ignore_nulls()
        && aggregate.order_bys().is_empty();
    let function = aggregate.fun().inner();
    match () {
        () if !is_plain => None,
        () if function.is::<Count>() => Some(WindowFunction::Count),
        () if function.is::<Sum>() => Some(WindowFunction::Sum),
        () if function.is::<Avg>() => Some(WindowFunction::Avg),
        () if function.is::<Min>() => Some(WindowFunction::Min),
        () if function.is::<Max>() => Some(WindowFunction::Max),
        () => None,
    }
}

fn window_function(expr: &Arc<dyn WindowExpr>, function: &WindowUDFExpr) -> Option<WindowFunction> {
    // Both are visible only in the debug output. If that changes, DataFusion evaluates.
    if !format!("{function:?}").ends_with("is_reversed: false, ignore_nulls: false }") {
        return None;
    }
    let (implementation, args) = (function.fun().inner(), function.args());
    if implementation.is::<RowNumber>() {
        return Some(WindowFunction::RowNumber);
    }
    if implementation.is::<CumeDist>() {
        return Some(WindowFunction::CumeDist);
    }
    if implementation.is::<Rank>() {
        return match implementation.name() {
            "rank" => Some(WindowFunction::Rank),
            "dense_rank" => Some(WindowFunction::DenseRank),
            "percent_rank" => Some(WindowFunction::PercentRank),
            _ => None,
        };
    }
    if implementation.is::<Ntile>() {
        let buckets = literal(args.first()?)?.cast_to(&DataType::UInt64).ok()?;
        let ScalarValue::UInt64(Some(buckets @ 1..)) = buckets else { return None };
        return Some(WindowFunction::Ntile(buckets));
    }
    if let Some(shift) = implementation.downcast_ref::<WindowShift>() {
        return lag(expr, shift.kind(), args);
    }
    match implementation.downcast_ref::<NthValue>()?.kind() {
        NthValueKind::First => Some(WindowFunction::First),
        NthValueKind::Last => Some(WindowFunction::Last),
        NthValueKind::Nth => match integer(args.get(1)?)? {
            0 => None,
            place => Some(WindowFunction::Nth(place)),
        },
    }
}

fn lag(
    expr: &Arc<dyn WindowExpr>,
    kind: &WindowShiftKind,
    args: &[Arc<dyn PhysicalExpr>],
) -> Option<WindowFunction> {
    let result = expr.field().ok()?.data_type().clone();
    // The type of NULL is that of the default, which DataFusion sees to.
    if args.first()?.is::<Literal>() || result == DataType::Null {
        return None;
    }
    let offset = match args.get(1) {
        Some(offset) => integer(offset)?,
        None => 1,
    };
    let default = match args.get(2) {
        Some(default) => literal(default)?.clone(),
        None => ScalarValue::Null,
    };
    let default = default.cast_to(&result).ok()?;
    let offset = match kind {
        WindowShiftKind::Lag => offset,
        WindowShiftKind::Lead => offset.checked_neg()?,
    };
    Some(WindowFunction::Lag { offset, default })
}

fn literal(expr: &Arc<dyn PhysicalExpr>) -> Option<&ScalarValue> {
    Some(expr.downcast_ref::<Literal>()?.value())
}

/// Returns the value of a literal integer.
fn integer(expr: &Arc<dyn PhysicalExpr>) -> Option<isize> {
    let value = literal(expr)?;
    if !value.data_type().is_integer() {
        return None;
    }
    let ScalarValue::Int64(Some(value)) = value.cast_to(&DataType::Int64).ok()? else {
        return None;
    };
    isize::try_from(value).ok()
}
