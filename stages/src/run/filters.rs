//! Runtime filters between stages.
//!
//! Filters are pushed down before the plan is cut, so they pass exchanges like any node that keeps
//! its input's rows. Stages form a tree, and a join's build side is fed by other stages than its
//! probe side. A scan that waits for a filter therefore cannot block the stages that build it.

use std::sync::Arc;

use datafusion::{
    common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion},
    config::ConfigOptions,
    error::Result,
    execution::session_state::SessionState,
    physical_expr::{PhysicalExpr, expressions::DynamicFilterPhysicalExpr},
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::{
        ExecutionPlan,
        joins::{HashJoinExec, PartitionMode},
    },
};
use gatework_sql::{FilterTargets, RUNTIME_FILTER_RULE, RemoteRuntimeFilters};

use crate::{ExchangeExec, FragmentId, SplitScanExec, SubPlan};

/// Pushes runtime filters of joins down to the tables below them.
#[derive(Debug, Clone)]
pub(crate) struct JoinFilters {
    /// DataFusion's rule.
    rule: Arc<dyn PhysicalOptimizerRule + Send + Sync>,
    options: Arc<ConfigOptions>,
}

impl JoinFilters {
    /// Returns the rule of `session`, if its options enable join filters.
    pub(crate) fn of(session: &SessionState) -> Option<Self> {
        let rules = session.physical_optimizers();
        let rule = rules.iter().rfind(|rule| rule.name() == RUNTIME_FILTER_RULE)?.clone();
        let mut options = session.config().options().as_ref().clone();
        let optimizer = &mut options.optimizer;
        let wanted = optimizer.enable_dynamic_filter_pushdown
            && optimizer.enable_join_dynamic_filter_pushdown;
        // A limit or an aggregate of one task says nothing about the other tasks.
        optimizer.enable_topk_dynamic_filter_pushdown = false;
        optimizer.enable_aggregate_dynamic_filter_pushdown = false;
        wanted.then(|| Self { rule, options: Arc::new(options) })
    }

    pub(crate) fn push_down(&self, plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
        without_strays(self.rule.optimize(plan, &self.options)?)
    }

    /// Gives each join of `plan` a filter of its own in place of a shared one. Tables also keep the
    /// shared filters, which may never be published.
    pub(crate) fn renew(&self, plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
        let without = plan.transform_up(|node| {
            let join = node.downcast_ref::<HashJoinExec>();
            Ok(match join.is_some_and(|join| !join.dynamic_expressions_produced().is_empty()) {
                true => Transformed::yes(node.reset_state()?),
                false => Transformed::no(node),
            })
        })?;
        self.push_down(without.data)
    }
}

/// Removes filters from tables that are not their targets.
fn without_strays(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let targets = FilterTargets::of(&plan, &|node| {
        if let Some(scan) = node.downcast_ref::<SplitScanExec>() {
            return Some(vec![scan.table()]);
        }
        node.is::<ExchangeExec>().then(|| node.children())
    })?;
    let clean = |node: Arc<dyn ExecutionPlan>| {
        if let Some(scan) = node.downcast_ref::<SplitScanExec>() {
            let table = targets.clean(scan.table())?;
            let scan = table.map(|table| Arc::new(scan.with_table(table)) as _);
            return Ok(scan.map_or_else(|| Transformed::no(node), Transformed::yes));
        }
        Ok(targets.clean(&node)?.map_or_else(|| Transformed::no(node), Transformed::yes))
    };
    plan.transform_up(clean).data()
}

/// Returns the filters of `plan` that another stage uses, or that several tasks build. The tasks of
/// a stage share its plan, and the filter of one task does not hold for the rows of another.
pub(crate) fn between_stages(plan: &SubPlan, nodes: usize) -> Result<RemoteRuntimeFilters> {
    let (mut made, mut used) = (Vec::new(), Vec::new());
    for fragment in plan.fragments() {
        // Each lifespan of a group builds its own filters.
        if fragment.grouped_execution {
            find(&fragment.root, fragment.id, 1, &mut Vec::new(), &mut used)?;
            continue;
        }
        let tasks = fragment.tasks(nodes);
        find(&fragment.root, fragment.id, tasks, &mut made, &mut used)?;
    }
    let mut filters = RemoteRuntimeFilters::default();
    for Made { filter, stage, tasks } in made {
        let Some(id) = filter.expression_id() else { continue };
        let used_remotely = used.iter().any(|(wanted, reader)| *wanted == id && *reader != stage);
        if tasks > 1 || used_remotely {
            filters.add(filter, stage, tasks);
        }
    }
    Ok(filters)
}

struct Made {
    filter: Arc<DynamicFilterPhysicalExpr>,
    stage: FragmentId,
    /// Number of tasks that each build a part of the filter.
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
                // The first task knows a broadcast build side completely.
                let partitioned = *join.partition_mode() == PartitionMode::Partitioned;
                made.push(Made { filter, stage, tasks: if partitioned { tasks } else { 1 } });
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
