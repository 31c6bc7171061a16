//! The operator traits and the results of their calls.
//!
//! Each of the three roles has an immutable part, shared by all tasks of a pipeline ([`Source`],
//! [`Operator`], [`Sink`]). Each task owns a local state per role ([`LocalSource`],
//! [`LocalOperator`], [`LocalSink`]). A task's first run creates its local states on a worker: the
//! sink's first, then the operators' back to the source's.
//!
//! A call never blocks its thread. A call that cannot proceed returns `Blocked` with gates, so
//! every blocked task can be woken and its gates can be named. The driver repeats the call when any
//! of the gates is ready. Spurious wake-ups are possible, so the operator tests its condition
//! again. A call that could proceed but has used up the task's time slice returns `Yield`.
//!
//! A local state ends in one of three ways:
//! * Its input ended: the driver calls `finish` until it returns `Done` or `Finished`, then drops
//!   the local state.
//! * It, or an operator downstream, wants no more input: the driver drops everything upstream of
//!   that operator and finishes everything downstream of it as above.
//! * The query failed or was cancelled: the driver calls `abort`, then drops the local state.
//!
//! Invariant: a local state signals "finished" to other tasks in `finish`, never in `drop`.

use std::{fmt, sync::Arc, time::Instant};

use arrow_array::RecordBatch;
use gatework_shared_state::{Gate, ProducerEnd};

use super::{
    Batch, ExternalWork, OperatorMetrics, PendingIo, QueryContext, Reservation, SpillInput,
    SpilledBatches, live::TaskCounter, reclaim::ReclaimHandle,
};
use crate::{Error, Result, scheduler::Gates};

/// The result of starting a local state.
#[derive(Debug)]
pub enum StartResult {
    /// The local state has started.
    Ready,
    /// The local state cannot start yet; the driver calls `start` again when any of the gates is
    /// ready.
    Blocked(Gates),
    /// The task yields (see [`DriverContext::should_yield`]): it goes back to the queue, and the
    /// driver repeats the call in the task's next time slice.
    Yield,
    /// The local state needs no input: its pipeline ends before its first batch (an empty build
    /// side).
    Finished,
}

/// The result of [`LocalSource::next`].
#[derive(Debug)]
pub enum SourceResult {
    /// The next batch.
    Batch(Batch),
    /// No batch is available; the driver calls again when any of the gates is ready.
    Blocked(Gates),
    /// The task yields (see [`DriverContext::should_yield`]): it goes back to the queue, and the
    /// driver repeats the call in the task's next time slice.
    Yield,
    /// The source is exhausted.
    Finished,
}

impl SourceResult {
    /// Returns the answer of a source that has read all items of producers that ended so.
    ///
    /// # Errors
    /// [`Error::ProducerAborted`] if a producer was dropped unfinished: what was read is
    /// incomplete.
    pub fn after(end: ProducerEnd) -> Result<Self> {
        match end {
            ProducerEnd::Finished => Ok(Self::Finished),
            ProducerEnd::Dropped => Err(Error::ProducerAborted),
        }
    }
}

/// The result of [`LocalOperator::execute`] and [`LocalOperator::finish`].
#[derive(Debug)]
pub enum OperatorResult {
    /// The operator wants the next batch.
    NeedInput,
    /// The last output batch for the current input.
    Batch(Batch),
    /// An output batch with more to follow: the driver calls again without input.
    HaveMoreOutput(Batch),
    /// The operator is blocked: the driver calls again without input when any of the gates is
    /// ready.
    Blocked(Gates),
    /// The task yields (see [`DriverContext::should_yield`]): it goes back to the queue, and the
    /// driver calls again without input in the
    /// task's next time slice.
    Yield,
    /// The operator wants no more input and produces no more output.
    Finished,
}

/// The result of [`LocalSink::sink`].
#[derive(Debug)]
pub enum SinkResult {
    /// The sink wants the next batch.
    NeedInput,
    /// The sink has accepted its batch and is blocked. The driver calls again without a batch when
    /// any of the gates is ready.
    Blocked(Gates),
    /// The sink has accepted its batch, and the task yields (see
    /// [`DriverContext::should_yield`]): it goes back to the queue, and the driver calls again
    /// without a batch in the task's next time slice.
    Yield,
    /// No consumer needs the sink's output: the sink accepts no more batches.
    Finished,
}

/// The result of [`LocalSink::finish`].
#[derive(Debug)]
pub enum FinishResult {
    /// The sink has finished; the driver drops it next.
    Done,
    /// The sink is blocked: the driver calls again when any of the gates is ready.
    Blocked(Gates),
    /// The task yields (see [`DriverContext::should_yield`]): it goes back to the queue, and the
    /// driver repeats the call in the task's next time slice.
    Yield,
}

/// The result of [`LocalSink::reclaim`].
#[derive(Debug)]
pub enum ReclaimResult {
    /// The sink has started to spill; it releases memory when the spill is done.
    Started,
    /// The sink has no memory to release.
    NothingToReclaim,
    /// The sink is blocked: the driver calls again when any of the gates is ready.
    Blocked(Gates),
}

