//! Prunes the rows of a row group by its statistics and its page index.
//!
//! The predicate is over the table's columns, statistics are over the file's. As in DataFusion's
//! opener, each conjunct is adapted to the file's schema. Columns are matched by name and cast
//! where types differ; a column that the file lacks is NULL. A conjunct that cannot be adapted
//! prunes nothing.
//!
//! Conjuncts over floats are handled in [`nan`](super::nan).

use std::{collections::HashMap, sync::Arc};

use arrow::datatypes::SchemaRef;
use datafusion::{
    common::ScalarValue,
    datasource::{
        listing::PartitionedFile,
        physical_plan::{
            FileSource, ParquetFileMetrics, ParquetSource,
            parquet::{
                PagePruningAccessPlanFilter, ParquetAccessPlan, RowGroupAccess,
                RowGroupAccessPlanFilter,
            },
        },
    },
    parquet::{basic::SortOrder, file::page_index::offset_index::PageLocation},
    physical_expr::{
        PhysicalExpr, PhysicalExprSimplifier, conjunction, split_conjunction,
        utils::collect_columns,
    },
    physical_expr_adapter::{
        DefaultPhysicalExprAdapterFactory, PhysicalExprAdapter, PhysicalExprAdapterFactory,
        replace_columns_with_literals,
    },
    physical_expr_common::physical_expr::snapshot_physical_expr,
    physical_optimizer::pruning::{PruningPredicate, PruningPredicateBuilder},
};

use super::{
    RowGroupPlan,
    nan::{has_nan_bounds, without_nan},
    open::leaf,
};
use crate::scan::morsels::RowGroup;

/// A row group and its file.
pub(super) struct PruningTarget<'a> {
    pub(super) source: &'a ParquetSource,
    pub(super) file: &'a PartitionedFile,
    pub(super) group: &'a RowGroup,
    /// The schema of the file.
    pub(super) schema: &'a SchemaRef,
}

impl RowGroupPlan {
    /// Returns which rows of a row group may match the predicate, by statistics and page index, and
    /// the predicate that its bloom filters may answer.
    pub(super) fn prune(
        &self,
        target: &PruningTarget<'_>,
        metrics: &ParquetFileMetrics,
    ) -> (RowGroupAccess, Option<PruningPredicate>) {
        let Some(predicate) = self.file_predicate(target) else {
            return (RowGroupAccess::Scan, None);
        };
        let footer = target.group.footer_of_itself();
        let options = &target.source.table_parquet_options().global;
        let mut access = PruningTarget::only_row_group();
        let descriptor = footer.file_metadata().schema_descr();
        let pruning = PruningPredicateBuilder::new()
            .with_file_schema(target.schema.clone())
            .try_build(predicate.clone());
        let pruning = pruning.ok().filter(|pruning| !pruning.always_true());
        if options.pruning
            && let Some(pruning) = &pruning
        {
            let groups = footer.row_groups();
            let mut filter = RowGroupAccessPlanFilter::new(access);
            filter.prune_by_statistics(target.schema, descriptor, groups, pruning, metrics);
            access = filter.build();
        }
        if options.enable_page_index && access.should_scan(0) && target.has_page_index(&predicate) {
            let pages = PagePruningAccessPlanFilter::new(&predicate, target.schema.clone());
            access = pages.prune_plan_with_page_index(
                access,
                target.schema,
                descriptor,
                &footer,
                metrics,
            );
        }
        (access.into_inner().swap_remove(0), pruning.filter(|_| options.bloom_filter_on_read))
    }

    /// Returns the conjuncts of the predicate that may prune the row group, over the columns of its
    /// file.
    fn file_predicate(&self, target: &PruningTarget<'_>) -> Option<Arc<dyn PhysicalExpr>> {
        let predicate = snapshot_physical_expr(self.predicate.clone()?).ok()?;
        let adapter = DefaultPhysicalExprAdapterFactory
            .create(self.table.clone(), target.schema.clone())
            .ok()?;
        let partition = target.partition_values();
        let parts = split_conjunction(&predicate).into_iter();
        let adapted =
            parts.filter_map(|conjunct| self.adapt(conjunct, &partition, &adapter, target.schema));
        let bounded = adapted.filter(|conjunct| target.has_ordered_bounds(conjunct)).collect();
        let conjuncts = without_nan(bounded, target.schema, |column| target.has_nan_bounds(column));
        (!conjuncts.is_empty()).then(|| conjunction(conjuncts))
    }

