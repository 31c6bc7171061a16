//! Limits below joins whose rows all workers must see alike.
//!
//! datafusion-distributed broadcasts a join's build side and lets each worker apply the build
//! side's limit. Workers would take different rows (its issue 708). This rule makes the limit a
//! node of one partition below the broadcast.

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

/// Puts limits of build sides into nodes of their own.
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
