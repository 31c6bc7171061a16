//! The time from a cancel until a query has no task, no reserved byte and no temporary file.
//! Cancels come at random moments of the TPC-H queries at scale factor 1 and of queries that spill.
//! Only moments at which the query ran count.
//!
//! `cargo bench --bench cancel` needs the data that `gatework tpch` creates in `tpch-data/sf1`, and
//! takes a few minutes. It prints the median, the 99th percentile and the maximum. With `-- --heavy
//! FOLDER` it cancels queries over the tables in FOLDER (scale factor 10). These queries need far
//! more than their limit of 512 MiB.

#![allow(clippy::print_stdout, reason = "the bench prints a table")]

use std::{
    error::Error,
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use datafusion::{
    execution::{
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        memory_pool::GreedyMemoryPool,
        runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
        session_state::SessionStateBuilder,
    },
    physical_plan::execute_stream,
    prelude::*,
};
use futures::StreamExt;
use gatework::{Executor, SessionStateBuilderExt, runtime::scheduler::SplitMix64};

#[allow(dead_code, reason = "this bench uses only the allocator of the shared support")]
mod support;

const DATA: &str = "tpch-data/sf1";
const TABLES: [&str; 8] =
    ["lineitem", "orders", "partsupp", "customer", "part", "supplier", "nation", "region"];
const MEMORY_BYTES: usize = 64 << 20;
const MOMENTS: usize = 1000;

/// Queries that need far more than `MEMORY_BYTES`.
const LARGE: [&str; 5] = [
    "SELECT l_comment, count(*) FROM lineitem GROUP BY l_comment",
    "SELECT l_orderkey, l_comment FROM lineitem ORDER BY l_comment, l_orderkey",
    "SELECT count(*) FROM lineitem a
        JOIN lineitem b ON a.l_comment = b.l_comment AND a.l_partkey < b.l_partkey",
    "SELECT l_orderkey FROM lineitem
        WHERE l_comment IN (SELECT l_comment FROM lineitem WHERE l_tax > 0.04)",
    "SELECT l_extendedprice / sum(l_extendedprice) OVER () AS share, l_comment FROM lineitem",
];

const HEAVY_MEMORY_BYTES: usize = 512 << 20;
const HEAVY_MOMENTS: usize = 10;

/// Queries that need more than `HEAVY_MEMORY_BYTES` at scale factor 10. One of the joins has half
/// of all rows in one key.
const HEAVY: [(&str, &str); 7] = [
    (
        "100 M groups",
        "SELECT count(*), max(n) FROM
            (SELECT value, count(*) AS n FROM generate_series(1, 100000000) GROUP BY value)",
    ),
    (
        "lineitem joined with itself",
        "SELECT count(*), max(a.l_comment), max(b.l_comment) FROM lineitem a
            JOIN lineitem b ON a.l_orderkey = b.l_orderkey AND a.l_linenumber = b.l_linenumber",
    ),
    (
        "a join, half of both sides one key",
        "SELECT count(*), max(a.l_comment), max(b.l_comment) FROM
            (SELECT *, CASE WHEN l_orderkey % 2 = 0 THEN 0 ELSE l_orderkey END AS k
                FROM lineitem) a
            JOIN (SELECT *, CASE WHEN l_orderkey % 2 = 0 THEN 0 ELSE l_orderkey END AS k
                FROM lineitem) b
            ON a.k = b.k AND a.l_partkey = b.l_suppkey",
    ),
    (
        "sort of lineitem",
        "SELECT max(n), max(l_shipinstruct) FROM
            (SELECT *, row_number() OVER (ORDER BY l_comment) AS n FROM lineitem)",
    ),
    ("distinct comments", "SELECT count(DISTINCT l_comment) FROM lineitem"),
    ("distinct rows of lineitem", "SELECT count(*) FROM (SELECT DISTINCT * FROM lineitem)"),
    (
        "a window over lineitem",
        "SELECT count(*), max(x), max(c) FROM (SELECT
            l_extendedprice / sum(l_extendedprice) OVER () AS x, l_comment AS c FROM lineitem)",
    ),
];

struct Bench {
    session: SessionContext,
    shared: Arc<RuntimeEnv>,
    folder: tempfile::TempDir,
}

