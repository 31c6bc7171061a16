//! Runs one query repeatedly, measures the time, and verifies every result with the oracles.

use std::num::NonZeroUsize;
use std::time::Instant;

use arrow::array::RecordBatch;
use datafusion::prelude::SessionContext;
use indicatif::ProgressBar;

use crate::engine::{self, Engine};
use crate::error::Error;
use crate::statements;

use super::queries::Query;
use super::reference::Reference;
use super::report::{Oracles, Outcome};
use super::{Catalog, answers};

/// How queries are measured.
pub(super) struct Measure<'a> {
    pub(super) engine: &'a Engine,
    pub(super) catalog: &'a Catalog,
    pub(super) iterations: NonZeroUsize,
    pub(super) threads: Option<NonZeroUsize>,
    pub(super) verify: bool,
    /// Whether the answers of the specification apply.
    pub(super) answers: bool,
}

/// The results of the statements that return rows, and the fallback nodes.
#[derive(Default)]
struct Results {
    results: Vec<Vec<RecordBatch>>,
    fallbacks: Vec<String>,
}

impl Measure<'_> {
    /// The oracles of the results.
    pub(super) fn oracles(&self) -> Oracles {
        match (self.verify, self.answers) {
            (false, _) => Oracles::None,
            (true, false) => Oracles::Reference,
            (true, true) => Oracles::ReferenceAndAnswers,
        }
    }

    /// Runs a query; an error is part of the outcome.
    pub(super) async fn run(&self, query: &Query, spinner: &ProgressBar) -> Outcome {
        let mut outcome = Outcome::new(query.number);
        let result = self.fill(query, spinner, &mut outcome).await;
        outcome.verified = self.verify && result.is_ok();
        outcome.error = result.err();
        outcome
    }

    async fn fill(
        &self,
        query: &Query,
        spinner: &ProgressBar,
        outcome: &mut Outcome,
    ) -> Result<(), String> {
        let mut reference = None;
        for iteration in 1..=self.iterations.get() {
            spinner
                .set_message(format!("q{}, run {iteration} of {}", query.number, self.iterations));
            let session = self.session(self.engine.session())?;
            let start = Instant::now();
            let results = run_query(query, &session, self.engine)
                .await
                .map_err(|error| failed("failed", &error))?;
            outcome.seconds.push(start.elapsed().as_secs_f64());
            outcome.rows = results.results.iter().flatten().map(RecordBatch::num_rows).sum();
            outcome.fallbacks = results.fallbacks;
            if self.verify {
                spinner.set_message(format!("q{}, verifying run {iteration}", query.number));
                if reference.is_none() {
                    reference = Some(self.reference(query).await?);
                }
                if let Some(reference) = &reference {
                    self.check(query, &results.results, reference).await?;
                }
            }
        }
        Ok(())
    }

    async fn reference(&self, query: &Query) -> Result<Reference, String> {
        let session = self.session(engine::reference_session(self.threads))?;
        Reference::run(query, session)
            .await
            .map_err(|error| failed("not verified, plain DataFusion fails", &error))
    }

    async fn check(
        &self,
        query: &Query,
        results: &[Vec<RecordBatch>],
        reference: &Reference,
    ) -> Result<(), String> {
        let (actual, expected) = (results.len(), reference.expected.len());
        if actual != expected {
            return Err(format!(
                "differs from plain DataFusion: {actual} results where {expected} are expected"
            ));
        }
        for (position, result) in results.iter().enumerate() {
            let checked = reference.check(position, result).await;
            checked.map_err(|difference| format!("differs from plain DataFusion: {difference}"))?;
        }
        if let (true, Some(result), Some(expected)) =
            (self.answers, results.last(), reference.expected.last())
        {
            answers::check(query.number, result, &expected.order).map_err(|difference| {
                format!("differs from the answer of the specification: {difference}")
            })?;
        }
        Ok(())
    }

    /// Gives each run a session of its own, so that a leftover of one run, such as a view, does not
    /// affect another.
    fn session(&self, session: SessionContext) -> Result<SessionContext, String> {
        self.catalog.register(&session).map_err(|error| failed("failed", &error))?;
        Ok(session)
    }
}

/// Runs all statements of a query, from parsing to the last row.
async fn run_query(
    query: &Query,
    session: &SessionContext,
    engine: &Engine,
) -> Result<Results, Error> {
    let limit = Engine::limit(session);
    let mut results = Results::default();
    let parsed = statements::parse(&query.sql).map_err(|error| Error::query(&error, session))?;
    for statement in parsed {
        let planned = statements::plan(session, statement, None, limit).await?;
        if !planned.has_result() {
            continue;
        }
        let nodes = engine.nodes();
        let collected = statements::collect(session, planned.frame, nodes, limit).await?;
        results.results.push(collected.batches);
        for fallback in collected.fallbacks {
            if !results.fallbacks.contains(&fallback) {
                results.fallbacks.push(fallback);
            }
        }
    }
    Ok(results)
}

fn failed(what: &str, error: &Error) -> String {
    let sentence = error.sentence().unwrap_or_default();
    format!("{what}: {}", sentence.trim_start_matches("error: "))
}
