//! What operators promise and what they are promised.
//!
//! Each of the three roles has an immutable part, shared by all tasks of a pipeline ([`Source`],
//! [`Operator`], [`Sink`]), and a local part, owned by one task ([`LocalSource`], [`LocalOperator`],
//! [`LocalSink`]). The local parts are set up by their task's first run, on a worker: sink first,
//! then the operators back to the source.
//!
//! Every call may answer "blocked", and only with gates, so a task that waits can always be woken
//! and named. Waiting happens outside: no call blocks its thread. A call is made again after any of
//! the gates opened; a spurious wake-up is possible, so the operator tests its condition again.
//!
//! How a local state ends:
//! * its input ended: `finish` is called until it answers `Done` / `Finished`, then it is dropped;
//! * it, or something behind it, wants no more input: what is before it is dropped, what is behind
//!   it is finished as above;
//! * the query failed or was cancelled: `abort`, then it is dropped. Whatever says "finished" to
//!   another task must be said in `finish`, never in `drop`.

use std::{fmt, sync::Arc, time::Instant};

use arrow_array::RecordBatch;
use gatework_shared_state::Gate;

use super::{
    Batch, ExternalWork, OperatorMetrics, PendingIo, QueryContext, Reservation, SpillInput,
    SpilledBatches, live::TaskCounter, reclaim::ReclaimHandle,
};
use crate::{Error, Result, scheduler::Gates};

/// Whether a local state can start.
#[derive(Debug)]
pub enum StartResult {
    /// It can.
    Ready,
    /// Not yet: ask again when any of the gates is open.
    Blocked(Gates),
    /// It needs no input at all: its pipeline ends before it begins (an empty build side).
    Finished,
}

/// A source's answer.
#[derive(Debug)]
pub enum SourceResult {
    /// A batch.
    Batch(Batch),
    /// Nothing now.
    Blocked(Gates),
    /// Nothing any more.
    Finished,
}

/// An operator's answer.
#[derive(Debug)]
pub enum OperatorResult {
    /// It wants the next batch.
    NeedInput,
    /// A batch, the last one of this input.
    Batch(Batch),
    /// A batch, and there is more: call again without input.
    HaveMoreOutput(Batch),
    /// It waits: call again without input.
    Blocked(Gates),
    /// It wants no more input, and will give no more output.
    Finished,
}

/// A sink's answer.
#[derive(Debug)]
pub enum SinkResult {
    /// It wants the next batch.
    NeedInput,
    /// It waits: call again without a batch. The batch it was given is in.
    Blocked(Gates),
    /// Nobody wants what it makes: it will take no more.
    Finished,
}

/// The answer to `finish` of a sink.
#[derive(Debug)]
pub enum FinishResult {
    /// It has finished; it is dropped next.
    Done,
    /// It waits: call again.
    Blocked(Gates),
}

/// The answer to [`LocalSink::reclaim`].
#[derive(Debug)]
pub enum ReclaimResult {
    /// Memory is given back when what was begun is done.
    Started,
    /// There is none.
    NothingToReclaim,
    /// It waits: call again.
    Blocked(Gates),
}

/// What a local state is made with.
#[derive(Debug, Clone)]
pub struct OperatorContext {
    pub(crate) query: Arc<QueryContext>,
    pub(crate) task_index: usize,
    pub(crate) num_tasks: usize,
    pub(crate) metrics: Arc<OperatorMetrics>,
    pub(crate) operator: Arc<str>,
    pub(super) reclaim_handle: Option<Arc<ReclaimHandle>>,
    pub(super) graph_tasks: Arc<TaskCounter>,
}

impl OperatorContext {
    /// The number of this task among those of its pipeline.
    pub fn task_index(&self) -> usize {
        self.task_index
    }

    /// How many tasks the pipeline has.
    pub fn num_tasks(&self) -> usize {
        self.num_tasks
    }

    /// The query.
    pub fn query(&self) -> &Arc<QueryContext> {
        &self.query
    }

    /// This operator's counters in this task.
    pub fn metrics(&self) -> &Arc<OperatorMetrics> {
        &self.metrics
    }

    /// Whether there is a place for what does not fit into memory.
    pub fn can_spill(&self) -> bool {
        self.query.spill_space().is_some()
    }

