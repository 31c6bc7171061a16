//! What a plan for workers says of itself.

use std::sync::Arc;

use datafusion::physical_plan::{ExecutionPlan, repartition::RepartitionExec};
use datafusion_distributed::{
    BroadcastExec, DistributedExec, DistributedLeafExec, NetworkBoundaryExt, NetworkBroadcastExec,
    display_plan_ascii,
};
use gatework_sql::is_covered;

use super::execution::{ClusterExec, Placed};
use crate::{StagePlace, StageTree, StageView, text::count_of_tasks};

/// Whether parts of `plan` run on workers.
pub fn is_distributed(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.is::<DistributedExec>() || plan.children().into_iter().any(is_distributed)
}

/// The stages of a plan, those of workers and the one above them, as text.
pub fn plan_text(plan: &Arc<dyn ExecutionPlan>) -> String {
    display_plan_ascii(plan.as_ref(), false)
}

/// The stages of a plan, as those of this process are shown: the one above the workers is local, all others run on
/// workers, which are known once the query has begun. A plan that stays here is one stage.
pub fn stage_tree(plan: &Arc<dyn ExecutionPlan>) -> StageTree {
    let mut found = vec![StageView {
        id: 0,
        place: StagePlace::Local,
        sharing: format!("SINGLE, {}", count_of_tasks(1)),
        output: "the result".into(),
        root: plan.clone(),
        parent: None,
    }];
    let placed = placed(plan);
    collect_stages(plan, 0, &placed, &mut found);
    StageTree::new(found, |node| node.is_network_boundary())
}

fn collect_stages(
    node: &Arc<dyn ExecutionPlan>,
    parent: usize,
    placed: &Placed,
    found: &mut Vec<StageView>,
) {
    let Some(boundary) = node.as_network_boundary() else {
        let children = node.children().into_iter();
        return children.for_each(|child| collect_stages(child, parent, placed, found));
    };
    let (stage, id) = (boundary.input_stage(), boundary.input_stage().num());
    let Some(root) = stage.local_plan() else { return };
    let workers = placed.range((id, 0)..=(id, usize::MAX)).map(|(_, url)| url.to_string());
    found.push(StageView {
        id,
        place: StagePlace::Remote(workers.collect()),
        sharing: count_of_tasks(stage.task_count()),
        output: output(root, node.as_ref()),
        root: root.clone(),
        parent: Some(parent),
    });
    collect_stages(root, id, placed, found);
}

/// Where the rows of a stage go that a boundary reads.
fn output(root: &Arc<dyn ExecutionPlan>, boundary: &dyn ExecutionPlan) -> String {
    match root.downcast_ref::<RepartitionExec>() {
        Some(divides) => divides.partitioning().to_string(),
        None if boundary.is::<NetworkBroadcastExec>() => "BROADCAST".into(),
        None => "SINGLE".into(),
    }
}

fn placed(plan: &Arc<dyn ExecutionPlan>) -> Placed {
    match ClusterExec::of(plan.as_ref()) {
        Some(query) => query.placed(),
        None => plan.children().into_iter().flat_map(placed).collect(),
    }
}

/// Names of the nodes that run as DataFusion's own, in this process or on workers, but for those between stages: what
/// divides a stage's rows among its readers, and what reads them.
pub fn fallbacks(plan: &Arc<dyn ExecutionPlan>) -> Vec<String> {
    let mut names = Vec::new();
    collect_fallbacks(plan, false, &mut names);
    names
}

fn collect_fallbacks(plan: &Arc<dyn ExecutionPlan>, is_head: bool, names: &mut Vec<String>) {
    let between = plan.is_network_boundary();
    let divides = plan.is::<BroadcastExec>() || is_head && plan.is::<RepartitionExec>();
    match plan.downcast_ref::<DistributedLeafExec>() {
        Some(leaf) => {
            leaf.variants().iter().take(1).for_each(|one| collect_fallbacks(one, false, names));
        }
        None if between || divides || plan.is::<DistributedExec>() || is_covered(plan.as_ref()) => {
        }
        None => names.push(plan.name().to_owned()),
    }
    for child in plan.children() {
        collect_fallbacks(child, between, names);
    }
}
