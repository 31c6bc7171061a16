//! The order of a node's rows, as far as a plan relies on it.
//!
//! DataFusion omits a sort whose input already has the order, and a projection above may drop the
//! sort's keys. Then no node declares the order any more, although the result, or the rows of a
//! limit, depend on it. So the declared output ordering is not enough: the order is followed down
//! through the nodes that maintain it.

use std::sync::Arc;

use datafusion::{
    datasource::{
        memory::MemorySourceConfig, physical_plan::FileScanConfig, source::DataSourceExec,
    },
    physical_plan::{ExecutionPlan, ExecutionPlanProperties},
};

use crate::scan::FilteredMemorySource;

/// Returns whether the rows of `plan` have an order that was declared or produced below, even if
/// its columns were dropped.
pub(crate) fn is_ordered(plan: &Arc<dyn ExecutionPlan>) -> bool {
    if plan.output_ordering().is_some() {
        return true;
    }
    // Only a merge of partitions by columns that still exist preserves an order of theirs.
    if plan.output_partitioning().partition_count() > 1 {
        return false;
    }
    if let Some(scan) = plan.downcast_ref::<DataSourceExec>() {
        return is_ordered_scan(scan);
    }
    let children = plan.children().into_iter().zip(plan.maintains_input_order());
    children.into_iter().any(|(child, maintained)| maintained && is_ordered(child))
}

/// Returns whether `node` has a limit that takes the first rows of an order.
pub(super) fn has_ordered_fetch(node: &Arc<dyn ExecutionPlan>) -> bool {
    node.fetch().is_some() && is_ordered(node)
}

/// Returns whether a table has an order, possibly by columns that are not read.
fn is_ordered_scan(scan: &DataSourceExec) -> bool {
    let source = scan.data_source();
    if let Some(files) = source.downcast_ref::<FileScanConfig>() {
        return files.preserve_order || !files.output_ordering.is_empty();
    }
    let table = source.downcast_ref::<FilteredMemorySource>().map(FilteredMemorySource::table);
    let memory = table.or_else(|| source.downcast_ref::<MemorySourceConfig>());
    memory.is_some_and(|memory| !memory.sort_information().is_empty())
}
