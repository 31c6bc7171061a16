//! Trial: one mode with its parameters, as an executor and query options, for any graph.
//!
//! The harness runs its cases as trials. Tests of whole queries use trials directly: they run a
//! query with [`Trial::executor`] and [`Trial::options`]. They check its error with
//! [`Trial::allows`], and the remaining tasks and memory with [`Trial::assert_clean`].

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use gatework_runtime::{
    Error, Executor, Result,
    pipeline::{
        Chaos, ChaosCounts, Fault, GreedyPool, MemoryPool, QueryContext, QueryOptions,
        ReservationDenied,
    },
};
use gatework_shared_state::DependencyKind;

use super::{
    Mode,
    early_end::EarlyEnd,
    fault_memory::{InMemorySpill, RandomDenialPool},
    wait::block_on_timeout,
};

/// Enough for pipelines to overlap; the thread that unblocks calls is a third.
const THREADS: usize = 2;
/// Duration from which a call counts as slow. A cancel must be heard within 50 ms, and a time slice
/// is shorter than that.
const SLOW_CALL: Duration = Duration::from_millis(100);
/// One wait in this number is ended early by a spurious wake-up.
const SPURIOUS_WAKEUPS_EVERY: usize = 3;

/// One mode with its parameters, ready to run one query.
///
/// ```
/// use gatework_operators::harness::Trial;
/// use gatework_runtime::pipeline::QueryContext;
/// let trial = Trial::blocking(2, 42)?;
/// let query = QueryContext::new(trial.executor(), trial.options());
/// // … start a graph, read its rows …
/// trial.assert_clean(&query, std::time::Duration::from_secs(30)).expect("no task or memory");
/// assert_eq!(trial.injections(), 0, "no task has run, so no call was blocked");
/// assert_eq!(trial.to_string(), "blocking (one in 2 calls, seed 42)");
/// # Ok::<(), gatework_runtime::Error>(())
/// ```
#[derive(Debug)]
pub struct Trial {
    mode: Mode,
    label: String,
    executor: Executor,
    options: QueryOptions,
    chaos: Arc<Chaos>,
    pool: Arc<CountingPool>,
    /// Pool and spill space that replace `pool` in spill mode.
    fault_memory: Option<(Arc<RandomDenialPool>, Arc<InMemorySpill>)>,
    /// Text of the error with which the operator under test fails.
    expected_error: Option<String>,
    /// The end of the result, in early-end mode.
    pub(super) early_end: Option<Arc<EarlyEnd>>,
    /// Rows per morsel of harness sources.
    pub(super) morsel_rows: usize,
    /// Byte limit of harness results.
    pub(super) result_bytes: usize,
}

impl Trial {
    /// Creates a trial without injections.
    ///
    /// # Errors
    /// If the system cannot create a thread; this applies to all constructors.
    pub fn plain() -> Result<Self> {
        let mut trial = Self::new(Mode::Plain, String::new(), Chaos::new(0), usize::MAX)?;
        trial.options.chaos = None;
        trial.options.time_slice = QueryOptions::default().time_slice;
        trial.morsel_rows = 8192;
        trial.result_bytes = usize::MAX;
        Ok(trial)
    }

    /// Creates a trial that splits batches to `rows` rows.
    ///
    /// # Errors
    /// If the system cannot create a thread.
    pub fn tiny_batches(rows: usize) -> Result<Self> {
        let chaos = Chaos::new(0).split_batches(rows);
        let mut trial = Self::new(Mode::TinyBatches, format!("{rows} rows"), chaos, usize::MAX)?;
        // Morsels of two batches: several tasks get some, and each can be split.
        trial.morsel_rows = 2 * rows;
        Ok(trial)
    }

    /// Creates a trial in which each batch selects half of the rows that it has.
    ///
    /// # Errors
    /// If the system cannot create a thread.
    pub fn selections() -> Result<Self> {
        Self::new(Mode::Selections, String::new(), Chaos::new(0).select_rows(), usize::MAX)
    }

    /// Creates a trial in which one in `calls` calls blocks, and always the first of each kind.
    ///
    /// # Errors
    /// If the system cannot create a thread.
    pub fn blocking(calls: usize, seed: u64) -> Result<Self> {
        let chaos = Chaos::new(seed)
            .block_every(calls)
            .spurious_wakeups_every(SPURIOUS_WAKEUPS_EVERY)
            .wait_after_unlocks();
        let label = format!("one in {calls} calls, seed {seed}");
        Self::new(Mode::Blocking, label, chaos, usize::MAX)
    }

    /// Creates a trial on one thread, which picks the next task at random after every step.
    ///
    /// # Errors
    /// If the system cannot create a thread.
    pub fn seeded(seed: u64) -> Result<Self> {
        let chaos =
            Chaos::new(seed).spurious_wakeups_every(SPURIOUS_WAKEUPS_EVERY).call_limit(SLOW_CALL);
        let mut trial = Self::new(Mode::Seeded, format!("seed {seed}"), chaos, usize::MAX)?;
        // A reader that frees capacity would wake tasks independently of the seed.
        trial.result_bytes = usize::MAX;
        Ok(trial)
    }

