//! A plan node of one's own in SQL: a table that has about one in n rows of another one.
//! `cargo run --release --example own_node`
#![allow(clippy::print_stdout, reason = "an example shows its result")]

use std::{error::Error, sync::Arc};

use async_trait::async_trait;
use datafusion::{
    arrow::{array::BooleanArray, compute::filter_record_batch, datatypes::SchemaRef},
    catalog::{Session, TableProvider},
    error::Result,
    logical_expr::{Expr, TableType},
    physical_plan::ExecutionPlan,
};
use gatework::{
    operators::{ResultExt, apply_selection},
    prelude::*,
    runtime::{self, pipeline::*},
    sql::nodes::{NodeOperators, OperatorExec},
};

/// The operator, shared by all tasks. Each task keeps one of this number of rows.
#[derive(Debug)]
struct Sample(usize);

impl Operator for Sample {
    fn name(&self) -> &str {
        "sample"
    }

    fn local(&self, _context: OperatorContext) -> runtime::Result<Box<dyn LocalOperator>> {
        Ok(Box::new(LocalSample { every: self.0, skip: 0 }))
    }
}

/// The state of one task: `skip` rows are left out before the next one is kept.
struct LocalSample {
    every: usize,
    skip: usize,
}

impl LocalOperator for LocalSample {
    fn execute(
        &mut self,
        input: Option<Batch>,
        _task: &DriverContext,
    ) -> runtime::Result<OperatorResult> {
        let Some(batch) = input else { return Ok(OperatorResult::NeedInput) };
        let sequence = batch.sequence();
        let rows = apply_selection(batch)?;
        let is_kept = |row: usize| row >= self.skip && (row - self.skip).is_multiple_of(self.every);
        let kept: BooleanArray = (0..rows.num_rows()).map(|row| Some(is_kept(row))).collect();
        // The next batch goes on where this one ends.
        self.skip = (self.skip + self.every - rows.num_rows() % self.every) % self.every;
        let rows = filter_record_batch(&rows, &kept).query_err()?;
        Ok(match rows.num_rows() {
            0 => OperatorResult::NeedInput,
            _ => OperatorResult::Batch(Batch::new(rows).with_sequence(sequence)),
        })
    }
}

/// A table with a sample of another table's rows.
#[derive(Debug)]
struct SampledTable {
    table: Arc<dyn TableProvider>,
    every: usize,
}

#[async_trait]
impl TableProvider for SampledTable {
    fn schema(&self) -> SchemaRef {
        self.table.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = self.table.scan(session, projection, &[], None).await?;
        let (schema, every) = (input.schema(), self.every);
        let node = OperatorExec::new("SampleExec", vec![input], schema, move |_context| {
            Ok(NodeOperators::operator(Sample(every)))
        });
        Ok(node.with_same_order().into_plan())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::result::Result<(), Box<dyn Error>> {
    let executor = Executor::builder().threads(2).build()?;
    let session = session(&executor);
    session
        .sql("CREATE TABLE numbers AS SELECT value AS n FROM generate_series(1, 1000000)")
        .await?;
    let table = session.table_provider("numbers").await?;
    session.register_table("sample", Arc::new(SampledTable { table, every: 1000 }))?;

    session.sql("EXPLAIN SELECT count(*), avg(n) FROM sample WHERE n > 5").await?.show().await?;
    session.sql("SELECT count(*), avg(n) FROM sample WHERE n > 5").await?.show().await?;
    Ok(())
}
