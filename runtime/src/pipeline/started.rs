//! The graphs that a query has started: the running graphs with their tasks, and the counters of
//! those that have ended.
//!
//! A query may start any number of graphs in sequence; a recursive query starts one per round. So
//! frequent operations (what does every task wait for, which tasks to wake) visit running graphs
//! only. Of an ended graph only counters are kept ([`EndedGraphs`]).
//!
//! No lock: [`QueryContext`](super::QueryContext) calls it under its own.

use std::{collections::BTreeMap, fmt, fmt::Write as _, sync::Arc};

use gatework_shared_state::{DependencyKind, Gate};

use super::{
    OperatorProfile, Profile,
    ended::{EndedGraphs, GateSet, PipelineProfile},
    graph::{PipelineInfo, TaskStats},
};
use crate::scheduler::{TaskHandle, TaskState};

/// A pipeline and the stats of its tasks.
type StartedPipeline<'a> = (&'a Arc<PipelineInfo>, &'a [Arc<TaskStats>]);

/// Pipelines that were started together, and their tasks.
pub(super) struct StartedGraph {
    /// The graph's number within its query.
    id: u64,
    pipelines: Vec<Arc<PipelineInfo>>,
    /// Stats of all tasks, pipeline by pipeline.
    task_stats: Box<[Arc<TaskStats>]>,
}

impl fmt::Debug for StartedGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartedGraph")
            .field("id", &self.id)
            .field("tasks", &self.task_stats.len())
            .finish_non_exhaustive()
    }
}

impl StartedGraph {
    /// Creates a graph from the stats of all its tasks, pipeline by pipeline.
    pub(super) fn new(
        id: u64,
        pipelines: Vec<Arc<PipelineInfo>>,
        task_stats: Vec<Arc<TaskStats>>,
    ) -> Self {
        Self { id, pipelines, task_stats: task_stats.into() }
    }

    pub(super) fn pipelines(&self) -> impl Iterator<Item = StartedPipeline<'_>> {
        let mut rest = &self.task_stats[..];
        self.pipelines.iter().map(move |pipeline| {
            let (own, others) = rest.split_at(pipeline.num_tasks);
            rest = others;
            (pipeline, own)
        })
    }

    /// Returns the counters of each pipeline.
    pub(super) fn profiles(&self) -> impl Iterator<Item = PipelineProfile> {
        self.pipelines().map(|(pipeline, task_stats)| PipelineProfile {
            graph: self.id,
            operators: pipeline.profile(task_stats),
            tasks: task_stats.iter().map(|stats| stats.profile(pipeline)).collect(),
        })
    }

    /// Returns the operators of all pipelines, sources first in each.
    pub(super) fn operators(&self) -> Vec<OperatorProfile> {
        self.pipelines().flat_map(|(info, task_stats)| info.profile(task_stats)).collect()
    }

    /// Adds the gates that the graph's tasks have waited for.
    pub(super) fn add_gates(&self, gates: &mut GateSet) {
        self.task_stats.iter().for_each(|stats| stats.for_each_gate(|gate| gates.add(gate)));
    }

    /// Returns the graph's tasks from index `from` on.
    fn tasks(&self, from: usize) -> impl Iterator<Item = (TaskId, &TaskHandle)> {
        let task_stats = self.task_stats.get(from..).unwrap_or_default().iter().enumerate();
        task_stats
            .filter_map(move |(step, stats)| Some(((self.id, from + step), stats.handle.get()?)))
    }

    fn dump(&self, text: &mut String) {
        for (pipeline, task_stats) in self.pipelines() {
            let _ = writeln!(text, "  {pipeline:?}");
            for stats in task_stats {
                let Some(handle) = stats.handle.get() else { continue };
                let _ = write!(text, "    [{}] {:?}", stats.task_index, handle.state());
                for gate in handle.waits_for().iter().flat_map(|gates| gates.iter()) {
                    let _ = write!(text, ", waits for {gate:?}");
                }
                text.push('\n');
            }
        }
    }
}

/// Whether a task can make progress.
enum Liveness {
    /// The task has ended.
    Ended,
    /// The task runs, is about to run, or is woken by external work.
    CanProgress,
    /// Only another task of the same query can wake the task.
    BlockedInQuery,
}

