//! Counters per operator and task, and the profile built from them.

use std::{
    collections::BTreeMap,
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use gatework_shared_state::DependencyKind;
use parking_lot::Mutex;

use super::ended::PipelineProfile;

/// Counters of one operator in one task. They are statistics: relaxed, read at any time.
#[derive(Debug, Default)]
pub struct OperatorMetrics {
    rows_in: AtomicU64,
    rows_out: AtomicU64,
    batches_out: AtomicU64,
    busy_nanos: AtomicU64,
    counters: Mutex<Option<Box<OperatorCounters>>>,
}

/// Operator-specific counters, by name.
#[derive(Debug, Default)]
struct OperatorCounters {
    by_name: BTreeMap<&'static str, u64>,
}

impl OperatorMetrics {
    pub(crate) fn add_input(&self, rows: usize) {
        self.rows_in.fetch_add(rows as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_output(&self, rows: usize) {
        self.rows_out.fetch_add(rows as u64, Ordering::Relaxed);
        self.batches_out.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_busy(&self, spent: Duration) {
        self.busy_nanos.fetch_add(spent.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Adds to an operator-specific counter.
    pub fn add(&self, name: &'static str, amount: u64) {
        let mut counters = self.counters.lock();
        *counters.get_or_insert_default().by_name.entry(name).or_default() += amount;
    }

    pub(crate) fn add_to(&self, profile: &mut OperatorProfile) {
        profile.rows_in += self.rows_in.load(Ordering::Relaxed);
        profile.rows_out += self.rows_out.load(Ordering::Relaxed);
        profile.batches_out += self.batches_out.load(Ordering::Relaxed);
        profile.busy += Duration::from_nanos(self.busy_nanos.load(Ordering::Relaxed));
        for (name, amount) in self.counters.lock().iter().flat_map(|counters| &counters.by_name) {
            *profile.counters.entry(name).or_default() += amount;
        }
    }
}

/// The counters of one operator of a pipeline, summed up over its tasks.
#[derive(Debug, Clone, Default)]
pub struct OperatorProfile {
    /// The operator's name.
    pub name: String,
    /// The operator's tag from the embedder (the number of its plan node), if any.
    pub tag: Option<usize>,
    /// Number of input rows.
    pub rows_in: u64,
    /// Number of output rows.
    pub rows_out: u64,
    /// Number of output batches.
    pub batches_out: u64,
    /// Time spent in the operator's calls, summed up over tasks.
    pub busy: Duration,
    /// Operator-specific counters.
    pub counters: BTreeMap<&'static str, u64>,
}

impl OperatorProfile {
    /// Adds the counters of the same operator in another pipeline.
    pub(super) fn merge(&mut self, other: Self) {
        self.rows_in += other.rows_in;
        self.rows_out += other.rows_out;
        self.batches_out += other.batches_out;
        self.busy += other.busy;
        for (name, amount) in other.counters {
            *self.counters.entry(name).or_default() += amount;
        }
    }
}

/// The counters of one task of a pipeline.
#[derive(Debug, Clone)]
pub struct TaskProfile {
    /// The pipeline's name.
    pub pipeline: String,
    /// The pipeline's index in the profile.
    pub pipeline_index: usize,
    /// The task's index in its pipeline.
    pub task_index: usize,
    /// Number of runs on a worker.
    pub runs: u64,
    /// Number of runs that ended with a yield.
    pub yields: u64,
    /// Number of runs that ended blocked.
    pub blocks: u64,
    /// Number of times the task moved to another worker.
    pub steals: u64,
    /// Time spent on workers.
    pub busy: Duration,
    /// Rows that the task's source produced.
    pub source_rows: u64,
    /// The worker that ran the task last.
    pub last_worker: Option<usize>,
    /// A bit for each of the first 64 workers on which the task's source produced rows.
    pub workers: u64,
}

impl TaskProfile {
    /// Adds the counters of the task with this index in a later pipeline of the same shape.
    pub(super) fn merge(&mut self, other: Self) {
        self.runs += other.runs;
        self.yields += other.yields;
        self.blocks += other.blocks;
        self.steals += other.steals;
        self.busy += other.busy;
        self.source_rows += other.source_rows;
        self.last_worker = other.last_worker.or(self.last_worker);
        self.workers |= other.workers;
    }
}

/// The counters of a gate that tasks waited for.
#[derive(Debug, Clone)]
pub struct DependencyProfile {
    /// The gate's name.
    pub name: String,
    /// The gate's kind.
    pub kind: DependencyKind,
    /// Total time during which the gate was blocked with a task waiting for it.
    pub blocked: Duration,
    /// Number of times a task found the gate blocked.
    pub blocked_count: u64,
    /// Whether the gate is ready now. After a query has ended, all gates of its shared states are
    /// ready.
    pub is_ready: bool,
}

/// The counters of a query, so far or at its end.
///
/// If a query starts graphs in sequence (a recursive query), the graphs that have ended are summed
/// up. Pipelines of the same shape are then one pipeline, and gates of the same name and kind one
/// gate.
#[derive(Debug, Clone, Default)]
pub struct Profile {
    /// Operators of all pipelines, sources first in each.
    pub operators: Vec<OperatorProfile>,
    /// Tasks of all pipelines.
    pub tasks: Vec<TaskProfile>,
    /// Gates that tasks waited for, the longest blocked first.
    pub gates: Vec<DependencyProfile>,
    /// Names of the operators that ran as a fallback in another engine.
    pub fallbacks: Vec<String>,
    /// The query's peak of reserved bytes.
    pub peak_memory_bytes: usize,
}

impl Profile {
    /// Sets the counters of `pipelines`, which are sorted by graph, and of their `gates`.
    pub(super) fn set(&mut self, pipelines: Vec<PipelineProfile>, gates: Vec<DependencyProfile>) {
        for (pipeline_index, mut pipeline) in pipelines.into_iter().enumerate() {
            pipeline.tasks.iter_mut().for_each(|task| task.pipeline_index = pipeline_index);
            self.operators.extend(pipeline.operators);
            self.tasks.extend(pipeline.tasks);
        }
        self.gates = gates;
        self.gates.sort_by_key(|gate| std::cmp::Reverse(gate.blocked));
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "operators:")?;
        for operator in &self.operators {
            write!(
                f,
                "  {}: {} rows in, {} rows out, {:?} busy",
                operator.name, operator.rows_in, operator.rows_out, operator.busy
            )?;
            for (name, amount) in &operator.counters {
                write!(f, ", {name} {amount}")?;
            }
            writeln!(f)?;
        }
        writeln!(f, "tasks:")?;
        for task in &self.tasks {
            writeln!(
                f,
                "  {} [{}]: {} rows, {} runs, {} blocks, {} yields, {:?} busy",
                task.pipeline,
                task.task_index,
                task.source_rows,
                task.runs,
                task.blocks,
                task.yields,
                task.busy
            )?;
        }
        writeln!(f, "blocked on:")?;
        for gate in &self.gates {
            writeln!(
                f,
                "  {} ({:?}): {:?} in {} waits",
                gate.name, gate.kind, gate.blocked, gate.blocked_count
            )?;
        }
        for fallback in &self.fallbacks {
            writeln!(f, "fallback: {fallback}")?;
        }
        writeln!(f, "peak memory: {} bytes", self.peak_memory_bytes)
    }
}
