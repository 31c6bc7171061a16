//! The outcome of a statement under a time limit, and the comparison of two outcomes.

use std::{
    any::Any,
    collections::HashSet,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    time::Duration,
};

use arrow::{
    array::RecordBatch,
    util::display::{ArrayFormatter, FormatOptions},
};
use datafusion::{
    dataframe::DataFrame,
    error::Result,
    logical_expr::LogicalPlan,
    physical_plan::{ExecutionPlan, collect},
    prelude::SessionContext,
};
use gatework::verify::{Comparison, ResultOrder, Tolerance, without_limit};
use tokio::runtime::{Builder, Runtime};

use crate::{
    report::{Report, Severity},
    sessions::variants,
};

/// Time after which a statement counts as hanging.
const LIMIT: Duration = Duration::from_secs(60);

/// Sums of floats may cancel, so a relative distance alone is meaningless.
const TOLERANCE: Tolerance = Tolerance { relative: 1e-9, absolute: 1e-6 };

/// Words of errors that depend on which rows are evaluated, and in what order.
const ROW_DEPENDENT: &[&str] =
    &["Divide by zero", "overflow", "Overflow", "Cast error", "too large"];

/// Words of errors with which DataFusion refuses valid statements: its internal checks, and windows
/// whose partition key a condition makes equal to another value.
const OWN_REFUSALS: &[&str] = &[
    "Internal error",
    "Expects PARTITION BY expression to be ordered",
    "All partition by columns should have an ordering",
];

/// The result of a statement.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) logical: LogicalPlan,
    pub(crate) physical: Arc<dyn ExecutionPlan>,
    pub(crate) rows: Vec<RecordBatch>,
}

/// The outcome of a statement.
#[derive(Debug)]
pub(crate) enum Outcome {
    Rows(Ran),
    Refused(String),
    Panicked(String),
    Hung,
}

/// The relation of two outcomes.
#[derive(Debug)]
pub(crate) enum Verdict {
    Equal,
    BothRefuse,
    /// SQL leaves the answer open, as variants of the reference show.
    Undetermined,
    /// One side, which is named, has too little memory.
    OutOfMemory(&'static str),
    Different(Severity, String),
}

/// Runs statements, each within a time limit.
pub(crate) struct Runner(Runtime);

impl Runner {
    /// Creates a runner with threads of its own.
    pub(crate) fn new() -> Self {
        let mut builder = Builder::new_multi_thread();
        // Plans of deep expressions are walked recursively.
        let builder = builder.worker_threads(2).thread_stack_size(16 << 20).enable_all();
        Self(builder.build().unwrap())
    }

    /// Runs a future that must not hang.
    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.0.block_on(future)
    }

    /// Detaches the threads, including those that hang.
    pub(crate) fn abandon(self) {
        self.0.shutdown_background();
    }

    /// Plans and runs a statement.
    pub(crate) fn sql(&self, session: &SessionContext, sql: &str) -> Outcome {
        let (session, sql) = (session.clone(), sql.to_owned());
        self.outcome(async move { ran(session.sql(&sql).await?).await })
    }

    fn plan(&self, session: &SessionContext, plan: LogicalPlan) -> Outcome {
        let session = session.clone();
        self.outcome(async move { ran(DataFrame::new(session.state(), plan)).await })
    }

