//! Parses SQL text into statements, and runs statements, for both commands.
//!
//! DataFusion's parser separates statements, so a semicolon in a string or a comment is no
//! separator.

mod depth;

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use datafusion::common::Result;
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::{CopyToSource, DFParser, Statement};
use datafusion::sql::sqlparser::ast::{
    Query, SelectFlavor, SelectItem, SetExpr, ShowStatementOptions, Statement as SqlStatement,
    VisitMut, VisitorMut, WildcardAdditionalOptions,
};

use crate::engine::{ResultStream, StageConfig};
use crate::error::Error;
use crate::large_stack;
use crate::tables::by_path;

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

/// The query of SHOW TABLES: like DataFusion's, with the user's own tables first.
const SHOW_TABLES: &str = "SELECT * FROM information_schema.tables ORDER BY \
                           table_schema = 'information_schema', table_catalog, table_schema, \
                           table_name";

/// Replaces SHOW TABLES by its query, and `FROM t` by `SELECT * FROM t`.
fn rewrite(mut statement: Statement) -> Result<Statement> {
    let sql = match &mut statement {
        Statement::Statement(sql) => sql,
        Statement::Explain(explain) => {
            let inner = rewrite((*explain.statement).clone())?;
            *explain.statement = inner;
            return Ok(statement);
        }
        Statement::CopyTo(copy) => {
            if let CopyToSource::Query(query) = &mut copy.source {
                let _never_ends_early: ControlFlow<()> = query.visit(&mut SelectAll);
            }
            return Ok(statement);
        }
        _ => return Ok(statement),
    };
    let _never_ends_early: ControlFlow<()> = sql.visit(&mut SelectAll);
    let SqlStatement::ShowTables { full: false, show_options, .. } = sql.as_ref() else {
        return Ok(statement);
    };
    if show_options != &NO_OPTIONS {
        return Ok(statement);
    }
    Ok(DFParser::parse_sql(SHOW_TABLES)?.pop_front().unwrap_or(statement))
}

/// Adds the columns of `FROM t`, wherever it stands; DataFusion would leave them out.
struct SelectAll;

impl VisitorMut for SelectAll {
    type Break = ();

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        select_all(&mut query.body);
        ControlFlow::Continue(())
    }
}

fn select_all(body: &mut SetExpr) {
    match body {
        SetExpr::Select(select) if select.flavor == SelectFlavor::FromFirstNoSelect => {
            select.projection = vec![SelectItem::Wildcard(WildcardAdditionalOptions::default())];
            select.flavor = SelectFlavor::FromFirst;
        }
        SetExpr::SetOperation { left, right, .. } => {
            select_all(left);
            select_all(right);
        }
        _ => {}
    }
}

/// SHOW TABLES without LIKE and the like.
const NO_OPTIONS: ShowStatementOptions = ShowStatementOptions {
    show_in: None,
    starts_with: None,
    limit: None,
    limit_from: None,
    filter_position: None,
};

async fn plan_here(session: &SessionContext, statement: Statement) -> Result<Planned> {
    let statement = rewrite(statement)?;
    let logical = by_path::while_planning(session.state().statement_to_plan(statement)).await?;
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