    /// Creates a trial in which breakers can reserve at most `limit_bytes`.
    ///
    /// # Errors
    /// If the system cannot create a thread.
    pub fn memory(limit_bytes: usize) -> Result<Self> {
        let label = format!("{limit_bytes} bytes");
        let mut trial = Self::new(Mode::Memory, label, Chaos::new(0), limit_bytes)?;
        trial.options.chaos = None;
        Ok(trial)
    }

    /// Creates a trial that denies reservations at random, by `seed`, and allows spilling.
    ///
    /// # Errors
    /// If the system cannot create a thread.
    pub fn spill(seed: u64) -> Result<Self> {
        let chaos = Chaos::new(seed);
        let mut trial = Self::new(Mode::Spill, format!("seed {seed}"), chaos, usize::MAX)?;
        let spill_space = Arc::new(InMemorySpill { eager: true, ..InMemorySpill::default() });
        let pool = Arc::new(RandomDenialPool::new(seed));
        trial.options.memory = pool.clone();
        trial.options.spill = Some(spill_space.clone());
        trial.fault_memory = Some((pool, spill_space));
        Ok(trial)
    }

    /// Creates a trial whose result wants `rows` rows. After that, no input ends by itself. Only a
    /// [`Case`](super::Case) has such a result.
    ///
    /// # Errors
    /// If the system cannot create a thread.
    pub(super) fn early_end(rows: usize) -> Result<Self> {
        let label = format!("after {rows} rows");
        let mut trial = Self::new(Mode::EarlyEnd, label, Chaos::new(0), usize::MAX)?;
        trial.early_end = Some(EarlyEnd::after(rows));
        Ok(trial)
    }

    /// Creates a trial that injects `fault` at step `step`.
    ///
    /// # Errors
    /// If the system cannot create a thread.
    pub fn fault(fault: Fault, step: u64) -> Result<Self> {
        let mode = match fault {
            Fault::Cancel => Mode::Cancel,
            Fault::Error => Mode::Error,
            Fault::Panic => Mode::Panic,
            Fault::DropTask => Mode::DroppedTask,
        };
        let chaos = Chaos::new(step).fault_at(fault, step);
        Self::new(mode, format!("step {step}"), chaos, usize::MAX)
    }

    fn new(mode: Mode, label: String, chaos: Chaos, limit_bytes: usize) -> Result<Self> {
        let chaos = Arc::new(chaos);
        let pool = Arc::new(CountingPool::new(limit_bytes));
        let options = QueryOptions {
            spill: None,
            group: None,
            bypass_admission: false,
            slice_scope: None,
            name: mode.to_string().into(),
            memory: pool.clone(),
            chaos: Some(chaos.clone()),
            // One step per time slice, so that tasks interleave in the middle of their work.
            time_slice: Duration::ZERO,
        };
        let executor = Executor::builder();
        let executor = match mode {
            Mode::Seeded => executor.deterministic(chaos.seed()),
            _ => executor.threads(THREADS),
        };
        let executor = executor.build()?;
        let (fault_memory, early_end, morsel_rows, result_bytes) = (None, None, 5, 1);
        Ok(Self {
            mode,
            label,
            executor,
            options,
            chaos,
            pool,
            fault_memory,
            expected_error: None,
            early_end,
            morsel_rows,
            result_bytes,
        })
    }

    /// Returns the mode.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Returns the executor to run the query on.
    pub fn executor(&self) -> &Executor {
        &self.executor
    }

    /// Returns the options to run the query with.
    pub fn options(&self) -> QueryOptions {
        self.options.clone()
    }

    /// Returns the number of injections: batches split, calls blocked, tasks picked among several,
    /// reservations denied, batches spilled, ends, faults injected. 0 counts as not run. If no
    /// batch has more than one row, there is nothing to split: the batches count, or 1 if there are
    /// none.
    pub fn injections(&self) -> u64 {
        let counts = self.chaos.counts();
        match self.mode {
            Mode::Plain => 1,
            Mode::TinyBatches | Mode::Selections if counts.batches == 0 => 1,
            Mode::TinyBatches | Mode::Selections if counts.splits == 0 => counts.single_rows,
            Mode::TinyBatches | Mode::Selections => counts.splits,
            Mode::Blocking => counts.blocks(),
            Mode::Seeded => self.executor.schedule().map_or(0, |schedule| schedule.choices),
            Mode::Memory => self.pool.denied.load(Ordering::Relaxed),
            Mode::Spill => self
                .fault_memory
                .as_ref()
                .map_or(0, |(_, spill_space)| spill_space.writes.load(Ordering::Relaxed) as u64),
            Mode::EarlyEnd => {
                u64::from(self.early_end.as_ref().is_some_and(|end| end.has_happened()))
            }
            Mode::Cancel | Mode::Error | Mode::Panic | Mode::DroppedTask => u64::from(counts.fault),
        }
    }

