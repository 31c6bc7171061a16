//! A session as the database of a sqllogictest runner.

use arrow::{
    array::{Array, ArrayRef, AsArray},
    datatypes::{DataType, Float64Type},
    util::display::{ArrayFormatter, FormatOptions},
};
use datafusion::{
    common::exec_err,
    error::{DataFusionError, Result},
    logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, Sort},
    prelude::{DataFrame, SessionContext},
};
use sqllogictest::{AsyncDB, ColumnType, DBOutput};

use crate::against_datafusion::{Ran, Watch, run};

/// Comment of a query that names the nodes that fall back to DataFusion's operators.
const FALLS_BACK: &str = "-- falls back:";

/// A session that runs the statements of a file.
#[derive(Clone)]
pub(super) struct Database {
    session: SessionContext,
    /// Whether this is the reference, which checks that the file's results are determined. The
    /// others check that the plan nodes that fall back are those that the query names.
    is_reference: bool,
    watch: Option<Watch>,
}

impl Database {
    /// Creates the database of a plain DataFusion session.
    pub(super) fn reference(session: SessionContext) -> Self {
        Self { session, is_reference: true, watch: None }
    }

    /// Creates the database of a gatework session.
    pub(super) fn tested(session: SessionContext) -> Self {
        Self { session, is_reference: false, watch: None }
    }

    /// Reports each statement to a hang guard.
    pub(super) fn watched(self, watch: &Watch) -> Self {
        Self { watch: Some(watch.clone()), ..self }
    }

    fn check_fallbacks(&self, sql: &str, ran: &Ran) -> Result<()> {
        let named = sql.lines().find_map(|line| line.strip_prefix(FALLS_BACK));
        let is_query = !matches!(
            ran.logical,
            LogicalPlan::Ddl(_)
                | LogicalPlan::Dml(_)
                | LogicalPlan::Copy(_)
                | LogicalPlan::Statement(_)
        );
        if named.is_none() && !is_query {
            return Ok(());
        }
        let mut named: Vec<_> = named.unwrap_or("").split(',').map(str::trim).collect();
        named.retain(|name| !name.is_empty());
        let mut actual = gatework::fallbacks(&ran.physical);
        named.sort_unstable();
        actual.sort_unstable();
        actual.dedup();
        if named != actual {
            return exec_err!("{actual:?} fell back, the query names {named:?}");
        }
        Ok(())
    }

    /// Checks that rows with equal sort keys are equal, before a limit chooses among them. Else the
    /// order of the result is open, and a run with other threads may return another.
    async fn check_order(&self, plan: &LogicalPlan) -> Result<()> {
        let Some(sort) = sort_at_top(plan) else { return Ok(()) };
        let keys = sort.expr.iter().enumerate();
        let keys: Vec<_> = keys.map(|(n, key)| key.expr.clone().alias(format!("{n}"))).collect();
        let columns = sort.input.schema().columns().into_iter().map(Expr::Column);
        let rows: Vec<_> = columns.chain(keys.iter().cloned()).collect();
        if self.count_distinct(sort, keys).await? < self.count_distinct(sort, rows).await? {
            return exec_err!("rows have equal sort keys: sort by more columns");
        }
        Ok(())
    }

    async fn count_distinct(&self, sort: &Sort, exprs: Vec<Expr>) -> Result<usize> {
        let input = LogicalPlanBuilder::from(sort.input.as_ref().clone());
        let plan = input.project(exprs)?.distinct()?.build()?;
        DataFrame::new(self.session.state(), plan).count().await
    }
}

/// Returns the node that orders the result.
fn sort_at_top(plan: &LogicalPlan) -> Option<&Sort> {
    match plan {
        LogicalPlan::Sort(sort) => Some(sort),
        LogicalPlan::Limit(_) | LogicalPlan::Projection(_) | LogicalPlan::SubqueryAlias(_) => {
            sort_at_top(plan.inputs()[0])
        }
        _ => None,
    }
}

#[async_trait::async_trait]
impl AsyncDB for Database {
    type Error = DataFusionError;
    type ColumnType = Type;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<Type>> {
        if let Some(watch) = &self.watch {
            watch.doing(sql);
        }
        let ran = run(self.session.sql(sql).await?).await?;
        match self.is_reference {
            true => self.check_order(&ran.logical).await?,
            false => self.check_fallbacks(sql, &ran)?,
        }
        let schema = ran.physical.schema();
        if schema.fields().is_empty() {
            return Ok(DBOutput::StatementComplete(0));
        }
        let types = schema.fields().iter().map(|field| Type::of(field.data_type())).collect();
        let mut rows = Vec::new();
        for batch in &ran.rows {
            for row in 0..batch.num_rows() {
                let cells = batch.columns().iter().map(|column| cell(column, row));
                rows.push(cells.collect::<Result<_>>()?);
            }
        }
        Ok(DBOutput::Rows { types, rows })
    }

    async fn shutdown(&mut self) {}

    fn engine_name(&self) -> &str {
        "DataFusion"
    }
}

/// The type of a result column, by its letter in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Type(char);

impl Type {
    /// Returns the letter that DataFusion's own files use.
    fn of(kind: &DataType) -> Self {
        Self(match kind {
            DataType::Boolean => 'B',
            DataType::Date32 | DataType::Date64 | DataType::Time32(_) | DataType::Time64(_) => 'D',
            DataType::Timestamp(..) => 'P',
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => 'T',
            DataType::Dictionary(_, values) => return Self::of(values),
            kind if kind.is_integer() => 'I',
            kind if kind.is_numeric() => 'R',
            _ => '?',
        })
    }
}

impl ColumnType for Type {
    fn from_char(value: char) -> Option<Self> {
        Some(Self(value))
    }

    fn to_char(&self) -> char {
        self.0
    }
}

/// Returns the text of a value in a file.
fn cell(column: &ArrayRef, row: usize) -> Result<String> {
    if let DataType::Float64 = column.data_type()
        && column.is_valid(row)
    {
        // The last digits depend on the order of additions.
        let value = column.as_primitive::<Float64Type>().value(row);
        let rounded: f64 = format!("{value:.11e}").parse().unwrap_or(value);
        return Ok(rounded.to_string());
    }
    let options = FormatOptions::new().with_null("NULL").with_display_error(false);
    let text = ArrayFormatter::try_new(column, &options)?.value(row).try_to_string()?;
    Ok(match text.is_empty() {
        true => "(empty)".to_owned(),
        false => text.replace('\n', "\\n"),
    })
}
