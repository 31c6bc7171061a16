//! Order in which stages are scheduled. (Presto's execution policies; rules L.)

use std::{collections::BTreeSet, sync::Arc};

use datafusion::physical_plan::{
    ExecutionPlan, empty::EmptyExec, placeholder_row::PlaceholderRowExec,
};
use petgraph::{algo::tarjan_scc, graph::DiGraph};

use crate::{FragmentId, RemoteSourceExec, StageState, SubPlan, run::state::State};

/// When a stage's tasks are created.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExecutionPolicy {
    /// All stages at once.
    #[default]
    AllAtOnce,
    /// Build sides before their probe sides, one source after the other: fewer stages reserve
    /// memory at a time.
    Phased,
}

/// The stages to schedule next.
#[derive(Debug)]
pub struct ExecutionSchedule {
    /// Stages that start together, in reverse order: the last phase starts next.
    phases: Vec<Vec<FragmentId>>,
    active: Vec<FragmentId>,
    /// Stages that read tables.
    scans: BTreeSet<FragmentId>,
}

impl ExecutionSchedule {
    /// The schedule of the stages of `plan`.
    pub fn new(policy: ExecutionPolicy, plan: &SubPlan) -> Self {
        let mut phases = match policy {
            ExecutionPolicy::AllAtOnce => vec![sources_first(plan)],
            ExecutionPolicy::Phased => phases(plan),
        };
        phases.reverse();
        let fragments = plan.fragments().into_iter();
        let scans = fragments
            .filter(|fragment| reads_table(&fragment.root))
            .map(|fragment| fragment.id)
            .collect();
        Self { phases, active: Vec::new(), scans }
    }

    /// Returns the stages of the started phases that are not fully scheduled. `state` returns the
    /// state of a stage (L-1, L-5).
    pub fn stages(&mut self, state: impl Fn(FragmentId) -> StageState) -> &[FragmentId] {
        let unscheduled = |stage: &FragmentId| {
            let state = state(*stage);
            !(matches!(state, StageState::Scheduled | StageState::Running) || state.is_final())
        };
        self.active.retain(unscheduled);
        while !self.active.iter().any(|stage| self.scans.contains(stage)) {
            let Some(phase) = self.phases.pop() else { break };
            self.active.extend(phase.into_iter().filter(unscheduled));
        }
        &self.active
    }

    /// Whether all stages were scheduled at the last call of `stages`.
    pub fn is_finished(&self) -> bool {
        self.phases.is_empty() && self.active.is_empty()
    }
}

/// Visits leaves in the order in which they are needed: the build side of a join is its left child,
/// and so first.
fn leaves(plan: &Arc<dyn ExecutionPlan>, visit: &mut dyn FnMut(&Arc<dyn ExecutionPlan>)) {
    if plan.children().is_empty() {
        visit(plan);
    }
    plan.children().into_iter().for_each(|child| leaves(child, visit));
}

/// Whether `node` has a table below it, in splits or whole, rather than only remote sources and
/// constants.
fn reads_table(node: &Arc<dyn ExecutionPlan>) -> bool {
    let children = node.children();
    let constant = || {
        node.downcast_ref::<EmptyExec>().is_some()
            || node.downcast_ref::<PlaceholderRowExec>().is_some()
            || node.downcast_ref::<RemoteSourceExec>().is_some()
    };
    match children.is_empty() {
        true => !constant(),
        false => children.into_iter().any(reads_table),
    }
}

/// All stages, each after the stages that it reads, build sides before probe sides (L-2).
fn sources_first(plan: &SubPlan) -> Vec<FragmentId> {
    let mut order = Vec::new();
    let mut read = Vec::new();
    leaves(&plan.fragment.root, &mut |leaf| {
        if let Some(source) = leaf.downcast_ref::<RemoteSourceExec>() {
            read.extend_from_slice(source.fragments());
        }
    });
    for id in read {
        let child = plan.children.iter().find(|child| child.fragment.id == id);
        order.extend(child.into_iter().flat_map(sources_first));
    }
    order.push(plan.fragment.id);
    order
}

/// Stages that must start together, in the order of their starts (L-3).
pub(crate) fn phases(plan: &SubPlan) -> Vec<Vec<FragmentId>> {
    let count = plan.fragments().len();
    let mut graph = DiGraph::<FragmentId, ()>::new();
    let nodes: Vec<_> = (0..count).map(|id| graph.add_node(id)).collect();
    let mut edges = BTreeSet::new();
    connect(plan, &mut edges);
    for (from, to) in edges {
        graph.update_edge(nodes[from], nodes[to], ());
    }
    // Components come in reverse topological order: a component without remaining dependencies is
    // the last.
    let mut phases = tarjan_scc(&graph);
    phases.reverse();
    let ids = |phase: Vec<_>| {
        let mut ids: Vec<FragmentId> = phase.into_iter().map(|node| graph[node]).collect();
        // Sources before their readers.
        ids.sort_unstable_by(|one, other| other.cmp(one));
        ids
    };
    phases.into_iter().map(ids).collect()
}

/// Edges from a stage to a stage that starts after it.
type Edges = BTreeSet<(FragmentId, FragmentId)>;

fn connect(plan: &SubPlan, edges: &mut Edges) {
    plan.children.iter().for_each(|child| connect(child, edges));
    connect_node(&plan.fragment.root, plan, edges);
}

/// Connects the stages below `node` of the fragment of `plan`. Returns the stages whose rows reach
/// `node`; a table of the fragment itself stands for the fragment.
fn connect_node(
    node: &Arc<dyn ExecutionPlan>,
    plan: &SubPlan,
    edges: &mut Edges,
) -> BTreeSet<FragmentId> {
    let own = plan.fragment.id;
    if let Some(source) = node.downcast_ref::<RemoteSourceExec>() {
        let mut all = BTreeSet::new();
        let mut before: Option<BTreeSet<FragmentId>> = None;
        for id in source.fragments() {
            edges.insert((own, *id));
            let below = everything_under(plan, *id);
            // The sources of a union start one after the other.
            if let Some(before) = &before {
                chain(before, &below, edges);
            }
            all.extend(below.iter().copied());
            before = Some(below);
        }
        return all;
    }
    if node.children().is_empty() && reads_table(node) {
        return BTreeSet::from([own]);
    }
    let sides: Vec<_> =
        node.children().into_iter().map(|child| connect_node(child, plan, edges)).collect();
    // The build side of a join before its probe side; inputs of a union one by one.
    for pair in sides.windows(2) {
        chain(&pair[0], &pair[1], edges);
    }
    sides.into_iter().flatten().collect()
}

fn chain(first: &BTreeSet<FragmentId>, then: &BTreeSet<FragmentId>, edges: &mut Edges) {
    for from in first {
        for to in then.iter().filter(|to| *to != from) {
            edges.insert((*from, *to));
        }
    }
}

/// Stage `id` and all stages that it reads, directly or not.
fn everything_under(plan: &SubPlan, id: FragmentId) -> BTreeSet<FragmentId> {
    let child = plan.children.iter().find(|child| child.fragment.id == id);
    child.into_iter().flat_map(SubPlan::fragments).map(|fragment| fragment.id).collect()
}
