//! Test harness: runs an operator, or a whole graph, under chaos and compares its rows.
//!
//! A test supplies batches, an operator and the expected rows, and selects [`Mode`]s. Each mode
//! runs on 1, 2 and 3 tasks by default. After each run no task, no reserved byte, no blocked gate,
//! no operator and no shared state may remain. A mode without an injection has not passed; it is
//! reported as "not run". A failure names its mode, seed and number of tasks. If the expected rows
//! are a function of the inputs ([`Harness::expect_model`]), it also shows the smallest inputs
//! found for which the trial fails.
//!
//! Unit tests that call a local state themselves get its contexts from [`contexts`].
//!
//! ```
//! use gatework_operators::{harness::{Harness, Mode, numbers}, limit::Limit};
//! Harness::operator(|_case| Limit::new(0, Some(10)))
//!     .input(numbers(0..100, 8))
//!     .expect_with(|batches| {
//!         let rows: usize = batches.iter().map(|batch| batch.num_rows()).sum();
//!         if rows == 10 { Ok(()) } else { Err(format!("{rows} rows instead of 10")) }
//!     })
//!     .seeds(0..3)
//!     .check(Mode::without_memory());
//! ```

mod case;
mod early_end;
mod expect;
mod fault_memory;
mod inputs;
mod instance;
mod instance_sweep;
mod leaks;
mod mode;
mod report;
mod rows;
mod run;
mod shrink;
mod trial;
mod wait;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    ops::{Range, RangeInclusive},
    sync::Arc,
    time::Duration,
};

use arrow::array::RecordBatch;
use gatework_runtime::{
    Executor, Result,
    pipeline::{
        DriverContext, Graph, Operator, OperatorContext, QueryContext, QueryOptions, Sink, Source,
        WaitEdge,
    },
};

use self::{expect::Expected, instance_sweep::InstanceSweep, run::Build};

pub use case::Case;
#[cfg(test)]
pub(crate) use fault_memory::{InMemorySpill, RandomDenialPool};
pub use inputs::{huge_texts, numbers, numbers_with_nulls, skewed_numbers};
pub use mode::Mode;
pub use report::{HarnessFailure, ModeReport, Report};
pub use rows::{Row, rows_of, same_rows, same_sequence};
pub use trial::Trial;

/// Harness that runs a graph in several modes and checks its rows. See the [module](self).
pub struct Harness {
    build: Box<Build>,
    inputs: Vec<Vec<RecordBatch>>,
    num_tasks: Vec<usize>,
    sink_tasks: Option<usize>,
    expected: Option<Expected>,
    seeds: Range<u64>,
    stride: u64,
    hang_after: Duration,
}

impl fmt::Debug for Harness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Harness")
            .field("inputs", &self.inputs.len())
            .field("num_tasks", &self.num_tasks)
            .field("seeds", &self.seeds)
            .finish_non_exhaustive()
    }
}

