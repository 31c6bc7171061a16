//! In which order stages are scheduled. (Presto's execution policies; rules L.)

use std::{collections::BTreeSet, sync::Arc};

use datafusion::physical_plan::{
    ExecutionPlan, empty::EmptyExec, placeholder_row::PlaceholderRowExec,
};
use petgraph::{algo::tarjan_scc, graph::DiGraph};

use crate::{FragmentId, RemoteSourceExec, StageState, SubPlan, state::State};

/// When a stage's tasks are made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExecutionPolicy {
    /// All stages at once: nothing waits for a start.
    #[default]
    AllAtOnce,
    /// The collected sides of joins before what probes them, one source after the other: fewer stages hold
    /// memory at a time.
    Phased,
}

/// Which stages are to be scheduled at the moment.
#[derive(Debug)]
pub struct ExecutionSchedule {
    /// Stages that start together, in the order of their starts. The next to start is the last.
    phases: Vec<Vec<FragmentId>>,
    active: Vec<FragmentId>,
    /// Stages that read tables.
    scans: BTreeSet<FragmentId>,
}

impl ExecutionSchedule {
    /// For the stages of `plan`.
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

    /// Stages that are not scheduled to their end, as far as their turn has come; `state` is what each is in
    /// (L-1, L-5).
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

    /// Whether nothing is left to be scheduled, as of the last question.
    pub fn is_finished(&self) -> bool {
        self.phases.is_empty() && self.active.is_empty()
    }
}

/// Children of a node in the order in which they are wanted: the collected side of a join is the left one, and so
/// the first.
fn leaves(plan: &Arc<dyn ExecutionPlan>, visit: &mut dyn FnMut(&Arc<dyn ExecutionPlan>)) {
    if plan.children().is_empty() {
        visit(plan);
    }
    plan.children().into_iter().for_each(|child| leaves(child, visit));
}

/// Whether it has a table of its own, in splits or whole, and not only rows of other stages and constants.
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

/// All stages, each behind those that it reads, what is collected before what probes it (L-2).
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
    // Components come in reverse topological order: what depends on nothing that is left is the last.
    let mut phases = tarjan_scc(&graph);
    phases.reverse();
    let ids = |phase: Vec<_>| {
        let mut ids: Vec<FragmentId> = phase.into_iter().map(|node| graph[node]).collect();
        // Sources before those that read them.
        ids.sort_unstable_by(|one, other| other.cmp(one));
        ids
    };
    phases.into_iter().map(ids).collect()
}

/// Edges from what starts first to what starts then.
type Edges = BTreeSet<(FragmentId, FragmentId)>;

fn connect(plan: &SubPlan, edges: &mut Edges) {
    plan.children.iter().for_each(|child| connect(child, edges));
    connect_node(&plan.fragment.root, plan, edges);
}

/// Connects what is below `node` of the fragment of `plan`, and answers the stages whose rows come up there; a
/// table of the fragment's own stands for the fragment.
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
            // One source of a union after the other.
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
    // The left side of a join, which is collected, before the right one; inputs of a union one by one.
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

/// Stage `id` and all that it reads.
fn everything_under(plan: &SubPlan, id: FragmentId) -> BTreeSet<FragmentId> {
    let child = plan.children.iter().find(|child| child.fragment.id == id);
    child.into_iter().flat_map(SubPlan::fragments).map(|fragment| fragment.id).collect()
}
