//! Targets of runtime filters: the scans that a filter applies to, and those that it was pushed to
//! by mistake.
//!
//! See [`lineage`](super::lineage) for the cause of such mistakes.

use std::{collections::HashMap, sync::Arc};

use datafusion::{
    common::tree_node::{Transformed, TreeNode},
    datasource::{
        physical_plan::{FileScanConfig, ParquetSource},
        source::{DataSource, DataSourceExec},
    },
    error::Result,
    physical_expr::{
        PhysicalExpr,
        expressions::{DynamicFilterPhysicalExpr, lit},
        projection::ProjectionExprs,
    },
    physical_plan::{ExecutionPlan, joins::HashJoinExec},
};

use super::lineage::{KeysByScan, PassThroughInputs, are_same, replace, scan_id, trace};
use crate::scan::FilteredMemorySource;

/// The target scans of one runtime filter.
#[derive(Debug, Clone)]
pub(super) struct Targets(Arc<KeysByScan>);

/// A scan, and its output columns over the columns of its predicate; `None` if these are the same.
pub(super) struct ScanTarget<'a> {
    pub(super) scan: usize,
    pub(super) output: Option<&'a ProjectionExprs>,
}

impl Targets {
    /// Returns the targets of `filter`, whose keys are over the output of `probe`.
    pub(super) fn of(
        filter: &DynamicFilterPhysicalExpr,
        probe: &Arc<dyn ExecutionPlan>,
        pass_through_inputs: &PassThroughInputs,
    ) -> Result<Self> {
        let keys = filter.children().into_iter().cloned().collect();
        let mut keys_by_scan = KeysByScan::new();
        trace(probe, &keys, pass_through_inputs, &mut keys_by_scan)?;
        Ok(Self(Arc::new(keys_by_scan)))
    }

    /// Returns whether `columns`, the filter's arguments in a scan's predicate, are the keys of its
    /// join.
    pub(super) fn matches(
        &self,
        target: &ScanTarget,
        columns: &Vec<Arc<dyn PhysicalExpr>>,
    ) -> Result<bool> {
        let Some(keys) = self.0.get(&target.scan) else { return Ok(false) };
        let Some(output) = target.output else { return are_same(columns, keys) };
        let column = |index: usize| Some(output.iter().nth(index)?.expr.clone());
        match replace(keys, &column)? {
            Some(keys) => are_same(columns, &keys),
            None => Ok(false),
        }
    }
}

/// The target scans of all runtime filters of a plan's joins.
///
/// ```
/// use datafusion::prelude::*;
/// use gatework_sql::FilterTargets;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> datafusion::error::Result<()> {
/// let session = SessionContext::new();
/// session.sql("CREATE TABLE t AS VALUES (1), (2)").await?.collect().await?;
/// let plan = session.table("t").await?.create_physical_plan().await?;
/// let targets = FilterTargets::of(&plan, &|_| None)?;
/// assert!(targets.clean(&plan)?.is_none(), "a table without filters needs no cleaning");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct FilterTargets(HashMap<u64, Targets>);

impl FilterTargets {
    /// Returns the targets of all hash joins in `plan`. Filters are followed through custom nodes
    /// to the inputs that `pass_through_inputs` returns.
    ///
    /// If an expression of the plan does not fit its input.
    pub fn of(
        plan: &Arc<dyn ExecutionPlan>,
        pass_through_inputs: &PassThroughInputs,
    ) -> Result<Self> {
        let mut all = Self::default();
        all.add(plan, pass_through_inputs)?;
        Ok(all)
    }

    fn add(
        &mut self,
        plan: &Arc<dyn ExecutionPlan>,
        pass_through_inputs: &PassThroughInputs,
    ) -> Result<()> {
        if let Some(join) = plan.downcast_ref::<HashJoinExec>() {
            for expression in join.dynamic_expressions_produced() {
                let Ok(filter) = Arc::downcast::<DynamicFilterPhysicalExpr>(expression) else {
                    continue;
                };
                if let Some(id) = filter.expression_id() {
                    self.0.insert(id, Targets::of(&filter, join.right(), pass_through_inputs)?);
                }
            }
        }
        plan.children().into_iter().try_for_each(|child| self.add(child, pass_through_inputs))
    }

