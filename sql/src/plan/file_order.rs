//! Orders of tables that consist of several files.
//!
//! A table that is declared `WITH ORDER` is sorted within each file. DataFusion decides by the
//! files' bounds whether files that are read one after the other preserve the order. It accepts
//! bounds of NULL, which a file has if its column's type differs from the table's. This rule runs
//! first and removes the order from a scan unless bounds prove it, so that the sort stays in the
//! plan.

use std::{cmp::Ordering, sync::Arc};

use datafusion::{
    common::{ScalarValue, config::ConfigOptions, stats::Precision},
    datasource::{
        listing::PartitionedFile,
        physical_plan::{FileGroup, FileScanConfig, FileScanConfigBuilder},
    },
    error::Result,
    physical_expr::{LexOrdering, PhysicalSortExpr, expressions::Column},
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::ExecutionPlan,
};

use crate::scan::with_file_scans;

/// Removes the orders of scans that read several files in sequence, unless the bounds prove them.
#[derive(Debug)]
pub(crate) struct ProvenFileOrder;

impl PhysicalOptimizerRule for ProvenFileOrder {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        with_file_scans(plan, &|config| {
            let proven = |order: &&LexOrdering| is_proven(config, order);
            let orders: Vec<_> = config.output_ordering.iter().filter(proven).cloned().collect();
            let all = orders.len() == config.output_ordering.len();
            let builder = FileScanConfigBuilder::from(config.clone());
            (!all).then(|| builder.with_output_ordering(orders).build())
        })
    }

    fn name(&self) -> &str {
        "gatework_proven_file_order"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Returns whether the files of each group, read one after the other, are in `order`.
fn is_proven(config: &FileScanConfig, order: &LexOrdering) -> bool {
    config.file_groups.iter().all(|group| group.len() < 2 || is_ordered(group, order))
}

fn is_ordered(group: &FileGroup, order: &LexOrdering) -> bool {
    let bounds: Option<Vec<_>> = group.iter().map(|file| bounds(file, order)).collect();
    let Some(bounds) = bounds else { return false };
    bounds.windows(2).all(|files| {
        let (last, first) = (&files[0].1, &files[1].0);
        is_before(order, last, first)
    })
}

/// Returns keys between which all rows of `file` lie in `order`; `None` if the file's statistics do
/// not prove them. Bounds do not cover NULLs, and statistics do not cover NaN.
fn bounds(
    file: &PartitionedFile,
    order: &LexOrdering,
) -> Option<(Vec<ScalarValue>, Vec<ScalarValue>)> {
    let statistics = file.statistics.as_ref()?;
    let mut bounds = (Vec::new(), Vec::new());
    for key in order {
        let column = key.expr.downcast_ref::<Column>()?;
        let (low, high) = match statistics.column_statistics.get(column.index()) {
            Some(column) => {
                let (Precision::Exact(low), Precision::Exact(high), Precision::Exact(0)) =
                    (&column.min_value, &column.max_value, &column.null_count)
                else {
                    return None;
                };
                (low.clone(), high.clone())
            }
            None => {
                let index = column.index() - statistics.column_statistics.len();
                let value = file.partition_values.get(index)?;
                (value.clone(), value.clone())
            }
        };
        let unknown = |value: &ScalarValue| value.is_null() || value.data_type().is_floating();
        if unknown(&low) || unknown(&high) {
            return None;
        }
        let (first, last) = if key.options.descending { (high, low) } else { (low, high) };
        bounds.0.push(first);
        bounds.1.push(last);
    }
    Some(bounds)
}

/// Returns whether `one` does not come after `other` in `order`.
fn is_before(order: &LexOrdering, one: &[ScalarValue], other: &[ScalarValue]) -> bool {
    let compare = |(key, (one, other)): (&PhysicalSortExpr, (&ScalarValue, &ScalarValue))| {
        let ordering = one.partial_cmp(other)?;
        Some(if key.options.descending { ordering.reverse() } else { ordering })
    };
    for keys in order.iter().zip(one.iter().zip(other)) {
        match compare(keys) {
            Some(Ordering::Less) => return true,
            Some(Ordering::Equal) => {}
            Some(Ordering::Greater) | None => return false,
        }
    }
    true
}
