//! Counters per operator and task, and the profile made of them.

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

/// Counters that only some operators have, by name.
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

    /// Adds to a counter of the operator's own.
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

/// One operator of a pipeline, summed up over its tasks.
#[derive(Debug, Clone, Default)]
pub struct OperatorProfile {
    /// The operator's name.
    pub name: String,
    /// What the operator belongs to outside (the number of its plan node), if anything.
    pub tag: Option<usize>,
    /// Rows it was given.
    pub rows_in: u64,
    /// Rows it gave.
    pub rows_out: u64,
    /// Batches it gave.
    pub batches_out: u64,
    /// Time in its calls, summed up over tasks.
    pub busy: Duration,
    /// Its own counters.
    pub counters: BTreeMap<&'static str, u64>,
}

impl OperatorProfile {
    /// Adds the counters of the same operator elsewhere.
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

/// One task of a pipeline.
#[derive(Debug, Clone)]
pub struct TaskProfile {
    /// The pipeline's name.
    pub pipeline: String,
    /// The pipeline's number among those of the profile.
    pub pipeline_index: usize,
    /// The task's instance.
    pub task_index: usize,
    /// How often it was on a worker.
    pub runs: u64,
    /// How often its time slice ended.
    pub yields: u64,
    /// How often it was blocked.
    pub blocks: u64,
    /// How often it changed its worker.
    pub steals: u64,
    /// Time on workers.
    pub busy: Duration,
    /// Rows its source gave.
    pub source_rows: u64,
    /// The worker that ran it last.
    pub last_worker: Option<usize>,
    /// A bit for each of the first 64 workers on which its source gave rows.
    pub workers: u64,
}

impl TaskProfile {
    /// Adds the counters of the task with this number of a later pipeline of the same shape.
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

/// A gate that tasks met.
#[derive(Debug, Clone)]
pub struct DependencyProfile {
    /// The gate's name.
    pub name: String,
    /// Its kind.
    pub kind: DependencyKind,
    /// How long it was shut with someone waiting.
    pub blocked: Duration,
    /// How often someone found it shut.
    pub blocked_count: u64,
    /// Whether it is open now. After the end of a query no gate of a shared state is shut.
    pub is_ready: bool,
}

/// What a query did, so far or in the end.
///
/// Of a query that starts one graph after the other (a recursive one), those that have ended are
/// summed up: pipelines of the same shape are one here, and so are gates of the same name and kind.
#[derive(Debug, Clone, Default)]
pub struct Profile {
    /// Operators of all pipelines, sources first in each.
    pub operators: Vec<OperatorProfile>,
    /// Tasks of all pipelines.
    pub tasks: Vec<TaskProfile>,
    /// Gates that were waited on, the longest first.
    pub gates: Vec<DependencyProfile>,
    /// What ran as another engine's operator, by name.
    pub fallbacks: Vec<String>,
    /// The most bytes the query had reserved at a time.
    pub peak_memory_bytes: usize,
}

impl Profile {
    /// Sets what is told of pipelines, which are in order, and of the gates that they met.
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
