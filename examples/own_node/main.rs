//! Plan nodes of one's own in SQL: a sample (a streaming operator), and the greatest values per key
//! (a breaker). `cargo run --release --example own_node`
#![allow(clippy::print_stdout, reason = "an example shows its result")]

pub mod top_per_key;

use std::{error::Error, sync::Arc};

use datafusion::{error::Result, physical_plan::ExecutionPlan};
use gatework::{
    operators::prelude::*,
    prelude::*,
    sql::nodes::{NodeOperators, NodeTable, OperatorExec},
};

/// The state of one task of a sample: `skip` rows are left out before the next one is kept.
struct Sample {
    every: usize,
    skip: usize,
}

impl LocalOperator for Sample {
    fn execute(
        &mut self,
        input: Option<Batch>,
        _: &DriverContext,
    ) -> PipelineResult<OperatorResult> {
        let Some(batch) = input else { return Ok(OperatorResult::NeedInput) };
        let (sequence, rows) = (batch.sequence(), apply_selection(batch)?);
        let (skip, count) = (self.skip, rows.num_rows());
        // The next batch goes on where this one ends.
        self.skip = (skip + self.every - count % self.every) % self.every;
        let is_kept = |row: usize| row >= skip && (row - skip).is_multiple_of(self.every);
        Ok(OperatorResult::Batch(Batch::new(rows).refine(is_kept).with_sequence(sequence)))
    }
}

fn sample(input: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let schema = input.schema();
    let node = OperatorExec::new("SampleExec", vec![input], schema, |_context| {
        let sample = operator_from_fn("sample", |_context| Ok(Sample { every: 1000, skip: 0 }));
        Ok(NodeOperators::operator(sample))
    });
    Ok(node.with_same_order().into_plan())
}

fn top_three(input: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let schema = input.schema();
    let node = OperatorExec::new("TopPerKeyExec", vec![input], schema.clone(), move |context| {
        Ok(top_per_key::operators(3, context.num_input_tasks(0), schema.clone()))
    });
    Ok(node.into_plan())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::result::Result<(), Box<dyn Error>> {
    let executor = Executor::builder().threads(2).build()?;
    let session = session(&executor);
    let rows = "CREATE TABLE numbers AS \
                SELECT value % 4 AS key, value * 7 % 1000003 AS n FROM generate_series(1, 1000000)";
    session.sql(rows).await?;
    let table = session.table_provider("numbers").await?;
    session.register_table("sample", Arc::new(NodeTable::over(table.clone(), sample)))?;
    session.register_table("top", Arc::new(NodeTable::over(table, top_three)))?;

    session.sql("EXPLAIN SELECT count(*), avg(n) FROM sample WHERE n > 5").await?.show().await?;
    session.sql("SELECT count(*), avg(n) FROM sample WHERE n > 5").await?.show().await?;
    session.sql("EXPLAIN SELECT key, n FROM top ORDER BY key, n").await?.show().await?;
    session.sql("SELECT key, n FROM top ORDER BY key, n").await?.show().await?;
    Ok(())
}
