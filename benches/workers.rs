//! TPC-H on two worker processes of one thread each and a coordinator. gatework's workers and
//! datafusion-distributed's own alternate in the same run. Both read the same files, plan for the
//! same number of workers and partitions, and send rows by the same protocol.
//!
//! `cargo bench --bench workers --features cluster -- FOLDER [ROUNDS [QUERY …]]` prints the median
//! times of each query. FOLDER has the data of `gatework tpch`, such as `tpch-data/sf1`. Without
//! FOLDER the bench does nothing.

#![allow(clippy::print_stdout, reason = "the bench prints a table")]

use std::{
    error::Error,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use datafusion::{
    execution::{SessionState, SessionStateBuilder, runtime_env::RuntimeEnv},
    physical_plan::collect,
    prelude::{ParquetReadOptions, SessionConfig, SessionContext},
};
use datafusion_distributed::{DistributedExt, SessionStateBuilderExt, Worker};
use gatework::{
    Executor, Settings,
    stages::cluster::{
        AllowedLocations, ClusterAuth, ClusterOptions, ClusterSession, Connections, WorkerList,
        WorkerOptions, is_distributed, serve, worker,
    },
};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Handle},
};
use tonic::transport::{Server, server::TcpIncoming};

#[allow(dead_code, reason = "this bench uses only the allocator of the shared support")]
mod support;

type Outcome<T> = Result<T, Box<dyn Error>>;

const WORKERS: usize = 2;
const TABLES: [&str; 8] =
    ["customer", "lineitem", "nation", "orders", "part", "partsupp", "region", "supplier"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gatework,
    Plain,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Gatework => "gatework",
            Self::Plain => "plain",
        }
    }
}

/// Runs a worker: one thread for queries, and for gatework's one more that sends rows.
fn work(kind: Kind) -> Outcome<()> {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("http://{}", listener.local_addr()?);
        std::io::stdout().flush()?;
        if kind == Kind::Plain {
            let server = Server::builder().add_service(Worker::default().into_worker_server());
            let calls = TcpIncoming::from(listener).with_nodelay(Some(true));
            return Ok(server.serve_with_incoming(calls).await?);
        }
        let options = WorkerOptions {
            runtime: Arc::new(RuntimeEnv::default()),
            settings: Settings::default(),
            connections: Connections::default(),
            locations: AllowedLocations::allow_all(),
            io: Some(Handle::current()),
            codecs: Vec::new(),
        };
        let executor = Executor::builder().threads(1).build()?;
        let worker = worker(&executor, options)?;
        Ok(serve(worker, &ClusterAuth::default(), listener, std::future::pending(), || {}).await?)
    })
}

struct Process(Child, String);

impl Process {
    fn start(kind: Kind) -> Outcome<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--worker", kind.name()])
            // Free pages are purged after ten seconds, as in the command line's workers.
            .env("MIMALLOC_PURGE_DELAY", "10000")
            .stdout(Stdio::piped())
            .spawn()?;
        let mut url = String::new();
        BufReader::new(child.stdout.as_mut().ok_or("no output")?).read_line(&mut url)?;
        Ok(Self(child, url.trim().to_owned()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _waited = self.0.wait();
    }
}

fn session(kind: Kind, workers: &[Process], executor: &Executor) -> Outcome<SessionState> {
    let list = WorkerList::new(workers.iter().map(|worker| worker.1.as_str()))?;
    let builder = SessionStateBuilder::new()
        .with_config(SessionConfig::new().with_target_partitions(WORKERS))
        .with_default_features();
    Ok(match kind {
        Kind::Gatework => {
            builder.with_gatework_workers(executor, list, &ClusterOptions::default()).build()
        }
        Kind::Plain => {
            builder.with_distributed_worker_resolver(list).with_distributed_planner().build()
        }
    })
}

/// Returns the time of a query, and whether workers ran a part of it.
async fn run(session: &SessionContext, sql: &str) -> Outcome<(Duration, bool)> {
    let begun = Instant::now();
    let mut distributed = false;
    let statements = sql.lines().filter(|line| !line.trim_start().starts_with("--"));
    let statements = statements.collect::<Vec<_>>().join("\n");
    for statement in statements.split(';').filter(|statement| !statement.trim().is_empty()) {
        let frame = session.sql(statement).await?;
        let context = frame.task_ctx();
        let plan = frame.create_physical_plan().await?;
        distributed |= is_distributed(&plan);
        collect(plan, context.into()).await?;
    }
    Ok((begun.elapsed(), distributed))
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}

async fn measure(folder: &Path, rounds: usize, queries: &[usize]) -> Outcome<()> {
    let executor = Executor::builder().threads(WORKERS).build()?;
    let mut sessions = Vec::new();
    let mut processes = Vec::new();
    for kind in [Kind::Gatework, Kind::Plain] {
        let workers = (0..WORKERS).map(|_| Process::start(kind)).collect::<Outcome<Vec<_>>>()?;
        let session = SessionContext::new_with_state(session(kind, &workers, &executor)?);
        for table in TABLES {
            let path = folder.join(format!("{table}.parquet"));
            let path = path.to_str().ok_or("the name of the folder is not UTF-8")?;
            session.register_parquet(table, path, ParquetReadOptions::default()).await?;
        }
        sessions.push(session);
        processes.extend(workers);
    }
    println!("query   gatework ms   datafusion-distributed ms   ratio   on workers");
    let mut totals = [0.0; 2];
    for number in queries {
        let sql = std::fs::read_to_string(format!("cli/queries/q{number}.sql"))?;
        let mut times = [Vec::new(), Vec::new()];
        let mut on_workers = false;
        for _ in 0..rounds {
            for (session, times) in sessions.iter().zip(&mut times) {
                let (took, distributed) = run(session, &sql).await?;
                times.push(took);
                on_workers |= distributed;
            }
        }
        let [ours, theirs] = times.map(median);
        totals = [totals[0] + ours, totals[1] + theirs];
        println!("q{number:<5} {ours:>12.0} {theirs:>27.0} {:>7.2}   {on_workers}", ours / theirs);
    }
    let [ours, theirs] = totals;
    println!("total  {ours:>12.0} {theirs:>27.0} {:>7.2}", ours / theirs);
    Ok(())
}

fn main() -> Outcome<()> {
    // Cargo passes `--bench`.
    let arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let arguments: Vec<_> = arguments.collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--worker", "gatework"] => work(Kind::Gatework),
        ["--worker", "plain"] => work(Kind::Plain),
        [folder, more @ ..] if !folder.starts_with("--") => {
            let rounds = more.first().and_then(|rounds| rounds.parse().ok()).unwrap_or(3);
            let mut queries: Vec<usize> =
                more.iter().skip(1).map(|query| query.parse()).collect::<Result<_, _>>()?;
            if queries.is_empty() {
                queries.extend(1..=22);
            }
            let runtime = Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(measure(Path::new(folder), rounds, &queries))
        }
        _ => Ok(()),
    }
}
