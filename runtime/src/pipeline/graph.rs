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
pub(super) struct Pipeline {
    pub(super) name: String,
    pub(super) source: Arc<dyn Source>,
    pub(super) operators: Vec<Arc<dyn Operator>>,
    pub(super) sink: Arc<dyn Sink>,
    pub(super) instances: usize,
    /// What each part belongs to outside, source first, sink last.
    tags: Vec<Option<usize>>,
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} × {}: {}", self.name, self.instances, self.source.name())?;
        for operator in &self.operators {
            write!(f, " → {}", operator.name())?;
        }
        write!(f, " → {}", self.sink.name())
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
        self.pipelines.push(Arc::new(Pipeline { name, source, operators, sink, instances, tags }));
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
                (0..pipeline.instances).map(|i| Arc::new(TaskRecord::new(pipeline, i))).collect()
            })
            .collect();
        let idle = query.admit(self.pipelines.clone(), records)?;
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
    gates: Mutex<Vec<Gate>>,
    pub(super) handle: std::sync::OnceLock<TaskHandle>,
}

impl TaskRecord {
    fn new(pipeline: &Pipeline, instance: usize) -> Self {
        Self {
            instance,
            metrics: (0..pipeline.operators.len() + 2).map(|_| Arc::default()).collect(),
            workers: AtomicU64::new(0),
            gates: Mutex::new(Vec::new()),
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
        self.gates.lock().clone()
    }

    pub(super) fn driver(
        self: &Arc<Self>,
        pipeline: &Arc<Pipeline>,
        live: LiveTask,
    ) -> Box<TaskDriver> {
        Box::new(TaskDriver::new(pipeline.clone(), self.clone(), live))
    }

    pub(super) fn profile(&self, pipeline: &Pipeline, pipeline_index: usize) -> TaskProfile {
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

impl Pipeline {
    /// Profiles of its parts, summed up over `records`.
    pub(super) fn profile(&self, records: &[Arc<TaskRecord>]) -> Vec<OperatorProfile> {
        let names = std::iter::once(self.source.name())
            .chain(self.operators.iter().map(|operator| operator.name()))
            .chain(std::iter::once(self.sink.name()));
        names
            .zip(&self.tags)
            .enumerate()
            .map(|(place, (name, tag))| {
                let mut profile =
                    OperatorProfile { name: name.to_owned(), tag: *tag, ..Default::default() };
                for record in records {
                    record.metrics[place].add_to(&mut profile);
                }
                profile
            })
            .collect()
    }
}
