//! Test harness: runs an operator, or a whole graph, under chaos and compares its rows.
//!
//! A test supplies batches, an operator and the expected rows, and selects [`Mode`]s. Each mode
//! runs on 1, 2 and 3 tasks by default. After each run no task, no reserved byte and no blocked
//! gate may remain. A mode without an injection has not passed; it is reported as "not run". A
//! failure names its mode, seed and number of tasks.
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
mod fault_memory;
mod instance_sweep;
mod mode;
mod report;
mod rows;
mod run;
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

use arrow::{
    array::{Int64Array, RecordBatch},
    datatypes::{DataType, Field, Schema},
};
use gatework_runtime::{
    Result,
    pipeline::{Graph, Operator, Sink, Source, WaitEdge},
};

use self::{instance_sweep::InstanceSweep, run::Build};

pub use case::Case;
#[cfg(test)]
pub(crate) use fault_memory::{InMemorySpill, RandomDenialPool};
pub use mode::Mode;
pub use report::{HarnessFailure, ModeReport, Report};
pub use rows::{Row, rows_of, same_rows, same_sequence};
pub use trial::Trial;

/// Check of the rows of a run.
type Check = dyn Fn(&[RecordBatch]) -> Result<(), String>;

/// Harness that runs a graph in several modes and checks its rows. See the [module](self).
pub struct Harness {
    build: Box<Build>,
    inputs: Vec<Vec<RecordBatch>>,
    num_tasks: Vec<usize>,
    expected: Option<Box<Check>>,
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
                case.num_tasks(),
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

    /// Creates a test of any graph, built for each run, whose last pipeline ends in
    /// [`case.result(…)`](Case::result).
    pub fn graph(build: impl Fn(&Case) -> Result<Graph> + 'static) -> Self {
        Self {
            build: Box::new(build),
            inputs: Vec::new(),
            num_tasks: vec![1, 2, 3],
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

    /// Sets the expected rows, in any order. Floats may differ by a relative error of 1e-9.
    ///
    /// # Panics
    /// If a column has a type without scalar values, as in
    /// [`expect_sequence`](Self::expect_sequence).
    #[must_use]
    pub fn expect_rows(self, expected: &[RecordBatch]) -> Self {
        self.expect_compared(expected, same_rows)
    }

    /// Sets the expected rows, in this order. The order of several tasks is undefined, so the last
    /// pipeline must have one task.
    ///
    /// # Panics
    /// If a column has a type without scalar values.
    #[must_use]
    pub fn expect_sequence(self, expected: &[RecordBatch]) -> Self {
        self.expect_compared(expected, same_sequence)
    }

    fn expect_compared(
        self,
        expected: &[RecordBatch],
        same: fn(&[Row], &[Row]) -> Result<(), String>,
    ) -> Self {
        let expected = match rows_of(expected) {
            Ok(expected) => expected,
            Err(error) => panic!("the expected rows cannot be compared: {error}"),
        };
        self.expect_with(move |actual| {
            let actual = rows_of(actual).map_err(|error| error.to_string())?;
            same(&expected, &actual)
        })
    }

    /// Sets a check of the rows, for results that are not unique.
    #[must_use]
    pub fn expect_with(
        mut self,
        check: impl Fn(&[RecordBatch]) -> Result<(), String> + 'static,
    ) -> Self {
        self.expected = Some(Box::new(check));
        self
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
        let inputs: Arc<[Vec<RecordBatch>]> = self.inputs.as_slice().into();
        let mut report = Report::default();
        for &mode in modes {
            let mut sweep = InstanceSweep::new(&self, &inputs, mode);
            for &num_tasks in &self.num_tasks {
                sweep.run(num_tasks)?;
            }
            report.modes.push(sweep.report());
        }
        Ok(report)
    }
}

/// Creates batches of at most `rows` rows with one column, `n`: the numbers of `range`.
///
/// ```
/// let batches = gatework_operators::harness::numbers(0..10, 4);
/// assert_eq!(batches.iter().map(|batch| batch.num_rows()).collect::<Vec<_>>(), [4, 4, 2]);
/// ```
///
/// # Panics
/// If `rows` is 0.
pub fn numbers(range: Range<i64>, rows: usize) -> Vec<RecordBatch> {
    let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
    let values: Vec<i64> = range.collect();
    let batch = |values: &[i64]| {
        let column = Arc::new(Int64Array::from(values.to_vec()));
        match RecordBatch::try_new(schema.clone(), vec![column]) {
            Ok(batch) => batch,
            Err(error) => unreachable!("one column for one field: {error}"),
        }
    };
    values.chunks(rows).map(batch).collect()
}
