//! An executor without work uses no CPU time: no worker spins or ticks.
#![cfg(all(target_os = "linux", not(any(loom, shuttle))))]
#![allow(clippy::unwrap_used, reason = "helpers of tests count as no tests for clippy")]

use std::{
    collections::HashMap,
    fs,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use gatework_runtime::{
    Executor, Result,
    pipeline::{
        Batch, DriverContext, FinishResult, Graph, LocalSink, LocalSource, OperatorContext,
        QueryContext, QueryOptions, Sink, SinkResult, Source, SourceResult,
    },
    shared_state::{Dependency, DependencyKind, Gate},
};

const WATCHED: Duration = Duration::from_secs(5);
const ALLOWED: Duration = Duration::from_millis(20);

/// Returns the CPU time that each thread of this process has used, in nanoseconds.
///
/// `/proc/self/stat` counts in ticks of 10 ms and includes the test runner's threads.
fn used_by_threads() -> HashMap<String, Duration> {
    let mut used = HashMap::new();
    for thread in fs::read_dir("/proc/self/task").unwrap() {
        let path = thread.unwrap().path();
        let (Ok(name), Ok(stat)) =
            (fs::read_to_string(path.join("comm")), fs::read_to_string(path.join("schedstat")))
        else {
            continue;
        };
        let nanos = stat.split_whitespace().next().and_then(|nanos| nanos.parse().ok()).unwrap();
        used.insert(format!("{} {}", name.trim(), path.display()), Duration::from_nanos(nanos));
    }
    used
}

/// Asserts that the threads whose names begin with `prefix` use at most `ALLOWED` CPU time.
fn assert_idle(prefix: &str, threads: usize) {
    let before = used_by_threads();
    thread::sleep(WATCHED);
    let after = used_by_threads();
    let workers: Vec<_> = after.iter().filter(|(name, _)| name.starts_with(prefix)).collect();
    assert_eq!(workers.len(), threads, "{after:?}");
    // A thread that got its name only after `before` counts with all its CPU time.
    let of_before = |name: &str| before.get(name).copied().unwrap_or_default();
    let used: Duration = workers.iter().map(|(name, used)| **used - of_before(name)).sum();
    assert!(used < ALLOWED, "idle workers used {used:?}: {workers:?}");
}

#[derive(Debug)]
struct Waits(Gate);

impl Source for Waits {
    fn name(&self) -> &str {
        "waits"
    }

    fn local(&self, _: OperatorContext) -> Result<Box<dyn LocalSource>> {
        Ok(Box::new(Self(self.0.clone())))
    }
}

impl LocalSource for Waits {
    fn next(&mut self, _: &DriverContext) -> Result<SourceResult> {
        Ok(match self.0.is_ready() {
            true => SourceResult::Finished,
            false => SourceResult::Blocked(self.0.clone().into()),
        })
    }
}

#[derive(Debug)]
struct Nowhere(Gate);

impl Sink for Nowhere {
    fn name(&self) -> &str {
        "nowhere"
    }

    fn local(&self, _: OperatorContext) -> Result<Box<dyn LocalSink>> {
        Ok(Box::new(Self(self.0.clone())))
    }
}

impl LocalSink for Nowhere {
    fn sink(&mut self, _: Option<Batch>, _: &DriverContext) -> Result<SinkResult> {
        Ok(SinkResult::NeedInput)
    }

    fn finish(&mut self, _: &DriverContext) -> Result<FinishResult> {
        Ok(FinishResult::Done)
    }

    fn closed(&self) -> Option<Gate> {
        Some(self.0.clone())
    }
}

/// Starts a query of three tasks that wait for `gate`.
fn blocked_query(executor: &Executor, gate: &Gate) -> Arc<QueryContext> {
    let query = QueryContext::new(executor, QueryOptions::default());
    let mut graph = Graph::new();
    let closed = Dependency::blocked("closed", DependencyKind::ConsumersGone);
    graph
        .add_pipeline(
            "blocked",
            3,
            Arc::new(Waits(gate.clone())),
            vec![],
            Arc::new(Nowhere(closed)),
        )
        .unwrap();
    graph.start(&query).unwrap();
    while query.dump().matches("waits for outside").count() < 3 {
        thread::yield_now();
    }
    query
}

fn executor(name: &'static str) -> Executor {
    let started = Arc::new(Mutex::new(0));
    let count = started.clone();
    let executor = Executor::builder()
        .threads(2)
        .thread_name(move |worker| format!("{name}-{worker}"))
        .on_thread_start(move |_| *count.lock().unwrap() += 1)
        .build()
        .unwrap();
    while *started.lock().unwrap() < 2 {
        thread::yield_now();
    }
    executor
}

fn wait_idle(query: &QueryContext) {
    while !query.idle().is_ready() {
        thread::yield_now();
    }
}

#[test]
fn an_executor_without_work_is_idle() {
    let executor = executor("fresh");
    assert_idle("fresh", 2);
    drop(executor);
}

#[test]
fn an_executor_whose_query_waits_outside_is_idle_and_wakes_up() {
    let executor = executor("blocked");
    let gate = Dependency::blocked("outside", DependencyKind::External);
    let query = blocked_query(&executor, &gate);
    assert_idle("blocked", 2);
    gate.set_ready();
    wait_idle(&query);
    assert!(query.error().is_none());
}

#[test]
fn an_executor_that_has_worked_is_idle_again() {
    let executor = executor("worked");
    for _ in 0..100 {
        let gate = Dependency::blocked("outside", DependencyKind::External);
        let query = blocked_query(&executor, &gate);
        gate.set_ready();
        wait_idle(&query);
    }
    let gate = Dependency::blocked("outside", DependencyKind::External);
    let cancelled = blocked_query(&executor, &gate);
    cancelled.cancel();
    wait_idle(&cancelled);
    assert_idle("worked", 2);
}

#[test]
fn a_hosted_executor_whose_query_waits_outside_is_idle() {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(2)
        .thread_name(|thread| format!("hosting-{thread}"))
        .build()
        .unwrap();
    let executor = Executor::builder().on_rayon_pool(Arc::new(pool)).build().unwrap();
    let gate = Dependency::blocked("outside", DependencyKind::External);
    let query = blocked_query(&executor, &gate);
    // Rayon's own threads spin briefly before they sleep; `ALLOWED` covers that.
    assert_idle("hosting", 2);
    gate.set_ready();
    wait_idle(&query);
}
