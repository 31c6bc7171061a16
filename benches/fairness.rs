//! Fairness on two threads: the latency of a short query beside two heavy ones, relative to its
//! latency alone. Also the throughput that the heavy queries keep. DataFusion does the same in the
//! same run, on a tokio runtime of two threads; `benches/fairness_duckdb.py` does it with DuckDB.
//!
//! `cargo bench --bench fairness` takes a minute and prints a table; with `--test`, a second.

#![allow(clippy::print_stdout, reason = "the bench prints a table")]

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arrow::{
    array::{ArrayRef, Int64Array, RecordBatch},
    datatypes::SchemaRef,
};
use datafusion::{datasource::MemTable, prelude::*};
use gatework::{Executor, session_with};
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinSet,
};

#[allow(dead_code, reason = "this bench uses only the allocator of the shared support")]
mod support;

const THREADS: usize = 2;
const BATCH_ROWS: usize = 8192;

const SHORT: &str = "SELECT few, sum(id), count(*) FROM small GROUP BY few";
const HEAVY: [&str; 2] = [
    "SELECT count(*) FROM (SELECT random, sum(id) FROM large GROUP BY random)",
    "SELECT sum(a.id) FROM large a JOIN large b ON a.random = b.random WHERE b.few < 50",
];

/// The duration of a phase, and the size of the large table.
struct Scale {
    rows: usize,
    phase: Duration,
    pause: Duration,
}

type Table = (SchemaRef, Vec<RecordBatch>);

fn table(rows: usize) -> Result<Table, Box<dyn Error>> {
    let mix = |row: usize| ((row as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 2) as i64;
    let batch = |number: usize| {
        let rows = number * BATCH_ROWS..rows.min((number + 1) * BATCH_ROWS);
        let numbers = |value: &dyn Fn(usize) -> i64| -> ArrayRef {
            Arc::new(rows.clone().map(value).collect::<Int64Array>())
        };
        RecordBatch::try_from_iter([
            ("id", numbers(&|row| row as i64)),
            ("random", numbers(&mix)),
            ("few", numbers(&|row| mix(row) % 100)),
        ])
    };
    let batches = (0..rows.div_ceil(BATCH_ROWS)).map(batch).collect::<Result<Vec<_>, _>>()?;
    Ok((batches[0].schema(), batches))
}

/// Registers both tables, each with one partition per thread.
fn with_tables(session: SessionContext, scale: &Scale) -> Result<SessionContext, Box<dyn Error>> {
    for (name, rows) in [("small", 100_000), ("large", scale.rows)] {
        let (schema, batches) = table(rows)?;
        let half = batches.len().div_ceil(THREADS);
        let parts = batches.chunks(half).map(<[_]>::to_vec).collect();
        session.register_table(name, Arc::new(MemTable::try_new(schema, parts)?))?;
    }
    Ok(session)
}

async fn run(
    session: &SessionContext,
    sql: &str,
) -> Result<usize, datafusion::error::DataFusionError> {
    Ok(session.sql(sql).await?.collect().await?.len())
}

/// The result of one phase.
struct Phase {
    /// Latencies of the short query, sorted.
    latencies: Vec<Duration>,
    heavy_per_second: f64,
}

impl Phase {
    fn p99(&self) -> Duration {
        let index = self.latencies.len().saturating_sub(1) * 99 / 100;
        self.latencies.get(index).copied().unwrap_or_default()
    }

    fn median(&self) -> Duration {
        self.latencies.get(self.latencies.len() / 2).copied().unwrap_or_default()
    }
}

/// Runs the short query after each `scale.pause`, the heavy ones in a loop, or both.
fn phase(
    runtime: &Runtime,
    session: &SessionContext,
    scale: &Scale,
    short: bool,
    heavy: bool,
) -> Result<Phase, Box<dyn Error>> {
    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicUsize::new(0));
    runtime.block_on(async {
        let mut heavies = JoinSet::new();
        for sql in HEAVY.iter().filter(|_| heavy) {
            let (session, stop, done) = (session.clone(), stop.clone(), done.clone());
            heavies.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    run(&session, sql).await?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<_, datafusion::error::DataFusionError>(())
            });
        }
        // By now the heavy queries have used more CPU time than a short one ever does.
        tokio::time::sleep(scale.phase / 10).await;
        let (started, before) = (Instant::now(), done.load(Ordering::Relaxed));
        let mut latencies = Vec::new();
        while started.elapsed() < scale.phase {
            tokio::time::sleep(scale.pause).await;
            if short {
                let session = session.clone();
                let asked = Instant::now();
                // On the runtime's threads, as in a server.
                tokio::spawn(async move { run(&session, SHORT).await }).await??;
                latencies.push(asked.elapsed());
            }
        }
        stop.store(true, Ordering::Relaxed);
        // Counted before the running queries end, which can take seconds.
        let finished = done.load(Ordering::Relaxed) - before;
        let elapsed = started.elapsed();
        while let Some(heavy) = heavies.join_next().await {
            heavy??;
        }
        latencies.sort_unstable();
        Ok(Phase { latencies, heavy_per_second: finished as f64 / elapsed.as_secs_f64() })
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let once = std::env::args().any(|argument| argument == "--test");
    let scale = if once {
        Scale { rows: 50_000, phase: Duration::from_millis(100), pause: Duration::from_millis(5) }
    } else {
        Scale { rows: 1_000_000, phase: Duration::from_secs(8), pause: Duration::from_millis(20) }
    };
    let executor = Executor::builder().threads(THREADS).build()?;
    let plain =
        SessionContext::new_with_config(SessionConfig::new().with_target_partitions(THREADS));
    let peers = [
        ("gatework", with_tables(session_with(&executor, SessionConfig::new()), &scale)?),
        ("DataFusion", with_tables(plain, &scale)?),
    ];
    println!(
        "| | short: median, p99 alone | beside two heavy | p99, times | heavy throughput kept |"
    );
    println!("|---|--:|--:|--:|--:|");
    for (name, session) in &peers {
        let runtime = Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
        let alone = phase(&runtime, session, &scale, true, false)?;
        let heavy = phase(&runtime, session, &scale, false, true)?;
        let both = phase(&runtime, session, &scale, true, true)?;
        println!(
            "| {name} | {:.2?}, {:.2?} | {:.2?}, {:.2?} | {:.1} | {:.0} % |",
            alone.median(),
            alone.p99(),
            both.median(),
            both.p99(),
            both.p99().as_secs_f64() / alone.p99().as_secs_f64(),
            100.0 * both.heavy_per_second / heavy.heavy_per_second,
        );
    }
    Ok(())
}
