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
    Expr, FunctionArg, FunctionArgExpr, Ident, ObjectName, Query, SelectFlavor, SelectItem,
    SetExpr, ShowStatementOptions, Statement as SqlStatement, TableFactor, TableFunctionArgs,
    VisitMut, VisitorMut, WildcardAdditionalOptions,
};

use crate::engine::{ResultStream, StageConfig};
use crate::error::Error;
use crate::large_stack;
use crate::sql::script::Text;
use crate::tables::by_path;

/// The statements of a text.
pub(crate) struct Parsed {
    pub(crate) statements: VecDeque<Statement>,
    /// The text in which the places of the statements are.
    pub(crate) text: Text,
    /// Whether the columns of the first statement's result are to be summarized.
    pub(crate) summarizes: bool,
}

/// Splits a text into its statements. Its first one may be of two kinds that DuckDB has and
/// DataFusion has not.
pub(crate) fn parse_text(text: &Text) -> Result<Parsed> {
    let error = match parse(&text.sql) {
        Ok(statements) => return Ok(Parsed { statements, text: text.clone(), summarizes: false }),
        Err(error) => error,
    };
    let sql = text.sql.trim_start();
    // Lines stay the same.
    let blank = &text.sql[..text.sql.len() - sql.len()];
    let (sql, summarizes) = match (after_word(sql, "FROM"), after_word(sql, "SUMMARIZE")) {
        // `FROM t WHERE …`: the parser knows it without a condition only.
        (Some(_), _) => (format!("SELECT * {sql}"), false),
        (_, Some(rest)) => {
            let is_query = rest.starts_with('(')
                || QUERY_WORDS.iter().any(|word| after_word(rest, word).is_some());
            (if is_query { rest.to_owned() } else { format!("SELECT * FROM {rest}") }, true)
        }
        _ => return Err(error),
    };
    let sql = format!("{blank}{sql}");
    let Ok(statements) = parse(&sql) else { return Err(error) };
    Ok(Parsed { statements, text: Text { sql, first_line: text.first_line }, summarizes })
}

/// Words with which a query begins.
const QUERY_WORDS: [&str; 4] = ["SELECT", "WITH", "FROM", "VALUES"];

/// The text after its first word, if that is `word`.
fn after_word<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let (first, rest) = text.split_at_checked(word.len())?;
    let is_whole = !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    (first.eq_ignore_ascii_case(word) && is_whole).then(|| rest.trim_start())
}

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

/// A statement that has run, or whose query runs.
pub(crate) struct Started {
    /// The logical plan before optimization.
    pub(crate) logical: LogicalPlan,
    /// The rows of a query; none of a statement that has already run.
    pub(crate) rows: Option<ResultStream>,
}

/// Plans one statement of `text` and starts it within `limit`, as stages if there are nodes: `plan`
/// and `start` without a change of threads between them.
pub(crate) async fn run(
    session: &SessionContext,
    statement: Statement,
    text: &Text,
    nodes: Option<Arc<StageConfig>>,
    limit: Option<Duration>,
) -> Result<Started, Error> {
    let (session, text) = (session.clone(), text.clone());
    let starting = async move {
        let planned = plan_here(&session, statement).await;
        let planned = planned.map_err(|error| Error::in_text(&error, Some(&text), &session))?;
        if !planned.has_result() {
            return Ok(Started { logical: planned.logical, rows: None });
        }
        let rows = ResultStream::start(planned.frame, nodes.as_deref()).await;
        let rows = rows.map_err(|error| Error::query(&error, &session))?;
        Ok(Started { logical: planned.logical, rows: Some(rows) })
    };
    large_stack::run("planning the query", limit, starting).await
}

/// Plans one statement of `text` within `limit`. A statement that changes the session takes effect
/// at once.
pub(crate) async fn plan(
    session: &SessionContext,
    statement: Statement,
    text: Option<&Text>,
    limit: Option<Duration>,
) -> Result<Planned, Error> {
    let (session, text) = (session.clone(), text.cloned());
    let planning = async move {
        let planned = plan_here(&session, statement).await;
        planned.map_err(|error| Error::in_text(&error, text.as_ref(), &session))
    };
    large_stack::run("planning the statement", limit, planning).await
}

