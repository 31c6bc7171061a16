//! Counters of graphs that have ended, summed up over pipelines of the same shape.
//!
//! Two pipelines have the same shape if their index in the graph, their name and the names of their
//! operators are equal. All rounds of a recursive query have the same shapes, so they take the
//! memory of one round. The first pipeline of each shape is kept and accumulates the counters of
//! the others.

use std::{
    collections::{HashMap, HashSet},
    hash::{Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use gatework_shared_state::{DependencyKind, Gate};

use super::{
    DependencyProfile, OperatorProfile, TaskProfile, graph::PipelineInfo, started::StartedGraph,
};

/// The counters of one pipeline.
#[derive(Debug, Clone)]
pub(super) struct PipelineProfile {
    /// The graph's number; pipelines are sorted by it.
    pub(super) graph: u64,
    pub(super) operators: Vec<OperatorProfile>,
    pub(super) tasks: Vec<TaskProfile>,
}

impl PipelineProfile {
    /// Adds the counters of a pipeline of the same shape.
    fn merge(&mut self, other: Self) {
        for (all, operator) in self.operators.iter_mut().zip(other.operators) {
            all.merge(operator);
        }
        let known = self.tasks.len().min(other.tasks.len());
        let mut tasks = other.tasks.into_iter();
        for (all, task) in self.tasks.iter_mut().zip(tasks.by_ref().take(known)) {
            all.merge(task);
        }
        self.tasks.extend(tasks);
    }
}

/// The properties that make two pipelines equal for their counters.
#[derive(Debug)]
struct Shape {
    index: usize,
    pipeline: Arc<PipelineInfo>,
}

impl Shape {
    fn names(&self) -> impl Iterator<Item = &str> {
        self.pipeline.part_names()
    }
}

impl PartialEq for Shape {
    fn eq(&self, other: &Self) -> bool {
        self.index == other.index
            && self.pipeline.name == other.pipeline.name
            && self.names().eq(other.names())
    }
}

impl Eq for Shape {}

impl Hash for Shape {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.index, &self.pipeline.name).hash(state);
        self.names().for_each(|name| name.hash(state));
    }
}

/// A set of gates.
#[derive(Debug, Default)]
pub(super) struct GateSet {
    gates: Vec<Gate>,
    known: HashSet<usize>,
}

impl GateSet {
    /// Returns the gate's address. It is unique as long as the set keeps the gate.
    fn id(gate: &Gate) -> usize {
        Arc::as_ptr(gate).addr()
    }

    pub(super) fn add(&mut self, gate: &Gate) {
        if self.known.insert(Self::id(gate)) {
            self.gates.push(gate.clone());
        }
    }

    pub(super) fn profiles(&self) -> impl Iterator<Item = DependencyProfile> {
        self.gates.iter().map(|gate| DependencyProfile {
            name: gate.name().to_owned(),
            kind: gate.kind(),
            blocked: gate.blocked_time(),
            blocked_count: gate.blocked_count(),
            is_ready: gate.is_ready(),
        })
    }
}

/// Gates of the same name and kind that tasks waited for: one gate of each graph.
#[derive(Debug)]
struct EndedGate {
    /// The latest graph's gate. It may still become ready, or other graphs may wait for it too.
    latest: Gate,
    /// Sums over the gates of earlier graphs.
    blocked: Duration,
    blocked_count: u64,
    is_ready: bool,
}

impl EndedGate {
    fn new(gate: &Gate) -> Self {
        Self { latest: gate.clone(), blocked: Duration::ZERO, blocked_count: 0, is_ready: true }
    }

    fn replace(&mut self, gate: &Gate) {
        self.blocked += self.latest.blocked_time();
        self.blocked_count += self.latest.blocked_count();
        self.is_ready &= self.latest.is_ready();
        self.latest = gate.clone();
    }

    fn profile(&self) -> DependencyProfile {
        DependencyProfile {
            name: self.latest.name().to_owned(),
            kind: self.latest.kind(),
            blocked: self.blocked + self.latest.blocked_time(),
            blocked_count: self.blocked_count + self.latest.blocked_count(),
            is_ready: self.is_ready && self.latest.is_ready(),
        }
    }
}

/// A gate's name, its kind, and its index among the gates of that name and kind in its graph.
type GateKey = (String, DependencyKind, usize);

/// Counters of graphs that have ended.
#[derive(Debug, Default)]
pub(super) struct EndedGraphs {
    graphs: u64,
    pipelines: Vec<PipelineProfile>,
    by_shape: HashMap<Shape, usize>,
    gates: Vec<EndedGate>,
    by_name: HashMap<GateKey, usize>,
    /// Addresses of the latest gates.
    known: HashSet<usize>,
}

impl EndedGraphs {
    /// Returns the number of graphs that have ended.
    pub(super) fn graphs(&self) -> u64 {
        self.graphs
    }

    pub(super) fn add(&mut self, graph: &StartedGraph) {
        self.graphs += 1;
        for (index, (profile, (pipeline, _))) in graph.profiles().zip(graph.pipelines()).enumerate()
        {
            let shape = Shape { index, pipeline: pipeline.clone() };
            match self.by_shape.get(&shape) {
                Some(known) => self.pipelines[*known].merge(profile),
                None => {
                    self.by_shape.insert(shape, self.pipelines.len());
                    self.pipelines.push(profile);
                }
            }
        }
        let mut met = GateSet::default();
        graph.add_gates(&mut met);
        let mut alike: HashMap<(&str, DependencyKind), usize> = HashMap::new();
        for gate in &met.gates {
            let count = alike.entry((gate.name(), gate.kind())).or_default();
            self.add_gate(gate, *count);
            *count += 1;
        }
    }

    /// Adds a gate. Its graph has `before` earlier gates of the same name and kind.
    fn add_gate(&mut self, gate: &Gate, before: usize) {
        if !self.known.insert(GateSet::id(gate)) {
            return;
        }
        let key = (gate.name().to_owned(), gate.kind(), before);
        match self.by_name.get(&key) {
            Some(&known) => {
                self.known.remove(&GateSet::id(&self.gates[known].latest));
                self.gates[known].replace(gate);
            }
            None => {
                self.by_name.insert(key, self.gates.len());
                self.gates.push(EndedGate::new(gate));
            }
        }
    }

    pub(super) fn pipelines(&self) -> impl Iterator<Item = PipelineProfile> {
        self.pipelines.iter().cloned()
    }

    /// Returns the profiles of all gates. Adds the latest gates to `known`, because running graphs
    /// may have waited for them too.
    pub(super) fn gates(&self, known: &mut GateSet) -> Vec<DependencyProfile> {
        known.known.extend(&self.known);
        self.gates.iter().map(EndedGate::profile).collect()
    }

    /// Returns the numbers of pipelines, tasks and gates that are kept.
    #[cfg(test)]
    pub(super) fn size(&self) -> [usize; 3] {
        let tasks = self.pipelines.iter().map(|pipeline| pipeline.tasks.len()).sum();
        [self.pipelines.len(), tasks, self.gates.len()]
    }
}
