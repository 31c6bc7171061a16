//! A trial: one mode with its numbers, as an executor and query options, for any graph.
//!
//! The harness runs its cases as trials; tests of whole queries take the trials themselves: run a
//! query with [`Trial::executor`] and [`Trial::options`], judge its error by [`Trial::allows`], and
//! what it leaves behind by [`Trial::assert_clean`].

use std::{
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
    fault_memory::{InMemorySpill, RandomDenialPool},
    wait::block_on_timeout,
};

/// Enough for pipelines to overlap, and for the foreign thread to be a third.
const THREADS: usize = 2;
/// One in so many waits is cut short by a spurious wake-up.
const SPURIOUS_WAKEUPS_EVERY: usize = 3;

/// One mode, with its numbers, ready to run one query.
///
/// ```
/// use gatework_operators::harness::Trial;
/// use gatework_runtime::pipeline::QueryContext;
/// let trial = Trial::blocking(2, 42)?;
/// let query = QueryContext::new(trial.executor(), trial.options());
/// // … start a graph, read its rows …
/// trial.assert_clean(&query, std::time::Duration::from_secs(30)).expect("nothing is left behind");
/// assert_eq!(trial.injections(), 0, "nothing has run, so nothing was blocked");
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
    /// Instead of the pool, and with it a place for what is spilled.
    fault_memory: Option<(Arc<RandomDenialPool>, Arc<InMemorySpill>)>,
    /// The rows of a morsel of harness sources.
    pub(super) morsel_rows: usize,
    /// The byte budget of harness results.
    pub(super) result_bytes: usize,
}

impl Trial {
    /// Nothing is done.
    ///
    /// # Errors
    /// As all of these: if the system refuses a thread.
    pub fn plain() -> Result<Self> {
        let mut trial = Self::new(Mode::Plain, String::new(), Chaos::new(0), usize::MAX)?;
        trial.options.chaos = None;
        trial.options.time_slice = QueryOptions::default().time_slice;
        trial.morsel_rows = 8192;
        trial.result_bytes = usize::MAX;
        Ok(trial)
    }

