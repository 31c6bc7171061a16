//! A graph of pipelines, built by hand or by a planner, and started as the tasks of a query.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use gatework_shared_state::Gate;
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::{
    Operator, OperatorMetrics, OperatorProfile, QueryContext, Sink, Source, TaskProfile,
    driver::TaskDriver,
    query::LiveTask,
    wait_graph::{Edge, WaitGraph},
};
use crate::{
    Error, Result,
    scheduler::{Gates, TaskHandle},
};

/// The number of a pipeline in its graph.
pub type PipelineId = usize;

/// `source → operator* → sink`: immutable, shared by its tasks.
///
/// Held by its tasks only: when the last of them is gone, its parts go, and with them the tokens of
/// shared states that no task came for (it was cancelled before its first step). A reader outside
/// who waits for such a token would wait for ever otherwise.
#[derive(Debug)]
pub(super) struct Pipeline {
    pub(super) info: Arc<PipelineInfo>,
    pub(super) source: Arc<dyn Source>,
    pub(super) operators: Vec<Arc<dyn Operator>>,
    pub(super) sink: Arc<dyn Sink>,
}

/// What is kept of a pipeline for dumps and the profile.
pub(super) struct PipelineInfo {
    pub(super) name: String,
    pub(super) instances: usize,
    /// The name of each part, and what it belongs to outside: source first, sink last.
    parts: Vec<(String, Option<usize>)>,
}

impl fmt::Debug for PipelineInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} × {}:", self.name, self.instances)?;
        for (place, (part, _)) in self.parts.iter().enumerate() {
            write!(f, "{} {part}", if place > 0 { " →" } else { "" })?;
        }
        Ok(())
    }
}

/// Pipelines and what they wait for.
#[derive(Debug, Default)]
pub struct Graph {
    pipelines: Vec<Arc<Pipeline>>,
    waits: WaitGraph,
}

impl Graph {
    /// A graph without pipelines.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a pipeline of `instances` tasks.
    ///
    /// # Errors
    /// If `instances` is 0.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        instances: usize,
        source: Arc<dyn Source>,
        operators: Vec<Arc<dyn Operator>>,
        sink: Arc<dyn Sink>,
    ) -> Result<PipelineId> {
        let tags = vec![None; operators.len() + 2];
        self.add_tagged(name, instances, source, operators, sink, tags)
    }

    /// Adds a pipeline whose parts carry tags (source first, sink last) into the profile.
    ///
    /// # Errors
    /// If `instances` is 0 or the tags are not one per part.
    pub fn add_tagged(
        &mut self,
        name: impl Into<String>,
        instances: usize,
        source: Arc<dyn Source>,
        operators: Vec<Arc<dyn Operator>>,
        sink: Arc<dyn Sink>,
        tags: Vec<Option<usize>>,
    ) -> Result<PipelineId> {
        let name = name.into();
        if instances == 0 || tags.len() != operators.len() + 2 {
            return Err(Error::Setup(format!(
                "pipeline '{name}' needs at least 1 task and one tag per part"
            )));
        }
        self.waits.add_pipeline(instances);
        let names = std::iter::once(source.name())
            .chain(operators.iter().map(|operator| operator.name()))
            .chain(std::iter::once(sink.name()));
        let parts = names.map(str::to_owned).zip(tags).collect();
        let info = Arc::new(PipelineInfo { name, instances, parts });
        self.pipelines.push(Arc::new(Pipeline { info, source, operators, sink }));
        Ok(self.pipelines.len() - 1)
    }

    /// Declares that pipelines wait for each other; see [`Edge`].
    pub fn wait(&mut self, edge: Edge) {
        self.waits.add(edge);
    }

    /// Resolves the waits that would close a cycle, then starts all tasks under `query`.
    ///
    /// # Errors
    /// If the query was cancelled or its executor shut down.
    pub fn start(self, query: &Arc<QueryContext>) -> Result<Running> {
        self.waits.resolve();
        let records: Vec<Vec<Arc<TaskRecord>>> = self
            .pipelines
            .iter()
            .map(|pipeline| {
                let instances = 0..pipeline.info.instances;
                instances.map(|instance| Arc::new(TaskRecord::new(pipeline, instance))).collect()
            })
            .collect();
        let idle = query.admit(&self.pipelines, records)?;
        Ok(Running { query: query.clone(), idle })
    }
}

/// A graph that has been started.
#[derive(Debug, Clone)]
pub struct Running {
    query: Arc<QueryContext>,
    idle: Gate,
}

impl Running {
    /// The query whose tasks these are.
    pub fn query(&self) -> &Arc<QueryContext> {
        &self.query
    }

    /// Ready when no task of this graph lives any more.
    pub fn idle(&self) -> &Gate {
        &self.idle
    }
}

/// What is kept of a task: its counters, and what it waited for.
#[derive(Debug)]
pub(super) struct TaskRecord {
    pub(super) instance: usize,
    /// Counters, source first, sink last.
    pub(super) metrics: Box<[Arc<OperatorMetrics>]>,
    pub(super) workers: AtomicU64,
    gates: Mutex<SmallVec<[Gate; 1]>>,
    pub(super) handle: std::sync::OnceLock<TaskHandle>,
}

impl TaskRecord {
    fn new(pipeline: &Pipeline, instance: usize) -> Self {
        Self {
            instance,
            metrics: (0..pipeline.operators.len() + 2).map(|_| Arc::default()).collect(),
            workers: AtomicU64::new(0),
            gates: Mutex::default(),
            handle: std::sync::OnceLock::new(),
        }
    }

    /// Remembers the gates the task met, for the profile.
    pub(super) fn note_gates(&self, met: &Gates) {
        let mut gates = self.gates.lock();
        for gate in met.iter() {
            if !gates.iter().any(|known| Arc::ptr_eq(known, gate)) {
                gates.push(gate.clone());
            }
        }
    }

    pub(super) fn gates(&self) -> Vec<Gate> {
        self.gates.lock().to_vec()
    }

    pub(super) fn driver(
        self: &Arc<Self>,
        pipeline: &Arc<Pipeline>,
        live: LiveTask,
    ) -> Box<TaskDriver> {
        Box::new(TaskDriver::new(pipeline.clone(), self.clone(), live))
    }

    pub(super) fn profile(&self, pipeline: &PipelineInfo, pipeline_index: usize) -> TaskProfile {
        let mut source = OperatorProfile::default();
        self.metrics[0].add_to(&mut source);
        let counters = self.handle.get().map(TaskHandle::counters);
        let read = |pick: fn(&crate::scheduler::TaskCounters) -> &AtomicU64| {
            counters.map_or(0, |counters| pick(counters).load(Ordering::Relaxed))
        };
        TaskProfile {
            pipeline: pipeline.name.clone(),
            pipeline_index,
            instance: self.instance,
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
    /// Profiles of its parts, summed up over `records`.
    pub(super) fn profile(&self, records: &[Arc<TaskRecord>]) -> Vec<OperatorProfile> {
        self.parts
            .iter()
            .enumerate()
            .map(|(place, (name, tag))| {
                let mut profile =
                    OperatorProfile { name: name.clone(), tag: *tag, ..Default::default() };
                for record in records {
                    record.metrics[place].add_to(&mut profile);
                }
                profile
            })
            .collect()
    }
}
