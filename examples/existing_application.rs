//! gatework in an application that already uses DataFusion.
//!
//! The application registers a table and uses SQL and DataFrames. Only the marked line is new.

use std::sync::Arc;

use arrow::{
    array::{Float64Array, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema},
    util::pretty::print_batches,
};
use datafusion::{
    error::Result,
    execution::session_state::SessionStateBuilder,
    functions_aggregate::expr_fn::sum,
    prelude::{SessionContext, col, lit},
};
use gatework::prelude::*;

fn orders() -> Result<RecordBatch> {
    let schema = Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("city", DataType::Utf8, false),
        Field::new("price", DataType::Float64, false),
    ]);
    let cities = ["Berlin", "Paris", "Rome"];
    Ok(RecordBatch::try_new(
        Arc::new(schema),
        vec![
            Arc::new(Int64Array::from_iter_values(0..1000)),
            Arc::new(StringArray::from_iter_values((0..1000).map(|id| cities[id % 3]))),
            Arc::new(Float64Array::from_iter_values((0..1000).map(f64::from))),
        ],
    )?)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let executor = Executor::builder().threads(2).build()?;
    let state = SessionStateBuilder::new()
        .with_default_features()
        .with_gatework(&executor) // the only new line
        .build();
    let context = SessionContext::new_with_state(state);
    context.register_batch("orders", orders()?)?;

    // SQL, as before.
    let by_city = "SELECT city, count(*) AS orders, sum(price) AS total \
                   FROM orders WHERE price >= 10 GROUP BY city ORDER BY city";
    print_batches(&context.sql(by_city).await?.collect().await?)?;

    // DataFrames, as before.
    let rome = context
        .table("orders")
        .await?
        .filter(col("city").eq(lit("Rome")))?
        .aggregate(vec![], vec![sum(col("price")).alias("total")])?;
    print_batches(&rome.clone().collect().await?)?;

    // Every node of the plan runs on gatework: there are no fallbacks.
    let plan = rome.create_physical_plan().await?;
    assert!(gatework::fallbacks(&plan).is_empty());
    Ok(())
}
