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
    nodes::{NativeNode, NodeRegistry},
    plan::{SourceExec, shared_subplans::SharedRowsExec},
    scan::FilteredMemorySource,
    splits::{SplitQueueSource, SplitTableExec},
    write::WriteExec,
};

/// A node that runs on gatework's operators. A node is supported if it has a variant here, and
/// `Lowering::lower_node` lowers each variant.
#[derive(Debug, Clone, Copy)]
pub(super) enum SupportedNode<'a> {
    /// Its rows pass through unchanged.
    Elided,
    Filter(&'a FilterExec),
    Projection(&'a ProjectionExec),
    Aggregate(&'a AggregateExec),
    HashJoin(&'a HashJoinExec),
    NestedLoopJoin(&'a NestedLoopJoinExec),
    CrossJoin,
    Sort(&'a SortExec),
    Merge(&'a SortPreservingMergeExec),
    GlobalLimit(&'a GlobalLimitExec),
    LocalLimit,
    Union,
    Window,
    ScalarSubqueries(&'a ScalarSubqueryExec),
    Write(&'a WriteExec),
    Scan(&'a DataSourceExec),
    /// No row, or one row without columns.
    Constant,
    Source(&'a SourceExec),
    SplitTable(&'a SplitTableExec),
    SharedRows(&'a SharedRowsExec),
    /// An application's own node.
    Custom(&'a dyn NativeNode),
}

impl<'a> SupportedNode<'a> {
    /// Returns how `plan`'s node is supported, if it is; `registry` has the types beside
    /// DataFusion's.
    pub(super) fn of(plan: &'a dyn ExecutionPlan, registry: &NodeRegistry) -> Option<Self> {
        // Breakers wait for the end of their input, which an unbounded input never reaches.
        // DataFusion's own streaming operators handle it.
        let is_unbounded = matches!(plan.properties().boundedness, Boundedness::Unbounded { .. });
        if is_unbounded || matches!(plan.output_partitioning(), Partitioning::Range(_)) {
            return None;
        }
        let elided = is_elided(plan).then_some(Self::Elided);
        elided
            .or_else(|| plan.downcast_ref().map(Self::Filter))
            .or_else(|| plan.downcast_ref().map(Self::Projection))
            .or_else(|| plan.downcast_ref().map(Self::Aggregate))
            .or_else(|| plan.downcast_ref().map(Self::HashJoin))
            .or_else(|| plan.downcast_ref().map(Self::NestedLoopJoin))
            .or_else(|| plan.is::<CrossJoinExec>().then_some(Self::CrossJoin))
            .or_else(|| plan.downcast_ref().map(Self::Sort))
            .or_else(|| plan.downcast_ref().map(Self::Merge))
            .or_else(|| plan.downcast_ref().map(Self::GlobalLimit))
            .or_else(|| plan.is::<LocalLimitExec>().then_some(Self::LocalLimit))
            .or_else(|| is_union(plan).then_some(Self::Union))
            .or_else(|| is_window(plan).then_some(Self::Window))
            .or_else(|| plan.downcast_ref().map(Self::ScalarSubqueries))
            .or_else(|| plan.downcast_ref().map(Self::Write))
            .or_else(|| plan.downcast_ref().filter(|scan| is_scan(scan)).map(Self::Scan))
            .or_else(|| is_constant(plan).then_some(Self::Constant))
            .or_else(|| plan.downcast_ref().map(Self::Source))
            .or_else(|| plan.downcast_ref().map(Self::SplitTable))
            .or_else(|| plan.downcast_ref().map(Self::SharedRows))
            .or_else(|| registry.find(plan).map(Self::Custom))
    }
}

/// Returns whether `plan`'s node runs on gatework's operators.
pub(crate) fn supports(plan: &dyn ExecutionPlan, registry: &NodeRegistry) -> bool {
    SupportedNode::of(plan, registry).is_some()
}

fn is_union(plan: &dyn ExecutionPlan) -> bool {
    plan.is::<UnionExec>() || plan.is::<InterleaveExec>()
}

fn is_window(plan: &dyn ExecutionPlan) -> bool {
    plan.is::<WindowAggExec>()
        || plan
            .downcast_ref::<BoundedWindowAggExec>()
            .is_some_and(|window| window.input_order_mode == InputOrderMode::Sorted)
}

fn is_scan(scan: &DataSourceExec) -> bool {
    let source = scan.data_source();
    source.is::<FileScanConfig>()
        || source.is::<MemorySourceConfig>()
        || source.is::<FilteredMemorySource>()
        || source.is::<SplitQueueSource>()
}

fn is_constant(plan: &dyn ExecutionPlan) -> bool {
    plan.is::<EmptyExec>() || plan.is::<PlaceholderRowExec>()
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