    /// Returns `scan` without those filters of these joins that do not apply to it; `None` if all
    /// apply.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn clean(&self, scan: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let Some(exec) = scan.downcast_ref::<DataSourceExec>() else { return Ok(None) };
        let (source, id) = (exec.data_source(), scan_id(scan));
        let cleaned: Option<Arc<dyn DataSource>> =
            if let Some(memory) = source.downcast_ref::<FilteredMemorySource>() {
                self.clean_memory(memory, id)?.map(|table| Arc::new(table) as _)
            } else if let Some(config) = source.downcast_ref::<FileScanConfig>() {
                self.clean_files(config, id)?.map(|config| Arc::new(config) as _)
            } else {
                None
            };
        Ok(cleaned.map(|source| Arc::new(DataSourceExec::new(source)) as _))
    }

    fn clean_memory(
        &self,
        memory: &FilteredMemorySource,
        scan: usize,
    ) -> Result<Option<FilteredMemorySource>> {
        let Some(predicate) = memory.predicate() else { return Ok(None) };
        let cleaned = self.clean_predicate(predicate, &ScanTarget { scan, output: None })?;
        Ok(cleaned.transformed.then(|| memory.with_filters(vec![cleaned.data])))
    }

    fn clean_files(&self, config: &FileScanConfig, scan: usize) -> Result<Option<FileScanConfig>> {
        let source = config.file_source.downcast_ref::<ParquetSource>();
        let (Some(source), Some(predicate)) = (source, config.file_source.filter()) else {
            return Ok(None);
        };
        let output = config.file_source.projection();
        let cleaned = self.clean_predicate(predicate, &ScanTarget { scan, output })?;
        Ok(cleaned.transformed.then(|| {
            let mut config = config.clone();
            config.file_source = Arc::new(source.with_predicate(cleaned.data));
            config
        }))
    }

    fn clean_predicate(
        &self,
        predicate: Arc<dyn PhysicalExpr>,
        target: &ScanTarget,
    ) -> Result<Transformed<Arc<dyn PhysicalExpr>>> {
        predicate.transform_up(|node| {
            let id = node.expression_id().filter(|_| node.is::<DynamicFilterPhysicalExpr>());
            let Some(targets) = id.and_then(|id| self.0.get(&id)) else {
                return Ok(Transformed::no(node));
            };
            let columns = node.children().into_iter().cloned().collect();
            Ok(match targets.matches(target, &columns)? {
                true => Transformed::no(node),
                false => Transformed::yes(lit(true)),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{Int64Array, RecordBatch},
        datatypes::SchemaRef,
    };
    use datafusion::{
        datasource::memory::MemorySourceConfig,
        physical_expr::expressions::{Column, col},
    };

    use super::*;

    fn column(index: usize) -> Arc<dyn PhysicalExpr> {
        Arc::new(Column::new("k", index))
    }

    /// Returns a table of two columns of one name, with a filter of the join over column `index`.
    fn table(
        filter: &Arc<DynamicFilterPhysicalExpr>,
        index: usize,
    ) -> Result<FilteredMemorySource> {
        let values = || Arc::new(Int64Array::from(vec![1, 2])) as _;
        let batch = RecordBatch::try_from_iter([("k", values()), ("k", values())])?;
        let schema: SchemaRef = batch.schema();
        let rows: Arc<dyn DataSource> =
            Arc::new(MemorySourceConfig::try_new(&[vec![batch]], schema.clone(), None)?);
        assert_eq!(&col("k", &schema)?, &column(0), "a lookup by name returns the first column");
        let filter = filter.clone().with_new_children(vec![column(index)])?;
        let table = FilteredMemorySource::wrap(&rows, &[filter]);
        table.ok_or_else(|| datafusion::common::internal_datafusion_err!("not a table in memory"))
    }

    #[test]
    fn filters_of_another_column_are_removed() -> Result<()> {
        let filter = Arc::new(DynamicFilterPhysicalExpr::new(vec![column(1)], lit(false)));
        for (index, stays) in [(1, true), (0, false)] {
            let table = table(&filter, index)?;
            let scan: Arc<dyn ExecutionPlan> = Arc::new(DataSourceExec::new(Arc::new(table)));
            let mut targets = FilterTargets::default();
            let id = filter.expression_id().unwrap_or_default();
            targets.0.insert(id, Targets::of(&filter, &scan, &|_| None)?);
            assert_eq!(targets.clean(&scan)?.is_none(), stays, "a filter on column {index}");
        }
        Ok(())
    }

    #[test]
    fn filters_of_other_joins_stay() -> Result<()> {
        let filter = Arc::new(DynamicFilterPhysicalExpr::new(vec![column(1)], lit(false)));
        let scan: Arc<dyn ExecutionPlan> =
            Arc::new(DataSourceExec::new(Arc::new(table(&filter, 0)?)));
        assert!(FilterTargets::of(&scan, &|_| None)?.clean(&scan)?.is_none());
        Ok(())
    }
}
