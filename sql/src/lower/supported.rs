//! The plan nodes that gatework supports.

use datafusion::{
    datasource::{
        memory::MemorySourceConfig, physical_plan::FileScanConfig, source::DataSourceExec,
    },
    physical_plan::{
        ExecutionPlan, ExecutionPlanProperties, InputOrderMode, Partitioning,
        aggregates::AggregateExec,
        analyze::AnalyzeExec,
        coalesce_partitions::CoalescePartitionsExec,
        coop::CooperativeExec,
        empty::EmptyExec,
        execution_plan::Boundedness,
        explain::ExplainExec,
        filter::FilterExec,
        joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec},
        limit::{GlobalLimitExec, LocalLimitExec},
        placeholder_row::PlaceholderRowExec,
        projection::ProjectionExec,
        repartition::RepartitionExec,
        scalar_subquery::ScalarSubqueryExec,
        sorts::{sort::SortExec, sort_preserving_merge::SortPreservingMergeExec},
        union::{InterleaveExec, UnionExec},
        windows::{BoundedWindowAggExec, WindowAggExec},
    },
};

use crate::{
    scan::FilteredMemorySource,
    source::SourceExec,
    splits::{SplitQueueSource, SplitTableExec},
    write::WriteExec,
};

/// Returns whether `plan`'s node runs on gatework's operators.
pub(crate) fn supports(plan: &dyn ExecutionPlan) -> bool {
    // Breakers wait for the end of their input, which an unbounded input never reaches.
    // DataFusion's own streaming operators handle it.
    if matches!(plan.properties().boundedness, Boundedness::Unbounded { .. }) {
        return false;
    }
    if let Partitioning::Range(_) = plan.output_partitioning() {
        return false;
    }
    supports_source(plan)
        || is_elided(plan)
        || plan.is::<FilterExec>()
        || plan.is::<ProjectionExec>()
        || plan.is::<AggregateExec>()
        || plan.is::<HashJoinExec>()
        || plan.is::<NestedLoopJoinExec>()
        || plan.is::<CrossJoinExec>()
        || plan.is::<SortExec>()
        || plan.is::<SortPreservingMergeExec>()
        || plan.is::<GlobalLimitExec>()
        || plan.is::<LocalLimitExec>()
        || plan.is::<UnionExec>()
        || plan.is::<InterleaveExec>()
        || plan.is::<WindowAggExec>()
        || plan.is::<ScalarSubqueryExec>()
        || plan.is::<WriteExec>()
        || plan
            .downcast_ref::<BoundedWindowAggExec>()
            .is_some_and(|window| window.input_order_mode == InputOrderMode::Sorted)
}

fn supports_source(plan: &dyn ExecutionPlan) -> bool {
    if plan.is::<EmptyExec>()
        || plan.is::<PlaceholderRowExec>()
        || plan.is::<SourceExec>()
        || plan.is::<SplitTableExec>()
    {
        return true;
    }
    let Some(scan) = plan.downcast_ref::<DataSourceExec>() else { return false };
    let source = scan.data_source();
    source.is::<FileScanConfig>()
        || source.is::<MemorySourceConfig>()
        || source.is::<FilteredMemorySource>()
        || source.is::<SplitQueueSource>()
}

/// Returns whether a node exists only for DataFusion's partition parallelism: its rows pass through
/// unchanged.
pub(crate) fn is_elided(plan: &dyn ExecutionPlan) -> bool {
    plan.is::<RepartitionExec>()
        || plan.is::<CoalescePartitionsExec>()
        || plan.is::<CooperativeExec>()
}

/// Returns whether a node is an EXPLAIN statement, not an operator on rows.
pub(crate) fn is_explain(plan: &dyn ExecutionPlan) -> bool {
    plan.is::<ExplainExec>() || plan.is::<AnalyzeExec>()
}