/// The context a local state is created with.
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
    /// Returns this task's index within its pipeline.
    pub fn task_index(&self) -> usize {
        self.task_index
    }

    /// Returns the number of tasks of the pipeline.
    pub fn num_tasks(&self) -> usize {
        self.num_tasks
    }

    /// Returns the query.
    pub fn query(&self) -> &Arc<QueryContext> {
        &self.query
    }

    /// Returns this operator's counters in this task.
    pub fn metrics(&self) -> &Arc<OperatorMetrics> {
        &self.metrics
    }

    /// Returns whether the query can spill.
    pub fn can_spill(&self) -> bool {
        self.query.spill_space().is_some()
    }

    /// Returns the number of bytes a local state may use without a reservation when one is denied.
    /// A spill of fewer bytes is not worth a file. 0 if the query cannot spill.
    pub fn min_spill_bytes(&self) -> usize {
        self.query.spill_space().map_or(0, |space| space.min_spill_bytes())
    }

    /// Announces that [`LocalSink::reclaim`] would release about `bytes` now.
    pub fn set_reclaimable_bytes(&self, bytes: usize) {
        if let Some(handle) = &self.reclaim_handle {
            handle.set_reclaimable_bytes(bytes, &self.query);
        }
    }

    /// Requests reclaim from the task with the most reclaimable memory, after a reservation of
    /// `bytes` was denied. Tasks of this query come first, then tasks of other queries on the same
    /// pool. Returns the gate to wait for before the reservation is tried again. Returns `None` if
    /// no other task has at least twice the reclaimable memory of this one.
    pub fn request_reclaim(&self, bytes: usize) -> Option<Gate> {
        self.reclaim_handle.as_ref()?.request(bytes.max(self.min_spill_bytes()), &self.query)
    }

    /// Writes `batches` to the query's spill space and releases `reservations` when they are
    /// written. Another thread produces the batches as it writes them. The [`PendingIo`] yields the
    /// spilled batches.
    ///
    /// # Errors
    /// [`Error::InvalidConfiguration`] if the query has no spill space.
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

    /// Reads batch number `batch` of `spilled` back into memory.
    pub fn restore(
        &self,
        spilled: &Arc<dyn SpilledBatches>,
        batch: usize,
    ) -> PendingIo<RecordBatch> {
        self.query.restore(spilled, batch, Some(&self.graph_tasks))
    }

    /// Registers work done for this operator outside the query's tasks. The query has not ended
    /// until the returned guard is dropped.
    pub fn external_work(&self) -> ExternalWork {
        self.query.external_work(Some(&self.graph_tasks))
    }

    /// Returns an empty memory reservation in this operator's name.
    pub fn reservation(&self) -> Reservation {
        Reservation::new(self.query.clone(), self.operator.clone())
    }
}

/// The context a local state is called with.
#[derive(Debug)]
pub struct DriverContext {
    pub(crate) query: Arc<QueryContext>,
    pub(crate) worker: usize,
    /// When the task's current time slice started.
    pub(crate) since: Instant,
}

impl DriverContext {
    /// Returns the query.
    pub fn query(&self) -> &Arc<QueryContext> {
        &self.query
    }

    /// Returns the index of the worker that runs this task.
    pub fn worker(&self) -> usize {
        self.worker
    }

    /// Returns whether the task should yield: its time slice is used up, or a task of another query
    /// should run first. Check it in loops that produce no output, and return `Yield`.
    pub fn should_yield(&self) -> bool {
        let ran = self.since.elapsed();
        ran >= self.query.time_slice() || self.query.should_yield(ran)
    }

    /// Returns an error once the query has been cancelled or has failed. Check it in long loops.
    ///
    /// # Errors
    /// [`crate::Error::Cancelled`].
    pub fn check_cancelled(&self) -> Result<()> {
        self.query.check_cancelled()
    }
}

/// The immutable part of a source, shared by the tasks of its pipeline.
pub trait Source: Send + Sync + fmt::Debug {
    /// Returns the source's name in profiles and dumps.
    fn name(&self) -> &str;

    /// Tells the source, before it starts, which of its columns the pipeline takes as dictionaries:
    /// codes of type `UInt32` without NULLs, and entries of the column's type. Each batch may have
    /// either that or plain values.
    fn take_dictionaries(&self, _output: &[usize]) {}

    /// Creates the local state of one task. Called once per task.
    ///
    /// # Errors
    /// Any error that prevents the start; the query fails with it.
    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSource>>;
}

/// A source's local state in one task.
pub trait LocalSource: Send {
    /// Called until it returns `Ready`, after the operators have started and before the first
    /// `next`.
    ///
    /// # Errors
    /// Any error; the query fails with it.
    fn start(&mut self, _task: &DriverContext) -> Result<StartResult> {
        Ok(StartResult::Ready)
    }

