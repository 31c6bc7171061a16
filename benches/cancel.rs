//! How long after a cancel a query has no task, no reserved byte and no temporary file, at random moments of
//! the TPC-H queries at scale factor 1 and of queries that spill. Only moments at which the query ran count.
//!
//! `cargo bench --bench cancel` needs the data that `gatework tpch` makes in `tpch-data/sf1`, and takes a few
//! minutes. It prints the median, the 99th percentile and the longest.

#![allow(clippy::print_stdout, reason = "the figures are what it is for")]

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
use gatework::{Executor, SessionStateBuilderExt, runtime::scheduler::Dice};

#[allow(dead_code, reason = "of what benches share, only the allocator is needed here")]
mod support;

const DATA: &str = "tpch-data/sf1";
const TABLES: [&str; 8] =
    ["lineitem", "orders", "partsupp", "customer", "part", "supplier", "nation", "region"];
const MEMORY_BYTES: usize = 64 << 20;
const MOMENTS: usize = 1000;

/// Queries that do not fit into that memory by far.
const HEAVY: [&str; 4] = [
    "SELECT l_comment, count(*) FROM lineitem GROUP BY l_comment",
    "SELECT l_orderkey, l_comment FROM lineitem ORDER BY l_comment, l_orderkey",
    "SELECT count(*) FROM lineitem a JOIN lineitem b ON a.l_comment = b.l_comment AND a.l_partkey < b.l_partkey",
    "SELECT l_orderkey FROM lineitem WHERE l_comment IN (SELECT l_comment FROM lineitem WHERE l_tax > 0.04)",
];

struct Bench {
    session: SessionContext,
    shared: Arc<RuntimeEnv>,
    folder: tempfile::TempDir,
}

impl Bench {
    async fn new(executor: &Executor) -> Result<Self, Box<dyn Error>> {
        let folder = tempfile::TempDir::new()?;
        let disk = DiskManagerBuilder::default()
            .with_mode(DiskManagerMode::Directories(vec![folder.path().to_owned()]));
        let pool = Arc::new(GreedyMemoryPool::new(MEMORY_BYTES));
        let shared = RuntimeEnvBuilder::new().with_memory_pool(pool);
        let shared = shared.with_disk_manager_builder(disk).build_arc()?;
        let state = SessionStateBuilder::new()
            .with_runtime_env(shared.clone())
            .with_default_features()
            .with_gatework(executor);
        let session = SessionContext::new_with_state(state.build());
        for table in TABLES {
            let path = format!("{DATA}/{table}.parquet");
            session.register_parquet(table, path, ParquetReadOptions::default()).await?;
        }
        Ok(Self { session, shared, folder })
    }

    /// How long it took until nothing of the query was left; `None` if it had ended by itself.
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

async fn run(moments: usize) -> Result<(), Box<dyn Error>> {
    let executor = Executor::builder().threads(2).build()?;
    let bench = Bench::new(&executor).await?;
    let queries: Vec<String> = (1..=22)
        .map(|number| fs::read_to_string(format!("cli/queries/q{number}.sql")))
        .collect::<Result<_, _>>()?;
    // One of them makes a view first.
    let queries: Vec<&str> = queries
        .iter()
        .map(String::as_str)
        .filter(|sql| !sql.to_lowercase().contains("create view"))
        .collect();
    println!("| | moments | median | p99 | longest |\n|---|--:|--:|--:|--:|");
    let heavy = HEAVY.to_vec();
    // Of the slow ones fewer, at later moments.
    let cases =
        [("TPC-H", queries, moments * 17 / 20, 150), ("spilling", heavy, moments * 3 / 20, 1500)];
    for (name, queries, moments, longest) in cases {
        let (mut dice, mut times) = (Dice::new(5), Vec::new());
        while times.len() < moments {
            let sql = queries[dice.below(queries.len())];
            let moment = Duration::from_micros(dice.below(longest * 1000) as u64);
            times.extend(bench.cancel(sql, moment).await?);
        }
        quantiles(name, times);
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    // Cargo runs benches in their package's folder.
    if !Path::new(DATA).is_dir() {
        println!("there is no {DATA}: `cargo run --release -p gatework-cli -- tpch` makes it");
        return Ok(());
    }
    let once = std::env::args().any(|argument| argument == "--test");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(run(if once { 20 } else { MOMENTS }))
}
