//! Projection: computes the output columns. Plain columns are passed on without being gathered.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch, RecordBatchOptions},
    datatypes::SchemaRef,
};
use datafusion_physical_expr::{PhysicalExpr, expressions::Column};
use gatework_runtime::{
    Result,
    pipeline::{Batch, LocalOperator, Operator, OperatorResult, Setup, TaskContext},
};

use crate::{OrFail, compact};

#[cfg(test)]
mod tests;

/// Computes one output column per expression.
#[derive(Debug)]
pub struct Projection {
    plan: Arc<Plan>,
}

#[derive(Debug)]
struct Plan {
    expressions: Vec<Arc<dyn PhysicalExpr>>,
    schema: SchemaRef,
    /// The input columns, if no expression computes anything.
    columns: Option<Vec<usize>>,
}

impl Projection {
    /// `expressions` over the input's columns, one per field of `schema`.
    pub fn new(expressions: Vec<Arc<dyn PhysicalExpr>>, schema: SchemaRef) -> Self {
        let column = |expression: &Arc<dyn PhysicalExpr>| {
            expression.downcast_ref::<Column>().map(Column::index)
        };
        let columns = expressions.iter().map(column).collect();
        Self { plan: Arc::new(Plan { expressions, schema, columns }) }
    }
}

impl Operator for Projection {
    fn name(&self) -> &str {
        "projection"
    }

    fn local(&self, _setup: Setup) -> Result<Box<dyn LocalOperator>> {
        Ok(Box::new(LocalProjection { plan: self.plan.clone() }))
    }
}

struct LocalProjection {
    plan: Arc<Plan>,
}

impl LocalOperator for LocalProjection {
    fn execute(&mut self, input: Option<Batch>, _task: &TaskContext) -> Result<OperatorResult> {
        let Some(batch) = input else { return Ok(OperatorResult::NeedInput) };
        let sequence = batch.sequence();
        let output = match &self.plan.columns {
            Some(columns) => {
                let (data, selection) = batch.into_parts();
                let picked = columns.iter().map(|&column| data.column(column).clone()).collect();
                let data = self.plan.assemble(picked, data.num_rows())?;
                match selection {
                    Some(selection) => Batch::with_selection(data, selection),
                    None => Batch::new(data),
                }
            }
            None => {
                let data = compact(batch)?;
                let rows = data.num_rows();
                let computed = self
                    .plan
                    .expressions
                    .iter()
                    .map(|expression| expression.evaluate(&data)?.into_array_of_size(rows))
                    .collect::<Result<Vec<ArrayRef>, _>>()
                    .or_fail()?;
                Batch::new(self.plan.assemble(computed, rows)?)
            }
        };
        Ok(OperatorResult::Batch(output.at(sequence)))
    }
}

impl Plan {
    fn assemble(&self, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(self.schema.clone(), columns, &options).or_fail()
    }
}
