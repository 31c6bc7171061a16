//! A graph of pipelines, built by hand or by a planner and started as the tasks of a query.

use std::{
    collections::HashSet,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use gatework_shared_state::Gate;
use parking_lot::Mutex;

use super::{
    Operator, OperatorMetrics, OperatorProfile, Profile, QueryContext, Sink, Source, TaskProfile,
    driver::TaskDriver,
    ended::GateSet,
    live::TaskGuard,
    scope::ScopedDriver,
    started::StartedGraph,
    wait_graph::{WaitEdge, WaitGraph},
};
use crate::{
    Error, Result,
    scheduler::{Gates, Runnable, TaskHandle},
};

/// The index of a pipeline in its graph.
pub type PipelineId = usize;

/// `source → operator* → sink`: immutable, shared by its tasks.
///
/// Invariant: only the pipeline's tasks hold it. The operators are dropped with the last task,
/// and so are shared-state tokens that no task took. (A task may be cancelled before its first
/// step.) Otherwise an external reader could wait for such a token indefinitely.
#[derive(Debug)]
pub(super) struct Pipeline {
    pub(super) info: Arc<PipelineInfo>,
    pub(super) source: Arc<dyn Source>,
    pub(super) operators: Vec<Arc<dyn Operator>>,
    pub(super) sink: Arc<dyn Sink>,
}

/// The part of a pipeline that dumps and profiles keep.
pub(super) struct PipelineInfo {
    pub(super) name: String,
    pub(super) num_tasks: usize,
    /// Name and tag of each operator: source first, sink last.
    parts: Vec<(String, Option<usize>)>,
}

impl fmt::Debug for PipelineInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} × {}:", self.name, self.num_tasks)?;
        for (index, (part, _)) in self.parts.iter().enumerate() {
            write!(f, "{} {part}", if index > 0 { " →" } else { "" })?;
        }
        Ok(())
    }
}

/// Pipelines and the waits between them.
#[derive(Debug, Default)]
pub struct Graph {
    pipelines: Vec<Arc<Pipeline>>,
    waits: WaitGraph,
}

impl Graph {
    /// Creates a graph without pipelines.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a pipeline of `num_tasks` tasks.
    ///
    /// # Errors
    /// If `num_tasks` is 0.
    pub fn add_pipeline(
        &mut self,
        name: impl Into<String>,
        num_tasks: usize,
        source: Arc<dyn Source>,
        operators: Vec<Arc<dyn Operator>>,
        sink: Arc<dyn Sink>,
    ) -> Result<PipelineId> {
        let tags = vec![None; operators.len() + 2];
        self.add_pipeline_with_tags(name, num_tasks, source, operators, sink, tags)
    }

    /// Adds a pipeline whose operators carry tags into the profile: source first, sink last.
    ///
    /// # Errors
    /// If `num_tasks` is 0 or there is not one tag per operator.
    pub fn add_pipeline_with_tags(
        &mut self,
        name: impl Into<String>,
        num_tasks: usize,
        source: Arc<dyn Source>,
        operators: Vec<Arc<dyn Operator>>,
        sink: Arc<dyn Sink>,
        tags: Vec<Option<usize>>,
    ) -> Result<PipelineId> {
        let name = name.into();
        if num_tasks == 0 || tags.len() != operators.len() + 2 {
            return Err(Error::InvalidConfiguration(format!(
                "pipeline '{name}' needs at least 1 task and one tag per operator"
            )));
        }
        let taken = operators
            .iter()
            .rev()
            .fold(sink.dictionary_columns(), |taken, operator| operator.take_dictionaries(&taken));
        if !taken.is_empty() {
            source.take_dictionaries(&taken);
        }
        self.waits.add_pipeline(num_tasks);
        let names = std::iter::once(source.name())
            .chain(operators.iter().map(|operator| operator.name()))
            .chain(std::iter::once(sink.name()));
        let parts = names.map(str::to_owned).zip(tags).collect();
        let info = Arc::new(PipelineInfo { name, num_tasks, parts });
        self.pipelines.push(Arc::new(Pipeline { info, source, operators, sink }));
        Ok(self.pipelines.len() - 1)
    }

