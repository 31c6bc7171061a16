//! Descriptions of plans for workers.

use std::sync::Arc;

use datafusion::{
    common::tree_node::{TreeNode, TreeNodeRecursion},
    datasource::{physical_plan::FileScanConfig, source::DataSourceExec},
    physical_plan::{ExecutionPlan, repartition::RepartitionExec},
    prelude::SessionConfig,
};
use datafusion_distributed::{
    BroadcastExec, DistributedConfig, DistributedExec, DistributedLeafExec, NetworkBoundaryExt,
    NetworkBroadcastExec, display_plan_ascii, get_distributed_worker_resolver,
};
use gatework_runtime::Executor;
use gatework_sql::{
    GateworkExec, as_gatework_exec, is_supported, is_supported_on, window_expressions,
};

use super::{
    execution::{ClusterExec, TaskAssignments},
    session::{FORMAT_GETS_LOST, WINDOW_GETS_LOST},
};
use crate::{StageLocation, StageTree, StageView, plan::explain::count_of_tasks};

/// Whether stages of `plan` run on workers.
pub fn is_distributed(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.is::<DistributedExec>() || plan.children().into_iter().any(is_distributed)
}

/// Why all of `plan` runs in this process; none if stages run on workers. `config` is that of the
/// session that made the plan.
pub fn local_execution_reason(
    plan: &Arc<dyn ExecutionPlan>,
    config: &SessionConfig,
) -> Option<String> {
    if is_distributed(plan) {
        return None;
    }
    let workers = get_distributed_worker_resolver(config).and_then(|workers| workers.get_urls());
    let distributed = DistributedConfig::from_session_config(config);
    let partition_bytes =
        distributed.map(|config| config.file_scan_config_bytes_per_partition as u64);
    let (mut bytes, mut lost, mut has_json) = (0, None, false);
    // The closure returns no error.
    let _walked = plan.apply(|node| {
        let windows = window_expressions(node.as_ref());
        let says = |name: &str| name.contains(" FILTER (") || name.contains(" IGNORE NULLS");
        if windows.iter().copied().flatten().any(|one| says(one.name())) {
            lost = Some(WINDOW_GETS_LOST);
        }
        let source = node.downcast_ref::<DataSourceExec>();
        let scan = source.and_then(|source| source.data_source().downcast_ref::<FileScanConfig>());
        if scan.is_some_and(|scan| scan.file_compression_type.is_compressed()) {
            lost = Some(FORMAT_GETS_LOST);
        }
        has_json |= scan.is_some_and(|scan| scan.file_source().file_type() == "json");
        let files = scan.iter().flat_map(|scan| &scan.file_groups).flat_map(|group| group.iter());
        let sizes = files.map(|file| match &file.range {
            Some(range) => range.end.abs_diff(range.start),
            None => file.object_meta.size,
        });
        bytes += sizes.sum::<u64>();
        Ok(TreeNodeRecursion::Continue)
    });
    if let (Ok(2..), Some(lost)) = (workers.as_ref().map(Vec::len), lost) {
        return Some(lost.into());
    }
    Some(match (workers.map(|urls| urls.len()), partition_bytes) {
        (Ok(0) | Err(_), _) => "there are no workers".into(),
        (Ok(1), _) => "there is only one worker, and running in this process is no slower".into(),
        _ if bytes == 0 => "no files are read".into(),
        (Ok(_), Ok(partition_bytes))
            if bytes <= partition_bytes.saturating_mul(config.target_partitions() as u64) =>
        {
            let threads = config.target_partitions();
            format!(
                "the files have {bytes} bytes, at most {partition_bytes} for each of \
                     {threads} partitions"
            )
        }
        // A scan of JSON does not say of which kind.
        _ if has_json => format!("no stage is worth distributing, or {FORMAT_GETS_LOST}"),
        _ => "no stage of the plan is worth distributing".into(),
    })
}

/// The stages of a plan as text: those of workers and the one above them.
pub fn plan_text(plan: &Arc<dyn ExecutionPlan>) -> String {
    display_plan_ascii(plan.as_ref(), false)
}

