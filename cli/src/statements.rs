//! SQL text into statements, and statements into results, for both commands.
//!
//! Statements are told apart by DataFusion's own parser: a semicolon in a string or a comment is
//! just a character.

mod depth;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use datafusion::common::Result;
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::{DFParser, Statement};

use crate::engine::{ResultStream, StageConfig};
use crate::error::Error;
use crate::large_stack;

/// Splits SQL into its statements.
pub(crate) fn parse(sql: &str) -> Result<VecDeque<Statement>> {
    depth::check_text(sql)?;
    DFParser::parse_sql(sql)
}

/// What became of a statement once it was planned.
pub(crate) struct Planned {
    /// The plan as it was written, before the optimizer.
    pub(crate) logical: LogicalPlan,
    /// The query to run, or the empty result of a statement that has already done its work (`CREATE
    /// VIEW`, `SET`).
    pub(crate) frame: DataFrame,
}

/// Plans one statement within `limit`; those that change the session do so at once.
pub(crate) async fn plan(
    session: &SessionContext,
    statement: Statement,
    limit: Option<Duration>,
) -> Result<Planned, Error> {
    let session = session.clone();
    let planning = async move {
        let planned = plan_here(&session, statement).await;
        planned.map_err(|error| Error::query(&error, &session))
    };
    large_stack::run("planning the statement", limit, planning).await
}

async fn plan_here(session: &SessionContext, statement: Statement) -> Result<Planned> {
    let logical = session.state().statement_to_plan(statement).await?;
    depth::check_plan(&logical)?;
    let frame = session.execute_logical_plan(logical.clone()).await?;
    Ok(Planned { logical, frame })
}

impl Planned {
    /// Whether there is a result to show or compare.
    pub(crate) fn has_result(&self) -> bool {
        !self.frame.schema().fields().is_empty()
    }
}

/// The whole result of a query, and the nodes that ran as DataFusion's own.
pub(crate) struct Collected {
    pub(crate) batches: Vec<RecordBatch>,
    pub(crate) fallbacks: Vec<String>,
}

/// Starts a query within `limit`, as stages if there are nodes: DataFusion optimizes it now.
pub(crate) async fn start(
    session: &SessionContext,
    frame: DataFrame,
    nodes: Option<Arc<StageConfig>>,
    limit: Option<Duration>,
) -> Result<ResultStream, Error> {
    let session = session.clone();
    let starting = async move {
        let started = ResultStream::start(frame, nodes.as_deref()).await;
        started.map_err(|error| Error::query(&error, &session))
    };
    large_stack::run("planning the query", limit, starting).await
}

/// Runs a query to its end, as stages if there are nodes.
pub(crate) async fn collect(
    session: &SessionContext,
    frame: DataFrame,
    nodes: Option<Arc<StageConfig>>,
    limit: Option<Duration>,
) -> Result<Collected, Error> {
    let mut stream = start(session, frame, nodes, limit).await?;
    let mut batches = Vec::new();
    while let Some(batch) = stream.next().await.map_err(|error| Error::query(&error, session))? {
        batches.push(batch);
    }
    Ok(Collected { batches, fallbacks: stream.fallbacks() })
}