impl Harness {
    /// Creates a test of a streaming operator between a scan of the first input and a result.
    pub fn operator<O: Operator + 'static>(make: impl Fn(&Case) -> O + 'static) -> Self {
        Self::graph(move |case| {
            let mut graph = Graph::new();
            let (source, result) = (case.source(0), case.result(case.num_tasks()));
            let operators: Vec<Arc<dyn Operator>> = vec![Arc::new(make(case))];
            graph.add_pipeline("harness", case.num_tasks(), source, operators, result)?;
            Ok(graph)
        })
    }

    /// Creates a test of a source in front of a result.
    pub fn source<S: Source + 'static>(make: impl Fn(&Case) -> S + 'static) -> Self {
        Self::graph(move |case| {
            let mut graph = Graph::new();
            let result = case.result(case.num_tasks());
            graph.add_pipeline(
                "harness",
                case.num_tasks(),
                Arc::new(make(case)),
                vec![],
                result,
            )?;
            Ok(graph)
        })
    }

    /// Creates a test of a breaker: a sink behind a scan of the first input, and a source in front
    /// of a result. `make` returns both, and the number of source tasks.
    pub fn breaker<I: Sink + 'static, O: Source + 'static>(
        make: impl Fn(&Case) -> (I, O, usize) + 'static,
    ) -> Self {
        Self::graph(move |case| {
            let mut graph = Graph::new();
            let (sink, source, source_tasks) = make(case);
            let input = case.source(0);
            let producer = graph.add_pipeline(
                "harness in",
                case.sink_tasks(),
                input,
                vec![],
                Arc::new(sink),
            )?;
            let result = case.result(source_tasks);
            let consumer = graph.add_pipeline(
                "harness out",
                source_tasks,
                Arc::new(source),
                vec![],
                result,
            )?;
            graph.add_edge(WaitEdge::Breaker { producer, consumer });
            Ok(graph)
        })
    }

    /// Creates a test of a sink behind a scan of the first input. `make` returns the sink, and a
    /// function that returns, after the run, the rows that the sink has collected.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use arrow::array::RecordBatch;
    /// # use parking_lot::Mutex;
    /// use gatework_operators::{apply_selection, harness::{Harness, Mode, numbers}};
    /// use gatework_runtime::{Result, pipeline::*};
    /// struct Keep(Arc<Mutex<Vec<RecordBatch>>>);
    /// impl LocalSink for Keep {
    ///     fn sink(&mut self, batch: Option<Batch>, _: &DriverContext) -> Result<SinkResult> {
    ///         let rows = batch.map(apply_selection).transpose()?;
    ///         self.0.lock().extend(rows);
    ///         Ok(SinkResult::NeedInput)
    ///     }
    ///     fn finish(&mut self, _: &DriverContext) -> Result<FinishResult> {
    ///         Ok(FinishResult::Done)
    ///     }
    /// }
    /// Harness::sink(|case| {
    ///     let rows = Arc::new(Mutex::new(Vec::new()));
    ///     let sink = PerTask::new("keep", (0..case.num_tasks()).map(|_| Keep(rows.clone())));
    ///     (sink, move || rows.lock().clone())
    /// })
    /// .input(numbers(0..20, 4))
    /// .expect_model(|inputs| inputs[0].clone())
    /// .check(Mode::with_rows());
    /// ```
    pub fn sink<S, C>(make: impl Fn(&Case) -> (S, C) + 'static) -> Self
    where
        S: Sink + 'static,
        C: FnOnce() -> Vec<RecordBatch> + Send + 'static,
    {
        Self::graph(move |case| {
            let mut graph = Graph::new();
            let (sink, collected) = make(case);
            case.collect_with(collected);
            let sink = case.ending(Arc::new(sink));
            graph.add_pipeline("harness", case.num_tasks(), case.source(0), vec![], sink)?;
            Ok(graph)
        })
    }

    /// Creates a test of any graph, built for each run, whose last pipeline ends in
    /// [`case.result(…)`](Case::result).
    pub fn graph(build: impl Fn(&Case) -> Result<Graph> + 'static) -> Self {
        Self {
            build: Box::new(build),
            inputs: Vec::new(),
            num_tasks: vec![1, 2, 3],
            sink_tasks: None,
            expected: None,
            seeds: 0..10,
            stride: 1,
            hang_after: Duration::from_secs(30),
        }
    }

    /// Adds the next input.
    #[must_use]
    pub fn input(mut self, batches: impl IntoIterator<Item = RecordBatch>) -> Self {
        self.inputs.push(batches.into_iter().collect());
        self
    }

    /// Sets the numbers of tasks to run on. Default: 1, 2 and 3.
    #[must_use]
    pub fn num_tasks(mut self, range: RangeInclusive<usize>) -> Self {
        self.num_tasks = range.collect();
        self
    }

    /// Sets the number of tasks of a breaker's sink, for breakers with one producer. Default: the
    /// number of tasks.
    #[must_use]
    pub fn sink_tasks(mut self, num_tasks: usize) -> Self {
        self.sink_tasks = Some(num_tasks);
        self
    }

    /// Sets the expected rows, in any order. Floats may differ by a relative error of 1e-9.
    ///
    /// # Panics
    /// If a column has a type without scalar values, as in
    /// [`expect_sequence`](Self::expect_sequence).
    #[must_use]
    pub fn expect_rows(self, expected: &[RecordBatch]) -> Self {
        self.expect(Expected::rows(expected, false))
    }

    /// Sets the expected rows, in any order, as a function of the inputs. The inputs of a failure
    /// are then shrunk.
    #[must_use]
    pub fn expect_model(
        self,
        model: impl Fn(&[Vec<RecordBatch>]) -> Vec<RecordBatch> + 'static,
    ) -> Self {
        self.expect(Expected::model(move |inputs, _num_tasks| model(inputs), true))
    }

    /// Sets the expected rows, in any order, for each number of tasks.
    #[must_use]
    pub fn expect_rows_of_tasks(
        self,
        expected: impl Fn(usize) -> Vec<RecordBatch> + 'static,
    ) -> Self {
        self.expect(Expected::model(move |_inputs, num_tasks| expected(num_tasks), false))
    }

    /// Expects each run to fail with an error whose text contains `text`, unless the mode ends it
    /// before.
    #[must_use]
    pub fn expect_error(self, text: impl Into<String>) -> Self {
        self.expect(Expected::Error(text.into()))
    }

    /// Sets the expected rows, in this order. The order of several tasks is undefined, so the last
    /// pipeline must have one task.
    ///
    /// # Panics
    /// If a column has a type without scalar values.
    #[must_use]
    pub fn expect_sequence(self, expected: &[RecordBatch]) -> Self {
        self.expect(Expected::rows(expected, true))
    }

    /// Sets a check of the rows, for results that are not unique. It is not applied in
    /// [`Mode::EarlyEnd`], where the rows are a part of the result.
    #[must_use]
    pub fn expect_with(
        self,
        check: impl Fn(&[RecordBatch]) -> Result<(), String> + 'static,
    ) -> Self {
        self.expect(Expected::Check(Box::new(check)))
    }

    fn expect(self, expected: Expected) -> Self {
        Self { expected: Some(expected), ..self }
    }

    /// Sets the seeds of blocking and seeded runs. Default: 0 to 9. A failure's seed reproduces it.
    #[must_use]
    pub fn seeds(mut self, seeds: Range<u64>) -> Self {
        self.seeds = seeds;
        self
    }

    /// Injects faults only at every `stride`-th step, for large inputs.
    ///
    /// # Panics
    /// If `stride` is 0.
    #[must_use]
    pub fn every_steps(mut self, stride: u64) -> Self {
        assert!(stride > 0, "stride must be at least 1");
        self.stride = stride;
        self
    }

    /// Sets the time without rows after which a run counts as hanging. Default: 30 seconds.
    #[must_use]
    pub fn hang_after(mut self, timeout: Duration) -> Self {
        self.hang_after = timeout;
        self
    }

    /// Runs all `modes`; a mode without an injection fails too.
    ///
    /// # Panics
    /// If a check fails; the message is the failure.
    pub fn check(self, modes: &[Mode]) -> Report {
        match self.run(modes) {
            Err(failure) => panic!("{failure}"),
            Ok(report) if report.not_run().is_empty() => report,
            Ok(report) => panic!("some modes injected nothing, so they tested nothing:\n{report}"),
        }
    }

    /// Runs all `modes` up to the first failure.
    ///
    /// # Errors
    /// The first failure.
    pub fn run(self, modes: &[Mode]) -> Result<Report, HarnessFailure> {
        let mut report = Report::default();
        for &mode in modes {
            let mut sweep = InstanceSweep::new(&self, mode);
            for &num_tasks in &self.num_tasks {
                sweep.run(num_tasks)?;
            }
            report.modes.push(sweep.report());
        }
        Ok(report)
    }
}

/// Creates the contexts of a local state that a unit test calls itself: the context with which task
/// 0 of 1 creates it, and the context of a call.
///
/// ```
/// use gatework_operators::{harness::{contexts, numbers}, limit::Limit};
/// use gatework_runtime::pipeline::{Operator, OperatorResult};
/// let (context, task) = contexts()?;
/// let mut limit = Limit::new(5, None).local(context)?;
/// let batch = numbers(0..8, 8).remove(0);
/// let OperatorResult::Batch(rest) = limit.execute(Some(batch.into()), &task)? else { panic!() };
/// assert_eq!(rest.num_rows(), 3);
/// # Ok::<(), gatework_runtime::Error>(())
/// ```
///
/// # Errors
/// If the system cannot create a thread.
pub fn contexts() -> Result<(OperatorContext, DriverContext)> {
    let executor = Executor::builder().threads(1).build()?;
    let query = QueryContext::new(&executor, QueryOptions::default());
    Ok((OperatorContext::detached(&query, "unit test", 0, 1), DriverContext::detached(&query)))
}