impl Liveness {
    fn of(task: &TaskHandle) -> Self {
        if task.state() == TaskState::Finished {
            return Self::Ended;
        }
        // A task that waits for no gates runs, or is about to run for the first time.
        let Some(gates) = task.waits_for() else { return Self::CanProgress };
        // A task that waits for memory is woken by the task that was asked to reclaim, which may
        // belong to another query.
        let outside =
            |gate: &Gate| matches!(gate.kind(), DependencyKind::External | DependencyKind::Memory);
        match gates.iter().any(|gate| outside(gate) || gate.is_ready()) {
            true => Self::CanProgress,
            false => Self::BlockedInQuery,
        }
    }
}

/// A graph's number and the index of a task within that graph.
type TaskId = (u64, usize);

/// All graphs of one query.
#[derive(Default)]
pub(super) struct StartedGraphs {
    started: u64,
    /// Running graphs by number.
    live: BTreeMap<u64, Arc<StartedGraph>>,
    ended: EndedGraphs,
    /// The task that could make progress when the last stall check ran.
    last_external_waiter: TaskId,
    /// Number of tasks that stall checks have visited.
    #[cfg(test)]
    pub(super) tasks_checked: usize,
}

impl StartedGraphs {
    /// Returns the number of the next graph.
    pub(super) fn next_id(&mut self) -> u64 {
        self.started += 1;
        self.started
    }

    pub(super) fn add(&mut self, graph: &Arc<StartedGraph>) {
        // A graph without tasks never ends.
        if !graph.task_stats.is_empty() {
            self.live.insert(graph.id, graph.clone());
        }
    }

    /// Keeps only the counters of a graph that has ended. Returns the graph, which the caller drops
    /// after it has released the lock.
    pub(super) fn end(&mut self, id: u64) -> Option<Arc<StartedGraph>> {
        let graph = self.live.remove(&id)?;
        self.ended.add(&graph);
        Some(graph)
    }

    /// Returns the tasks of the running graphs.
    pub(super) fn handles(&self) -> impl Iterator<Item = &TaskHandle> {
        self.live.values().flat_map(|graph| graph.tasks(0)).map(|(_, task)| task)
    }

    /// Returns the tasks of the running graphs from `first` on, then those before it.
    fn tasks_from(&self, first: TaskId) -> impl Iterator<Item = (TaskId, &TaskHandle)> {
        let (first, index) = first;
        let from = move |id: u64| if id == first { index } else { 0 };
        let behind = self.live.range(first..).flat_map(move |(id, graph)| graph.tasks(from(*id)));
        behind.chain(self.live.range(..=first).flat_map(|(_, graph)| graph.tasks(0)))
    }

    /// Returns whether there are blocked tasks and none can make progress. Starts with the task
    /// that could make progress in the last check: most likely it still can.
    pub(super) fn have_stalled(&mut self) -> bool {
        let (mut can_progress, mut blocked, mut tasks_checked) = (None, false, 0);
        for (task_id, task) in self.tasks_from(self.last_external_waiter) {
            tasks_checked += 1;
            match Liveness::of(task) {
                Liveness::Ended => {}
                Liveness::BlockedInQuery => blocked = true,
                Liveness::CanProgress => {
                    can_progress = Some(task_id);
                    break;
                }
            }
        }
        self.record_check(tasks_checked);
        self.last_external_waiter = can_progress.unwrap_or(self.last_external_waiter);
        can_progress.is_none() && blocked
    }

    #[cfg(test)]
    fn record_check(&mut self, tasks: usize) {
        self.tasks_checked += tasks;
    }

    #[cfg(not(test))]
    fn record_check(&mut self, _tasks: usize) {}

    /// Describes the tasks of all running graphs.
    pub(super) fn dump(&self, text: &mut String) {
        self.live.values().for_each(|graph| graph.dump(text));
        if self.ended.graphs() > 0 {
            let _ = writeln!(text, "  graphs that have ended: {}", self.ended.graphs());
        }
    }

    /// Adds the counters of all graphs, in the order in which the graphs were started.
    pub(super) fn add_to(&self, profile: &mut Profile) {
        let live = self.live.values().flat_map(|graph| graph.profiles());
        let mut pipelines: Vec<_> = self.ended.pipelines().chain(live).collect();
        pipelines.sort_by_key(|pipeline| pipeline.graph);
        let mut gates = GateSet::default();
        let mut gate_profiles = self.ended.gates(&mut gates);
        self.live.values().for_each(|graph| graph.add_gates(&mut gates));
        gate_profiles.extend(gates.profiles());
        profile.set(pipelines, gate_profiles);
    }

    /// Returns the number of running graphs, and of pipelines, tasks and gates of ended graphs.
    #[cfg(test)]
    pub(super) fn kept(&self) -> (usize, [usize; 3]) {
        (self.live.len(), self.ended.size())
    }
}
