//! Runs one case as one trial: starts the graph, reads its rows, detects a hang.

use std::{pin::Pin, sync::Arc, task::Poll, time::Duration};

use arrow::array::RecordBatch;
use futures_core::Stream;
use gatework_runtime::{
    Error, Result,
    pipeline::{Graph, QueryContext, RowStream},
};

use super::{Case, Trial, wait::block_on_timeout};
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
    pub(super) peak_memory_bytes: usize,
}

/// Runs `case` to its end and checks that no task or memory remains.
pub(super) fn run(
    trial: &Trial,
    case: &Case,
    build: &Build,
    hang_after: Duration,
) -> Result<RunOutcome, String> {
    let query = QueryContext::new(trial.executor(), trial.options());
    let graph = build(case).map_err(|error| format!("building the graph failed: {error}"))?;
    let Some(readers) = case.take_readers() else {
        return Err("the graph has no result: end its last pipeline in `case.result(…)`".into());
    };
    let outcome = match graph.start(&query) {
        Ok(running) => {
            let mut streams = RowStream::of_query(&running, readers);
            // Dropping the streams cancels the query, so they are kept until a hang has been
            // described.
            read(&mut streams, hang_after)
                .ok_or_else(|| describe_hang(trial, &query, hang_after))?
        }
        Err(error) => (Vec::new(), Some(error)),
    };
    trial.assert_clean(&query, hang_after)?;
    let peak_memory_bytes = query.profile().peak_memory_bytes;
    Ok(RunOutcome { rows: outcome.0, error: outcome.1, peak_memory_bytes })
}

/// Returns all rows of all streams, up to the first error; `None` if no row arrives in time.
fn read(
    streams: &mut Vec<RowStream>,
    hang_after: Duration,
) -> Option<(Vec<RecordBatch>, Option<Error>)> {
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
