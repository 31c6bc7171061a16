//! An aggregation without SQL: two pipelines, built by hand, that share the state of a breaker.
//!
//! ```text
//! memory scan → filter (n even) → aggregate sink      2 tasks, each with its own hash table
//!                                       ║             gate: ready when both have finished
//!                             aggregate source → result 2 tasks, merging by aggregate partition
//! ```
//!
//! `cargo run --release --example pipeline_by_hand`
#![allow(clippy::print_stdout, reason = "an example shows its result")]

use std::{error::Error, sync::Arc};

use datafusion::{
    arrow::{
        array::RecordBatch,
        datatypes::{DataType, Field, Schema, SchemaRef},
        util::pretty::pretty_format_batches,
    },
    functions_aggregate::sum::sum_udaf,
    logical_expr::Operator as Op,
    physical_expr::{
        PhysicalExpr,
        aggregate::AggregateExprBuilder,
        expressions::{binary, col, lit},
    },
};
use gatework::{
    Executor,
    operators::{
        apply_selection,
        filter::Filter,
        harness::numbers,
        hash_aggregate::{
            self, AggregateCall, AggregateConfig, AggregateInput, AggregateResult, GroupBy,
        },
        memory_scan::MemoryScan,
        result::ResultSink,
    },
    runtime::pipeline::{Graph, QueryContext, QueryOptions, RowStream, WaitEdge},
    shared_state::BufferLimit,
};

const TASKS: usize = 2;
const BATCH_ROWS: usize = 8192;
const RESULT_BYTES: usize = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let input = numbers(0..1_000_000, BATCH_ROWS);
    let schema = input[0].schema();
    let (sink, source) = hash_aggregate::new(sum_by_remainder(&schema)?, TASKS, TASKS)?;
    let (result, readers) = ResultSink::new(TASKS, 1, vec![], BufferLimit::new(RESULT_BYTES));

    let mut graph = Graph::new();
    let scan = MemoryScan::new(input, None, BATCH_ROWS);
    let filter = Arc::new(Filter::new(even(&schema)?, None));
    let producer =
        graph.add_pipeline("build", TASKS, Arc::new(scan), vec![filter], Arc::new(sink))?;
    let consumer =
        graph.add_pipeline("output", TASKS, Arc::new(source), vec![], Arc::new(result))?;
    graph.add_edge(WaitEdge::Breaker { producer, consumer });

    let executor = Executor::builder().threads(TASKS).build()?;
    let query = QueryContext::new(&executor, QueryOptions::default());
    let graph_handle = graph.start(&query)?;
    let mut rows: Vec<RecordBatch> = Vec::new();
    for partition in RowStream::of_query(&graph_handle, readers) {
        for batch in partition.into_blocking_iter() {
            rows.push(apply_selection(batch?)?);
        }
    }
    println!("{}", pretty_format_batches(&rows)?);
    println!("{}", query.profile());
    Ok(())
}

fn even(schema: &SchemaRef) -> Result<Arc<dyn PhysicalExpr>, Box<dyn Error>> {
    let remainder = binary(col("n", schema)?, Op::Modulo, lit(2i64), schema)?;
    Ok(binary(remainder, Op::Eq, lit(0i64), schema)?)
}

/// `SELECT n % 3 AS remainder, sum(n) AS total … GROUP BY n % 3`
fn sum_by_remainder(schema: &SchemaRef) -> Result<AggregateConfig, Box<dyn Error>> {
    let n = col("n", schema)?;
    let sum = AggregateExprBuilder::new(sum_udaf(), vec![n.clone()])
        .schema(schema.clone())
        .alias("total")
        .build()?;
    Ok(AggregateConfig {
        group_by: GroupBy {
            keys: vec![binary(n.clone(), Op::Modulo, lit(3i64), schema)?],
            sets: vec![vec![false]],
            ..Default::default()
        },
        aggregates: vec![AggregateCall {
            function: Arc::new(sum),
            arguments: vec![n],
            filter: None,
            counts_distinct: false,
        }],
        input: AggregateInput::Raw,
        output: AggregateResult::Final,
        input_schema: schema.clone(),
        schema: Arc::new(Schema::new(vec![
            Field::new("remainder", DataType::Int64, true),
            Field::new("total", DataType::Int64, true),
        ])),
        batch_rows: BATCH_ROWS,
        memory_is_limited: true,
    })
}