    /// So many bytes a local state may hold without a reservation, for want of memory: to spill them would
    /// not help. 0 if nothing can be spilled.
    pub fn min_spill_bytes(&self) -> usize {
        self.query.spill_space().map_or(0, |space| space.min_spill_bytes())
    }

    /// Says that [`LocalSink::reclaim`] would give back about `bytes` at this moment.
    pub fn set_reclaimable_bytes(&self, bytes: usize) {
        if let Some(handle) = &self.reclaim_handle {
            handle.set_reclaimable_bytes(bytes, &self.query);
        }
    }

    /// After `bytes` were refused: asks the task that holds most memory, of this query or else of another one
    /// with the same pool, to give some back. The gate to wait at before memory is tried for again; `None` if
    /// nobody else has at least twice what this task could give back itself.
    pub fn request_reclaim(&self, bytes: usize) -> Option<Gate> {
        self.reclaim_handle.as_ref()?.request(bytes.max(self.min_spill_bytes()), &self.query)
    }

    /// Puts `batches`, whose reservation is `reservations`, away; they are made elsewhere, as they are written. What
    /// comes back is where they are.
    ///
    /// # Errors
    /// If there is no place for them.
    pub fn spill(
        &self,
        batches: SpillInput,
        reservations: Vec<Reservation>,
    ) -> Result<PendingIo<Arc<dyn SpilledBatches>>> {
        let Some(space) = self.query.spill_space() else {
            return Err(Error::InvalidConfiguration(
                "spilling is disabled: no temporary directory is configured".into(),
            ));
        };
        let graph_tasks = Some(&self.graph_tasks);
        let (pending, done) =
            PendingIo::for_graph("spill write", &self.query, graph_tasks, reservations);
        space.write(batches, done);
        Ok(pending)
    }

    /// Gets batch number `batch` of `spilled` back.
    pub fn restore(
        &self,
        spilled: &Arc<dyn SpilledBatches>,
        batch: usize,
    ) -> PendingIo<RecordBatch> {
        self.query.restore(spilled, batch, Some(&self.graph_tasks))
    }

    /// Something that is done for this operator outside the query's tasks: as long as it lasts, the query has
    /// not ended.
    pub fn external_work(&self) -> ExternalWork {
        self.query.external_work(Some(&self.graph_tasks))
    }

    /// An empty memory reservation in this operator's name.
    pub fn reservation(&self) -> Reservation {
        Reservation::new(self.query.clone(), self.operator.clone())
    }
}

/// What a local state is called with.
#[derive(Debug)]
pub struct DriverContext {
    pub(crate) query: Arc<QueryContext>,
    pub(crate) worker: usize,
    /// When the task got its worker.
    pub(crate) since: Instant,
}

impl DriverContext {
    /// The query.
    pub fn query(&self) -> &Arc<QueryContext> {
        &self.query
    }

    /// The worker this runs on.
    pub fn worker(&self) -> usize {
        self.worker
    }

    /// In a long loop without output: a gate, open, to be answered as if the task were blocked, when its
    /// slice is over or short queries wait for the worker. The call is made again in its turn.
    pub fn yield_gate(&self) -> Option<Gate> {
        let ran = self.since.elapsed();
        let should_yield = ran >= self.query.time_slice() || self.query.should_yield(ran);
        should_yield.then(|| self.query.yield_gate().clone())
    }

    /// Answers an error once the query has been cancelled or has failed: for long loops.
    ///
    /// # Errors
    /// [`crate::Error::Cancelled`].
    pub fn check_cancelled(&self) -> Result<()> {
        self.query.check_cancelled()
    }
}

/// Where batches come from.
pub trait Source: Send + Sync + fmt::Debug {
    /// Its name in profiles and dumps.
    fn name(&self) -> &str;

    /// The local state of one task. Called once a task.
    ///
    /// # Errors
    /// Whatever keeps it from starting; the query fails.
    fn local(&self, setup: OperatorContext) -> Result<Box<dyn LocalSource>>;
}

/// One task's part of a source.
pub trait LocalSource: Send {
    /// Called until it is ready, before the first `next` and after the operators have started.
    ///
    /// # Errors
    /// The query fails.
    fn start(&mut self, _task: &DriverContext) -> Result<StartResult> {
        Ok(StartResult::Ready)
    }

