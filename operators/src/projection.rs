//! Projection: computes the output columns. Plain columns are passed on without being gathered.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch},
    datatypes::SchemaRef,
};
use datafusion_physical_expr::{PhysicalExpr, expressions::Column};
use datafusion_physical_expr_common::physical_expr::is_volatile;
use gatework_runtime::{
    Result,
    pipeline::{Batch, DriverContext, LocalOperator, Operator, OperatorContext, OperatorResult},
};

use crate::{
    ResultExt, apply_selection,
    dictionary::{assemble_taken, is_marked},
    error::is_overflow,
    slices::{Slices, computed_from},
};

#[cfg(test)]
mod tests;

/// Operator that computes one output column per expression.
#[derive(Debug)]
pub struct Projection {
    plan: Arc<ProjectionPlan>,
}

#[derive(Debug)]
struct ProjectionPlan {
    expressions: Vec<Arc<dyn PhysicalExpr>>,
    schema: SchemaRef,
    /// Input column indices, if every expression is a plain column.
    columns: Option<Vec<usize>>,
    /// Input columns that computed expressions read.
    inputs: Vec<usize>,
    /// True if an expression is volatile: no row may then be evaluated twice.
    volatile: bool,
}

impl Projection {
    /// Creates a projection of `expressions` over the input's columns, one per field of `schema`.
    pub fn new(expressions: Vec<Arc<dyn PhysicalExpr>>, schema: SchemaRef) -> Self {
        let column = |expression: &Arc<dyn PhysicalExpr>| {
            expression.downcast_ref::<Column>().map(Column::index)
        };
        let columns = expressions.iter().map(column).collect();
        let inputs = computed_from(expressions.iter());
        let volatile = expressions.iter().any(is_volatile);
        Self { plan: Arc::new(ProjectionPlan { expressions, schema, columns, inputs, volatile }) }
    }
}

impl Operator for Projection {
    fn name(&self) -> &str {
        "projection"
    }

    fn take_dictionaries(&self, output: &[usize]) -> Vec<usize> {
        let plan = &self.plan;
        let column = |index: &usize| {
            let column = plan.expressions.get(*index)?.downcast_ref::<Column>();
            column.map(Column::index)
        };
        let other = (0..plan.expressions.len()).filter(|index| !output.contains(index));
        let other: Vec<usize> = other.filter_map(|index| column(&index)).collect();
        let mut taken: Vec<usize> = output.iter().filter_map(column).collect();
        taken.retain(|column| !other.contains(column) && !plan.inputs.contains(column));
        taken.sort_unstable();
        taken.dedup();
        taken
    }

    fn local(&self, _context: OperatorContext) -> Result<Box<dyn LocalOperator>> {
        Ok(Box::new(LocalProjection { plan: self.plan.clone(), slices: Slices::default() }))
    }
}

struct LocalProjection {
    plan: Arc<ProjectionPlan>,
    slices: Slices,
}

impl LocalOperator for LocalProjection {
    fn execute(&mut self, input: Option<Batch>, task: &DriverContext) -> Result<OperatorResult> {
        if let Some(batch) = input {
            if let Some(columns) = &self.plan.columns {
                return Ok(OperatorResult::Batch(self.plan.pick(batch, columns)?));
            }
            let sequence = batch.sequence();
            self.slices.begin(
                Batch::new(apply_selection(batch)?).with_sequence(sequence),
                &self.plan.inputs,
            );
        }
        while let Some(batch) = self.slices.next() {
            match self.plan.compute(&batch) {
                Ok(output) => return Ok(self.slices.operator_result(output)),
                Err(error) if self.plan.can_halve(&batch) && is_overflow(&error) => {
                    self.slices.halve(&batch);
                }
                Err(error) => return Err(error),
            }
            if self.slices.should_yield(task)? {
                return Ok(OperatorResult::Yield);
            }
        }
        Ok(OperatorResult::NeedInput)
    }
}

impl ProjectionPlan {
    /// Returns the input's columns unchanged.
    fn pick(&self, batch: Batch, columns: &[usize]) -> Result<Batch> {
        let sequence = batch.sequence();
        let (data, selection) = batch.into_parts();
        let picked = columns.iter().map(|&column| data.column(column).clone()).collect();
        let is_taken = |index: usize| self.is_dictionary(&data, index);
        let picked = assemble_taken(&self.schema, picked, data.num_rows(), is_taken).query_err()?;
        let output = match selection {
            Some(selection) => Batch::with_selection(picked, selection),
            None => Batch::new(picked),
        };
        Ok(output.with_sequence(sequence))
    }

    /// Evaluates the expressions on all rows of `batch`, which has no selection.
    fn compute(&self, batch: &Batch) -> Result<Batch> {
        let (data, rows) = (batch.data(), batch.num_physical_rows());
        let evaluate = |expression: &Arc<dyn PhysicalExpr>| {
            expression.evaluate(data)?.into_array_of_size(rows)
        };
        let computed = self.expressions.iter().map(evaluate);
        let computed = computed.collect::<Result<Vec<ArrayRef>, _>>().query_err()?;
        let is_taken = |index: usize| self.is_dictionary(data, index);
        let output = assemble_taken(&self.schema, computed, rows, is_taken).query_err()?;
        Ok(Batch::new(output).with_sequence(batch.sequence()))
    }

    /// Returns whether output column `index` is a column of `data` that may be a dictionary.
    fn is_dictionary(&self, data: &RecordBatch, index: usize) -> bool {
        let column = self.expressions[index].downcast_ref::<Column>();
        column.is_some_and(|column| is_marked(data.schema_ref().field(column.index())))
    }

    /// Returns true if the halves of `batch` may be evaluated after all of it was.
    fn can_halve(&self, batch: &Batch) -> bool {
        batch.num_physical_rows() > 1 && !self.volatile
    }
}