    /// Returns the next batch.
    ///
    /// # Errors
    /// Any error; the query fails with it.
    fn next(&mut self, task: &DriverContext) -> Result<SourceResult>;

    /// Called instead of further calls when the query failed or was cancelled.
    fn abort(&mut self) {}
}

/// The immutable part of an operator between source and sink, shared by the tasks of its pipeline.
pub trait Operator: Send + Sync + fmt::Debug {
    /// Returns the operator's name in profiles and dumps.
    fn name(&self) -> &str;

    /// Tells the operator, before it starts, which of its output columns the next one takes as
    /// dictionaries ([`Source::take_dictionaries`]). Returns the columns of its own input that it
    /// takes as dictionaries: by default none.
    fn take_dictionaries(&self, _output: &[usize]) -> Vec<usize> {
        Vec::new()
    }

    /// Creates the local state of one task. Called once per task.
    ///
    /// # Errors
    /// Any error that prevents the start; the query fails with it.
    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalOperator>>;
}

/// An operator's local state in one task.
pub trait LocalOperator: Send {
    /// Called until it returns `Ready`, before the source is asked for the first batch. All
    /// operators of a pipeline start at the same time: a blocked operator does not keep the others
    /// from starting.
    ///
    /// # Errors
    /// Any error; the query fails with it.
    fn start(&mut self, _task: &DriverContext) -> Result<StartResult> {
        Ok(StartResult::Ready)
    }

    /// Processes `input`, or continues after `HaveMoreOutput` or `Blocked`.
    ///
    /// # Errors
    /// Any error; the query fails with it.
    fn execute(&mut self, input: Option<Batch>, task: &DriverContext) -> Result<OperatorResult>;

    /// Emits the remaining output. Called after the last input until it returns `Finished`, or
    /// `NeedInput` with the same meaning. After `Batch` and `HaveMoreOutput` it is called again.
    ///
    /// # Errors
    /// Any error; the query fails with it.
    fn finish(&mut self, _task: &DriverContext) -> Result<OperatorResult> {
        Ok(OperatorResult::Finished)
    }

    /// Returns a gate that becomes ready when this operator wants no more input, whatever its last
    /// call returned. An example is a limit that another task has used up.
    fn closed(&self) -> Option<Gate> {
        None
    }

    /// Called instead of further calls when the query failed or was cancelled.
    fn abort(&mut self) {}
}

/// The immutable part of a sink, shared by the tasks of its pipeline.
pub trait Sink: Send + Sync + fmt::Debug {
    /// Returns the sink's name in profiles and dumps.
    fn name(&self) -> &str;

    /// Returns whether the local states take part in memory arbitration: they [request
    /// reclaim](OperatorContext::request_reclaim) or [are asked to reclaim](LocalSink::reclaim).
    fn can_reclaim(&self) -> bool {
        false
    }

    /// Returns the input columns that the sink takes as dictionaries
    /// ([`Source::take_dictionaries`]).
    fn dictionary_columns(&self) -> Vec<usize> {
        Vec::new()
    }

    /// Creates the local state of one task. Called once per task.
    ///
    /// # Errors
    /// Any error that prevents the start; the query fails with it.
    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSink>>;
}

/// A sink's local state in one task.
pub trait LocalSink: Send {
    /// Called until it returns `Ready`, before the source is asked for the first batch. A sink
    /// whose [`closed`](Self::closed) gate becomes ready before that is finished without having
    /// started.
    ///
    /// # Errors
    /// Any error; the query fails with it.
    fn start(&mut self, _task: &DriverContext) -> Result<StartResult> {
        Ok(StartResult::Ready)
    }

    /// Consumes `batch`, or continues after `Blocked`.
    ///
    /// # Errors
    /// Any error; the query fails with it.
    fn sink(&mut self, batch: Option<Batch>, task: &DriverContext) -> Result<SinkResult>;

    /// Completes the sink. Called after the last batch, or after `sink` returned `Finished`. Called
    /// again after `Blocked`, never after `Done`.
    ///
    /// # Errors
    /// Any error; the query fails with it.
    fn finish(&mut self, task: &DriverContext) -> Result<FinishResult>;

    /// Starts to spill the sink's memory. Called when another task requests reclaim and this sink
    /// has [announced reclaimable bytes](OperatorContext::set_reclaimable_bytes). Called between
    /// batches, also while the task is blocked on its source.
    ///
    /// # Errors
    /// Any error; the query fails with it.
    fn reclaim(&mut self, _task: &DriverContext) -> Result<ReclaimResult> {
        Ok(ReclaimResult::NothingToReclaim)
    }

    /// Returns a gate that becomes ready when no consumer needs this sink's output. A task blocked
    /// on its source waits for this gate too, so an early finish propagates upstream.
    fn closed(&self) -> Option<Gate> {
        None
    }

    /// Called instead of `finish` when the query failed or was cancelled.
    fn abort(&mut self) {}
}
