//! Plans of shared subplans, made once all their readers are optimized.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    common::{
        Column,
        tree_node::{Transformed, TransformedResult, TreeNodeRecursion},
    },
    datasource::{TableType, provider_as_source},
    error::Result,
    logical_expr::{
        Expr, LogicalPlan, TableProviderFilterPushDown, TableScan,
        utils::{conjunction, disjunction, split_conjunction},
    },
    physical_plan::ExecutionPlan,
};

use super::{SharedRowsExec, SharedTable, exec::SharedSubplan};
use crate::plan::GateworkPlanner;

/// The scans of a shared table.
struct Readers {
    table: SharedTable,
    count: usize,
    /// Columns that any of them reads.
    columns: BTreeSet<usize>,
    /// The filters of each; `None` if one reads all rows.
    filters: Option<Vec<Expr>>,
}

impl Readers {
    fn add(&mut self, scan: &TableScan) {
        self.count += 1;
        match &scan.projection {
            Some(columns) => self.columns.extend(columns),
            None => self.columns.extend(0..self.table.schema().fields().len()),
        }
        match (&mut self.filters, conjunction(scan.filters.iter().cloned())) {
            (Some(filters), Some(filter)) => filters.push(filter),
            (filters, _) => *filters = None,
        }
    }

    /// Adds the scans of shared tables in `plan`.
    fn collect(plan: &LogicalPlan, readers: &mut BTreeMap<usize, Self>) -> Result<()> {
        plan.apply_with_subqueries(|node| {
            if let LogicalPlan::TableScan(scan) = node
                && let Some(table) = SharedTable::of(scan)
            {
                let none = |table| Self {
                    table,
                    count: 0,
                    columns: BTreeSet::new(),
                    filters: Some(Vec::new()),
                };
                readers.entry(table.id()).or_insert_with(|| none(table)).add(scan);
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(())
    }
}

/// Returns `plan`, which is optimized, with scans of planned subplans in place of shared tables.
pub(crate) async fn plan_subplans(
    plan: &LogicalPlan,
    session: &dyn Session,
    planner: &GateworkPlanner,
) -> Result<Option<LogicalPlan>> {
    let mut readers = BTreeMap::new();
    Readers::collect(plan, &mut readers)?;
    if readers.is_empty() {
        return Ok(None);
    }
    // By id, so that all readers of a subplan are known before it is optimized.
    let mut optimized = Vec::new();
    while let Some((id, mut readers_of_one)) = readers.pop_first() {
        if readers_of_one.columns.is_empty() {
            readers_of_one.columns.insert(0);
        }
        let columns: Vec<usize> = readers_of_one.columns.iter().copied().collect();
        let filter = readers_of_one.filters.take().and_then(any_of);
        let definition = session.optimize(&readers_of_one.table.plan(&columns, filter)?)?;
        Readers::collect(&definition, &mut readers)?;
        optimized.push((id, readers_of_one, columns, definition));
    }
    // The other way round, so that the subplans of a subplan are planned before it.
    let mut planned = BTreeMap::new();
    for (id, readers, columns, definition) in optimized.into_iter().rev() {
        let definition = with_planned(definition, &planned)?;
        let definition = planner.plan(&definition, session).await?;
        let name = readers.table.name().to_owned();
        let subplan = Arc::new(SharedSubplan::new(id, name, definition, readers.count));
        let schema = readers.table.schema();
        planned.insert(id, Arc::new(PlannedTable { subplan, columns, schema }));
    }
    with_planned(plan.clone(), &planned).map(Some)
}

/// Returns the predicate that a row passes which passes one of `filters`. In front, for each column
/// that every filter restricts alone, what they say of it: the optimizer pushes that through
/// aggregates, where it cannot push a whole disjunction.
fn any_of(filters: Vec<Expr>) -> Option<Expr> {
    let by_column: Vec<BTreeMap<Column, Vec<Expr>>> = filters.iter().map(by_column).collect();
    let first = by_column.first()?;
    let of_column = |column: &Column| {
        let all = by_column.iter().map(|filter| conjunction(filter.get(column)?.clone()));
        disjunction(all.collect::<Option<Vec<_>>>()?)
    };
    let columns: Vec<Expr> = first.keys().filter_map(of_column).collect();
    conjunction(columns.into_iter().chain(disjunction(filters)))
}

/// Returns the conjuncts of `filter` that name one column, by this column.
fn by_column(filter: &Expr) -> BTreeMap<Column, Vec<Expr>> {
    let mut by_column: BTreeMap<Column, Vec<Expr>> = BTreeMap::new();
    for conjunct in split_conjunction(filter) {
        let mut columns = conjunct.column_refs().into_iter();
        if let (Some(column), None) = (columns.next(), columns.next()) {
            by_column.entry(column.clone()).or_default().push(conjunct.clone());
        }
    }
    by_column
}

fn with_planned(
    plan: LogicalPlan,
    planned: &BTreeMap<usize, Arc<PlannedTable>>,
) -> Result<LogicalPlan> {
    plan.transform_up_with_subqueries(|node| {
        let LogicalPlan::TableScan(scan) = &node else { return Ok(Transformed::no(node)) };
        let table = SharedTable::of(scan).and_then(|table| planned.get(&table.id()));
        let Some(table) = table else { return Ok(Transformed::no(node)) };
        let source = provider_as_source(table.clone());
        Ok(Transformed::yes(LogicalPlan::TableScan(TableScan { source, ..scan.clone() })))
    })
    .data()
}

/// A shared table whose subplan is planned.
#[derive(Debug)]
struct PlannedTable {
    subplan: Arc<SharedSubplan>,
    /// The table's columns that the subplan has.
    columns: Vec<usize>,
    schema: SchemaRef,
}

#[async_trait]
impl TableProvider for PlannedTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    /// Says what was said when the filters were pushed down.
    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        _session: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let all: Vec<usize> = (0..self.schema.fields().len()).collect();
        let projection = projection.unwrap_or(&all);
        let schema = Arc::new(self.schema.project(projection)?);
        // Every column that a reader reads is there.
        let place = |column: &usize| self.columns.partition_point(|known| known < column);
        let columns = projection.iter().map(place).collect();
        Ok(Arc::new(SharedRowsExec::new(self.subplan.clone(), columns, schema)))
    }
}
