//! Chaos: faults and delays that a test injects into a query's tasks, to test their operators.
//!
//! Set on [`QueryOptions`](super::QueryOptions), chaos wraps every local state that the driver
//! creates, in all graphs of the query. A query without chaos runs the unwrapped local states, at
//! no cost. The wrappers keep to the operator traits' contract, so a correct operator produces the
//! same rows. Every injection is counted, so a test can tell whether it happened.
//!
//! * Batches are split into small ones, or replaced by two that select some of their rows each.
//! * A call is delayed: the task is blocked on a gate that another thread makes ready.
//! * A blocked operator is called again although its gate is not ready (a spurious wake-up).
//! * At step *k*, counted over all calls of all tasks, the query is cancelled, the call fails or
//!   panics, or the task's local states are dropped.
//! * Other tasks run between the release of a shared state's lock and what follows.
//! * Calls that take long are recorded.

mod batch_splitter;
mod call_clock;
mod gate_opener;
mod local_states;
mod unlock;
mod wrapper;

use std::{
    collections::BTreeMap,
    fmt,
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use gatework_shared_state::Gate;
use parking_lot::Mutex;

use self::{gate_opener::GateOpener, unlock::Unlocks};
use super::{DriverContext, QueryContext};
use crate::{Error, Result};

pub(super) use local_states::{local_operator, local_sink, local_source};

/// How a query is made to end at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The query is cancelled, then the call is made.
    Cancel,
    /// The call fails.
    Error,
    /// The call panics.
    Panic,
    /// The task ends without the call: its local states are aborted and dropped, as after a
    /// failure, but the query goes on. Whatever the task produced is incomplete, and its consumers
    /// must learn of that from the dropped local states.
    DropTask,
}

/// The error by which a wrapper ends its task for [`Fault::DropTask`].
#[derive(Debug)]
struct TaskDropped;

impl fmt::Display for TaskDropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("chaos: the task is dropped")
    }
}

impl std::error::Error for TaskDropped {}

/// Returns whether `error` ends its task, and not the query.
pub(super) fn drops_task(error: &Error) -> bool {
    matches!(error, Error::Operator { source } if source.is::<TaskDropped>())
}

/// The injections into a query's tasks, and their counts so far.
///
/// ```
/// use std::sync::Arc;
/// use gatework_runtime::pipeline::{Chaos, QueryOptions};
/// let chaos = Arc::new(Chaos::new(7).split_batches(3).block_every(2));
/// let options = QueryOptions { chaos: Some(chaos.clone()), ..Default::default() };
/// // … run a query with `options` …
/// assert_eq!(chaos.counts().blocks(), 0, "no query has run");
/// # drop(options);
/// ```
#[derive(Debug)]
pub struct Chaos {
    seed: u64,
    batch_rows: Option<usize>,
    selects_rows: bool,
    unlocks: Option<Arc<Unlocks>>,
    call_limit: Option<Duration>,
    block_every: Option<usize>,
    spurious_wakeups_every: Option<usize>,
    fault: Option<(Fault, u64)>,
    opener: GateOpener,
    tally: Tally,
}

/// The kind of a call that a wrapper delays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Start,
    Run,
    Finish,
}

/// The role of a wrapped local state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Source,
    Operator,
    Sink,
}

/// Counters: relaxed, since they publish nothing; they are read after the query has ended.
#[derive(Debug, Default)]
struct Tally {
    steps: AtomicU64,
    starts: AtomicU64,
    sources: AtomicU64,
    operators: AtomicU64,
    sinks: AtomicU64,
    finishes: AtomicU64,
    spurious_wakeups: AtomicU64,
    splits: AtomicU64,
    single_rows: AtomicU64,
    batches: AtomicU64,
    fault: AtomicBool,
    slow_calls: Mutex<BTreeMap<String, Duration>>,
}

impl Tally {
    fn record_slow_call(&self, operator: &str, elapsed: Duration) {
        let mut calls = self.slow_calls.lock();
        let slowest = calls.entry(operator.to_owned()).or_default();
        *slowest = elapsed.max(*slowest);
    }
}

/// The numbers of injections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChaosCounts {
    /// Calls of local states, including their creation; the *k* of faults counts these from 0.
    pub steps: u64,
    /// Starts that were blocked, of all roles.
    pub start_blocks: u64,
    /// Calls of sources for a batch that were blocked.
    pub source_blocks: u64,
    /// Calls of operators that were blocked.
    pub operator_blocks: u64,
    /// Calls of sinks with a batch that were blocked.
    pub sink_blocks: u64,
    /// Finishes of operators and sinks that were blocked.
    pub finish_blocks: u64,
    /// Calls made although the gate they waited for was not ready.
    pub spurious_wakeups: u64,
    /// Batches that were split off larger ones.
    pub splits: u64,
    /// Batches of one row, which were not split.
    pub single_rows: u64,
    /// Batches that were looked at to be split.
    pub batches: u64,
    /// Whether the fault's step was reached.
    pub fault: bool,
}

impl ChaosCounts {
    /// Returns the number of calls that were blocked.
    pub fn blocks(&self) -> u64 {
        self.start_blocks
            + self.source_blocks
            + self.operator_blocks
            + self.sink_blocks
            + self.finish_blocks
    }
}

