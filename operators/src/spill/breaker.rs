//! The sink of a breaker, and what it does when the memory of its rows is denied.
//!
//! ```text
//! add a batch ─▶ reserve ──granted──▶ next batch
//!                  │ denied
//!                  ▼
//!     wait at a gate: another task with more reclaimable memory releases some of it,
//!                     or the consumers of this breaker are about to
//!                  │ nobody can
//!                  ▼
//!     spill, wait until the rows are written, and reserve again
//!                  │ nothing to spill
//!                  ▼
//!     the query fails with the denial
//! ```
//!
//! The rows whose reservation is denied are in memory by then. So the sink exceeds the pool by the
//! growth of one batch, and accepts no other batch until the denial is resolved. The same state
//! machine answers requests of other tasks to reclaim memory. (Velox spills its operators under a
//! memory arbitrator in this way; DataFusion spills the operator whose reservation is denied.)

use std::fmt;

use gatework_runtime::{
    Result,
    pipeline::{
        Batch, DriverContext, FinishResult, LocalSink, OperatorContext, OutOfMemory, PerTask,
        ReclaimResult, Sink, SinkResult, StartResult,
    },
};
use gatework_shared_state::Gate;

/// The rows of a breaker in one task. [`BreakerSink`] calls its methods in the order that the
/// module's documentation shows. Breakers that cannot spill keep the defaults.
pub trait BreakerState: Send {
    /// See [`LocalSink::start`].
    ///
    /// # Errors
    /// Any error; the query fails with it.
    fn start(&mut self) -> Result<StartResult> {
        Ok(StartResult::Ready)
    }

    /// Adds the rows of `batch`. `Blocked` means that the consumers are behind.
    ///
    /// # Errors
    /// Any error; the query fails with it.
    fn add(&mut self, batch: Batch, task: &DriverContext) -> Result<SinkResult>;

    /// Reserves the memory of all rows that have been added and not spilled. It is granted when
    /// there are none.
    ///
    /// # Errors
    /// The denial. [`BreakerSink`] resolves it.
    fn reserve(&mut self) -> Result<(), OutOfMemory>;

    /// Returns about how many bytes a spill would release.
    fn reclaimable_bytes(&self) -> usize {
        0
    }

    /// Returns a gate that becomes ready when the consumers release memory that they will release
    /// in any case.
    fn pending_release(&self) -> Option<Gate> {
        None
    }

    /// Starts to spill. No write is pending.
    ///
    /// # Errors
    /// Any error; the query fails with it.
    fn start_spill(&mut self, _task: &DriverContext) -> Result<SpillStart> {
        Ok(SpillStart::Impossible)
    }

    /// Returns the gate of a write that must end before more rows are added; takes over the files
    /// that are complete.
    ///
    /// # Errors
    /// Any error; the query fails with it.
    fn poll_write(&mut self) -> Result<Option<Gate>> {
        Ok(None)
    }

    /// Hands all rows over to the consumers, or drops them if they are not `wanted`. Returns a gate
    /// after which it is called again.
    ///
    /// # Errors
    /// Any error; the query fails with it.
    fn publish(&mut self, wanted: bool, task: &DriverContext) -> Result<Option<Gate>>;

    /// Called once after the last batch, if the rows are wanted; a write may be pending. Returns
    /// whether more memory must be reserved before the rows are published.
    ///
    /// # Errors
    /// If an expression fails, or the query was cancelled.
    fn end_input(&mut self, _task: &DriverContext) -> Result<bool> {
        Ok(false)
    }
}

/// The start of a spill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpillStart {
    /// Rows are being written, which releases their memory.
    Writing,
    /// Nothing is written yet, but less memory needs to be reserved.
    Later,
    /// There is nothing that a spill would release.
    Impossible,
}

/// The local sink of a breaker.
pub struct BreakerSink<S> {
    state: S,
    context: OperatorContext,
    closed: Gate,
    /// A batch that arrived during a write that another task had requested.
    next: Option<Batch>,
    /// True if the memory of the rows in `state` is not reserved.
    denied: bool,
    /// True once the last batch was added.
    input_ended: bool,
}

impl<S: BreakerState> BreakerSink<S> {
    /// Creates the sink of `state`. No consumer wants its rows once `closed` is ready.
    pub fn new(state: S, context: OperatorContext, closed: Gate) -> Self {
        Self { state, context, closed, next: None, denied: false, input_ended: false }
    }