impl Bench {
    async fn new(data: &str, memory_bytes: usize) -> Result<Self, Box<dyn Error>> {
        let executor = Executor::builder().threads(2).build()?;
        let folder = tempfile::TempDir::new()?;
        let disk = DiskManagerBuilder::default()
            .with_mode(DiskManagerMode::Directories(vec![folder.path().to_owned()]));
        let pool = Arc::new(GreedyMemoryPool::new(memory_bytes));
        let shared = RuntimeEnvBuilder::new().with_memory_pool(pool);
        let shared = shared.with_disk_manager_builder(disk).build_arc()?;
        let state = SessionStateBuilder::new()
            .with_runtime_env(shared.clone())
            .with_default_features()
            .with_gatework(&executor);
        let session = SessionContext::new_with_state(state.build());
        for table in TABLES {
            let path = format!("{data}/{table}.parquet");
            session.register_parquet(table, path, ParquetReadOptions::default()).await?;
        }
        Ok(Self { session, shared, folder })
    }

    /// Cancels a query at `moment`. Returns the time until all its resources were released; `None`
    /// if it had ended before.
    async fn cancel(
        &self,
        sql: &str,
        moment: Duration,
    ) -> Result<Option<Duration>, Box<dyn Error>> {
        let plan = self.session.sql(sql).await?.create_physical_plan().await?;
        let mut stream = execute_stream(plan.clone(), self.session.task_ctx())?;
        let Some(query) = gatework::query(&plan) else { return Err("not on gatework".into()) };
        let reader = tokio::spawn(async move { while stream.next().await.is_some() {} });
        tokio::time::sleep(moment).await;
        let ran = query.live_tasks() > 0;
        let cancelled = Instant::now();
        query.cancel();
        loop {
            let memory = self.shared.memory_pool.reserved();
            if query.live_tasks() == 0 && memory == 0 && files(self.folder.path())? == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_micros(50)).await;
        }
        let took = cancelled.elapsed();
        reader.await?;
        Ok(ran.then_some(took))
    }
}

fn files(folder: &Path) -> Result<usize, std::io::Error> {
    let mut count = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        count += if path.is_dir() { files(&path)? } else { 1 };
    }
    Ok(count)
}

fn quantiles(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |part: usize| times.get(times.len().saturating_sub(1) * part / 1000).copied();
    let [median, p99, longest] = [500, 990, 1000].map(|part| at(part).unwrap_or_default());
    println!("| {name} | {} | {median:.2?} | {p99:.2?} | {longest:.2?} |", times.len());
}

/// Cancels random ones of `queries` `count` times, each within `longest` of its start.
async fn sweep(
    bench: &Bench,
    queries: &[&str],
    count: usize,
    longest: Duration,
) -> Result<Vec<Duration>, Box<dyn Error>> {
    let (mut dice, mut times) = (SplitMix64::new(5), Vec::new());
    while times.len() < count {
        let sql = queries[dice.next_below(queries.len())];
        let moment = longest.mul_f64(dice.next_below(1_000_000) as f64 / 1e6);
        times.extend(bench.cancel(sql, moment).await?);
    }
    Ok(times)
}

async fn run(moments: usize) -> Result<(), Box<dyn Error>> {
    let bench = Bench::new(DATA, MEMORY_BYTES).await?;
    let queries: Vec<String> = (1..=22)
        .map(|number| fs::read_to_string(format!("cli/queries/q{number}.sql")))
        .collect::<Result<_, _>>()?;
    // Query 15 creates a view first.
    let queries: Vec<&str> = queries
        .iter()
        .map(String::as_str)
        .filter(|sql| !sql.to_lowercase().contains("create view"))
        .collect();
    // Fewer cancels of the slow queries, at later moments.
    let (few, late) = (moments * 3 / 20, Duration::from_millis(1500));
    let times = sweep(&bench, &queries, moments - few, late / 10).await?;
    quantiles("TPC-H", times);
    quantiles("spilling", sweep(&bench, &LARGE, few, late).await?);
    Ok(())
}

async fn run_heavy(data: &str) -> Result<(), Box<dyn Error>> {
    let bench = Bench::new(data, HEAVY_MEMORY_BYTES).await?;
    for (name, sql) in HEAVY {
        let times = sweep(&bench, &[sql], HEAVY_MOMENTS, Duration::from_secs(10)).await?;
        quantiles(name, times);
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let arguments: Vec<String> = std::env::args().collect();
    println!("| | moments | median | p99 | longest |\n|---|--:|--:|--:|--:|");
    if let Some(heavy) = arguments.iter().position(|argument| argument == "--heavy") {
        let Some(data) = arguments.get(heavy + 1) else { return Err("--heavy FOLDER".into()) };
        return runtime.block_on(run_heavy(data));
    }
    // Cargo runs benches in the folder of their package.
    if !Path::new(DATA).is_dir() {
        println!("{DATA} does not exist: `cargo run --release -p gatework-cli -- tpch` creates it");
        return Ok(());
    }
    let once = arguments.iter().any(|argument| argument == "--test");
    runtime.block_on(run(if once { 20 } else { MOMENTS }))
}
