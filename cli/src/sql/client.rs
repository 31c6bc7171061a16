//! A session of the command line: runs statements and commands, and prints their results.

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Instant;

use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;
use gatework::stages::{StageOptions, StageTree, cluster, plan_stages};

use super::commands::Command;
use super::display::Display;
use super::read_file;
use super::script::{self, Part, Text};
use crate::args::{EngineArgs, Explain, Format, SqlArgs};
use crate::engine::{self, Engine, ResultStream};
use crate::error::Error;
use crate::output::Output;
use crate::progress::LateSpinner;
use crate::statements::{self, Parsed};
use crate::tables;

/// Number of nodes for `--explain stages` without `--nodes`.
const EXPLAINED_NODES: usize = 4;

/// Maximum number of files that include each other.
const MAX_INCLUDES: usize = 16;

/// Whether more statements follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    Continue,
    Quit,
}

/// A session with its engine and the way it prints results.
pub(crate) struct Client {
    engine: Engine,
    context: SessionContext,
    stages: EngineArgs,
    explain: Option<Explain>,
    pub(super) display: Display,
    /// Number of files that are being run.
    includes: usize,
}

impl Client {
    /// Starts the engine, and opens the tables of the arguments.
    pub(crate) async fn open(args: &SqlArgs) -> Result<Self, Error> {
        let engine = Engine::start(&args.engine)?;
        let context = engine.session();
        tables::register_all(&context, &args.tables, Engine::limit(&context)).await?;
        Ok(Self {
            engine,
            context,
            stages: args.engine.clone(),
            explain: args.explain,
            display: Display::new(args.format),
            includes: 0,
        })
    }

    /// The session that statements run in.
    pub(crate) fn context(&self) -> &SessionContext {
        &self.context
    }

    /// Prints results for a person at a terminal: with row counts, and page by page.
    pub(crate) fn be_interactive(&mut self) {
        self.display.be_interactive();
    }

    /// Runs the statements and commands of a file, up to the first that fails.
    pub(crate) async fn run_file(&mut self, path: &Path) -> Result<Flow, Error> {
        if self.includes == MAX_INCLUDES {
            let path = path.display();
            return Err(Error::failed(format!(
                "'{path}' includes itself, or is nested too deeply"
            )));
        }
        let script = read_file(path)?;
        self.includes += 1;
        let name = path.display().to_string();
        // Boxed, since a file may include others.
        let result = Box::pin(self.run_script(&script, Some(&name))).await;
        self.includes -= 1;
        result
    }

    /// Runs statements and commands, up to the first that fails. `file` is named by errors.
    pub(crate) async fn run_script(
        &mut self,
        script: &str,
        file: Option<&str>,
    ) -> Result<Flow, Error> {
        for part in script::parts(script) {
            let within = |error: Error| match file {
                Some(file) => error.within(file),
                None => error,
            };
            let flow = match part {
                Part::Command(line) => {
                    let command = Command::parse(&line).map_err(within)?;
                    // An error within an included file names that file.
                    let includes = matches!(command, Command::Include(_));
                    let ran = command.run(self).await;
                    if includes { ran? } else { ran.map_err(within)? }
                }
                Part::Statements(text) => {
                    self.run_text(&text, self.explain).await.map_err(within)?;
                    Flow::Continue
                }
            };
            if flow == Flow::Quit {
                return Ok(Flow::Quit);
            }
        }
        Ok(Flow::Continue)
    }

    /// Runs the query of a command, also where queries of the user are explained.
    pub(super) async fn run_query(&mut self, sql: String) -> Result<(), Error> {
        self.run_text(&Text { sql, first_line: 1 }, None).await
    }

    /// Runs a line of the shell: statements, a command, or a word that ends it.
    pub(crate) async fn run_line(&mut self, line: &str) -> Result<Flow, Error> {
        // A cancelled statement may have been part of a file.
        self.includes = 0;
        self.run_script(line, None).await
    }

    /// Runs statements, or explains them.
    async fn run_text(&mut self, text: &Text, explain: Option<Explain>) -> Result<(), Error> {
        let parsed = statements::parse_text(text);
        let parsed = parsed.map_err(|error| Error::syntax(&error, text, &self.context))?;
        let Parsed { statements, text, summarizes } = parsed;
        for (index, statement) in statements.into_iter().enumerate() {
            let summarizes = summarizes && index == 0;
            let result = self.run_statement(statement, &text, summarizes, explain).await;
            match self.includes {
                0 => result?,
                _ => result.map_err(|error| error.within(&format!("line {}", text.line())))?,
            }
        }
        Ok(())
    }

