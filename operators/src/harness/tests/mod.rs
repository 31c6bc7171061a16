//! Tests of the harness: it catches buggy operators, reports idle modes, and reproduces seeds.

mod breakers;
mod buggy_calls;
mod buggy_finish;
mod buggy_operators;
mod buggy_states;
mod fault_memory;
mod multi_pipeline;
mod rows;
mod streaming;

use std::{fmt, sync::Arc, time::Duration};

use gatework_runtime::{
    Executor, Result,
    pipeline::{
        Batch, DriverContext, Graph, LocalOperator, Operator, OperatorContext, OperatorResult,
        QueryContext, RowStream,
    },
};

use super::{Case, Harness, Mode, Row, Trial, numbers, rows_of};
use crate::apply_selection;

/// Operator made from a function that creates its local states.
struct Made<F>(F);

impl<F> fmt::Debug for Made<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("made")
    }
}

impl<F: Fn(OperatorContext) -> Box<dyn LocalOperator> + Send + Sync> Operator for Made<F> {
    fn name(&self) -> &str {
        "made"
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalOperator>> {
        Ok((self.0)(context))
    }
}

/// Correct operator: passes every batch on.
struct Pass;

impl LocalOperator for Pass {
    fn execute(&mut self, input: Option<Batch>, _task: &DriverContext) -> Result<OperatorResult> {
        Ok(input.map_or(OperatorResult::NeedInput, OperatorResult::Batch))
    }
}

fn pass(_case: &Case) -> impl Operator + use<> {
    Made(|_context| Box::new(Pass) as Box<dyn LocalOperator>)
}

#[test]
fn a_right_operator_passes_and_every_mode_says_what_it_did() {
    let rows = numbers(0..40, 8);
    let report = Harness::operator(pass)
        .input(rows.clone())
        .expect_rows(&rows)
        .seeds(0..4)
        .check(Mode::without_memory());
    assert!(report.not_run().is_empty(), "{report}");
    for &mode in Mode::without_memory() {
        assert!(report.injections(mode) > 0, "{mode} injected nothing:\n{report}");
    }
    // One injection per trial, except in each sweep's last step, which was not reached.
    let sweep = report.modes.iter().find(|report| report.mode == Mode::Error).unwrap();
    assert_eq!(sweep.injections, sweep.trials - 3, "{report}");
}

#[test]
fn modes_that_did_nothing_are_reported() {
    let rows = numbers(0..4, 4);
    let harness =
        || Harness::operator(pass).input(rows.clone()).expect_rows(&rows).num_tasks(1..=1);
    let report = harness().run(&[Mode::Seeded, Mode::Memory, Mode::Plain]).unwrap();
    assert_eq!(report.not_run(), [Mode::Seeded, Mode::Memory], "one task, no reservation");
    assert!(report.to_string().contains("seeded: not run"), "{report}");
}

#[test]
fn the_rows_to_expect_must_be_stated() {
    let failure = Harness::operator(pass).input(numbers(0..4, 4)).run(Mode::with_rows());
    assert!(failure.unwrap_err().message.contains("no expected rows"));
}

/// Returns the rows of one trial on three tasks, in the order of arrival.
fn rows_in(trial: &Trial) -> Vec<Row> {
    let case = Case::new(trial, vec![numbers(0..60, 10)].into(), 3);
    let mut graph = Graph::new();
    let operators: Vec<Arc<dyn Operator>> = vec![Arc::new(pass(&case))];
    graph.add_pipeline("three tasks", 3, case.source(0), operators, case.result(3)).unwrap();
    let query = QueryContext::new(trial.executor(), trial.options());
    let running = graph.start(&query).unwrap();
    let stream = RowStream::of_query(&running, case.take_readers().unwrap()).remove(0);
    let batches: Vec<_> =
        stream.into_blocking_iter().map(|batch| apply_selection(batch.unwrap()).unwrap()).collect();
    trial.assert_clean(&query, Duration::from_secs(30)).unwrap();
    rows_of(&batches).unwrap()
}

fn seeded_run(seed: u64) -> (Vec<Row>, u64) {
    let trial = Trial::seeded(seed).unwrap();
    (rows_in(&trial), trial.executor().schedule().unwrap().fingerprint)
}

#[test]
fn a_seed_gives_its_schedule_again_and_other_seeds_give_others() {
    let runs: Vec<_> = (0..8).map(seeded_run).collect();
    for (seed, run) in (0..).zip(&runs) {
        assert_eq!(*run, seeded_run(seed), "seed {seed}");
    }
    let mut fingerprints: Vec<u64> = runs.iter().map(|(_, fingerprint)| *fingerprint).collect();
    fingerprints.sort_unstable();
    fingerprints.dedup();
    assert_eq!(fingerprints.len(), runs.len(), "each seed has a schedule of its own");
    assert!(runs.iter().any(|(rows, _)| *rows != runs[0].0), "the order of rows depends on it");
}

#[test]
fn a_seeded_executor_has_one_thread() {
    assert_eq!(Executor::builder().deterministic(1).build().unwrap().threads(), 1);
    let error = Executor::builder().deterministic(1).threads(2).build().unwrap_err();
    assert!(error.to_string().contains("one thread of its own"), "{error}");
}

#[test]
fn blocking_blocks_every_kind_of_call_of_every_task() {
    let trial = Trial::blocking(1000, 3).unwrap();
    assert_eq!(rows_in(&trial).len(), 60);
    let counts = trial.counts();
    // Sources and sinks of three tasks, and the operator between them.
    assert_eq!(counts.start_blocks, 3 * 3, "{counts:?}");
    assert_eq!(counts.finish_blocks, 2 * 3, "{counts:?}");
    assert!(counts.source_blocks >= 3, "{counts:?}");
    assert!(counts.operator_blocks >= 1 && counts.sink_blocks >= 1, "{counts:?}");
}

#[test]
fn tiny_batches_are_tiny() {
    let trial = Trial::tiny_batches(1).unwrap();
    assert_eq!(rows_in(&trial).len(), 60);
    assert_eq!(trial.counts().splits, 30, "each morsel of 2 rows is split once");
}
