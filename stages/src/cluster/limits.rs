//! Limits below joins, where all workers are to see the same rows.
//!
//! datafusion-distributed sends the collected side of a join to all workers, and leaves a limit of that side to each of
//! them: they would take different rows (its issue 708). Here such a limit is a node of its own, of one partition, and
//! what is sent is what it gave.

use std::sync::Arc;

use datafusion::{
    common::{
        config::ConfigOptions,
        tree_node::{Transformed, TransformedResult, TreeNode},
    },
    error::Result,
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::{
        ChildrenPropertiesMode, ExecutionPlan, ReplaceChildrenOptions,
        coalesce_partitions::CoalescePartitionsExec,
        joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec},
        limit::GlobalLimitExec,
    },
};

/// Puts limits of the collected sides of joins into nodes of their own.
#[derive(Debug)]
pub(super) struct IsolateBuildLimits;

impl PhysicalOptimizerRule for IsolateBuildLimits {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| {
            let collects = node.is::<HashJoinExec>()
                || node.is::<NestedLoopJoinExec>()
                || node.is::<CrossJoinExec>();
            let mut children: Vec<_> = node.children().into_iter().cloned().collect();
            let limited = children.first().filter(|_| collects).and_then(isolate);
            let Some(limited) = limited else { return Ok(Transformed::no(node)) };
            children[0] = limited;
            let keep = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
            Ok(Transformed::yes(node.replace_children(children, keep)?))
        })
        .data()
    }

    fn name(&self) -> &str {
        "gatework_isolate_build_limits"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn isolate(side: &Arc<dyn ExecutionPlan>) -> Option<Arc<dyn ExecutionPlan>> {
    let one = side.downcast_ref::<CoalescePartitionsExec>()?;
    let fetch = one.fetch()?;
    let all = one.with_fetch(None)?;
    Some(Arc::new(GlobalLimitExec::new(all, 0, Some(fetch))))
}