    /// Resolves a denied reservation. Returns the gate to wait for before more rows are added.
    fn poll_memory(&mut self, task: &DriverContext) -> Result<Option<Gate>> {
        loop {
            task.check_cancelled()?;
            if let Some(gate) = self.state.poll_write()? {
                return Ok(Some(gate));
            }
            if !self.denied {
                return Ok(None);
            }
            let Err(denied) = self.state.reserve() else {
                self.denied = false;
                return Ok(None);
            };
            let reclaim = self.context.request_reclaim(self.state.reclaimable_bytes());
            if let Some(gate) = reclaim.or_else(|| self.state.pending_release()) {
                return Ok(Some(gate));
            }
            if self.start_spill(task)? == SpillStart::Impossible {
                return Err(denied.into());
            }
        }
    }

    fn start_spill(&mut self, task: &DriverContext) -> Result<SpillStart> {
        match self.context.can_spill() {
            true => self.state.start_spill(task),
            false => Ok(SpillStart::Impossible),
        }
    }

    /// Adds `next`, and resolves a denied reservation before and after.
    fn add_next(&mut self, task: &DriverContext) -> Result<SinkResult> {
        if let Some(gate) = self.poll_memory(task)? {
            return Ok(SinkResult::Blocked(gate.into()));
        }
        let Some(batch) = self.next.take() else { return Ok(SinkResult::NeedInput) };
        let result = self.state.add(batch, task)?;
        self.denied = self.state.reserve().is_err();
        // Before the denial is resolved: a task that could release much asks no other.
        self.announce_reclaimable_bytes();
        if !matches!(result, SinkResult::NeedInput) {
            return Ok(result);
        }
        Ok(match self.poll_memory(task)? {
            Some(gate) => SinkResult::Blocked(gate.into()),
            None => SinkResult::NeedInput,
        })
    }

    fn announce_reclaimable_bytes(&self) {
        if self.context.can_spill() {
            self.context.set_reclaimable_bytes(self.state.reclaimable_bytes());
        }
    }
}

impl<S> fmt::Debug for BreakerSink<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BreakerSink").field("denied", &self.denied).finish_non_exhaustive()
    }
}

/// Returns the sink of a breaker. `create` makes the rows of a task from one of the `tokens`, with
/// the gate that becomes ready when no consumer wants them any more.
pub fn breaker_sink<T: Send + 'static, S: BreakerState + 'static>(
    name: impl Into<String>,
    tokens: impl IntoIterator<Item = T>,
    create: impl Fn(T, OperatorContext) -> Result<(S, Gate)> + Send + Sync + 'static,
) -> impl Sink + 'static {
    Breaker { tokens: PerTask::new(name, tokens), create }
}

struct Breaker<T, F> {
    tokens: PerTask<T>,
    create: F,
}

impl<T, F> fmt::Debug for Breaker<T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tokens.fmt(f)
    }
}

impl<T: Send, S: BreakerState + 'static, F> Sink for Breaker<T, F>
where
    F: Fn(T, OperatorContext) -> Result<(S, Gate)> + Send + Sync,
{
    fn name(&self) -> &str {
        self.tokens.name()
    }

    fn can_reclaim(&self) -> bool {
        true
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSink>> {
        let (state, closed) = (self.create)(self.tokens.take(&context)?, context.clone())?;
        Ok(Box::new(BreakerSink::new(state, context, closed)))
    }
}

impl<S: BreakerState> LocalSink for BreakerSink<S> {
    fn start(&mut self, _task: &DriverContext) -> Result<StartResult> {
        self.state.start()
    }

    fn sink(&mut self, batch: Option<Batch>, task: &DriverContext) -> Result<SinkResult> {
        self.next = batch.or_else(|| self.next.take());
        let result = self.add_next(task)?;
        self.announce_reclaimable_bytes();
        Ok(result)
    }

    fn reclaim(&mut self, task: &DriverContext) -> Result<ReclaimResult> {
        let is_writing = self.state.poll_write()?.is_some()
            || self.state.reclaimable_bytes() > 0 && self.start_spill(task)? == SpillStart::Writing;
        self.announce_reclaimable_bytes();
        Ok(match is_writing {
            true => ReclaimResult::Started,
            false => ReclaimResult::NothingToReclaim,
        })
    }

    fn finish(&mut self, task: &DriverContext) -> Result<FinishResult> {
        let wanted = !self.closed.is_ready();
        if wanted && !std::mem::replace(&mut self.input_ended, true) {
            let reserves = self.state.end_input(task)?;
            self.denied |= reserves && self.state.reserve().is_err();
        }
        self.denied &= wanted;
        let gate = match self.poll_memory(task)? {
            None => self.state.publish(wanted, task)?,
            gate => gate,
        };
        Ok(gate.map_or(FinishResult::Done, |gate| FinishResult::Blocked(gate.into())))
    }

    fn closed(&self) -> Option<Gate> {
        Some(self.closed.clone())
    }
}
