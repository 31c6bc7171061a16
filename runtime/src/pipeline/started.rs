//! The graphs that a query has started: those that run, task by task, and what is kept of those
//! that have ended.
//!
//! A query may start any number of graphs, one after the other: a recursive query starts one a
//! round. So what is asked often (what does every task wait for, which tasks are to be woken) looks
//! at the graphs that run, and of a graph that has ended only counters are left ([`EndedGraphs`]).
//!
//! No lock: the query has one.

use std::{collections::BTreeMap, fmt, fmt::Write as _, sync::Arc};

use gatework_shared_state::{DependencyKind, Gate};

use super::{
    OperatorProfile, Profile,
    ended::{EndedGraphs, GateSet, PipelineProfile},
    graph::{PipelineInfo, TaskStats},
};
use crate::scheduler::{TaskHandle, TaskState};

/// A pipeline, and the records of its tasks.
type StartedPipeline<'a> = (&'a Arc<PipelineInfo>, &'a [Arc<TaskStats>]);

/// Pipelines that were started together, and their tasks.
pub(super) struct StartedGraph {
    /// Its number among the graphs of its query.
    id: u64,
    pipelines: Vec<Arc<PipelineInfo>>,
    /// Of all tasks, pipeline by pipeline.
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
    /// `task_stats` are those of all tasks, pipeline by pipeline.
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

    /// The counters of each pipeline.
    pub(super) fn profiles(&self) -> impl Iterator<Item = PipelineProfile> {
        self.pipelines().map(|(pipeline, task_stats)| PipelineProfile {
            graph: self.id,
            operators: pipeline.profile(task_stats),
            tasks: task_stats.iter().map(|stats| stats.profile(pipeline)).collect(),
        })
    }

    /// Operators of all pipelines, sources first in each.
    pub(super) fn operators(&self) -> Vec<OperatorProfile> {
        self.pipelines().flat_map(|(info, task_stats)| info.profile(task_stats)).collect()
    }

    /// Adds the gates that its tasks met.
    pub(super) fn add_gates(&self, gates: &mut GateSet) {
        self.task_stats.iter().for_each(|stats| stats.for_each_gate(|gate| gates.add(gate)));
    }

    /// Its tasks from number `from` on.
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

/// What a task that is not on a worker can expect.
enum Liveness {
    /// It has ended.
    Ended,
    /// It runs or is about to, or something outside the query's tasks wakes it.
    CanProgress,
    /// Only another task of its query wakes it.
    BlockedInQuery,
}

impl Liveness {
    fn of(task: &TaskHandle) -> Self {
        if task.state() == TaskState::Finished {
            return Self::Ended;
        }
        // A task that does not say what it waits for runs, or is about to for the first time.
        let Some(gates) = task.waits_for() else { return Self::CanProgress };
        // The task that was asked for memory, maybe one of another query, wakes the task that waits
        // for it.
        let outside =
            |gate: &Gate| matches!(gate.kind(), DependencyKind::External | DependencyKind::Memory);
        match gates.iter().any(|gate| outside(gate) || gate.is_ready()) {
            true => Self::CanProgress,
            false => Self::BlockedInQuery,
        }
    }
}

/// A task's graph, and its place there.
type TaskId = (u64, usize);

/// All graphs of one query.
#[derive(Default)]
pub(super) struct StartedGraphs {
    started: u64,
    /// Those that run, by number.
    live: BTreeMap<u64, Arc<StartedGraph>>,
    ended: EndedGraphs,
    /// The task that waited for something outside when last looked for.
    last_external_waiter: TaskId,
    /// How many tasks were looked at to find out whether the query has stalled.
    #[cfg(test)]
    pub(super) tasks_checked: usize,
}

impl StartedGraphs {
    /// The number of the next graph.
    pub(super) fn next_id(&mut self) -> u64 {
        self.started += 1;
        self.started
    }

    pub(super) fn add(&mut self, graph: &Arc<StartedGraph>) {
        // One without a task never ends.
        if !graph.task_stats.is_empty() {
            self.live.insert(graph.id, graph.clone());
        }
    }

    /// Keeps the counters of a graph that has ended. The graph comes back, to be dropped behind the
    /// lock.
    pub(super) fn end(&mut self, id: u64) -> Option<Arc<StartedGraph>> {
        let graph = self.live.remove(&id)?;
        self.ended.add(&graph);
        Some(graph)
    }

    /// The tasks of the graphs that run.
    pub(super) fn handles(&self) -> impl Iterator<Item = &TaskHandle> {
        self.live.values().flat_map(|graph| graph.tasks(0)).map(|(_, task)| task)
    }

    /// The same from `first` on, then those before it.
    fn tasks_from(&self, first: TaskId) -> impl Iterator<Item = (TaskId, &TaskHandle)> {
        let (first, index) = first;
        let from = move |id: u64| if id == first { index } else { 0 };
        let behind = self.live.range(first..).flat_map(move |(id, graph)| graph.tasks(from(*id)));
        behind.chain(self.live.range(..=first).flat_map(|(_, graph)| graph.tasks(0)))
    }

    /// Whether there are tasks, and each waits for another of them. Begins with the task that was
    /// the reason for a "no" the last time: it is the same one again, most likely.
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

    /// What the tasks of all graphs that run do at this moment.
    pub(super) fn dump(&self, text: &mut String) {
        self.live.values().for_each(|graph| graph.dump(text));
        if self.ended.graphs() > 0 {
            let _ = writeln!(text, "  graphs that have ended: {}", self.ended.graphs());
        }
    }

    /// Adds the counters of all graphs, in the order in which they were started.
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

    /// What is kept: graphs that run; pipelines, tasks and gates of those that have ended.
    #[cfg(test)]
    pub(super) fn kept(&self) -> (usize, [usize; 3]) {
        (self.live.len(), self.ended.size())
    }
}
