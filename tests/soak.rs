//! Everything at once for a while: mixed queries of several tenants on several executors. Memory is
//! short, disks are small; there are cancellations, dropped streams, errors, panics, and
//! short-lived threads. Every result is right, every error is expected, nothing is left of any
//! query, and the process does not grow.
//!
//! `cargo test --release --test queries -- --ignored soak::for_two_minutes`

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use datafusion::{
    execution::{
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        memory_pool::{GreedyMemoryPool, MemoryPool, UnboundedMemoryPool},
        runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
        session_state::SessionStateBuilder,
    },
    prelude::{SessionConfig, SessionContext},
};
use futures::StreamExt;
use gatework::{
    Executor, SessionStateBuilderExt, Settings,
    runtime::scheduler::{GroupLimits, SplitMix64},
};
use tempfile::TempDir;

use crate::{
    query_end::{
        fault_udf::{FaultKind, FaultUdf, MESSAGE, mute_expected_panics, register_fault_udf},
        fixture::{files_below, register_tables},
        queries::END_QUERIES,
    },
    spill::heavy,
    support::{Case, Expected, QUERIES, Storage, Tpch, guarded, plan, reference_session},
};

const CLIENTS: usize = 4;
const MAX_THREADS: usize = 3;

/// A session with limits of its own, which one client uses at a time.
struct Tenant {
    executor: Executor,
    session: SessionContext,
    shared: Arc<RuntimeEnv>,
    fault_udf: Arc<FaultUdf>,
    folder: TempDir,
    is_limited: bool,
}

impl Tenant {
    async fn new(data: &Tpch, executor: &Executor, dice: &mut SplitMix64) -> Self {
        let limits = [None, Some(1 << 15), Some(1 << 20), Some(16 << 20)];
        let limit = limits[dice.next_below(limits.len())];
        let disks = [1_u64 << 40, 2 << 20, 64 << 20];
        let disk = disks[dice.next_below(disks.len())];
        let pool: Arc<dyn MemoryPool> = match limit {
            Some(bytes) => Arc::new(GreedyMemoryPool::new(bytes)),
            None => Arc::new(UnboundedMemoryPool::default()),
        };
        let folder = TempDir::new().unwrap();
        let disk = DiskManagerBuilder::default()
            .with_mode(DiskManagerMode::Directories(vec![folder.path().to_owned()]))
            .with_max_temp_directory_size(disk);
        let shared = RuntimeEnvBuilder::new().with_memory_pool(pool);
        let shared = shared.with_disk_manager_builder(disk).build_arc().unwrap();
        let group = [None, Some("reports".into()), Some("dashboards".into())];
        let settings =
            Settings { resource_group: group[dice.next_below(3)].clone(), ..Settings::default() };
        let state = SessionStateBuilder::new()
            .with_config(settings.into_config(SessionConfig::new()))
            .with_runtime_env(shared.clone())
            .with_default_features()
            .with_gatework(executor)
            .build();
        let session = SessionContext::new_with_state(state);
        let fault_udf = FaultUdf::new();
        register_all(data, &session, &fault_udf).await;
        let executor = executor.clone();
        Self { executor, session, shared, fault_udf, folder, is_limited: limit.is_some() }
    }

    /// Asserts that nothing is left of the last query, or that leftovers vanish soon.
    async fn assert_clean(&self, what: &str) {
        let leftovers = || (self.shared.memory_pool.reserved(), files_below(self.folder.path()));
        for _ in 0..2000 {
            if leftovers() == (0, 0) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{what}: reserved bytes and remaining files: {:?}", leftovers());
    }
}

async fn register_all(data: &Tpch, session: &SessionContext, fault_udf: &Arc<FaultUdf>) {
    data.register(session, Storage::Parquet).await;
    register_tables(session);
    register_fault_udf(session, fault_udf);
}

/// A window partition that must be seen whole does not spill; it fails if memory is short.
const TOO_LARGE: &str = "SELECT value AS v, sum(value) OVER (ORDER BY value
        ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING) AS s FROM generate_series(1, 100000)";

/// A query, its result, and the approximate number of calls of `fuse`; 0 for none.
struct Query {
    sql: &'static str,
    expected: Expected,
    calls: usize,
}

