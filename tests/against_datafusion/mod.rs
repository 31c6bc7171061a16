//! Runs statements on a plain DataFusion session and on gatework sessions over the same tables.
//! Compares their results with the comparator of `gatework::verify`.
//!
//! Failures are collected and reported together at the end. The hang guard is reset by each
//! statement.

#![allow(dead_code, reason = "each test file uses its own part of this module")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    cell::RefCell,
    panic::resume_unwind,
    path::Path,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use arrow::array::RecordBatch;
use datafusion::{
    datasource::MemTable,
    error::Result,
    logical_expr::LogicalPlan,
    physical_plan::{ExecutionPlan, collect},
    prelude::{DataFrame, SessionConfig, SessionContext},
};
use gatework::{
    Executor, Settings,
    verify::{Comparison, ResultOrder, with_hidden_keys, without_limit},
};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

/// Time after which a statement counts as hanging.
const LIMIT: Duration = Duration::from_secs(60);

/// Reports the current statement to the hang guard.
#[derive(Clone)]
pub(crate) struct Watch(mpsc::Sender<String>);

impl Watch {
    pub(crate) fn doing(&self, what: impl Into<String>) {
        let _guard_is_gone = self.0.send(what.into());
    }
}

/// Runs `body` in a thread of its own; fails if it reports nothing for 60 seconds.
pub(crate) fn guarded(body: impl FnOnce(&Watch) + Send + 'static) {
    let (sender, receiver) = mpsc::channel();
    let watch = Watch(sender);
    // Plans of deep expressions are walked recursively.
    let builder = thread::Builder::new().stack_size(16 << 20);
    let thread = builder.spawn(move || body(&watch)).unwrap();
    let mut doing = "setting up".to_owned();
    loop {
        match receiver.recv_timeout(LIMIT) {
            Ok(next) => doing = next,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => panic!("this hangs: {doing}"),
        }
    }
    if let Err(panic) = thread.join() {
        resume_unwind(panic);
    }
}

/// A gatework session.
pub(crate) struct Tested {
    pub(crate) name: String,
    pub(crate) context: SessionContext,
    pub(crate) executor: Executor,
    /// The session's own folder, `{dir}` in statements.
    folder: TempDir,
}

/// A plain DataFusion session and gatework sessions over the same tables.
pub(crate) struct Sessions<'a> {
    watch: &'a Watch,
    runtime: Runtime,
    pub(crate) reference: SessionContext,
    pub(crate) tested: Vec<Tested>,
    /// `{dir}` of the reference.
    folder: TempDir,
    /// `{shared}` in statements.
    shared: TempDir,
    failures: RefCell<Vec<String>>,
    statements: RefCell<usize>,
}

/// The plans and rows of a statement.
pub(crate) struct Ran {
    pub(crate) logical: LogicalPlan,
    pub(crate) physical: Arc<dyn ExecutionPlan>,
    pub(crate) rows: Vec<RecordBatch>,
}

impl<'a> Sessions<'a> {
    /// Sessions with 1, 2 and 4 threads, and batches of 3 and 8192 rows.
    pub(crate) fn new(watch: &'a Watch) -> Self {
        let shapes = [(1, 3), (1, 8192), (2, 3), (2, 8192), (4, 3), (4, 8192)];
        Self::with(watch, &shapes, SessionConfig::new(), Settings::default())
    }

    /// Sessions with these numbers of threads and rows per batch.
    pub(crate) fn with(
        watch: &'a Watch,
        shapes: &[(usize, usize)],
        config: SessionConfig,
        settings: Settings,
    ) -> Self {
        let tested = shapes.iter().map(|&(threads, batch_rows)| {
            let executor = Executor::builder().threads(threads).build().unwrap();
            let config = settings.clone().into_config(config.clone()).with_batch_size(batch_rows);
            Tested {
                name: format!("{threads} threads, {batch_rows} rows a batch"),
                context: gatework::session_with(&executor, config),
                executor,
                folder: TempDir::new().unwrap(),
            }
        });
        Self {
            watch,
            runtime: Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap(),
            reference: SessionContext::new_with_config(
                SessionConfig::new().with_target_partitions(2),
            ),
            tested: tested.collect(),
            folder: TempDir::new().unwrap(),
            shared: TempDir::new().unwrap(),
            failures: RefCell::default(),
            statements: RefCell::new(0),
        }
    }

    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// The folder that all sessions share.
    pub(crate) fn shared(&self) -> &Path {
        self.shared.path()
    }

    /// Reports the current statement to the hang guard.
    pub(crate) fn doing(&self, what: &str) {
        self.watch.doing(what);
    }

