//! The 22 queries of TPC-H in every chaos mode: plain DataFusion's rows, and nothing left of a
//! query that is ended at a step.
//!
//! Each mode has a short run, which is part of the tests, and a long one with 200 seeds:
//! `cargo test --release --test queries -- --ignored tpch_chaos`.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::{collections::HashSet, num::NonZeroUsize, sync::Arc, time::Duration};

use datafusion::{
    execution::session_state::SessionStateBuilder,
    prelude::{SessionConfig, SessionContext},
};
use gatework::{
    Executor, SessionStateBuilderExt, Settings,
    runtime::pipeline::{Chaos, ChaosCounts, Fault},
};

use crate::{
    fixture::TpchFixture,
    support::{Case, Planned, QUERIES, Storage, executor, guarded, plan, settle},
};

const SHORT: u64 = 20;
const LONG: u64 = 200;
/// Number of steps in a fault sweep over one query: the first, the last, and some between.
const FAULT_STEPS: u64 = 24;

/// How a query is disturbed.
#[derive(Debug, Clone, Copy)]
enum Mode {
    /// Calls block once and are woken by another thread; some waits end spuriously.
    Blocks,
    /// A seed picks the next runnable task, which runs for one step.
    Seeded,
    /// Batches of a few rows, and some blocked calls.
    Tiny,
}

async fn session(
    tpch: &TpchFixture,
    executor: &Executor,
    storage: Storage,
    chaos: Chaos,
) -> SessionContext {
    // Steps of a deterministic executor must interleave. More tasks than threads give the schedule
    // more choices.
    let settings = Settings {
        time_slice: Duration::ZERO,
        max_tasks_per_pipeline: NonZeroUsize::new(3),
        chaos: Some(Arc::new(chaos)),
        ..Settings::default()
    };
    let config = settings.into_config(SessionConfig::new());
    let state = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(tpch.runtime())
        .with_default_features()
        .with_gatework(executor)
        .build();
    let session = SessionContext::new_with_state(state);
    tpch.data.register(&session, storage).await;
    session
}

/// What chaos did to the queries of `session` so far.
fn counts(session: &SessionContext) -> ChaosCounts {
    let settings = Settings::of(session.state().config());
    settings.chaos.as_ref().unwrap().counts()
}

async fn run_queries(case: &Case, tpch: &TpchFixture, executor: &Executor, mode: Mode, seed: u64) {
    // Every other seed reads files: threads outside the executor finish these reads, so a seed
    // determines less.
    let storage = if seed.is_multiple_of(2) { Storage::Memory } else { Storage::Parquet };
    let chaos = match mode {
        Mode::Blocks => Chaos::new(seed).block_every(3).spurious_wakeups_every(4),
        Mode::Seeded => Chaos::new(seed).split_batches(2000),
        Mode::Tiny => Chaos::new(seed).split_batches(37 + (seed % 7) as usize).block_every(200),
    };
    let session = session(tpch, executor, storage, chaos).await;
    for (number, (sql, expected)) in (1..).zip(QUERIES.iter().zip(&tpch.expected)) {
        let name = format!("q{number}, {mode:?}, {storage:?}, seed {seed}");
        case.begin(&name);
        let batches = plan(case, &session, sql).await.unwrap().collect().await.unwrap();
        expected.check(&name, &batches);
    }
    tpch.assert_clean(std::slice::from_ref(executor), &format!("{mode:?}, seed {seed}"));
    let counts = counts(&session);
    match mode {
        Mode::Blocks => {
            assert!(counts.start_blocks > 0 && counts.source_blocks > 0, "{counts:?}");
            assert!(counts.operator_blocks > 0 && counts.sink_blocks > 0, "{counts:?}");
            assert!(counts.finish_blocks > 0 && counts.spurious_wakeups > 0, "{counts:?}");
        }
        Mode::Tiny => assert!(counts.splits > 0 && counts.blocks() > 0, "{counts:?}"),
        Mode::Seeded => assert!(counts.splits > 0, "{counts:?}"),
    }
}