async fn queries(data: &Tpch) -> Vec<Query> {
    let (session, fault_udf) = (reference_session(), FaultUdf::new());
    register_all(data, &session, &fault_udf).await;
    let mut queries = Vec::new();
    let fixed = END_QUERIES.iter().map(|(_, sql)| *sql).chain(heavy());
    for sql in QUERIES.into_iter().chain(fixed).chain([TOO_LARGE]) {
        fault_udf.set(FaultKind::Error, 0);
        let expected = Expected::of(&session, sql).await.unwrap();
        queries.push(Query { sql, expected, calls: fault_udf.calls() });
    }
    queries
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Cancel,
    Drop,
    Udf(FaultKind),
}

#[derive(Default)]
struct Tally {
    right: AtomicUsize,
    cancelled: AtomicUsize,
    blown: AtomicUsize,
    out_of_memory: AtomicUsize,
    disk_full: AtomicUsize,
    spilled: AtomicU64,
}

fn add(counter: &AtomicUsize) {
    counter.fetch_add(1, Ordering::Relaxed);
}

async fn run_one(
    case: &Case,
    tenant: &Tenant,
    query: &Query,
    dice: &mut SplitMix64,
    tally: &Tally,
) {
    let fault = match dice.next_below(10) {
        0 => Fault::Cancel,
        1 => Fault::Drop,
        2 if query.calls > 0 => Fault::Udf(FaultKind::Error),
        3 if query.calls > 0 => Fault::Udf(FaultKind::Panic),
        _ => Fault::None,
    };
    tenant.fault_udf.set(FaultKind::Error, 0);
    // One of the queries creates a view, and drops it after its result.
    let _view = tenant.session.deregister_table("revenue0").unwrap();
    let planned = plan(case, &tenant.session, query.sql).await.unwrap();
    if let Fault::Udf(kind) = fault {
        tenant.fault_udf.set(kind, 1 + dice.next_below(query.calls));
    }
    let mut stream = match planned.stream() {
        Ok(stream) => stream,
        // The resource groups of this test refuse no query.
        Err(error) => panic!("{}: {error}", query.sql),
    };
    let handle = gatework::query(&planned.plan).unwrap();
    let pause = Duration::from_micros(dice.next_below(40_000) as u64);
    let mut batches = Vec::new();
    let mut error = None;
    match fault {
        Fault::Cancel => {
            tokio::time::sleep(pause).await;
            handle.cancel();
        }
        Fault::Drop => {
            let _timed_out = tokio::time::timeout(pause, async { stream.next().await }).await;
            drop(stream);
            drop((planned, handle));
            add(&tally.cancelled);
            return tenant.assert_clean(query.sql).await;
        }
        _ => {}
    }
    while let Some(batch) = stream.next().await {
        match batch {
            Ok(batch) => batches.push(batch),
            Err(first) => error = Some(first.to_string()),
        }
    }
    drop(stream);
    match error {
        None => {
            query.expected.check(query.sql, &batches);
            add(&tally.right);
            let profile = gatework::profile(&planned.plan).unwrap();
            let spilled = profile.operators.iter().filter_map(|o| o.counters.get("spilled_bytes"));
            tally.spilled.fetch_add(spilled.sum(), Ordering::Relaxed);
        }
        Some(error) => {
            let (counter, expected) = if error.contains("was cancelled: by its handle") {
                (&tally.cancelled, fault == Fault::Cancel)
            } else if error.contains(MESSAGE) {
                (&tally.blown, matches!(fault, Fault::Udf(_)))
            } else if error.contains("max_temp_directory_size") {
                (&tally.disk_full, tenant.is_limited)
            } else {
                let short = error.contains("not enough memory") || error.contains("exhausted");
                (&tally.out_of_memory, short && tenant.is_limited)
            };
            assert!(expected, "{fault:?}, {}: {error}", query.sql);
            add(counter);
        }
    }
    drop((planned, handle));
    tenant.assert_clean(query.sql).await;
}

/// Open files, threads, and resident memory in MiB.
fn footprint() -> [usize; 3] {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.unwrap_or(0)
    };
    let files = fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count());
    [files, value("Threads:"), value("VmRSS:") / 1024]
}

