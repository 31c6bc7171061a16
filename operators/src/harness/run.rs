//! Runs one case as one trial: starts the graph, reads its rows, detects a hang.

use std::{collections::BTreeMap, pin::Pin, sync::Arc, task::Poll, time::Duration};

use arrow::array::RecordBatch;
use futures_core::Stream;
use gatework_runtime::{
    Error, Result,
    pipeline::{Graph, GraphHandle, QueryContext, RowStream},
};
use gatework_shared_state::{Gate, sync::wakes_under_lock};

use super::{Case, Trial, leaks::LeakWatch, wait::block_on_timeout};
use crate::apply_selection;

/// Builder of a case's graph.
pub(super) type Build = dyn Fn(&Case) -> Result<Graph>;

/// Outcome of a run.
#[derive(Debug)]
pub(super) struct RunOutcome {
    /// Rows read before the end.
    pub(super) rows: Vec<RecordBatch>,
    /// Error returned to the reader.
    pub(super) error: Option<Error>,
    /// Whether the rows are those that a sink under test has collected.
    pub(super) collected: bool,
    pub(super) peak_memory_bytes: usize,
}

/// Runs `case` to its end and checks that no task, memory or operator remains.
pub(super) fn run(
    trial: &Trial,
    case: &Case,
    build: &Build,
    hang_after: Duration,
) -> Result<RunOutcome, String> {
    let woken_before = wakes_under_lock();
    let query = QueryContext::new(trial.executor(), trial.options());
    let graph = build(case).map_err(|error| format!("building the graph failed: {error}"))?;
    let mut leaks = LeakWatch::new(graph.watch());
    let collected = case.collects();
    let mut gates: Vec<String> = Vec::new();
    let (rows, error) = match graph.start(&query) {
        Ok(running) => {
            let outcome = outcome(trial, case, &running, hang_after)?;
            gates = running.gates().iter().map(|gate| gate.name().to_owned()).collect();
            let is_own = |gate: &Gate| trial.early_end.as_ref().is_some_and(|end| end.owns(gate));
            leaks.add_gates(&running, is_own);
            outcome
        }
        Err(error) => (Vec::new(), Some(error)),
    };
    if let Some(end) = &trial.early_end {
        end.release_inputs();
    }
    trial.assert_clean(&query, hang_after)?;
    let peak_memory_bytes = query.profile().peak_memory_bytes;
    drop(query);
    leaks.check()?;
    check_wakes(&woken_before, &gates)?;
    Ok(RunOutcome { rows, error, collected, peak_memory_bytes })
}

/// Checks that none of the run's gates has woken tasks under the lock of a shared state since there
/// were the wake-ups of `before` in this process.
fn check_wakes(before: &BTreeMap<String, usize>, gates: &[String]) -> Result<(), String> {
    let now = wakes_under_lock();
    match gates.iter().find(|gate| now.get(*gate) > before.get(*gate)) {
        Some(gate) => Err(format!(
            "gate '{gate}' has woken its waiters under the lock of a shared state: make it ready \
             with `set_ready` of the lock's guard, and change no other state under the lock"
        )),
        None => Ok(()),
    }
}

/// Rows, and the error that ended them.
type Rows = (Vec<RecordBatch>, Option<Error>);

/// Returns the rows of the graph's result, or those that its sink has collected.
fn outcome(
    trial: &Trial,
    case: &Case,
    running: &GraphHandle,
    hang_after: Duration,
) -> Result<Rows, String> {
    let query = running.query();
    let hang = || describe_hang(trial, query, hang_after);
    let Some(readers) = case.take_readers() else {
        let Some(collected) = case.take_collected() else {
            return Err(
                "the graph has no result: end its last pipeline in `case.result(…)`, or test its \
                 sink with `Harness::sink`"
                    .into(),
            );
        };
        let ended = block_on_timeout(hang_after, |context| {
            match running.finished().poll_ready(context.waker()) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        });
        ended.ok_or_else(hang)?;
        return Ok(match query.error() {
            Some(error) => (Vec::new(), Some(error)),
            None => (collected(), None),
        });
    };
    let mut streams = RowStream::of_query(running, readers);
    // Dropping the streams cancels the query, so they are kept until a hang has been described.
    read(&mut streams, hang_after).ok_or_else(hang)
}

/// Returns all rows of all streams, up to the first error; `None` if no row arrives in time.
fn read(streams: &mut Vec<RowStream>, hang_after: Duration) -> Option<Rows> {
    let mut rows = Vec::new();
    while !streams.is_empty() {
        let next = block_on_timeout(hang_after, |context| {
            for (index, stream) in streams.iter_mut().enumerate() {
                if let Poll::Ready(item) = Pin::new(stream).poll_next(context) {
                    return Poll::Ready((index, item));
                }
            }
            Poll::Pending
        });
        match next? {
            (_, Some(Ok(batch))) => match apply_selection(batch) {
                Ok(batch) => rows.push(batch),
                Err(error) => return Some((rows, Some(error))),
            },
            (_, Some(Err(error))) => return Some((rows, Some(error))),
            (index, None) => drop(streams.remove(index)),
        }
    }
    Some((rows, None))
}

/// Describes a hang, then cancels the query to test whether a cancellation ends it.
fn describe_hang(trial: &Trial, query: &Arc<QueryContext>, hang_after: Duration) -> String {
    let dump = query.dump();
    query.cancel();
    let ended = block_on_timeout(hang_after, |context| {
        if query.idle().poll_ready(context.waker()) { Poll::Ready(()) } else { Poll::Pending }
    });
    let after = match ended {
        Some(()) => "a cancellation ended it",
        None => {
            // Dropping the executor would wait for its tasks, and the report would never be
            // printed.
            std::mem::forget(trial.executor().clone());
            "even a cancellation did not end it"
        }
    };
    format!("the run hangs ({after}): no rows for {hang_after:?}\n{dump}")
}
