//! The order in which the rows of a node come, as far as a plan relies on it.
//!
//! DataFusion leaves a sort out where the input is in the wanted order already, and a projection above
//! may take the sort's keys away. Then no node promises the order any more, although the result, or the
//! rows that a limit takes, depend on it. So what counts is not what a node promises but what its input
//! has: the order is followed down through the nodes that maintain it.

use std::sync::Arc;

use datafusion::{
    datasource::{
        memory::MemorySourceConfig, physical_plan::FileScanConfig, source::DataSourceExec,
    },
    physical_plan::{ExecutionPlan, ExecutionPlanProperties},
};

use crate::scan::FilteredMemorySource;

/// Whether the rows of `plan` come in an order that was declared or made below, whether or not its
/// columns are still there.
pub(crate) fn is_ordered(plan: &Arc<dyn ExecutionPlan>) -> bool {
    if plan.output_ordering().is_some() {
        return true;
    }
    // Where partitions meet, only a merge by keys that are there keeps an order of theirs.
    if plan.output_partitioning().partition_count() > 1 {
        return false;
    }
    if let Some(scan) = plan.downcast_ref::<DataSourceExec>() {
        return is_ordered_scan(scan);
    }
    let children = plan.children().into_iter().zip(plan.maintains_input_order());
    children.into_iter().any(|(child, maintained)| maintained && is_ordered(child))
}

/// Whether the rows that `node` gives are the first ones of an order, whatever reads them.
pub(super) fn has_ordered_fetch(node: &Arc<dyn ExecutionPlan>) -> bool {
    node.fetch().is_some() && is_ordered(node)
}

/// Whether a table has an order, maybe by columns that are not read.
fn is_ordered_scan(scan: &DataSourceExec) -> bool {
    let source = scan.data_source();
    if let Some(files) = source.downcast_ref::<FileScanConfig>() {
        return files.preserve_order || !files.output_ordering.is_empty();
    }
    let table = source.downcast_ref::<FilteredMemorySource>().map(FilteredMemorySource::table);
    let memory = table.or_else(|| source.downcast_ref::<MemorySourceConfig>());
    memory.is_some_and(|memory| !memory.sort_information().is_empty())
}
