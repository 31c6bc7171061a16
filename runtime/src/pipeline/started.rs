//! The graphs that a query has started: those that run, task by task, and what is kept of those
//! that have ended.
//!
//! A query may start any number of graphs, one after the other: a recursive query starts one a
//! round. So what is asked often (what does every task wait for, which tasks are to be woken) looks
//! at the graphs that run, and of a graph that has ended only counters are left ([`Ended`]).
//!
//! No lock: the query has one.

use std::{collections::BTreeMap, fmt, fmt::Write as _, sync::Arc};

use gatework_shared_state::{DependencyKind, Gate};

use super::{
    OperatorProfile, Profile,
    ended::{Ended, GateSet, PipelineProfile},
    graph::{PipelineInfo, TaskRecord},
};
use crate::scheduler::{TaskHandle, TaskState};

/// A pipeline, and the records of its tasks.
type StartedPipeline<'a> = (&'a Arc<PipelineInfo>, &'a [Arc<TaskRecord>]);

/// Pipelines that were started together, and their tasks.
pub(super) struct StartedGraph {
    /// Its number among the graphs of its query.
    id: u64,
    pipelines: Vec<Arc<PipelineInfo>>,
    /// Of all tasks, pipeline by pipeline.
    records: Box<[Arc<TaskRecord>]>,
}

impl fmt::Debug for StartedGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartedGraph")
            .field("id", &self.id)
            .field("tasks", &self.records.len())
            .finish_non_exhaustive()
    }
}

impl StartedGraph {
    /// `records` are those of all tasks, pipeline by pipeline.
    pub(super) fn new(
        id: u64,
        pipelines: Vec<Arc<PipelineInfo>>,
        records: Vec<Arc<TaskRecord>>,
    ) -> Self {
        Self { id, pipelines, records: records.into() }
    }

    pub(super) fn pipelines(&self) -> impl Iterator<Item = StartedPipeline<'_>> {
        let mut rest = &self.records[..];
        self.pipelines.iter().map(move |pipeline| {
            let (own, others) = rest.split_at(pipeline.instances);
            rest = others;
            (pipeline, own)
        })
    }

    /// The counters of each pipeline.
    pub(super) fn profiles(&self) -> impl Iterator<Item = PipelineProfile> {
        self.pipelines().map(|(pipeline, records)| PipelineProfile {
            graph: self.id,
            operators: pipeline.profile(records),
            tasks: records.iter().map(|record| record.profile(pipeline)).collect(),
        })
    }

    /// Operators of all pipelines, sources first in each.
    pub(super) fn operators(&self) -> Vec<OperatorProfile> {
        self.pipelines().flat_map(|(info, records)| info.profile(records)).collect()
    }

    /// Adds the gates that its tasks met.
    pub(super) fn add_gates(&self, gates: &mut GateSet) {
        self.records.iter().for_each(|record| record.for_each_gate(|gate| gates.add(gate)));
    }

    /// Its tasks from number `from` on.
    fn tasks(&self, from: usize) -> impl Iterator<Item = (Place, &TaskHandle)> {
        let records = self.records.get(from..).unwrap_or_default().iter().enumerate();
        records
            .filter_map(move |(step, record)| Some(((self.id, from + step), record.handle.get()?)))
    }

    fn dump(&self, text: &mut String) {
        for (pipeline, records) in self.pipelines() {
            let _ = writeln!(text, "  {pipeline:?}");
            for record in records {
                let Some(handle) = record.handle.get() else { continue };
                let _ = write!(text, "    [{}] {:?}", record.instance, handle.state());
                for gate in handle.waits_for().iter().flat_map(|gates| gates.iter()) {
                    let _ = write!(text, ", waits for {gate:?}");
                }
                text.push('\n');
            }
        }
    }
}

/// What a task that is not on a worker can expect.
enum Hope {
    /// It has ended.
    Over,
    /// It runs or is about to, or something outside the query's tasks wakes it.
    Goes,
    /// Only another task of its query wakes it.
    Waits,
}

impl Hope {
    fn of(task: &TaskHandle) -> Self {
        if task.state() == TaskState::Finished {
            return Self::Over;
        }
        // A task that does not say what it waits for runs, or is about to for the first time.
        let Some(gates) = task.waits_for() else { return Self::Goes };
        // The task that was asked for memory, maybe one of another query, wakes the task that waits
        // for it.
        let outside =
            |gate: &Gate| matches!(gate.kind(), DependencyKind::External | DependencyKind::Memory);
        match gates.iter().any(|gate| outside(gate) || gate.is_ready()) {
            true => Self::Goes,
            false => Self::Waits,
        }
    }
}

/// A task's graph, and its place there.
type Place = (u64, usize);

/// All graphs of one query.
#[derive(Default)]
pub(super) struct StartedGraphs {
    started: u64,
    /// Those that run, by number.
    live: BTreeMap<u64, Arc<StartedGraph>>,
    ended: Ended,
    /// The task that waited for something outside when last looked for.
    waits_outside: Place,
    /// How many tasks were looked at to find out whether the query has stalled.
    #[cfg(test)]
    pub(super) looked_at: usize,
}

impl StartedGraphs {
    /// The number of the next graph.
    pub(super) fn next_id(&mut self) -> u64 {
        self.started += 1;
        self.started
    }

    pub(super) fn add(&mut self, graph: &Arc<StartedGraph>) {
        // One without a task never ends.
        if !graph.records.is_empty() {
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
    fn in_turn(&self, first: Place) -> impl Iterator<Item = (Place, &TaskHandle)> {
        let (first, place) = first;
        let from = move |id: u64| if id == first { place } else { 0 };
        let behind = self.live.range(first..).flat_map(move |(id, graph)| graph.tasks(from(*id)));
        behind.chain(self.live.range(..=first).flat_map(|(_, graph)| graph.tasks(0)))
    }

    /// Whether there are tasks, and each waits for another of them. Begins with the task that was
    /// the reason for a "no" the last time: it is the same one again, most likely.
    pub(super) fn have_stalled(&mut self) -> bool {
        let (mut goes, mut blocked, mut looked_at) = (None, false, 0);
        for (place, task) in self.in_turn(self.waits_outside) {
            looked_at += 1;
            match Hope::of(task) {
                Hope::Over => {}
                Hope::Waits => blocked = true,
                Hope::Goes => {
                    goes = Some(place);
                    break;
                }
            }
        }
        self.note_look(looked_at);
        self.waits_outside = goes.unwrap_or(self.waits_outside);
        goes.is_none() && blocked
    }

    #[cfg(test)]
    fn note_look(&mut self, tasks: usize) {
        self.looked_at += tasks;
    }

    #[cfg(not(test))]
    fn note_look(&mut self, _tasks: usize) {}

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
        let mut dependencies = self.ended.gates(&mut gates);
        self.live.values().for_each(|graph| graph.add_gates(&mut gates));
        dependencies.extend(gates.profiles());
        profile.set(pipelines, dependencies);
    }

    /// What is kept: graphs that run; pipelines, tasks and gates of those that have ended.
    #[cfg(test)]
    pub(super) fn kept(&self) -> (usize, [usize; 3]) {
        (self.live.len(), self.ended.size())
    }
}