    async fn run_statement(
        &mut self,
        statement: Statement,
        text: &Text,
        summarizes: bool,
        explain: Option<Explain>,
    ) -> Result<(), Error> {
        let started = Instant::now();
        let statement = self.engine.set_start_value(statement)?;
        let (nodes, limit) = (self.engine.nodes(), Engine::limit(&self.context));
        if explain.is_none() && !summarizes {
            let statement = statements::run(&self.context, statement, text, nodes, limit).await?;
            return match statement.rows {
                Some(rows) => self.print_result(&statement.logical, rows, started).await,
                None => self.display.done(started.elapsed()),
            };
        }
        let mut planned = statements::plan(&self.context, statement, Some(text), limit).await?;
        if summarizes {
            planned = planned.summarize(&self.context, limit).await?;
        }
        if !planned.has_result() {
            return self.display.done(started.elapsed());
        }
        match explain {
            Some(Explain::Plan) => self.print_plan(planned.frame).await,
            Some(what @ (Explain::Stages | Explain::Mermaid)) => {
                let tree = self.stage_tree(planned.frame).await?;
                let text = match what {
                    Explain::Mermaid => tree.mermaid(),
                    _ => tree.text(),
                };
                self.display.stdout().line(text.trim_end())
            }
            None => {
                let rows = statements::start(&self.context, planned.frame, nodes, limit).await?;
                self.print_result(&planned.logical, rows, started).await
            }
        }
    }

    /// Prints the result of one query while it runs.
    async fn print_result(
        &mut self,
        logical: &LogicalPlan,
        rows: ResultStream,
        started: Instant,
    ) -> Result<(), Error> {
        let paged = self.display.is_paged();
        match self.print_rows(logical, rows, started).await {
            // The user has seen enough of the result.
            Err(Error::OutputClosed) if paged => Ok(()),
            result => result,
        }
    }

    async fn print_rows(
        &mut self,
        logical: &LogicalPlan,
        mut stream: ResultStream,
        started: Instant,
    ) -> Result<(), Error> {
        let query_error = |error| Error::query(&error, &self.context);
        let is_plan = matches!(logical, LogicalPlan::Explain(_) | LogicalPlan::Analyze(_));
        let mut spinner = LateSpinner::new("running");
        let out = self.display.out(&stream.schema())?;
        let mut output = match (self.display.format, is_plan) {
            (Format::Table, true) => Output::of_plan(out.clone()),
            (format, _) => Output::new(format, stream.schema(), out.clone())?,
        };
        let mut rows = 0;
        while let Some(batch) = spinner.watch(stream.next()).await.map_err(query_error)? {
            rows += batch.num_rows() as u64;
            spinner.show_rows(rows);
            output.write(&batch)?;
            // Rows of a slow query appear as they arrive; writes are buffered within a batch.
            out.flush()?;
        }
        spinner.clear();
        output.finish()?;
        // Its writer may have a buffer of its own.
        drop(output);
        if !is_plan {
            self.display.rows(&out, rows, started.elapsed())?;
            if self.display.profile {
                self.display.add(&out, stream.profile().trim_end())?;
            }
        }
        out.end()
    }

    /// The stages of one query, on workers or on nodes.
    async fn stage_tree(&self, frame: DataFrame) -> Result<StageTree, Error> {
        let nodes = self.stages.nodes.map_or(EXPLAINED_NODES, NonZeroUsize::get);
        let on_workers = !self.stages.workers.is_empty();
        let plan = move |frame: DataFrame| async move {
            if on_workers {
                return Ok(cluster::stage_tree(&frame.create_physical_plan().await?));
            }
            let (state, query) = frame.into_parts();
            Ok(plan_stages(&state, &query, &StageOptions::with_nodes(nodes)).await?.tree(nodes))
        };
        self.with_plan(frame, plan).await
    }

    /// Runs `work`, which plans a query.
    async fn with_plan<T, F>(
        &self,
        frame: DataFrame,
        work: impl FnOnce(DataFrame) -> F + Send + 'static,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = datafusion::error::Result<T>> + Send,
    {
        let limit = Engine::limit(&self.context);
        statements::with_plan("planning the query", &self.context, frame, limit, work).await
    }

    /// Prints the plan of one query instead of running it.
    async fn print_plan(&self, frame: DataFrame) -> Result<(), Error> {
        let plan = |frame: DataFrame| async move { frame.create_physical_plan().await };
        let plan = self.with_plan(frame, plan).await?;
        let fallbacks = engine::fallbacks(&plan);
        let out = self.display.stdout();
        out.line(engine::plan_text(&plan).trim_end())?;
        if let Some(reason) = self.engine.local_execution_reason(&plan, &self.context) {
            out.line(&format!("on workers: nothing, {reason}"))?;
        }
        match fallbacks.is_empty() {
            true => out.line("fallbacks: none"),
            false => out.line(&format!("fallbacks: {}", fallbacks.join(", "))),
        }
    }

    /// Writes what is buffered.
    pub(crate) fn flush(&self) -> Result<(), Error> {
        self.display.flush()
    }
}
