//! Runtime filters for in-memory tables.
//!
//! DataFusion's [`MemorySourceConfig`] accepts no filters, so the filters of joins stop above it.
//! While the rule that pushes them down runs, in-memory tables are wrapped in
//! [`FilteredMemorySource`], which accepts them.

use std::{fmt, sync::Arc};

use datafusion::{
    common::{config::ConfigOptions, tree_node::TreeNodeRecursion},
    datasource::{memory::MemorySourceConfig, source::DataSource},
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::{
        EquivalenceProperties, LexOrdering, Partitioning, PhysicalExpr, conjunction,
        expressions::DynamicFilterPhysicalExpr, projection::ProjectionExprs,
    },
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::{
        DisplayFormatType, ExecutionPlan, Statistics,
        execution_plan::SchedulingType,
        filter_pushdown::{FilterPushdownPropagation, PushedDown},
    },
};
use gatework_runtime::{
    Result as RuntimeResult,
    pipeline::{
        Batch, DriverContext as Task, LocalSource, OperatorContext, Source, SourceResult,
        StartResult,
    },
};
use gatework_shared_state::Gate;

use super::{
    filters::{LocalFilters, ScanFilter},
    sources::with_sources,
};

/// An in-memory table and the runtime filters that were pushed to it.
#[derive(Debug, Clone)]
pub(crate) struct FilteredMemorySource {
    table: MemorySourceConfig,
    /// Filters over the table's output. They are hints: the operators that pushed them check the
    /// rows themselves.
    filters: Vec<Arc<dyn PhysicalExpr>>,
}

impl FilteredMemorySource {
    pub(crate) fn table(&self) -> &MemorySourceConfig {
        &self.table
    }

    /// Returns the conjunction of all filters; `None` without filters.
    pub(crate) fn predicate(&self) -> Option<Arc<dyn PhysicalExpr>> {
        (!self.filters.is_empty()).then(|| conjunction(self.filters.iter().cloned()))
    }

    /// Returns the same rows with other filters.
    pub(crate) fn with_filters(&self, filters: Vec<Arc<dyn PhysicalExpr>>) -> Self {
        Self { table: self.table.clone(), filters }
    }

    pub(crate) fn wrap(
        source: &Arc<dyn DataSource>,
        filters: &[Arc<dyn PhysicalExpr>],
    ) -> Option<Self> {
        let table = source.downcast_ref::<MemorySourceConfig>()?.clone();
        Some(Self { table, filters: filters.to_vec() })
    }
}

impl DataSource for FilteredMemorySource {
    fn open(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        self.table.open(partition, context)
    }

    fn fmt_as(&self, kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.table.fmt_as(kind, f)?;
        match (self.predicate(), kind) {
            (None, _) => Ok(()),
            (Some(predicate), DisplayFormatType::TreeRender) => {
                writeln!(f, "predicate={predicate}")
            }
            (Some(predicate), _) => write!(f, ", predicate={predicate}"),
        }
    }

    fn repartitioned(
        &self,
        target_partitions: usize,
        min_size: usize,
        ordering: Option<LexOrdering>,
    ) -> Result<Option<Arc<dyn DataSource>>> {
        let table = self.table.repartitioned(target_partitions, min_size, ordering)?;
        let wrap = |table| Self::wrap(&table, &self.filters);
        Ok(table.and_then(wrap).map(|table| Arc::new(table) as _))
    }

    fn output_partitioning(&self) -> Partitioning {
        self.table.output_partitioning()
    }

    fn eq_properties(&self) -> EquivalenceProperties {
        self.table.eq_properties()
    }

    fn scheduling_type(&self) -> SchedulingType {
        self.table.scheduling_type()
    }

    fn partition_statistics(&self, partition: Option<usize>) -> Result<Arc<Statistics>> {
        self.table.partition_statistics(partition)
    }

    fn with_fetch(&self, limit: Option<usize>) -> Option<Arc<dyn DataSource>> {
        let table = self.table.with_fetch(limit)?;
        Some(Arc::new(Self::wrap(&table, &self.filters)?))
    }

    fn fetch(&self) -> Option<usize> {
        self.table.fetch()
    }

    fn try_swapping_with_projection(
        &self,
        projection: &ProjectionExprs,
    ) -> Result<Option<Arc<dyn DataSource>>> {
        if !self.filters.is_empty() {
            // The filters may need a column that the projection drops.
            return Ok(None);
        }
        let table = self.table.try_swapping_with_projection(projection)?;
        Ok(table.and_then(|table| Self::wrap(&table, &[])).map(|table| Arc::new(table) as _))
    }