async fn client(
    case: Case,
    tenants: Vec<Tenant>,
    queries: Arc<Vec<Query>>,
    tally: Arc<Tally>,
    (seed, until): (u64, Instant),
) {
    let mut dice = SplitMix64::new(seed);
    while Instant::now() < until {
        let tenant = &tenants[dice.next_below(tenants.len())];
        if dice.next_below(20) == 0 {
            tenant.executor.set_threads(1 + dice.next_below(MAX_THREADS)).unwrap();
        }
        let query = &queries[dice.next_below(queries.len())];
        case.begin(query.sql);
        run_one(&case, tenant, query, &mut dice, &tally).await;
    }
}

fn soak(seed: u64, time: Duration) {
    mute_expected_panics();
    guarded(move |case| async move {
        let data = Tpch::new(20);
        let queries = Arc::new(queries(&data).await);
        let executors: Vec<Executor> = (0..2)
            .map(|_| Executor::builder().threads(2).max_threads(MAX_THREADS).build().unwrap())
            .collect();
        for executor in &executors {
            let weight = 300.try_into().unwrap();
            let two = GroupLimits { weight, max_running: 2.try_into().ok(), max_queued: None };
            executor.group("dashboards").set_limits(two);
        }
        let (tally, mut dice) = (Arc::new(Tally::default()), SplitMix64::new(seed));
        let until = Instant::now() + time;
        let mut clients = tokio::task::JoinSet::new();
        for client_number in 0..CLIENTS {
            let mut tenants = Vec::new();
            for number in 0..4 {
                let executor = &executors[(client_number + number) % executors.len()];
                tenants.push(Tenant::new(&data, executor, &mut dice).await);
            }
            let (case, queries, tally) = (case.clone(), queries.clone(), tally.clone());
            clients.spawn(client(case, tenants, queries, tally, (dice.next_u64(), until)));
        }
        let mut footprints = Vec::new();
        let mut tick = tokio::time::interval(time / 60);
        loop {
            tokio::select! {
                ended = clients.join_next() => match ended {
                    Some(ended) => ended.unwrap(),
                    None => break,
                },
                _ = tick.tick() => footprints.push(footprint()),
            }
        }
        assert!(executors.iter().all(|executor| executor.live_tasks() == 0));
        let of = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        let spilled = tally.spilled.load(Ordering::Relaxed);
        let counts =
            [&tally.right, &tally.cancelled, &tally.blown, &tally.out_of_memory, &tally.disk_full];
        println!(
            "seed {seed}: right, cancelled, blown, out of memory, disk full: {:?}; {} MiB \
             spilled; {footprints:?}",
            counts.map(of),
            spilled >> 20,
        );
        assert!(counts.map(of).iter().all(|count| *count > 0) && spilled > 0);
        assert_flat(&footprints);
        // The number of open files varies by hundreds while queries spill; without queries it is
        // constant.
        let (first, last) = (footprints[0][0], footprint()[0]);
        assert!(last <= first + 10, "{first} open files before, {last} afterwards");
        threads_end(footprints[0][1] + executors.len() * MAX_THREADS).await;
    });
}

/// Asserts that memory does not grow from the second quarter to the last one beyond normal
/// variation.
fn assert_flat(footprints: &[[usize; 3]]) {
    let quarter = footprints.len() / 4;
    let max = |range: &[[usize; 3]]| range.iter().map(|moment| moment[2]).max().unwrap_or(0);
    let early = max(&footprints[quarter..2 * quarter]);
    let late = max(&footprints[footprints.len() - quarter..]);
    assert!(late <= early + early / 2 + 100, "memory: {footprints:?}");
}

/// Waits until at most `max` threads are left. Tokio keeps as many threads for blocking calls as
/// were ever busy at once, and ends each when it has been idle for ten seconds.
async fn threads_end(max: usize) {
    let until = Instant::now() + Duration::from_secs(60);
    while footprint()[1] > max {
        assert!(Instant::now() < until, "{} threads are left, more than {max}", footprint()[1]);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[test]
#[ignore = "takes two minutes; .ci/run runs it"]
fn for_two_minutes() {
    soak(1, Duration::from_secs(120));
}

#[test]
#[ignore = "takes half an hour"]
fn for_half_an_hour() {
    soak(2, Duration::from_secs(1800));
}