    pub(super) fn pipelines(&self) -> &[Arc<Pipeline>] {
        &self.pipelines
    }

    /// Declares a wait between pipelines; see [`WaitEdge`].
    pub fn add_edge(&mut self, edge: WaitEdge) {
        self.waits.add_edge(edge);
    }

    /// Breaks the waits that would close a cycle, then starts all tasks under `query`.
    ///
    /// # Errors
    /// If the query was cancelled or its executor was shut down.
    pub fn start(self, query: &Arc<QueryContext>) -> Result<GraphHandle> {
        self.waits.break_cycles();
        let task_stats: Vec<Vec<Arc<TaskStats>>> = self
            .pipelines
            .iter()
            .map(|pipeline| {
                let task_indices = 0..pipeline.info.num_tasks;
                task_indices
                    .map(|task_index| Arc::new(TaskStats::new(pipeline, task_index)))
                    .collect()
            })
            .collect();
        let (graph, finished) = query.start_graph(&self.pipelines, task_stats)?;
        Ok(GraphHandle { query: query.clone(), graph, finished })
    }
}

/// A started graph. It keeps the counters of its tasks after they have ended.
#[derive(Debug, Clone)]
pub struct GraphHandle {
    query: Arc<QueryContext>,
    graph: Arc<StartedGraph>,
    finished: Gate,
}

impl GraphHandle {
    /// Returns the query that owns the graph's tasks.
    pub fn query(&self) -> &Arc<QueryContext> {
        &self.query
    }

    /// Returns a gate that is ready when no task of this graph is alive.
    pub fn finished(&self) -> &Gate {
        &self.finished
    }

    pub(super) fn for_each_gate(&self, mut visit: impl FnMut(&Gate)) {
        let all = self.graph.pipelines().flat_map(|(_, task_stats)| task_stats);
        all.for_each(|stats| stats.for_each_gate(&mut visit));
    }

    /// Returns the operators of this graph's pipelines, sources first in each. The cost depends on
    /// this graph's size only, not on the query's number of graphs.
    pub fn operators(&self) -> Vec<OperatorProfile> {
        self.graph.operators()
    }

    /// Returns the counters of this graph's tasks so far. The memory figure is that of the whole
    /// query; fallbacks are left out.
    pub fn profile(&self) -> Profile {
        let mut gates = GateSet::default();
        self.graph.add_gates(&mut gates);
        let mut profile =
            Profile { peak_memory_bytes: self.query.peak_memory_bytes(), ..Profile::default() };
        profile.set(self.graph.profiles().collect(), gates.profiles().collect());
        profile
    }
}

/// The gates that one task has waited for, each once. Small, because most tasks wait for one or a
/// few gates; some meet a new gate per batch.
#[derive(Debug, Default)]
struct MetGates {
    first: Option<Gate>,
    more: Option<Box<MoreGates>>,
}

#[derive(Debug, Default)]
struct MoreGates {
    gates: Vec<Gate>,
    /// Addresses of all gates; filled from `MANY_GATES` gates on.
    known: HashSet<usize>,
    /// Number of comparisons with a known gate.
    #[cfg(test)]
    compared: usize,
}

const MANY_GATES: usize = 16;

