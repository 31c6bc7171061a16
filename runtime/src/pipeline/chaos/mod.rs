//! Chaos: what a test does to a query's tasks, to see whether their operators stand it.
//!
//! Put on [`QueryOptions`](super::QueryOptions), it wraps every local state that the driver makes:
//! sources, operators and sinks of any graph, whoever built it. A query without it runs the local
//! states themselves, so it costs nothing there. What a wrapper does keeps to the contract, so a
//! right operator gives the same rows; each act is counted, so a test can tell whether it happened.
//!
//! * Batches are cut into tiny ones.
//! * A call is not made at once: the task is blocked on a gate that a foreign thread opens.
//! * An operator that waits is asked again although its gate has not opened (a spurious wake-up).
//! * At step *k*, counted over all calls of all tasks, the query is cancelled, or the call fails, or
//!   it panics.

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

/// What is done to the tasks of a query, and what was done so far.
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

/// What kind of call a wrapper is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Start,
    Run,
    Finish,
}

/// Which role a wrapped local state has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Source,
    Operator,
    Sink,
}

/// Counters: relaxed, since nothing is published by them; they are read when the query is over.
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

/// What chaos did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChaosCounts {
    /// Calls of local states, their creation included: the *k* of faults counts these from 0.
    pub steps: u64,
    /// Starts, of whatever role, that were made to block.
    pub start_blocks: u64,
    /// Calls for a batch of a source that were made to block.
    pub source_blocks: u64,
    /// Calls of operators that were made to block.
    pub operator_blocks: u64,
    /// Batches to a sink that were made to block.
    pub sink_blocks: u64,
    /// Finishes, of operators and sinks, that were made to block.
    pub finish_blocks: u64,
    /// Calls that were made although the gate they waited for was not open.
    pub spurious_wakeups: u64,
    /// Batches that were cut off larger ones.
    pub splits: u64,
    /// Whether the fault's step was reached.
    pub fault: bool,
}

impl ChaosCounts {
    /// All calls that were made to block.
    pub fn blocks(&self) -> u64 {
        self.start_blocks
            + self.source_blocks
            + self.operator_blocks
            + self.sink_blocks
            + self.finish_blocks
    }
}

impl Chaos {
    /// Does nothing yet. `seed` fixes every random choice to come.
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

    /// Cuts what sources and operators give into batches of at most `rows` rows. The parts keep the
    /// sequence number of the whole.
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
    /// `calls` of the others, on a gate that a foreign thread opens. Each is blocked once, then made.
    ///
    /// # Panics
    /// If `calls` is 0.
    #[must_use]
    pub fn block_every(mut self, calls: usize) -> Self {
        assert!(calls > 0, "one in 1 is all of them");
        self.block_every = Some(calls);
        self
    }

    /// Calls local states that wait again at once, before their gate is open: each the first time it waits,
    /// and one in `waits` of the other times.
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

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// What was done so far.
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

    /// Counts a step, and ends the query if this is the one.
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
            // Unwinds as `panic!` does, without the report on stderr: a sweep has many of them.
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

    /// A shut gate that a foreign thread will open.
    fn blocked_gate(&self, name: String) -> Gate {
        self.opener.blocked_gate(name)
    }
}