impl Chaos {
    /// Creates chaos without injections. `seed` fixes every later random choice.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            batch_rows: None,
            selects_rows: false,
            unlocks: None,
            call_limit: None,
            block_every: None,
            spurious_wakeups_every: None,
            fault: None,
            opener: GateOpener::new(seed),
            tally: Tally::default(),
        }
    }

    /// Splits the output of sources and operators into batches of at most `rows` rows. The chunks
    /// keep the sequence number of the batch.
    ///
    /// # Panics
    /// If `rows` is 0.
    #[must_use]
    pub fn split_batches(mut self, rows: usize) -> Self {
        assert!(rows > 0, "a batch has at least one row");
        self.batch_rows = Some(rows);
        self
    }

    /// Replaces each batch of several rows by two with the same columns: the first selects the
    /// first half of its rows, the second the others. Without effect beside
    /// [`split_batches`](Self::split_batches).
    #[must_use]
    pub fn select_rows(mut self) -> Self {
        self.selects_rows = true;
        self
    }

    /// Lets other tasks run between the release of a
    /// [`StateLock`](gatework_shared_state::StateLock) in a call and what follows: the thread waits
    /// after some releases until another one has released such a lock, for up to 10 ms.
    #[must_use]
    pub fn wait_after_unlocks(mut self) -> Self {
        self.unlocks = Some(Unlocks::new(self.seed));
        self
    }

    /// Records the calls that take more than `limit`; see [`slow_calls`](Self::slow_calls).
    #[must_use]
    pub fn call_limit(mut self, limit: Duration) -> Self {
        self.call_limit = Some(limit);
        self
    }

    /// Blocks the first call of each kind (start, run, finish) of each local state, and one in
    /// `calls` of the others. The gate is made ready by another thread. Each call is blocked once,
    /// then made.
    ///
    /// # Panics
    /// If `calls` is 0.
    #[must_use]
    pub fn block_every(mut self, calls: usize) -> Self {
        assert!(calls > 0, "`calls` must be at least 1, which blocks every call");
        self.block_every = Some(calls);
        self
    }

    /// Calls blocked local states again before their gate is ready: on their first wait, and on one
    /// in `waits` of the later waits.
    ///
    /// # Panics
    /// If `waits` is below 2: a wait that is always cut short never ends.
    #[must_use]
    pub fn spurious_wakeups_every(mut self, waits: usize) -> Self {
        assert!(waits > 1, "a wait that is always cut short never ends");
        self.spurious_wakeups_every = Some(waits);
        self
    }

    /// Ends the query by `fault` at step `step`, counted from 0 over all its tasks.
    #[must_use]
    pub fn fault_at(mut self, fault: Fault, step: u64) -> Self {
        self.fault = Some((fault, step));
        self
    }

    /// Returns the seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Returns the operators with calls that took more than [`call_limit`](Self::call_limit) so
    /// far, and the longest such time of each: without the time in which the thread waited for a
    /// processor.
    pub fn slow_calls(&self) -> BTreeMap<String, Duration> {
        self.tally.slow_calls.lock().clone()
    }

    /// Returns the counts so far.
    pub fn counts(&self) -> ChaosCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let tally = &self.tally;
        ChaosCounts {
            steps: read(&tally.steps),
            start_blocks: read(&tally.starts),
            source_blocks: read(&tally.sources),
            operator_blocks: read(&tally.operators),
            sink_blocks: read(&tally.sinks),
            finish_blocks: read(&tally.finishes),
            spurious_wakeups: read(&tally.spurious_wakeups),
            splits: read(&tally.splits),
            single_rows: read(&tally.single_rows),
            batches: read(&tally.batches),
            fault: tally.fault.load(Ordering::Relaxed),
        }
    }

    /// Counts a step, a call or the creation of a local state, and injects the fault if this is its
    /// step. A task without all its local states is not dropped: nobody drops tokens that it has
    /// not taken while other tasks of its pipeline live. It is dropped at the next call.
    fn step(&self, query: &QueryContext, is_call: bool) -> Result<()> {
        let step = self.tally.steps.fetch_add(1, Ordering::Relaxed);
        let Some((fault, at)) = self.fault else { return Ok(()) };
        let is_due = match fault {
            Fault::DropTask => is_call && step >= at,
            _ => step == at,
        };
        if !is_due || self.tally.fault.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        match fault {
            Fault::Cancel => query.cancel(),
            Fault::Error => return Err(Error::operator(format!("chaos: error at step {step}"))),
            Fault::DropTask => return Err(Error::operator(TaskDropped)),
            // Unwinds like `panic!`, but without the report on stderr: a sweep injects many panics.
            Fault::Panic => resume_unwind(Box::new(format!("chaos: panic at step {step}"))),
        }
        Ok(())
    }

    fn count_block(&self, role: Role, call: Call) {
        let counter = match (call, role) {
            (Call::Start, _) => &self.tally.starts,
            (Call::Finish, _) => &self.tally.finishes,
            (Call::Run, Role::Source) => &self.tally.sources,
            (Call::Run, Role::Operator) => &self.tally.operators,
            (Call::Run, Role::Sink) => &self.tally.sinks,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns a blocked gate that another thread will make ready.
    fn blocked_gate(&self, name: String) -> Gate {
        self.opener.blocked_gate(name)
    }
}