impl MetGates {
    fn add(&mut self, gate: &Gate) {
        match &self.first {
            None => self.first = Some(gate.clone()),
            Some(first) if Arc::ptr_eq(first, gate) => {}
            Some(_) => self.more.get_or_insert_default().add(gate),
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Gate> {
        self.first.iter().chain(self.more.iter().flat_map(|more| &more.gates))
    }
}

impl MoreGates {
    fn add(&mut self, gate: &Gate) {
        if !self.has(gate) {
            self.gates.push(gate.clone());
        }
    }

    /// Returns whether the gate is known. From `MANY_GATES` gates on, also adds it to `known`.
    fn has(&mut self, gate: &Gate) -> bool {
        let id = |gate: &Gate| Arc::as_ptr(gate).addr();
        if self.gates.len() < MANY_GATES {
            #[cfg(test)]
            {
                self.compared += self.gates.len();
            }
            return self.gates.iter().any(|known| Arc::ptr_eq(known, gate));
        }
        if self.known.is_empty() {
            self.known.extend(self.gates.iter().map(id));
        }
        !self.known.insert(id(gate))
    }
}

/// A task's counters and the gates it has waited for; kept after the task has ended.
#[derive(Debug)]
pub(super) struct TaskStats {
    pub(super) task_index: usize,
    /// Operator counters: source first, sink last.
    pub(super) metrics: Box<[Arc<OperatorMetrics>]>,
    pub(super) workers: AtomicU64,
    gates: Mutex<MetGates>,
    pub(super) handle: std::sync::OnceLock<TaskHandle>,
}

impl TaskStats {
    fn new(pipeline: &Pipeline, task_index: usize) -> Self {
        Self {
            task_index,
            metrics: (0..pipeline.operators.len() + 2).map(|_| Arc::default()).collect(),
            workers: AtomicU64::new(0),
            gates: Mutex::default(),
            handle: std::sync::OnceLock::new(),
        }
    }

    /// Records the gates that the task waits for, for the profile.
    pub(super) fn record_gates(&self, met: &Gates) {
        let mut gates = self.gates.lock();
        met.iter().for_each(|gate| gates.add(gate));
    }

    pub(super) fn for_each_gate(&self, mut visit: impl FnMut(&Gate)) {
        self.gates.lock().iter().for_each(&mut visit);
    }

    pub(super) fn driver(
        self: &Arc<Self>,
        pipeline: &Arc<Pipeline>,
        guard: TaskGuard,
    ) -> Box<dyn Runnable> {
        let scope = guard.query().slice_scope().cloned();
        let driver = Box::new(TaskDriver::new(pipeline.clone(), self.clone(), guard));
        match scope {
            Some(scope) => Box::new(ScopedDriver::new(scope, driver)),
            None => driver,
        }
    }

    /// Returns the task's counters. `Profile::set` sets the pipeline's index.
    pub(super) fn profile(&self, pipeline: &PipelineInfo) -> TaskProfile {
        let mut source = OperatorProfile::default();
        self.metrics[0].add_to(&mut source);
        let counters = self.handle.get().map(TaskHandle::counters);
        let read = |pick: fn(&crate::scheduler::TaskCounters) -> &AtomicU64| {
            counters.map_or(0, |counters| pick(counters).load(Ordering::Relaxed))
        };
        TaskProfile {
            pipeline: pipeline.name.clone(),
            pipeline_index: 0,
            task_index: self.task_index,
            runs: read(|c| &c.runs),
            yields: read(|c| &c.yields),
            blocks: read(|c| &c.blocks),
            steals: read(|c| &c.steals),
            busy: Duration::from_nanos(read(|c| &c.busy_nanos)),
            source_rows: source.rows_out,
            last_worker: self.handle.get().and_then(TaskHandle::last_worker),
            workers: self.workers.load(Ordering::Relaxed),
        }
    }
}

impl PipelineInfo {
    /// Returns the operators' names, source first.
    pub(super) fn part_names(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|(name, _)| name.as_str())
    }

    /// Returns the operators' profiles, summed up over `task_stats`.
    pub(super) fn profile(&self, task_stats: &[Arc<TaskStats>]) -> Vec<OperatorProfile> {
        self.parts
            .iter()
            .enumerate()
            .map(|(index, (name, tag))| {
                let mut profile =
                    OperatorProfile { name: name.clone(), tag: *tag, ..Default::default() };
                for stats in task_stats {
                    stats.metrics[index].add_to(&mut profile);
                }
                profile
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use gatework_shared_state::{Dependency, DependencyKind};

    use super::MetGates;

    /// A task that restores many batches meets a new gate per batch.
    #[test]
    fn a_gate_that_is_met_is_not_compared_with_all_others() {
        let gates: Vec<_> =
            (0..10_000).map(|_| Dependency::blocked("read", DependencyKind::External)).collect();
        let mut met = MetGates::default();
        for _ in 0..2 {
            gates.iter().for_each(|gate| met.add(gate));
        }
        assert_eq!(met.iter().count(), gates.len(), "each once");
        let compared = met.more.unwrap().compared;
        assert!(compared < 1000, "{compared}");
    }
}