    /// Batches are cut to `rows` rows.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn tiny_batches(rows: usize) -> Result<Self> {
        let chaos = Chaos::new(0).split_batches(rows);
        let mut trial = Self::new(Mode::TinyBatches, format!("{rows} rows"), chaos, usize::MAX)?;
        // Morsels of two batches: several tasks get some, and there is something to cut.
        trial.morsel_rows = 2 * rows;
        Ok(trial)
    }

    /// One in `calls` calls blocks, the first of each kind always.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn blocking(calls: usize, seed: u64) -> Result<Self> {
        let chaos =
            Chaos::new(seed).block_every(calls).spurious_wakeups_every(SPURIOUS_WAKEUPS_EVERY);
        let label = format!("one in {calls} calls, seed {seed}");
        Self::new(Mode::Blocking, label, chaos, usize::MAX)
    }

    /// One thread, which picks the next task at random after every step.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn seeded(seed: u64) -> Result<Self> {
        let chaos = Chaos::new(seed).spurious_wakeups_every(SPURIOUS_WAKEUPS_EVERY);
        let mut trial = Self::new(Mode::Seeded, format!("seed {seed}"), chaos, usize::MAX)?;
        // A reader that makes room would wake tasks when it likes, and not as the seed says.
        trial.result_bytes = usize::MAX;
        Ok(trial)
    }

    /// Breakers can reserve `limit_bytes` at most.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn memory(limit_bytes: usize) -> Result<Self> {
        let label = format!("{limit_bytes} bytes");
        let mut trial = Self::new(Mode::Memory, label, Chaos::new(0), limit_bytes)?;
        trial.options.chaos = None;
        Ok(trial)
    }

    /// One reservation in three is refused, as `seed` says, and what is refused memory can be spilled.
    ///
    /// # Errors
    /// If the system refuses a thread.
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

    /// The query is ended by `fault` at step `step`.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn fault(fault: Fault, step: u64) -> Result<Self> {
        let mode = match fault {
            Fault::Cancel => Mode::Cancel,
            Fault::Error => Mode::Error,
            Fault::Panic => Mode::Panic,
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
            // One step at a time, so that tasks meet each other in the middle of their work.
            time_slice: Duration::ZERO,
        };
        let executor = Executor::builder();
        let executor = match mode {
            Mode::Seeded => executor.deterministic(chaos.seed()),
            _ => executor.threads(THREADS),
        };
        let executor = executor.build()?;
        let (fault_memory, morsel_rows, result_bytes) = (None, 5, 1);
        Ok(Self {
            mode,
            label,
            executor,
            options,
            chaos,
            pool,
            fault_memory,
            morsel_rows,
            result_bytes,
        })
    }

    /// Its mode.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Where the query is to run.
    pub fn executor(&self) -> &Executor {
        &self.executor
    }

    /// The options with which the query is to run.
    pub fn options(&self) -> QueryOptions {
        self.options.clone()
    }

    /// How often the mode did something: batches cut, calls blocked, tasks picked among several,
    /// reservations refused, batches spilled, faults thrown. 0: it has not run.
    pub fn injections(&self) -> u64 {
        let counts = self.chaos.counts();
        match self.mode {
            Mode::Plain => 1,
            Mode::TinyBatches => counts.splits,
            Mode::Blocking => counts.blocks(),
            Mode::Seeded => self.executor.schedule().map_or(0, |schedule| schedule.choices),
            Mode::Memory => self.pool.denied.load(Ordering::Relaxed),
            Mode::Spill => self
                .fault_memory
                .as_ref()
                .map_or(0, |(_, spill_space)| spill_space.writes.load(Ordering::Relaxed) as u64),
            Mode::Cancel | Mode::Error | Mode::Panic => u64::from(counts.fault),
        }
    }

    /// What was done to the query's calls, for tests that ask for more than [`injections`](Self::injections).
    pub fn counts(&self) -> ChaosCounts {
        self.chaos.counts()
    }

    /// Whether `error` is one that this trial may end with.
    pub fn allows(&self, error: &Error) -> bool {
        match self.mode {
            Mode::Memory => matches!(error, Error::OutOfMemory { .. }),
            Mode::Cancel => self.injections() > 0 && matches!(error, Error::Cancelled { .. }),
            Mode::Error => matches!(error, Error::Operator { .. }) && is_injected(error),
            Mode::Panic => matches!(error, Error::Panic { .. }) && is_injected(error),
            Mode::Plain | Mode::TinyBatches | Mode::Blocking | Mode::Seeded | Mode::Spill => false,
        }
    }

    /// Waits until no task of `query` lives, then looks at what it left behind.
    ///
    /// # Errors
    /// Says what is still there: tasks, reserved bytes, or a gate of a shared state that is shut,
    /// on which somebody could wait for ever.
    pub fn assert_clean(&self, query: &QueryContext, hang_after: Duration) -> Result<(), String> {
        let idle = block_on_timeout(hang_after, |context| {
            if query.idle().poll_ready(context.waker()) { Poll::Ready(()) } else { Poll::Pending }
        });
        if idle.is_none() {
            return Err(format!("tasks live on after the end:\n{}", query.dump()));
        }
        let (tasks, bytes) = (query.live_tasks(), query.reserved_bytes());
        let denial_pool_bytes = self.fault_memory.as_ref().map_or(0, |(pool, _)| pool.reserved());
        let pooled = self.pool.limit.reserved() + denial_pool_bytes;
        if tasks > 0 || bytes > 0 || pooled > 0 {
            return Err(format!(
                "{tasks} tasks live and {bytes} bytes are reserved after the end ({pooled} in the pool)"
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
                    "gate '{}' ({:?}) is still shut after the end",
                    gate.name, gate.kind
                ));
            }
        }
        self.check_fault_reported(query)
    }

    /// An error that was thrown must be the query's, even if all rows had been read before.
    fn check_fault_reported(&self, query: &QueryContext) -> Result<(), String> {
        let thrown = matches!(self.mode, Mode::Error | Mode::Panic) && self.injections() > 0;
        match query.error() {
            Some(error) if thrown && !self.allows(&error) => {
                Err(format!("another error took the place of the one that was thrown: {error}"))
            }
            None if thrown => Err("the error that was thrown was lost".into()),
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

/// A limit that counts what it refuses.
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