    /// Records a failure.
    pub(crate) fn fail(&self, failure: String) {
        self.failures.borrow_mut().push(failure);
    }

    fn all(&self) -> impl Iterator<Item = (&SessionContext, &TempDir)> {
        let tested = self.tested.iter().map(|tested| (&tested.context, &tested.folder));
        std::iter::once((&self.reference, &self.folder)).chain(tested)
    }

    /// Registers the rows of `query`, computed by plain DataFusion, as a table in memory: small
    /// batches in three partitions.
    pub(crate) fn table(&self, name: &str, query: &str) {
        self.table_from(name, &SessionContext::new(), query);
    }

    /// Registers a table in memory, as [`table`](Self::table) does; `session` runs the query.
    pub(crate) fn table_from(&self, name: &str, session: &SessionContext, query: &str) {
        let make = async {
            let frame = session.sql(query).await?;
            let schema = frame.schema().inner().clone();
            let mut partitions = vec![Vec::new(); 3];
            let whole = arrow::compute::concat_batches(&schema, &frame.collect().await?)?;
            for (place, first) in (0..whole.num_rows()).step_by(7).enumerate() {
                let rows = 7.min(whole.num_rows() - first);
                partitions[place % 3].push(whole.slice(first, rows));
            }
            for (context, _) in self.all() {
                let table = MemTable::try_new(schema.clone(), partitions.clone())?;
                context.register_table(name, Arc::new(table))?;
            }
            Ok(())
        };
        let made: Result<()> = self.runtime.block_on(make);
        made.unwrap_or_else(|error| panic!("table {name}: {error}"));
    }

    fn fill_in(&self, sql: &str, folder: &TempDir) -> String {
        sql.replace("{dir}", folder.path().to_str().unwrap())
            .replace("{shared}", self.shared.path().to_str().unwrap())
    }

    /// Runs a statement for its effect, on all sessions.
    pub(crate) fn everywhere(&self, sql: &str) {
        self.watch.doing(sql);
        for (context, folder) in self.all() {
            let ran = async { context.sql(&self.fill_in(sql, folder)).await?.collect().await };
            if let Err(error) = self.runtime.block_on(ran) {
                self.fail(format!("{sql}\n    {error}"));
            }
        }
    }

