//! Framed results over all rows of a large window partition: by a kernel, or one by one.
//!
//! DataFusion computes the results of all rows in one call, which takes seconds for millions of
//! rows. Where there is no kernel, this module calls the same functions row by row, and checks in
//! between whether the query was cancelled.

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch},
    compute::SortColumn,
};
use datafusion_common::{Result as DataFusionResult, ScalarValue};
use datafusion_expr::{Accumulator, PartitionEvaluator, window_state::WindowFrameContext};
use datafusion_physical_expr::{
    aggregate::AggregateFunctionExpr,
    window::{
        PlainAggregateWindowExpr, SlidingAggregateWindowExpr, StandardWindowExpr, WindowExpr,
    },
};
use gatework_runtime::{Result, pipeline::DriverContext};

use super::{
    STEP_ROWS,
    eval_strategy::is_unfiltered_aggregate,
    kernels::{Kernel, Partitions},
};
use crate::{ResultExt, concat::concat_arrays};

/// Rows between two cancellation checks.
const CHECK_ROWS: usize = 256;

/// Returns the results of `expression` for all `rows` of a window partition.
///
/// # Errors
/// If the expression fails, or the query was cancelled.
pub(super) fn evaluate(
    expression: &Arc<dyn WindowExpr>,
    kernel: Option<&Kernel>,
    rows: &RecordBatch,
    task: &DriverContext,
) -> Result<ArrayRef> {
    let partition = 0..rows.num_rows();
    let partitions = Partitions::new(rows, &[], std::slice::from_ref(&partition));
    let by_kernel = kernel.map(|kernel| kernel.evaluate(&partitions, task));
    if let Some(results) = by_kernel.transpose()?.flatten() {
        return Ok(results);
    }
    match FrameFunction::of(expression).query_err()? {
        Some(function) if rows.num_rows() > CHECK_ROWS => {
            row_by_row(expression, function, rows, task)
        }
        _ => expression.evaluate(rows).query_err(),
    }
}

/// Function that computes the result of a frame.
enum FrameFunction {
    Standard(Box<dyn PartitionEvaluator>),
    /// Aggregate, and its value over no rows.
    Aggregate(Box<dyn Accumulator>, ScalarValue),
    /// Aggregate that can retract rows, and its value over no rows.
    Sliding(Box<dyn Accumulator>, ScalarValue),
}

impl FrameFunction {
    /// Creates the function of `expression`; `None` if it needs no frames, or has a filter, which
    /// is not accessible.
    fn of(expression: &Arc<dyn WindowExpr>) -> DataFusionResult<Option<Self>> {
        let any = expression.as_any();
        if let Some(standard) = any.downcast_ref::<StandardWindowExpr>() {
            let evaluator = standard.get_standard_func_expr().create_evaluator()?;
            return Ok(evaluator.uses_window_frame().then(|| Self::Standard(evaluator)));
        }
        if !is_unfiltered_aggregate(expression) {
            return Ok(None);
        }
        let default = |of: &AggregateFunctionExpr| of.default_value(of.field().data_type());
        if let Some(plain) = any.downcast_ref::<PlainAggregateWindowExpr>() {
            let aggregate = plain.get_aggregate_expr();
            let accumulator = aggregate.create_accumulator()?;
            return Ok(Some(Self::Aggregate(accumulator, default(aggregate)?)));
        }
        let Some(sliding) = any.downcast_ref::<SlidingAggregateWindowExpr>() else {
            return Ok(None);
        };
        let aggregate = sliding.get_aggregate_expr();
        let accumulator = aggregate.create_sliding_accumulator()?;
        Ok(Some(Self::Sliding(accumulator, default(aggregate)?)))
    }

    /// Returns the result for the rows `now`; the previous result was for the rows `last`.
    fn result(
        &mut self,
        values: &[ArrayRef],
        last: &Range<usize>,
        now: &Range<usize>,
    ) -> DataFusionResult<ScalarValue> {
        let slice = |start: usize, end: usize| -> Vec<ArrayRef> {
            values.iter().map(|values| values.slice(start, end - start)).collect()
        };
        match self {
            Self::Standard(evaluator) => evaluator.evaluate(values, now),
            Self::Aggregate(_, default) if now.is_empty() => Ok(default.clone()),
            Self::Aggregate(accumulator, _) => {
                if now.end > last.end {
                    accumulator.update_batch(&slice(last.end, now.end))?;
                }
                accumulator.evaluate()
            }
            Self::Sliding(accumulator, default) if now.is_empty() => {
                if !last.is_empty() {
                    accumulator.retract_batch(&slice(last.start, last.end))?;
                }
                Ok(default.clone())
            }
            Self::Sliding(accumulator, _) => {
                if now.end > last.end {
                    accumulator.update_batch(&slice(last.end, now.end))?;
                }
                if now.start > last.start {
                    accumulator.retract_batch(&slice(last.start, now.start))?;
                }
                accumulator.evaluate()
            }
        }
    }
}

fn row_by_row(
    expression: &Arc<dyn WindowExpr>,
    mut function: FrameFunction,
    rows: &RecordBatch,
    task: &DriverContext,
) -> Result<ArrayRef> {
    let count = rows.num_rows();
    let mut values = expression.evaluate_args(rows).query_err()?;
    let order_by = expression.order_by_columns(rows).query_err()?.into_iter();
    let order_by: Vec<ArrayRef> = order_by.map(|SortColumn { values, .. }| values).collect();
    if let FrameFunction::Standard(_) = function {
        values.extend(order_by.iter().cloned());
    }
    let options = expression.order_by().iter().map(|key| key.options).collect();
    let mut frames = WindowFrameContext::new(expression.get_window_frame().clone(), options);
    let (mut arrays, mut results, mut last) = (Vec::new(), Vec::new(), 0..0);
    for row in 0..count {
        if row % CHECK_ROWS == 0 {
            task.check_cancelled()?;
        }
        let now = frames.calculate_range(&order_by, &last, count, row).query_err()?;
        results.push(function.result(&values, &last, &now).query_err()?);
        last = now;
        if results.len() == STEP_ROWS || row + 1 == count {
            arrays.push(ScalarValue::iter_to_array(results.drain(..)).query_err()?);
        }
    }
    concat_arrays(&arrays)
}