/// The query of SHOW TABLES: like DataFusion's, with the user's own tables first.
const SHOW_TABLES: &str = "SELECT * FROM information_schema.tables ORDER BY \
                           table_schema = 'information_schema', table_catalog, table_schema, \
                           table_name";

/// Replaces SHOW TABLES by its query, `FROM t` by `SELECT * FROM t`, and `read_csv('f')` by `'f'`.
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
                let _never_ends_early: ControlFlow<()> = query.visit(&mut DuckDbSyntax);
            }
            return Ok(statement);
        }
        _ => return Ok(statement),
    };
    let _never_ends_early: ControlFlow<()> = sql.visit(&mut DuckDbSyntax);
    let SqlStatement::ShowTables { full: false, show_options, .. } = sql.as_ref() else {
        return Ok(statement);
    };
    if show_options != &NO_OPTIONS {
        return Ok(statement);
    }
    Ok(DFParser::parse_sql(SHOW_TABLES)?.pop_front().unwrap_or(statement))
}

/// Adds the columns of `FROM t`, wherever it stands; DataFusion would leave them out. Names files
/// that DuckDB's table functions read.
struct DuckDbSyntax;

/// DuckDB's functions that read the files of a path.
const READERS: [&str; 8] = [
    "read_csv",
    "read_csv_auto",
    "read_parquet",
    "parquet_scan",
    "read_json",
    "read_json_auto",
    "read_ndjson",
    "read_ndjson_auto",
];

impl VisitorMut for DuckDbSyntax {
    type Break = ();

    fn pre_visit_table_factor(&mut self, table: &mut TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name, args, .. } = table
            && let Some(path) = args.as_ref().and_then(only_text)
            && READERS.iter().any(|reader| name.to_string().eq_ignore_ascii_case(reader))
        {
            *name = ObjectName::from(vec![Ident::with_quote('"', path)]);
            *args = None;
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        select_all(&mut query.body);
        ControlFlow::Continue(())
    }
}

/// The only argument of a function, if it is a text.
fn only_text(arguments: &TableFunctionArgs) -> Option<String> {
    match (arguments.args.as_slice(), &arguments.settings) {
        ([FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(value)))], None) => {
            value.value.clone().into_string()
        }
        _ => None,
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
    // A state holds all functions, so a clone of it takes longer than many a statement.
    let state = Arc::new(session.state());
    let planning = state.statement_to_plan(statement);
    let logical = by_path::while_planning(Arc::clone(&state), planning).await?;
    depth::check_plan(&logical)?;
    let frame = match &logical {
        LogicalPlan::Ddl(_) | LogicalPlan::Statement(_) => {
            session.execute_logical_plan(logical.clone()).await?
        }
        _ => DataFrame::new(Arc::unwrap_or_clone(state), logical.clone()),
    };
    Ok(Planned { logical, frame })
}

impl Planned {
    /// Replaces the result by the count, mean, minimum and so on of each of its columns.
    pub(crate) async fn summarize(
        self,
        session: &SessionContext,
        limit: Option<Duration>,
    ) -> Result<Self, Error> {
        let what = "summarizing the query";
        let frame = with_plan(what, session, self.frame, limit, DataFrame::describe).await?;
        Ok(Self { logical: frame.logical_plan().clone(), frame })
    }

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
    let start = |frame| async move { ResultStream::start(frame, nodes.as_deref()).await };
    with_plan("planning the query", session, frame, limit, start).await
}

/// Runs `work`, which is called `what` in errors, with a query on a large stack within `limit`.
pub(crate) async fn with_plan<T, F>(
    what: &str,
    session: &SessionContext,
    frame: DataFrame,
    limit: Option<Duration>,
    work: impl FnOnce(DataFrame) -> F + Send + 'static,
) -> Result<T, Error>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send,
{
    let session = session.clone();
    let work = async move {
        let result = match depth::check_plan(frame.logical_plan()) {
            Ok(()) => work(frame).await,
            Err(error) => Err(error),
        };
        result.map_err(|error| Error::query(&error, &session))
    };
    large_stack::run(what, limit, work).await
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