/// The stages of a plan, as for nodes of this process. The stage above the workers is local, all
/// others run on workers; their addresses are known once the query has started. A plan that runs in
/// this process is one stage.
pub fn stage_tree(plan: &Arc<dyn ExecutionPlan>) -> StageTree {
    let (plan, assignments) =
        progress(plan).unwrap_or_else(|| (plan.clone(), TaskAssignments::new()));
    let mut found = vec![StageView {
        id: 0,
        location: StageLocation::Local,
        distribution: format!("SINGLE, {}", count_of_tasks(1)),
        output: "the result".into(),
        root: plan.clone(),
        parent: None,
    }];
    collect_stages(&plan, 0, &assignments, &mut found);
    StageTree::new(found, |node| node.is_network_boundary())
}

fn collect_stages(
    node: &Arc<dyn ExecutionPlan>,
    parent: usize,
    assignments: &TaskAssignments,
    found: &mut Vec<StageView>,
) {
    let Some(boundary) = node.as_network_boundary() else {
        let children = node.children().into_iter();
        return children.for_each(|child| collect_stages(child, parent, assignments, found));
    };
    let (stage, id) = (boundary.input_stage(), boundary.input_stage().num());
    let Some(root) = stage.local_plan() else { return };
    let workers = assignments.range((id, 0)..=(id, usize::MAX)).map(|(_, url)| url.to_string());
    found.push(StageView {
        id,
        location: StageLocation::Remote(workers.collect()),
        distribution: count_of_tasks(stage.task_count()),
        output: output(root, node.as_ref()),
        root: root.clone(),
        parent: Some(parent),
    });
    collect_stages(root, id, assignments, found);
}

/// Distribution of the rows of a stage that `boundary` reads.
fn output(root: &Arc<dyn ExecutionPlan>, boundary: &dyn ExecutionPlan) -> String {
    match root.downcast_ref::<RepartitionExec>() {
        Some(divides) => divides.partitioning().to_string(),
        None if boundary.is::<NetworkBroadcastExec>() => "BROADCAST".into(),
        None => "SINGLE".into(),
    }
}

/// The plan of the current or last attempt, and the assignments of its tasks.
fn progress(plan: &Arc<dyn ExecutionPlan>) -> Option<(Arc<dyn ExecutionPlan>, TaskAssignments)> {
    match ClusterExec::of(plan.as_ref()) {
        Some(query) => Some(query.progress()),
        None => plan.children().into_iter().find_map(progress),
    }
}

/// Names of the fallback nodes, in this process or on workers. Nodes between stages do not count:
/// those that partition a stage's output, and those that read it. Workers are taken to have the
/// node types that are registered with the session's executor.
pub fn fallbacks(plan: &Arc<dyn ExecutionPlan>) -> Vec<String> {
    let mut names = Vec::new();
    let executor = executor(plan);
    let is_native = |node: &dyn ExecutionPlan| match executor {
        Some(executor) => is_supported_on(node, executor),
        None => is_supported(node),
    };
    collect_fallbacks(plan, false, &is_native, &mut names);
    names
}

/// The executor of the session that made the plan; `None` if no part of it runs on gatework.
fn executor(plan: &Arc<dyn ExecutionPlan>) -> Option<&Executor> {
    let of_cluster = ClusterExec::of(plan.as_ref()).map(ClusterExec::executor);
    let own = of_cluster.or_else(|| as_gatework_exec(plan.as_ref()).map(GateworkExec::executor));
    own.or_else(|| plan.children().into_iter().find_map(executor))
}

fn collect_fallbacks(
    plan: &Arc<dyn ExecutionPlan>,
    is_head: bool,
    is_native: &dyn Fn(&dyn ExecutionPlan) -> bool,
    names: &mut Vec<String>,
) {
    let between = plan.is_network_boundary();
    let divides = plan.is::<BroadcastExec>() || is_head && plan.is::<RepartitionExec>();
    match plan.downcast_ref::<DistributedLeafExec>() {
        Some(leaf) => {
            let variant = leaf.variants().iter().take(1);
            variant.for_each(|one| collect_fallbacks(one, false, is_native, names));
        }
        None if between || divides || plan.is::<DistributedExec>() || is_native(plan.as_ref()) => {}
        None => names.push(plan.name().to_owned()),
    }
    for child in plan.children() {
        collect_fallbacks(child, between, is_native, names);
    }
}
