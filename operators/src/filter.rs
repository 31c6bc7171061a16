//! Filter: narrows the selection of a batch by a predicate; NULL counts as false.

use std::sync::Arc;

use arrow::{
    array::{Array, BooleanArray, RecordBatch},
    buffer::BooleanBuffer,
};
use datafusion_common::cast::as_boolean_array;
use datafusion_physical_expr::PhysicalExpr;
use gatework_runtime::{
    Result,
    pipeline::{Batch, LocalOperator, Operator, OperatorResult, Setup, TaskContext},
};

use crate::{OrFail, compact};

#[cfg(test)]
mod tests;

/// Keeps the rows for which `predicate` is true, and of them the columns of `projection`.
#[derive(Debug)]
pub struct Filter {
    predicate: Arc<dyn PhysicalExpr>,
    projection: Option<Arc<[usize]>>,
}

impl Filter {
    /// A filter over the input's columns; `projection` names the columns of its output.
    pub fn new(predicate: Arc<dyn PhysicalExpr>, projection: Option<Arc<[usize]>>) -> Self {
        Self { predicate, projection }
    }
}

impl Operator for Filter {
    fn name(&self) -> &str {
        "filter"
    }

    fn local(&self, _setup: Setup) -> Result<Box<dyn LocalOperator>> {
        Ok(Box::new(LocalFilter {
            predicate: self.predicate.clone(),
            projection: self.projection.clone(),
        }))
    }
}

struct LocalFilter {
    predicate: Arc<dyn PhysicalExpr>,
    projection: Option<Arc<[usize]>>,
}

impl LocalOperator for LocalFilter {
    fn execute(&mut self, input: Option<Batch>, _task: &TaskContext) -> Result<OperatorResult> {
        let Some(batch) = input else { return Ok(OperatorResult::NeedInput) };
        let sequence = batch.sequence();
        // A predicate may fail on rows that an earlier filter took out, so it never sees them.
        let data = compact(batch)?;
        let selection = evaluate_predicate(self.predicate.as_ref(), &data)?;
        if selection.count_set_bits() == 0 {
            return Ok(OperatorResult::NeedInput);
        }
        let data = match &self.projection {
            Some(columns) => data.project(columns).or_fail()?,
            None => data,
        };
        Ok(OperatorResult::Batch(Batch::with_selection(data, selection).at(sequence)))
    }
}

/// One bit per row of `data`: whether `predicate` is true there.
///
/// # Errors
/// If the predicate fails or is not boolean.
pub fn evaluate_predicate(
    predicate: &dyn PhysicalExpr,
    data: &RecordBatch,
) -> Result<BooleanBuffer> {
    let answer = predicate.evaluate(data).or_fail()?;
    let answer = answer.into_array(data.num_rows()).or_fail()?;
    Ok(true_bits(as_boolean_array(&answer).or_fail()?))
}

/// The bits that are true and not NULL.
pub(crate) fn true_bits(answer: &BooleanArray) -> BooleanBuffer {
    match answer.nulls() {
        Some(nulls) => answer.values() & nulls.inner(),
        None => answer.values().clone(),
    }
}
