//! Filter: refines the selection of a batch by a predicate; NULL counts as false.

use std::sync::{Arc, OnceLock};

use arrow::{
    array::{Array, BooleanArray, RecordBatch},
    buffer::BooleanBuffer,
};
use datafusion_common::cast::as_boolean_array;
use datafusion_physical_expr::PhysicalExpr;
use gatework_runtime::{
    Result,
    pipeline::{Batch, DriverContext, LocalOperator, Operator, OperatorContext, OperatorResult},
};

use self::conjuncts::{Conjuncts, LocalConjuncts};
use crate::{ResultExt, slices::Slices};

mod conjuncts;
#[cfg(test)]
mod tests;

/// Operator that keeps the rows for which `predicate` is true, and the columns of `projection`.
#[derive(Debug)]
pub struct Filter {
    predicate: Arc<dyn PhysicalExpr>,
    projection: Option<Arc<[usize]>>,
    /// Conjuncts of the predicate; split by the first task.
    conjuncts: OnceLock<Arc<Conjuncts>>,
}

impl Filter {
    /// Creates a filter on the input's columns; `projection` lists its output columns.
    pub fn new(predicate: Arc<dyn PhysicalExpr>, projection: Option<Arc<[usize]>>) -> Self {
        Self { predicate, projection, conjuncts: OnceLock::new() }
    }

    fn conjuncts(&self) -> Result<Arc<Conjuncts>> {
        if let Some(conjuncts) = self.conjuncts.get() {
            return Ok(conjuncts.clone());
        }
        let conjuncts = Arc::new(Conjuncts::new(&self.predicate).query_err()?);
        Ok(self.conjuncts.get_or_init(|| conjuncts).clone())
    }
}

impl Operator for Filter {
    fn name(&self) -> &str {
        "filter"
    }

    fn take_dictionaries(&self, output: &[usize]) -> Vec<usize> {
        let Ok(conjuncts) = self.conjuncts() else { return Vec::new() };
        let mut taken = match &self.projection {
            None => output.to_vec(),
            Some(projection) => {
                let is_taken = |column: &usize| {
                    let mut places = projection.iter().enumerate().filter(|(_, it)| *it == column);
                    places.all(|(place, _)| output.contains(&place))
                };
                let columns = projection.iter().copied().chain(conjuncts.columns_of_texts());
                columns.filter(is_taken).collect()
            }
        };
        let of_rows = conjuncts.columns_of_rows();
        taken.retain(|column| !of_rows.contains(column));
        taken.sort_unstable();
        taken.dedup();
        taken
    }

    fn local(&self, _context: OperatorContext) -> Result<Box<dyn LocalOperator>> {
        Ok(Box::new(LocalFilter::new(self.conjuncts()?, self.projection.clone())))
    }
}

struct LocalFilter {
    conjuncts: LocalConjuncts,
    projection: Option<Arc<[usize]>>,
    slices: Slices,
}

impl LocalFilter {
    fn new(conjuncts: Arc<Conjuncts>, projection: Option<Arc<[usize]>>) -> Self {
        let conjuncts = LocalConjuncts::new(conjuncts);
        Self { conjuncts, projection, slices: Slices::default() }
    }

    /// Returns the rows of `batch` that pass.
    fn pass(&mut self, batch: Batch) -> Result<Batch> {
        let sequence = batch.sequence();
        let selection = self.conjuncts.select(&batch)?;
        let (data, _) = batch.into_parts();
        let data = match &self.projection {
            Some(columns) => data.project(columns).query_err()?,
            None => data,
        };
        let passed = match selection {
            Some(selection) => Batch::with_selection(data, selection),
            None => Batch::new(data),
        };
        Ok(passed.with_sequence(sequence))
    }
}

impl LocalOperator for LocalFilter {
    fn execute(&mut self, input: Option<Batch>, task: &DriverContext) -> Result<OperatorResult> {
        if let Some(batch) = input {
            self.slices.begin(batch, self.conjuncts.columns());
        }
        while let Some(batch) = self.slices.next() {
            let passed = self.pass(batch)?;
            if passed.num_rows() > 0 {
                return Ok(self.slices.operator_result(passed));
            }
            if self.slices.should_yield(task)? {
                return Ok(OperatorResult::Yield);
            }
        }
        Ok(OperatorResult::NeedInput)
    }
}

/// Returns one bit per row of `data`: set where `predicate` is true.
///
/// # Errors
/// If the predicate fails or is not boolean.
pub fn evaluate_predicate(
    predicate: &dyn PhysicalExpr,
    data: &RecordBatch,
) -> Result<BooleanBuffer> {
    let result = predicate.evaluate(data).query_err()?;
    let result = result.into_array(data.num_rows()).query_err()?;
    Ok(true_bits(as_boolean_array(&result).query_err()?))
}

/// Returns the bits of the values that are true and not NULL.
pub(crate) fn true_bits(mask: &BooleanArray) -> BooleanBuffer {
    match mask.nulls() {
        Some(nulls) => mask.values() & nulls.inner(),
        None => mask.values().clone(),
    }
}