    fn outcome(&self, body: impl Future<Output = Result<Ran>> + Send + 'static) -> Outcome {
        let (sender, receiver) = mpsc::channel();
        let task = self.0.spawn(body);
        let abort = task.abort_handle();
        self.0.spawn(async move {
            let _nobody_waits = sender.send(task.await);
        });
        match receiver.recv_timeout(LIMIT) {
            Ok(Ok(Ok(ran))) => Outcome::Rows(ran),
            Ok(Ok(Err(error))) => match error.to_string() {
                text if text.contains("panicked") => Outcome::Panicked(text),
                text => Outcome::Refused(text),
            },
            Ok(Err(error)) => Outcome::Panicked(panic_text(error.into_panic().as_ref())),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                abort.abort();
                Outcome::Hung
            }
        }
    }

    /// Compares the outcomes of `sql` on gatework and the reference.
    pub(crate) fn verdict(
        &self,
        reference: &SessionContext,
        sql: &str,
        expected: &Outcome,
        actual: &Outcome,
    ) -> Verdict {
        let different = |severity, text| Verdict::Different(severity, text);
        match (expected, actual) {
            (_, Outcome::Hung) => different(Severity::Fatal, "gatework hangs".to_owned()),
            (Outcome::Hung, _) => different(Severity::NotOurs, "DataFusion hangs".to_owned()),
            (Outcome::Panicked(text), Outcome::Panicked(_) | Outcome::Refused(_)) => {
                different(Severity::NotOurs, format!("DataFusion panics: {text}"))
            }
            (_, Outcome::Panicked(text)) => {
                different(Severity::Panic, format!("gatework panics: {text}"))
            }
            (Outcome::Panicked(text), Outcome::Rows(_)) => {
                different(Severity::NotOurs, format!("only DataFusion panics: {text}"))
            }
            (Outcome::Refused(_), Outcome::Refused(_)) => Verdict::BothRefuse,
            (Outcome::Rows(expected), Outcome::Rows(actual)) => {
                self.verdict_of_rows(reference, sql, expected, actual)
            }
            (Outcome::Rows(_), Outcome::Refused(text)) if is_out_of_memory(text) => {
                Verdict::OutOfMemory("gatework")
            }
            (Outcome::Refused(text), Outcome::Rows(_)) if is_out_of_memory(text) => {
                Verdict::OutOfMemory("DataFusion")
            }
            (Outcome::Rows(_), Outcome::Refused(text)) => {
                let text = format!("only gatework refuses: {text}");
                self.unless_undetermined(reference, sql, false, text)
            }
            (Outcome::Refused(text), Outcome::Rows(_))
                if OWN_REFUSALS.iter().any(|words| text.contains(words)) =>
            {
                different(Severity::NotOurs, format!("only DataFusion refuses: {text}"))
            }
            (Outcome::Refused(text), Outcome::Rows(_)) => {
                let text = format!("only DataFusion refuses: {text}");
                self.unless_undetermined(reference, sql, true, text)
            }
        }
    }

    /// Returns `Undetermined` if variants of the reference disagree on whether `sql` is refused;
    /// otherwise that only one side refuses it is a finding.
    fn unless_undetermined(
        &self,
        reference: &SessionContext,
        sql: &str,
        refused: bool,
        text: String,
    ) -> Verdict {
        let row_dependent = ROW_DEPENDENT.iter().any(|words| text.contains(words));
        let mut others = variants(reference).map(|session| self.sql(&session, sql));
        if row_dependent || others.any(|other| matches!(other, Outcome::Refused(_)) != refused) {
            return Verdict::Undetermined;
        }
        Verdict::Different(Severity::OnlyOneRefuses, text)
    }

    fn verdict_of_rows(
        &self,
        reference: &SessionContext,
        sql: &str,
        expected: &Ran,
        actual: &Ran,
    ) -> Verdict {
        let Err(difference) = self.difference(reference, expected, actual) else {
            return Verdict::Equal;
        };
        let undetermined = variants(reference).any(|session| match self.sql(&session, sql) {
            Outcome::Rows(other) => self.difference(reference, expected, &other).is_err(),
            _ => true,
        });
        let is_distinct = is_distinct(&expected.logical);
        let severity = match is_distinct && repeats(&expected.rows) && !repeats(&actual.rows) {
            _ if undetermined => return Verdict::Undetermined,
            // DataFusion takes NaNs for distinct in some unions.
            true => Severity::NotOurs,
            false => Severity::WrongRows,
        };
        Verdict::Different(severity, difference)
    }

    fn difference(
        &self,
        reference: &SessionContext,
        expected: &Ran,
        actual: &Ran,
    ) -> Result<(), String> {
        let order = ResultOrder::of(&expected.logical);
        let comparison = Comparison::new(&order).tolerance(TOLERANCE);
        let difference = match comparison.check(&actual.rows, &expected.rows) {
            Ok(()) => return Ok(()),
            Err(difference) => difference,
        };
        let unlimited = without_limit(&expected.logical).filter(|_| difference.needs_unlimited());
        let Some(plan) = unlimited else { return Err(difference.to_string()) };
        let Outcome::Rows(unlimited) = self.plan(reference, plan) else {
            return Err(format!("{difference} (without its limit the query fails)"));
        };
        let comparison = comparison.unlimited(&unlimited.rows);
        comparison.check(&actual.rows, &expected.rows).map_err(|difference| difference.to_string())
    }
}

/// Returns whether SQL forbids equal rows in the result of `plan`.
fn is_distinct(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Distinct(_) => true,
        LogicalPlan::Sort(_) | LogicalPlan::Limit(_) | LogicalPlan::SubqueryAlias(_) => {
            plan.inputs().into_iter().all(is_distinct)
        }
        _ => false,
    }
}

/// Returns whether two of `rows` print alike.
fn repeats(rows: &[RecordBatch]) -> bool {
    let options = FormatOptions::new().with_null("NULL").with_types_info(false);
    let mut seen = HashSet::new();
    rows.iter().any(|batch| {
        let columns = batch.columns().iter();
        let columns = columns.map(|column| ArrayFormatter::try_new(column, &options).unwrap());
        let columns: Vec<_> = columns.collect();
        (0..batch.num_rows()).any(|row| {
            let texts = columns.iter().map(|column| format!("{:?}", column.value(row).to_string()));
            !seen.insert(texts.collect::<Vec<_>>())
        })
    })
}

/// Plans and runs a frame; a result without rows has a schema as well.
async fn ran(frame: DataFrame) -> Result<Ran> {
    let logical = frame.logical_plan().clone();
    let task = Arc::new(frame.task_ctx());
    let physical = frame.create_physical_plan().await?;
    let mut rows = collect(physical.clone(), task).await?;
    rows.push(RecordBatch::new_empty(physical.schema()));
    Ok(Ran { logical, physical, rows })
}

fn is_out_of_memory(error: &str) -> bool {
    error.contains("Resources exhausted") || error.contains("memory limit")
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    text.unwrap_or_else(|| "a panic without a text".to_owned())
}

/// Counts the nodes of a plan: native ones, and fallbacks by name.
pub(crate) fn count_nodes(report: &Report, plan: &Arc<dyn ExecutionPlan>) {
    let fallbacks = gatework::fallbacks(plan);
    report.count_nodes("native", nodes(plan) - fallbacks.len());
    for name in fallbacks {
        report.count_nodes(&format!("fallback {name}"), 1);
    }
}

fn nodes(plan: &Arc<dyn ExecutionPlan>) -> usize {
    1 + plan.children().into_iter().map(nodes).sum::<usize>()
}