    /// Rewrites a `conjunct` of the predicate to the columns of a file with `schema`. `None` if it
    /// has a column that belongs neither to the table's file columns nor to the partition.
    fn adapt(
        &self,
        conjunct: &Arc<dyn PhysicalExpr>,
        partition: &HashMap<String, ScalarValue>,
        adapter: &Arc<dyn PhysicalExprAdapter>,
        schema: &SchemaRef,
    ) -> Option<Arc<dyn PhysicalExpr>> {
        let conjunct = match partition.is_empty() {
            true => conjunct.clone(),
            false => replace_columns_with_literals(conjunct.clone(), partition).ok()?,
        };
        let columns = collect_columns(&conjunct);
        if !columns.iter().all(|column| self.table.field_with_name(column.name()).is_ok()) {
            return None;
        }
        let simplifier = PhysicalExprSimplifier::new(schema);
        simplifier.simplify(adapter.rewrite(conjunct).ok()?).ok()
    }
}

impl PruningTarget<'_> {
    /// Returns the access plan of a file with one row group.
    pub(super) fn only_row_group() -> ParquetAccessPlan {
        ParquetAccessPlan::new_all(1)
    }

    /// Returns the values of the partition columns, which come from the file's path.
    fn partition_values(&self) -> HashMap<String, ScalarValue> {
        let columns = self.source.table_schema().table_partition_cols();
        let values = self.file.partition_values.iter().cloned();
        columns.iter().map(|column| column.name().clone()).zip(values).collect()
    }

    fn leaf(&self, column: &str) -> Option<usize> {
        leaf(self.group.footer.file_metadata().schema_descr(), column)
    }

    /// Returns whether the row group's bounds follow the order in which values are compared. Old
    /// writers compared strings and unsigned numbers as signed values.
    fn has_ordered_bounds(&self, conjunct: &Arc<dyn PhysicalExpr>) -> bool {
        collect_columns(conjunct).iter().all(|column| {
            let Some(leaf) = self.leaf(column.name()) else { return true };
            let Some(chunk) = self.group.metadata().columns().get(leaf) else { return true };
            let old = chunk.statistics().is_some_and(|bounds| bounds.is_min_max_deprecated());
            !old || chunk.column_descr().sort_order() == SortOrder::SIGNED
        })
    }

    /// Returns whether a bound of the row group or of one of its pages is NaN, or the column is not
    /// in the file.
    fn has_nan_bounds(&self, column: &str) -> bool {
        let Some(leaf) = self.leaf(column) else { return true };
        has_nan_bounds(&self.group.footer, self.group.index, leaf)
    }

    /// Returns whether the page index lists the pages of the columns of `predicate` in order and
    /// within the row group.
    fn has_page_index(&self, predicate: &Arc<dyn PhysicalExpr>) -> bool {
        let footer = &self.group.footer;
        let (Some(_), Some(offsets)) = (footer.column_index(), footer.offset_index()) else {
            return false;
        };
        let rows = self.group.metadata().num_rows();
        collect_columns(predicate).iter().all(|column| {
            let Some(leaf) = self.leaf(column.name()) else { return true };
            let pages = offsets.get(self.group.index).and_then(|columns| columns.get(leaf));
            pages.is_some_and(|pages| are_in_order(pages.page_locations(), rows))
        })
    }
}

/// Returns whether the pages are in order, the first one starts at row 0, and the last one starts
/// before row `rows`.
fn are_in_order(pages: &[PageLocation], rows: i64) -> bool {
    let first = |page: &PageLocation| page.first_row_index;
    pages.is_sorted_by_key(first)
        && pages.first().map(first) == Some(0)
        && pages.last().is_some_and(|page| first(page) < rows)
}