    /// The next batch.
    ///
    /// # Errors
    /// The query fails.
    fn next(&mut self, task: &DriverContext) -> Result<SourceResult>;

    /// The query failed or was cancelled.
    fn abort(&mut self) {}
}

/// What changes batches on their way.
pub trait Operator: Send + Sync + fmt::Debug {
    /// Its name in profiles and dumps.
    fn name(&self) -> &str;

    /// The local state of one task. Called once a task.
    ///
    /// # Errors
    /// Whatever keeps it from starting; the query fails.
    fn local(&self, setup: OperatorContext) -> Result<Box<dyn LocalOperator>>;
}

/// One task's part of an operator.
pub trait LocalOperator: Send {
    /// Called until it is ready, before the first batch is asked of the source. All operators of a
    /// pipeline start at the same time: one that is blocked does not keep others from working.
    ///
    /// # Errors
    /// The query fails.
    fn start(&mut self, _task: &DriverContext) -> Result<StartResult> {
        Ok(StartResult::Ready)
    }

    /// Takes `input`, or goes on where it answered `HaveMoreOutput` or `Blocked`.
    ///
    /// # Errors
    /// The query fails.
    fn execute(&mut self, input: Option<Batch>, task: &DriverContext) -> Result<OperatorResult>;

    /// After the last input: gives what is left, until it answers `Finished` (or `NeedInput`, which
    /// means the same here). `Batch` and `HaveMoreOutput` both mean that there may be more.
    ///
    /// # Errors
    /// The query fails.
    fn finish(&mut self, _task: &DriverContext) -> Result<OperatorResult> {
        Ok(OperatorResult::Finished)
    }

    /// A gate that opens when this operator will want no more input, whatever it was last asked
    /// (a limit that another task has used up).
    fn closed(&self) -> Option<Gate> {
        None
    }

    /// The query failed or was cancelled.
    fn abort(&mut self) {}
}

/// Where batches go.
pub trait Sink: Send + Sync + fmt::Debug {
    /// Its name in profiles and dumps.
    fn name(&self) -> &str;

    /// Whether its local states hold much memory, so that they [ask for some](OperatorContext::request_reclaim) or
    /// [give some back](LocalSink::reclaim).
    fn can_reclaim(&self) -> bool {
        false
    }

    /// The local state of one task. Called once a task.
    ///
    /// # Errors
    /// Whatever keeps it from starting; the query fails.
    fn local(&self, setup: OperatorContext) -> Result<Box<dyn LocalSink>>;
}

/// One task's part of a sink.
pub trait LocalSink: Send {
    /// Called until it is ready, before the first batch is asked of the source. A sink whose
    /// [`closed`](Self::closed) gate opens meanwhile is finished without having been ready.
    ///
    /// # Errors
    /// The query fails.
    fn start(&mut self, _task: &DriverContext) -> Result<StartResult> {
        Ok(StartResult::Ready)
    }

    /// Takes `batch`, or goes on where it answered `Blocked`.
    ///
    /// # Errors
    /// The query fails.
    fn sink(&mut self, batch: Option<Batch>, task: &DriverContext) -> Result<SinkResult>;

    /// After the last batch, or after it answered `Finished`. Called again after `Blocked`, never
    /// after `Done`.
    ///
    /// # Errors
    /// The query fails.
    fn finish(&mut self, task: &DriverContext) -> Result<FinishResult>;

    /// Memory is short, and this sink said that it [could give some back](OperatorContext::set_reclaimable_bytes): it begins
    /// to spill what it holds. Called between batches, also while the task waits for its source.
    ///
    /// # Errors
    /// The query fails.
    fn reclaim(&mut self, _task: &DriverContext) -> Result<ReclaimResult> {
        Ok(ReclaimResult::NothingToReclaim)
    }

    /// A gate that opens when nobody wants what this sink makes. A task that waits for its source
    /// waits for this gate as well, so that early finish travels upstream.
    fn closed(&self) -> Option<Gate> {
        None
    }

    /// The query failed or was cancelled; called instead of `finish`.
    fn abort(&mut self) {}
}
