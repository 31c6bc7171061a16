//! Runs SQL for `compare.py` on gatework or on DataFusion: one binary, one allocator, the same
//! tables and the same number of threads.
//!
//! ```text
//! engine gatework|datafusion THREADS memory|files TABLE=FILE…
//! ```
//!
//! Prints `ready` once the tables are there. Each line of standard input is a JSON array of
//! statements, which are run one after the other. The answer is a line of JSON: the seconds, and
//! the rows of the largest result as text if there are at most [`MAX_ROWS`], else their number; or
//! the error.

#![allow(clippy::print_stdout, reason = "the answers")]

use std::{
    env,
    error::Error,
    io::{BufRead, stdin},
    sync::Arc,
    time::Instant,
};

use arrow::{
    array::RecordBatch,
    util::display::{ArrayFormatter, FormatOptions},
};
use datafusion::{datasource::MemTable, prelude::*};
use gatework::Executor;
use serde_json::{Value, json};

#[allow(dead_code, reason = "this bench uses only the allocator of the shared support")]
mod support;

/// Maximum number of rows of an answer.
const MAX_ROWS: usize = 10_000;

fn main() -> Result<(), Box<dyn Error>> {
    // `cargo bench` adds an argument of its own.
    let arguments: Vec<String> = env::args().skip(1).filter(|word| word != "--bench").collect();
    let [engine, threads, place, tables @ ..] = arguments.as_slice() else {
        println!("see benches/compare.py");
        return Ok(());
    };
    let threads: usize = threads.parse()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    let config = SessionConfig::new().with_target_partitions(threads);
    let executor;
    let session = match engine.as_str() {
        "gatework" => {
            executor = Executor::builder().threads(threads).build()?;
            gatework::session_with(&executor, config)
        }
        _ => SessionContext::new_with_config(config),
    };
    runtime.block_on(async {
        for table in tables {
            let (name, path) = table.split_once('=').ok_or("TABLE=FILE expected")?;
            register(&session, name, path, place == "memory").await?;
        }
        println!("ready");
        for line in stdin().lock().lines() {
            let statements: Vec<String> = serde_json::from_str(&line?)?;
            let answer = run(&session, &statements).await;
            println!("{}", answer.unwrap_or_else(|error| json!({"error": error.to_string()})));
        }
        Ok(())
    })
}

async fn register(
    session: &SessionContext,
    name: &str,
    path: &str,
    in_memory: bool,
) -> Result<(), Box<dyn Error>> {
    if !in_memory {
        return Ok(session.register_parquet(name, path, ParquetReadOptions::default()).await?);
    }
    let table = session.read_parquet(path, ParquetReadOptions::default()).await?;
    let schema = Arc::new(table.schema().as_arrow().clone());
    let partitions = table.collect_partitioned().await?;
    session.register_table(name, Arc::new(MemTable::try_new(schema, partitions)?))?;
    Ok(())
}

async fn run(session: &SessionContext, statements: &[String]) -> Result<Value, Box<dyn Error>> {
    let started = Instant::now();
    let mut results = Vec::new();
    for sql in statements {
        results.push(session.sql(sql).await?.collect().await?);
    }
    let seconds = started.elapsed().as_secs_f64();
    let rows = |batches: &Vec<RecordBatch>| batches.iter().map(RecordBatch::num_rows).sum();
    let largest = results.iter().max_by_key(|batches| rows(batches));
    let count: usize = largest.map_or(0, rows);
    if count > MAX_ROWS {
        return Ok(json!({"seconds": seconds, "count": count}));
    }
    let rows = largest.into_iter().flatten().map(as_text).collect::<Result<Vec<_>, _>>()?;
    Ok(json!({"seconds": seconds, "rows": rows.concat()}))
}

/// Returns the rows of `batch` as text; NULL as JSON's `null`.
fn as_text(batch: &RecordBatch) -> Result<Vec<Vec<Value>>, Box<dyn Error>> {
    let options = FormatOptions::default();
    let columns = batch.columns();
    let formatters = columns.iter().map(|c| ArrayFormatter::try_new(c.as_ref(), &options));
    let formatters: Vec<_> = formatters.collect::<Result<_, _>>()?;
    let value = |row: usize, column: usize| match columns[column].logical_nulls() {
        Some(nulls) if nulls.is_null(row) => Value::Null,
        _ => Value::from(formatters[column].value(row).to_string()),
    };
    let row = |row| (0..columns.len()).map(|column| value(row, column)).collect();
    Ok((0..batch.num_rows()).map(row).collect())
}