    fn try_pushdown_filters(
        &self,
        filters: Vec<Arc<dyn PhysicalExpr>>,
        _config: &ConfigOptions,
    ) -> Result<FilterPushdownPropagation<Arc<dyn DataSource>>> {
        let results = vec![PushedDown::No; filters.len()];
        let dynamic = |filter: &Arc<dyn PhysicalExpr>| filter.is::<DynamicFilterPhysicalExpr>();
        let filters: Vec<_> = filters.into_iter().filter(dynamic).collect();
        let propagation = FilterPushdownPropagation::with_parent_pushdown_result(results);
        if filters.is_empty() {
            return Ok(propagation);
        }
        let mut table = self.clone();
        table.filters.extend(filters);
        Ok(propagation.with_updated_node(Arc::new(table)))
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        let mut recursion = TreeNodeRecursion::Continue;
        for filter in &self.filters {
            recursion = f(filter)?;
            if recursion == TreeNodeRecursion::Stop {
                break;
            }
        }
        Ok(recursion)
    }
}

/// The rule that pushes filters down, extended to in-memory tables.
#[derive(Debug)]
pub(crate) struct MemoryFilterPushdown {
    rule: Arc<dyn PhysicalOptimizerRule + Send + Sync>,
}

impl MemoryFilterPushdown {
    /// Wraps DataFusion's rule for runtime filters.
    pub(crate) fn new(rule: Arc<dyn PhysicalOptimizerRule + Send + Sync>) -> Self {
        Self { rule }
    }
}

impl PhysicalOptimizerRule for MemoryFilterPushdown {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let wrapped = with_sources(plan, &|source| {
            FilteredMemorySource::wrap(source, &[]).map(|table| Arc::new(table) as _)
        })?;
        let pushed = self.rule.optimize(wrapped, config)?;
        with_sources(pushed, &|source| {
            let table = source.downcast_ref::<FilteredMemorySource>()?;
            table.filters.is_empty().then(|| Arc::new(table.table.clone()) as _)
        })
    }

    fn name(&self) -> &str {
        self.rule.name()
    }

    fn schema_check(&self) -> bool {
        self.rule.schema_check()
    }
}

/// A source whose rows are filtered by runtime filters.
#[derive(Debug)]
pub(crate) struct FilteredScan {
    source: Arc<dyn Source>,
    filters: Vec<Arc<ScanFilter>>,
    /// Gates that must be ready before the source starts.
    start_after: Vec<Gate>,
}

impl FilteredScan {
    pub(crate) fn new(
        source: Arc<dyn Source>,
        filters: Vec<Arc<ScanFilter>>,
        start_after: Vec<Gate>,
    ) -> Self {
        Self { source, filters, start_after }
    }
}

impl Source for FilteredScan {
    fn name(&self) -> &str {
        self.source.name()
    }

    fn local(&self, context: OperatorContext) -> RuntimeResult<Box<dyn LocalSource>> {
        let filters = LocalFilters::new(&self.filters, context.metrics().clone());
        let start_after = self.start_after.clone();
        Ok(Box::new(LocalFilteredScan {
            source: self.source.local(context)?,
            filters,
            start_after,
        }))
    }
}

struct LocalFilteredScan {
    source: Box<dyn LocalSource>,
    filters: LocalFilters,
    start_after: Vec<Gate>,
}

impl LocalSource for LocalFilteredScan {
    fn start(&mut self, task: &Task) -> RuntimeResult<StartResult> {
        let blocked = self.start_after.iter().find(|gate| !gate.is_ready()).cloned();
        match blocked.or_else(|| self.filters.gate()) {
            Some(gate) => Ok(StartResult::Blocked(gate.into())),
            None => self.source.start(task),
        }
    }

    fn next(&mut self, task: &Task) -> RuntimeResult<SourceResult> {
        loop {
            task.check_cancelled()?;
            let batch = match self.source.next(task)? {
                SourceResult::Batch(batch) => batch,
                other => return Ok(other),
            };
            let Some(selection) = self.filters.select(batch.data())? else {
                return Ok(SourceResult::Batch(batch));
            };
            let sequence = batch.sequence();
            let batch = Batch::with_selection(batch.into_parts().0, selection);
            if batch.num_rows() > 0 {
                return Ok(SourceResult::Batch(batch.with_sequence(sequence)));
            }
            // The filters may drop all rows for a long time.
            if task.should_yield() {
                return Ok(SourceResult::Yield);
            }
        }
    }
}
