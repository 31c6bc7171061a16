//! `gatework sql`: statements over files, with results on standard output as they arrive.

use std::io::{self, IsTerminal};
use std::num::NonZeroUsize;
use std::time::Duration;

use datafusion::dataframe::DataFrame;
use datafusion::prelude::SessionContext;
use gatework::stages::{StageOptions, StageTree, cluster, plan_stages};
use indicatif::ProgressBar;

use crate::args::{EngineArgs, Explain, Format, SqlArgs};
use crate::engine::{self, Engine};
use crate::error::Error;
use crate::large_stack;
use crate::output::{LineWriter, Output};
use crate::progress;
use crate::statements;
use crate::tables;

/// Number of nodes for `--explain stages` without `--nodes`.
const EXPLAINED_NODES: usize = 4;

/// Runs the command.
pub(crate) async fn run(args: SqlArgs) -> Result<(), Error> {
    let engine = Engine::start(&args.engine)?;
    let session = engine.session();
    tables::register_all(&session, &args.tables, engine.limit()).await?;
    let out = LineWriter::stdout();
    let query_error = |error| Error::query(&error, &session);
    for sql in &args.statements {
        for statement in statements::parse(sql).map_err(query_error)? {
            let planned = statements::plan(&session, statement, engine.limit()).await?;
            if !planned.has_result() {
                continue;
            }
            match args.explain {
                Some(Explain::Plan) => explain(planned.frame, &session, &engine, &out).await?,
                Some(what @ (Explain::Stages | Explain::Mermaid)) => {
                    let tree = stages(planned.frame, &session, &args.engine).await?;
                    let text = match what {
                        Explain::Mermaid => tree.mermaid(),
                        _ => tree.text(),
                    };
                    out.line(text.trim_end())?;
                }
                None => print(planned.frame, &session, &engine, args.format, &out).await?,
            }
        }
    }
    out.flush()
}

/// Prints the result of one query while it runs.
async fn print(
    frame: DataFrame,
    session: &SessionContext,
    engine: &Engine,
    format: Format,
    out: &LineWriter,
) -> Result<(), Error> {
    let query_error = |error| Error::query(&error, session);
    let mut stream = statements::start(session, frame, engine.nodes(), engine.limit()).await?;
    let spinner = progress::spinner("running");
    let mut output = Output::new(format, stream.schema(), out.clone())?;
    let mut rows = 0;
    while let Some(batch) = stream.next().await.map_err(query_error)? {
        rows += batch.num_rows() as u64;
        show_progress(&spinner, rows);
        output.write(&batch)?;
        // Rows of a slow query appear as they arrive; writes are buffered within a batch.
        out.flush()?;
    }
    spinner.finish_and_clear();
    output.finish()?;
    out.flush()
}

/// Hides the spinner if results go to a terminal too, since both would overlap.
fn show_progress(spinner: &ProgressBar, rows: u64) {
    match io::stdout().is_terminal() {
        true => spinner.finish_and_clear(),
        false => spinner.set_message(progress::rows(rows)),
    }
}

/// The stages of one query, on workers or on nodes.
async fn stages(
    frame: DataFrame,
    session: &SessionContext,
    args: &EngineArgs,
) -> Result<StageTree, Error> {
    let nodes = args.nodes.map_or(EXPLAINED_NODES, NonZeroUsize::get);
    let on_workers = !args.workers.is_empty();
    let planning = async move {
        if on_workers {
            return Ok(cluster::stage_tree(&frame.create_physical_plan().await?));
        }
        let (state, query) = frame.into_parts();
        Ok(plan_stages(&state, &query, &StageOptions::with_nodes(nodes)).await?.tree(nodes))
    };
    explained(session, args.timeout, planning).await
}

/// Runs `planning` of a query within `limit`.
async fn explained<T: Send + 'static>(
    session: &SessionContext,
    limit: Option<Duration>,
    planning: impl Future<Output = datafusion::error::Result<T>> + Send + 'static,
) -> Result<T, Error> {
    let session = session.clone();
    let planning = async move { planning.await.map_err(|error| Error::query(&error, &session)) };
    large_stack::run("planning the query", limit, planning).await
}

/// Prints the plan of one query instead of running it.
async fn explain(
    frame: DataFrame,
    session: &SessionContext,
    engine: &Engine,
    out: &LineWriter,
) -> Result<(), Error> {
    let planning = async move { frame.create_physical_plan().await };
    let plan = explained(session, engine.limit(), planning).await?;
    let fallbacks = engine::fallbacks(&plan);
    out.line(engine::plan_text(&plan).trim_end())?;
    if let Some(reason) = engine.local_execution_reason(&plan, session) {
        out.line(&format!("on workers: nothing, {reason}"))?;
    }
    match fallbacks.is_empty() {
        true => out.line("fallbacks: none"),
        false => out.line(&format!("fallbacks: {}", fallbacks.join(", "))),
    }
}
