//! The table that stands for a shared subplan while its readers are optimized.

use std::{
    any::Any,
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    common::{
        Column, TableReference, internal_datafusion_err,
        tree_node::{Transformed, TransformedResult, TreeNode},
    },
    datasource::{TableType, provider_as_source, source_as_provider},
    error::Result,
    logical_expr::{
        Between, BinaryExpr, Expr, LogicalPlan, LogicalPlanBuilder, Operator,
        TableProviderFilterPushDown, TableScan, TableScanBuilder, expr::InList,
    },
    physical_plan::ExecutionPlan,
};

/// A shared subplan as a table.
#[derive(Clone)]
pub(crate) struct SharedTable(Arc<Inner>);

struct Inner {
    id: usize,
    name: String,
    schema: SchemaRef,
    definition: OnceLock<LogicalPlan>,
}

impl fmt::Debug for SharedTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedTable").field("id", &self.0.id).field("name", &self.0.name).finish()
    }
}

impl SharedTable {
    /// Creates the table of the subplan `plan`, whose first reader calls it `name`.
    pub(super) fn new(name: &str, plan: &LogicalPlan) -> Self {
        static NEXT_ID: AtomicUsize = AtomicUsize::new(0);
        Self(Arc::new(Inner {
            // Relaxed: only the number counts.
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            name: name.to_owned(),
            schema: plan.schema().inner().clone(),
            definition: OnceLock::new(),
        }))
    }

    /// Sets the plan of the subplan, once.
    pub(super) fn define(&self, definition: LogicalPlan) {
        let _first = self.0.definition.set(definition);
    }

    /// Returns the id; a subplan that is part of another one has the larger id.
    pub(super) fn id(&self) -> usize {
        self.0.id
    }

    pub(super) fn name(&self) -> &str {
        &self.0.name
    }

    fn definition(&self) -> Result<&LogicalPlan> {
        let undefined = || internal_datafusion_err!("the shared subplan {self:?} has no plan");
        self.0.definition.get().ok_or_else(undefined)
    }

    /// Returns the table that `scan` reads, if it is a shared one.
    pub(super) fn of(scan: &TableScan) -> Option<Self> {
        let provider = source_as_provider(&scan.source).ok()?;
        (provider.as_ref() as &dyn Any).downcast_ref::<Self>().cloned()
    }

    /// Returns a scan of all columns and rows.
    pub(super) fn scan(&self) -> Result<LogicalPlan> {
        let source = provider_as_source(Arc::new(self.clone()));
        let scan =
            TableScanBuilder::new(TableReference::bare(self.0.name.as_str()), source).build()?;
        Ok(LogicalPlan::TableScan(scan))
    }

    /// Returns the plan of the columns at `columns` of the rows that pass `filter`, which names
    /// columns as the table does.
    pub(super) fn plan(&self, columns: &[usize], filter: Option<Expr>) -> Result<LogicalPlan> {
        let definition = self.definition()?;
        let column =
            |index: usize| Expr::Column(Column::from(definition.schema().qualified_field(index)));
        let mut plan = LogicalPlanBuilder::from(definition.clone());
        if let Some(filter) = filter {
            let filter = filter.transform(|expr| {
                let Expr::Column(named) = &expr else { return Ok(Transformed::no(expr)) };
                Ok(Transformed::yes(column(self.0.schema.index_of(&named.name)?)))
            });
            plan = plan.filter(filter.data()?)?;
        }
        plan.project(columns.iter().map(|index| column(*index)))?.build()
    }
}

#[async_trait]
impl TableProvider for SharedTable {
    fn schema(&self) -> SchemaRef {
        self.0.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    /// Accepts filters that cannot fail: one of them is evaluated on rows that only another reader
    /// wants.
    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        let answer = |filter: &&Expr| match never_fails(filter) {
            true => TableProviderFilterPushDown::Inexact,
            false => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(answer).collect())
    }

    /// Plans a copy for this reader alone. Only planners other than gatework's call this.
    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let all: Vec<usize> = (0..self.0.schema.fields().len()).collect();
        let plan = self.plan(projection.unwrap_or(&all), None)?;
        session.create_physical_plan(&plan).await
    }
}

/// Returns whether `filter` compares columns with constants.
fn never_fails(filter: &Expr) -> bool {
    let is_value = |expr: &Expr| matches!(expr, Expr::Column(_) | Expr::Literal(..));
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And | Operator::Or, right }) => {
            never_fails(left) && never_fails(right)
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let compares = matches!(
                op,
                Operator::Eq
                    | Operator::NotEq
                    | Operator::Lt
                    | Operator::LtEq
                    | Operator::Gt
                    | Operator::GtEq
                    | Operator::IsDistinctFrom
                    | Operator::IsNotDistinctFrom
            );
            compares && is_value(left) && is_value(right)
        }
        Expr::Between(Between { expr, low, high, .. }) => {
            [expr, low, high].into_iter().all(|expr| is_value(expr))
        }
        Expr::InList(InList { expr, list, .. }) => is_value(expr) && list.iter().all(is_value),
        Expr::IsNull(expr) | Expr::IsNotNull(expr) => is_value(expr),
        Expr::Not(expr) => never_fails(expr),
        expr => is_value(expr),
    }
}