    /// Runs a statement for its effect, on the reference only.
    pub(crate) fn on_reference(&self, sql: &str) {
        self.watch.doing(sql);
        let sql = self.fill_in(sql, &self.folder);
        let ran = async { self.reference.sql(&sql).await?.collect().await };
        self.runtime.block_on(ran).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// Asserts that all sessions return the same rows, without fallbacks.
    pub(crate) fn equal(&self, statements: &[&str]) {
        statements.iter().for_each(|sql| self.equal_beside(&[], sql));
    }

    /// Asserts that all sessions return the same rows, with these fallbacks and no others.
    pub(crate) fn equal_beside(&self, expected_fallbacks: &[&str], sql: &str) {
        self.watch.doing(sql);
        let frame = |context: &SessionContext, folder| {
            self.runtime.block_on(context.sql(&self.fill_in(sql, folder)))
        };
        let expected = match frame(&self.reference, &self.folder) {
            Ok(frame) => frame,
            Err(error) => return self.fail(format!("{sql}\n    reference: {error}")),
        };
        let frames = self.tested.iter().map(|tested| frame(&tested.context, &tested.folder));
        self.compare(sql, expected, frames.collect(), Some(expected_fallbacks));
    }

    /// Asserts that the frames have equal rows, and these fallbacks if `expected_fallbacks` is
    /// given.
    pub(crate) fn compare(
        &self,
        what: &str,
        expected: DataFrame,
        frames: Vec<Result<DataFrame>>,
        expected_fallbacks: Option<&[&str]>,
    ) {
        *self.statements.borrow_mut() += 1;
        self.watch.doing(what);
        let expected = match self.runtime.block_on(run(expected)) {
            Ok(expected) => expected,
            Err(error) => return self.fail(format!("{what}\n    reference: {error}")),
        };
        for (tested, frame) in self.tested.iter().zip(frames) {
            let actual = match frame.and_then(|frame| self.runtime.block_on(run(frame))) {
                Ok(actual) => actual,
                Err(error) => {
                    self.fail(format!("{what}\n    {}: {error}", tested.name));
                    continue;
                }
            };
            if let Err(difference) = self.difference(&actual, &expected) {
                self.fail(format!("{what}\n    {}: {difference}", tested.name));
            }
            let Some(expected_fallbacks) = expected_fallbacks else { continue };
            let fallbacks = gatework::fallbacks(&actual.physical);
            if !fallbacks.iter().all(|name| expected_fallbacks.contains(&name.as_str())) {
                self.fail(format!("{what}\n    {}: fell back to {fallbacks:?}", tested.name));
            }
            if !expected_fallbacks
                .iter()
                .all(|name| fallbacks.iter().any(|fallback| fallback == name))
            {
                self.fail(format!("{what}\n    {}: only {fallbacks:?} fell back", tested.name));
            }
        }
    }

    fn difference(&self, actual: &Ran, expected: &Ran) -> Result<(), String> {
        let order = ResultOrder::of(&expected.logical);
        let mut comparison = Comparison::new(&order);
        let keyed = with_hidden_keys(&expected.logical).map(|(plan, keys)| {
            comparison = comparison.clone().hidden_keys(keys);
            self.runtime.block_on(run(DataFrame::new(self.reference.state(), plan)))
        });
        let keyed = keyed.transpose().map_err(|error| format!("with its keys: {error}"))?;
        let expected = keyed.as_ref().unwrap_or(expected);
        let difference = match comparison.check(&actual.rows, &expected.rows) {
            Ok(()) => return Ok(()),
            Err(difference) => difference,
        };
        let unlimited = without_limit(&expected.logical).filter(|_| difference.needs_unlimited());
        let Some(plan) = unlimited else { return Err(difference.to_string()) };
        let frame = DataFrame::new(self.reference.state(), plan);
        let unlimited =
            self.runtime.block_on(run(frame)).map_err(|error| format!("unlimited: {error}"))?;
        comparison
            .unlimited(&unlimited.rows)
            .check(&actual.rows, &expected.rows)
            .map_err(|difference| difference.to_string())
    }

    /// Asserts that gatework sessions refuse the statement, in planning or execution, with one of
    /// `words`. The reference must refuse it too, with any text.
    pub(crate) fn refused(&self, sql: &str, words: &[&str]) {
        *self.statements.borrow_mut() += 1;
        self.watch.doing(sql);
        let ran = |context: &SessionContext, folder| {
            let sql = self.fill_in(sql, folder);
            self.runtime.block_on(async { run(context.sql(&sql).await?).await })
        };
        if ran(&self.reference, &self.folder).is_ok() {
            self.fail(format!("{sql}\n    the reference answers"));
        }
        for tested in &self.tested {
            match ran(&tested.context, &tested.folder) {
                Ok(_) => self.fail(format!("{sql}\n    {}: answers", tested.name)),
                Err(error) => {
                    let text = error.to_string();
                    if !words.iter().any(|words| text.contains(words)) {
                        self.fail(format!("{sql}\n    {}: says '{text}'", tested.name));
                    }
                }
            }
        }
    }

    /// Asserts that gatework sessions behave like the reference: the same rows, or an error with
    /// one of `words`. Returns whether the statement was refused.
    pub(crate) fn alike(&self, sql: &str, words: &[&str]) -> bool {
        self.watch.doing(sql);
        let filled = self.fill_in(sql, &self.folder);
        let ran = self.runtime.block_on(async { run(self.reference.sql(&filled).await?).await });
        match ran {
            Ok(_) => self.equal(&[sql]),
            Err(_) => self.refused(sql, words),
        }
        ran.is_err()
    }

    /// Reports all failures. Then checks that every executor shuts down without live tasks or
    /// reserved bytes.
    pub(crate) fn finish(self) {
        self.watch.doing("shutting down");
        for tested in &self.tested {
            // Shutdown returns when the last task has ended; the hang guard reports a task that
            // does not end.
            tested.executor.shutdown();
            let live = tested.executor.live_tasks();
            let reserved = tested.context.runtime_env().memory_pool.reserved();
            if live != 0 || reserved != 0 {
                self.fail(format!("{}: {live} live tasks, {reserved} bytes reserved", tested.name));
            }
        }
        let failures = self.failures.into_inner();
        let statements = self.statements.into_inner();
        assert!(
            failures.is_empty(),
            "{} failures in {statements} statements:\n{}",
            failures.len(),
            failures.join("\n")
        );
    }
}

/// Plans and runs a frame; every batch must have the plan's schema.
pub(crate) async fn run(frame: DataFrame) -> Result<Ran> {
    let logical = frame.logical_plan().clone();
    let task = Arc::new(frame.task_ctx());
    let physical = frame.create_physical_plan().await?;
    let mut rows = collect(physical.clone(), task).await?;
    let schema = physical.schema();
    for batch in &rows {
        assert_eq!(batch.schema(), schema, "a batch with another schema than its plan");
    }
    // Results without rows have a schema as well.
    rows.push(RecordBatch::new_empty(schema));
    Ok(Ran { logical, physical, rows })
}
