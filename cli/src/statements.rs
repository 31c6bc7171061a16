//! Parses SQL text into statements, and runs statements, for both commands.
//!
//! DataFusion's parser separates statements, so a semicolon in a string or a comment is no
//! separator.

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

/// A planned statement.
pub(crate) struct Planned {
    /// The logical plan before optimization.
    pub(crate) logical: LogicalPlan,
    /// The query to run, or the empty result of a statement that has already run (`CREATE VIEW`,
    /// `SET`).
    pub(crate) frame: DataFrame,
}

/// Plans one statement within `limit`. A statement that changes the session takes effect at once.
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
    /// Whether there is a result to print or compare.
    pub(crate) fn has_result(&self) -> bool {
        !self.frame.schema().fields().is_empty()
    }
}

/// The whole result of a query, and its fallback nodes.
pub(crate) struct Collected {
    pub(crate) batches: Vec<RecordBatch>,
    pub(crate) fallbacks: Vec<String>,
}

/// Starts a query within `limit`, as stages if there are nodes. Includes optimization.
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