fn equal_rows(mode: Mode, seeds: u64) {
    guarded(move |case| async move {
        let tpch = TpchFixture::new().await;
        let mut schedules = HashSet::new();
        for seed in 0..seeds {
            let executor = match mode {
                Mode::Seeded => Executor::builder().deterministic(seed).build().unwrap(),
                Mode::Blocks | Mode::Tiny => executor(2),
            };
            run_queries(&case, &tpch, &executor, mode, seed).await;
            schedules.extend(executor.schedule().map(|schedule| schedule.fingerprint));
        }
        if matches!(mode, Mode::Seeded) {
            assert_eq!(schedules.len() as u64, seeds, "seeds that gave the same schedule");
        }
    });
}

#[test]
fn blocked_and_woken() {
    equal_rows(Mode::Blocks, SHORT);
}

#[test]
fn random_schedules() {
    equal_rows(Mode::Seeded, SHORT);
}

#[test]
fn tiny_batches() {
    equal_rows(Mode::Tiny, SHORT / 2);
}

#[test]
#[ignore = "takes minutes"]
fn blocked_and_woken_by_200_seeds() {
    equal_rows(Mode::Blocks, LONG);
}

#[test]
#[ignore = "takes minutes"]
fn random_schedules_of_200_seeds() {
    equal_rows(Mode::Seeded, LONG);
}

#[test]
#[ignore = "takes minutes"]
fn tiny_batches_of_200_seeds() {
    equal_rows(Mode::Tiny, LONG);
}

/// Runs `query` in a session of its own, with `fault` at `step`. Returns whether the fault ended
/// it.
async fn fault_once(
    case: &Case,
    tpch: &TpchFixture,
    executor: &Executor,
    (number, fault, step): (usize, Fault, u64),
) -> bool {
    let name = format!("q{number}, {fault:?} at step {step}");
    case.begin(&name);
    let chaos = Chaos::new(step).split_batches(1000).fault_at(fault, step);
    let session = session(tpch, executor, Storage::Memory, chaos).await;
    let planned: Planned = plan(case, &session, QUERIES[number - 1]).await.unwrap();
    let result = planned.collect().await;
    let hit = counts(&session).fault;
    match (result, hit, fault) {
        (Err(error), true, _) => {
            let (error, says) = match fault {
                Fault::Cancel => (error.to_string(), "cancelled"),
                Fault::Error => (error.to_string(), "chaos: error at step"),
                Fault::Panic => (error.to_string(), "chaos: panic at step"),
                Fault::DropTask => (error.to_string(), "a producer ended without finishing"),
            };
            assert!(error.contains(says), "{name}: {error}");
        }
        // The rows may have been emitted before the last calls of tasks.
        (Ok(batches), _, Fault::Cancel | Fault::DropTask) | (Ok(batches), false, _) => {
            tpch.expected[number - 1].check(&name, &batches);
        }
        (Ok(_), true, _) => panic!("{name}: the failure is lost"),
        (Err(error), false, _) => panic!("{name}: {error}"),
    }
    drop(planned);
    tpch.assert_clean(std::slice::from_ref(executor), &name);
    hit
}

/// The steps to try of a query with `steps` steps.
fn chosen(steps: u64, all: bool) -> Vec<u64> {
    if all || steps <= FAULT_STEPS {
        return (0..steps).collect();
    }
    let edge = FAULT_STEPS / 3;
    let between = (1..=edge).map(|n| edge + (steps - 2 * edge) * n / (edge + 1));
    (0..edge).chain(between).chain(steps - edge..steps).collect()
}

fn ends_clean(all: bool) {
    guarded(move |case| async move {
        let tpch = TpchFixture::new().await;
        let executor = executor(2);
        for number in 1..=QUERIES.len() {
            let chaos = Chaos::new(0).split_batches(1000);
            let session = session(&tpch, &executor, Storage::Memory, chaos).await;
            let planned = plan(&case, &session, QUERIES[number - 1]).await.unwrap();
            planned.collect().await.unwrap();
            settle(&executor);
            let steps = counts(&session).steps;
            assert!(steps > 20, "q{number} has only {steps} steps");
            for fault in [Fault::Cancel, Fault::Error, Fault::Panic] {
                let mut hits = 0;
                for step in chosen(steps, all) {
                    let query = (number, fault, step);
                    hits += usize::from(fault_once(&case, &tpch, &executor, query).await);
                }
                assert!(hits > 10, "q{number}: {fault:?} was reached {hits} times only");
            }
        }
    });
}

#[test]
fn ends_at_some_steps() {
    ends_clean(false);
}

#[test]
#[ignore = "takes minutes"]
fn ends_at_every_step() {
    ends_clean(true);
}
