//! Chaos: faults and delays that a test injects into a query's tasks, to test their operators.
//!
//! Set on [`QueryOptions`](super::QueryOptions), chaos wraps every local state that the driver
//! creates, in all graphs of the query. A query without chaos runs the unwrapped local states, at
//! no cost. The wrappers keep to the operator traits' contract, so a correct operator produces the
//! same rows. Every injection is counted, so a test can tell whether it happened.
//!
//! * Batches are split into small ones.
//! * A call is delayed: the task is blocked on a gate that another thread makes ready.
//! * A blocked operator is called again although its gate is not ready (a spurious wake-up).
//! * At step *k*, counted over all calls of all tasks, the query is cancelled, or the call fails or
//!   panics.

mod batch_splitter;
mod gate_opener;
mod local_states;
mod wrapper;

use std::{
    panic::resume_unwind,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use gatework_shared_state::Gate;

use self::gate_opener::GateOpener;
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
    fault: AtomicBool,
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
            fault: tally.fault.load(Ordering::Relaxed),
        }
    }

    /// Counts a step and injects the fault if this is its step.
    fn step(&self, query: &QueryContext) -> Result<()> {
        let step = self.tally.steps.fetch_add(1, Ordering::Relaxed);
        let Some((fault, at)) = self.fault else { return Ok(()) };
        if step != at {
            return Ok(());
        }
        self.tally.fault.store(true, Ordering::Relaxed);
        match fault {
            Fault::Cancel => query.cancel(),
            Fault::Error => return Err(Error::operator(format!("chaos: error at step {step}"))),
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
