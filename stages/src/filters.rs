//! Which runtime filters go from one stage to another.
//!
//! They are put into the plan before it is cut, so that they go down through exchanges as through any node that
//! gives its input's rows. Stages are a tree: the collected side of a join is fed by other stages than the side that
//! probes it, so a table that waits for a filter keeps nobody from making it.

use std::sync::Arc;

use datafusion::{
    common::tree_node::{TreeNode, TreeNodeRecursion},
    config::ConfigOptions,
    error::Result,
    physical_expr::{PhysicalExpr, expressions::DynamicFilterPhysicalExpr},
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::{
        ExecutionPlan,
        joins::{HashJoinExec, PartitionMode},
    },
};
use gatework_sql::RemoteFilters;

use crate::{FragmentId, SplitScanExec, SubPlan};

/// Brings what joins will know to the tables below, by `rule`, which is DataFusion's.
pub(crate) fn push_down(
    plan: Arc<dyn ExecutionPlan>,
    rule: &Arc<dyn PhysicalOptimizerRule + Send + Sync>,
    mut options: ConfigOptions,
) -> Result<Arc<dyn ExecutionPlan>> {
    let optimizer = &mut options.optimizer;
    if !(optimizer.enable_dynamic_filter_pushdown && optimizer.enable_join_dynamic_filter_pushdown)
    {
        return Ok(plan);
    }
    // What a limit or a minimum has come to is known to its own task only.
    optimizer.enable_topk_dynamic_filter_pushdown = false;
    optimizer.enable_aggregate_dynamic_filter_pushdown = false;
    rule.optimize(plan, &options)
}

/// The filters of `plan` that are made in one stage and used in another one, or made of what several tasks know:
/// the tasks of a stage share its plan, and what one of them knows is not true for the rows of another.
pub(crate) fn between_stages(plan: &SubPlan, nodes: usize) -> Result<RemoteFilters> {
    let (mut made, mut used) = (Vec::new(), Vec::new());
    for fragment in plan.fragments() {
        let tasks = fragment.tasks(nodes);
        find(&fragment.root, fragment.id, tasks, &mut made, &mut used)?;
    }
    let mut filters = RemoteFilters::default();
    for Made { filter, stage, tasks } in made {
        let Some(id) = filter.expression_id() else { continue };
        let elsewhere = used.iter().any(|(wanted, reader)| *wanted == id && *reader != stage);
        if tasks > 1 || elsewhere {
            filters.add(filter, stage, tasks);
        }
    }
    Ok(filters)
}

struct Made {
    filter: Arc<DynamicFilterPhysicalExpr>,
    stage: FragmentId,
    /// Those that know a part of it each.
    tasks: usize,
}

fn find(
    node: &Arc<dyn ExecutionPlan>,
    stage: FragmentId,
    tasks: usize,
    made: &mut Vec<Made>,
    used: &mut Vec<(u64, FragmentId)>,
) -> Result<()> {
    if let Some(join) = node.downcast_ref::<HashJoinExec>() {
        for expression in join.dynamic_expressions_produced() {
            if let Ok(filter) = Arc::downcast::<DynamicFilterPhysicalExpr>(expression) {
                // A side that was sent to all is known whole to the first.
                let parts = *join.partition_mode() == PartitionMode::Partitioned;
                made.push(Made { filter, stage, tasks: if parts { tasks } else { 1 } });
            }
        }
    }
    if node.children().is_empty() {
        let table = node.downcast_ref::<SplitScanExec>().map_or(node, SplitScanExec::table);
        table.apply_expressions(&mut |root| {
            root.apply(|part: &Arc<dyn PhysicalExpr>| {
                if part.is::<DynamicFilterPhysicalExpr>() {
                    used.extend(part.expression_id().map(|id| (id, stage)));
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })?;
    }
    node.children().into_iter().try_for_each(|child| find(child, stage, tasks, made, used))
}