    /// Returns the counts by kind of call, for tests that need more detail than
    /// [`injections`](Self::injections).
    pub fn counts(&self) -> ChaosCounts {
        self.chaos.counts()
    }

    /// Returns a trial that may end with an error whose text contains `text`.
    pub(super) fn expecting_error(self, text: &str) -> Self {
        Self { expected_error: Some(text.to_owned()), ..self }
    }

    /// Returns the operators with calls that took longer than a call may, in seeded trials, and the
    /// longest time of each.
    pub fn slow_calls(&self) -> BTreeMap<String, Duration> {
        self.chaos.slow_calls()
    }

    /// Returns true if this trial may end with `error`.
    pub fn allows(&self, error: &Error) -> bool {
        let expected = self.expected_error.as_ref();
        if expected.is_some_and(|text| error.to_string().contains(text)) {
            return true;
        }
        match self.mode {
            Mode::Memory => matches!(error, Error::OutOfMemory { .. }),
            Mode::Cancel => self.injections() > 0 && matches!(error, Error::Cancelled { .. }),
            Mode::Error => matches!(error, Error::Operator { .. }) && is_injected(error),
            Mode::Panic => matches!(error, Error::Panic { .. }) && is_injected(error),
            Mode::DroppedTask => self.injections() > 0 && matches!(error, Error::ProducerAborted),
            Mode::Plain
            | Mode::TinyBatches
            | Mode::Selections
            | Mode::Blocking
            | Mode::Seeded
            | Mode::Spill
            | Mode::EarlyEnd => false,
        }
    }

    /// Waits until no task of `query` lives, then checks what remains.
    ///
    /// # Errors
    /// Describes what remains: tasks, reserved bytes, or a blocked gate of a shared state, at which
    /// a task could wait forever.
    pub fn assert_clean(&self, query: &QueryContext, hang_after: Duration) -> Result<(), String> {
        let idle = block_on_timeout(hang_after, |context| {
            if query.idle().poll_ready(context.waker()) { Poll::Ready(()) } else { Poll::Pending }
        });
        if idle.is_none() {
            return Err(format!("tasks are alive after the end:\n{}", query.dump()));
        }
        let (tasks, bytes) = (query.live_tasks(), query.reserved_bytes());
        let denial_pool_bytes = self.fault_memory.as_ref().map_or(0, |(pool, _)| pool.reserved());
        let pooled = self.pool.limit.reserved() + denial_pool_bytes;
        if tasks > 0 || bytes > 0 || pooled > 0 {
            return Err(format!(
                "{tasks} tasks are alive and {bytes} bytes are reserved after the end \
                 ({pooled} in the pool)"
            ));
        }
        for gate in query.profile().gates {
            let of_a_state = matches!(
                gate.kind,
                DependencyKind::Source
                    | DependencyKind::Sink
                    | DependencyKind::Finish
                    | DependencyKind::RuntimeFilter
            );
            if of_a_state && !gate.is_ready {
                return Err(format!(
                    "gate '{}' ({:?}) is still blocked after the end",
                    gate.name, gate.kind
                ));
            }
        }
        self.check_fault_reported(query)
    }

    /// Checks that an injected error is the query's error, even if all rows were read before.
    fn check_fault_reported(&self, query: &QueryContext) -> Result<(), String> {
        let thrown = matches!(self.mode, Mode::Error | Mode::Panic) && self.injections() > 0;
        match query.error() {
            Some(error) if thrown && !self.allows(&error) => {
                Err(format!("another error replaced the injected one: {error}"))
            }
            None if thrown => Err("the injected error was lost".into()),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.mode)?;
        if self.label.is_empty() { Ok(()) } else { write!(f, " ({})", self.label) }
    }
}

fn is_injected(error: &Error) -> bool {
    error.to_string().contains("chaos: ")
}

/// Greedy pool that counts its denials.
#[derive(Debug)]
struct CountingPool {
    limit: GreedyPool,
    denied: AtomicU64,
}

impl CountingPool {
    fn new(limit_bytes: usize) -> Self {
        Self { limit: GreedyPool::new(limit_bytes), denied: AtomicU64::new(0) }
    }
}

impl MemoryPool for CountingPool {
    fn try_grow(&self, consumer: &str, bytes: usize) -> Result<(), ReservationDenied> {
        self.limit.try_grow(consumer, bytes).inspect_err(|_denied| {
            self.denied.fetch_add(1, Ordering::Relaxed);
        })
    }

    fn shrink(&self, bytes: usize) {
        self.limit.shrink(bytes);
    }
}
