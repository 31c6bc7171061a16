//! The driver of one task: moves batches from the source through the operators into the sink.
//!
//! The driver is a state machine over [`DriverState`], the next call to make. It never recurses and
//! never loops over operators. So it can stop between any two calls, when it is blocked or its time
//! slice is over, and resume there. `has_more_stack` holds the operators that have more output for
//! their current input. An operator that wants input gets it from the nearest upstream operator on
//! the stack. The source is called only when the stack is empty.
//!
//! A task ends in one of three ways:
//! * The source finishes.
//! * An operator or the sink wants no more input (early finish).
//! * The query fails or is cancelled.
//!
//! In the first two, the driver drops everything upstream of the end, which notifies upstream
//! pipelines. It flushes and finishes everything downstream. In the third, it aborts and drops
//! everything.

use std::{
    any::Any,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use tracing::trace;

use super::{
    Batch, DriverContext, FinishResult, OperatorContext, OperatorMetrics, OperatorResult,
    ReclaimResult, SinkResult, SourceResult, StartResult, chaos,
    driver_state::{DriverState, Step},
    graph::{Pipeline, TaskStats},
    live::TaskGuard,
    local_states::LocalStates,
    reclaim::ReclaimHandle,
};
use crate::{
    Error, Result,
    scheduler::{Gates, RunResult, Runnable},
};

pub(super) struct TaskDriver {
    local_states: LocalStates,
    state: DriverState,
    pipeline: Arc<Pipeline>,
    stats: Arc<TaskStats>,
    task: DriverContext,
    reclaim_handle: Option<Arc<ReclaimHandle>>,
    /// The last field, so that the query learns of the end when all other fields are dropped.
    guard: TaskGuard,
}

impl TaskDriver {
    pub(super) fn new(pipeline: Arc<Pipeline>, stats: Arc<TaskStats>, guard: TaskGuard) -> Self {
        let task = DriverContext { query: guard.query().clone(), worker: 0, since: Instant::now() };
        Self {
            reclaim_handle: pipeline.sink.can_reclaim().then(Arc::default),
            local_states: LocalStates::default(),
            state: DriverState::Create,
            pipeline,
            stats,
            task,
            guard,
        }
    }

    /// Returns the sink's index: the number of operators.
    fn sink_index(&self) -> usize {
        self.pipeline.operators.len()
    }

    fn metrics(&self, index: usize) -> &Arc<OperatorMetrics> {
        &self.stats.metrics[index]
    }

    fn context(&self, index: usize, name: &str) -> OperatorContext {
        OperatorContext {
            query: self.task.query.clone(),
            task_index: self.stats.task_index,
            num_tasks: self.pipeline.info.num_tasks,
            metrics: self.metrics(index).clone(),
            operator: name.into(),
            reclaim_handle: self.reclaim_handle.clone(),
            graph_tasks: self.guard.graph_tasks().clone(),
        }
    }

    /// Creates the local states: the sink's first, then the operators' back to the source's.
    fn create(&mut self) -> Result<Step> {
        let pipeline = self.pipeline.clone();
        let sink_index = self.sink_index();
        let context = self.context(sink_index + 1, pipeline.sink.name());
        let sink = chaos::local_sink(pipeline.sink.as_ref(), context)?;
        self.local_states.closed.extend(sink.closed().map(|gate| (sink_index, gate)));
        self.local_states.sink = Some(sink);
        self.local_states.operators = (0..sink_index).map(|_| None).collect();
        for (index, operator) in pipeline.operators.iter().enumerate().rev() {
            let context = self.context(index + 1, operator.name());
            let local = chaos::local_operator(operator.as_ref(), context)?;
            self.local_states.closed.extend(local.closed().map(|gate| (index, gate)));
            self.local_states.operators[index] = Some(local);
        }
        let context = self.context(0, pipeline.source.name());
        let source = chaos::local_source(pipeline.source.as_ref(), context)?;
        self.local_states.source = Some(source);
        self.local_states.started = vec![false; sink_index + 1];
        Ok(Step::Next(DriverState::Start))
    }

    /// Starts the local states that have not started. All are asked, so that none blocks another's
    /// start.
    fn start(&mut self) -> Result<Step> {
        let mut gates: Option<Gates> = None;
        let mut yields = false;
        for index in (0..self.local_states.started.len()).rev() {
            if self.local_states.started[index] {
                continue;
            }
            let answer = match self.local_states.operators.get_mut(index) {
                Some(Some(operator)) => operator.start(&self.task)?,
                Some(None) => StartResult::Ready,
                None => match &mut self.local_states.sink {
                    Some(sink) => sink.start(&self.task)?,
                    None => StartResult::Ready,
                },
            };
            match answer {
                StartResult::Ready => self.local_states.started[index] = true,
                // Downstream local states still start before they are finished.
                StartResult::Finished => self.local_states.drop_through(index),
                StartResult::Yield => yields = true,
                StartResult::Blocked(more) => {
                    gates = Some(match gates {
                        Some(gates) => gates.union(more),
                        None => more,
                    });
                }
            }
        }
        if yields {
            return Ok(Step::Yield(DriverState::Start));
        }
        if let Some(gates) = gates {
            return Ok(Step::Blocked(DriverState::Start, gates));
        }
        match self
            .local_states
            .source
            .as_mut()
            .map(|source| source.start(&self.task))
            .transpose()?
        {
            Some(StartResult::Blocked(gates)) => Ok(Step::Blocked(DriverState::Start, gates)),
            Some(StartResult::Yield) => Ok(Step::Yield(DriverState::Start)),
            Some(StartResult::Finished) => Ok(Step::Next(self.flush_from(0))),
            Some(StartResult::Ready) | None => Ok(Step::Next(DriverState::Source)),
        }
    }

    /// Drops everything through `index`, which wants no more input, and flushes downstream of it.
    fn finish_early_at(&mut self, index: usize) -> DriverState {
        self.local_states.drop_through(index);
        self.flush_from(index + 1)
    }

    fn flush_from(&mut self, index: usize) -> DriverState {
        if index == 0 {
            self.local_states.source = None;
        }
        if index < self.sink_index() {
            self.local_states.flushing = Some(index);
            DriverState::Flush(index)
        } else {
            DriverState::Finish
        }
    }

    /// Returns the state that produces the next input batch.
    fn upstream(&mut self) -> DriverState {
        if let Some(index) = self.local_states.has_more_stack.pop() {
            return DriverState::Operator(index, None);
        }
        match self.local_states.flushing {
            Some(index) => DriverState::Flush(index),
            None => DriverState::Source,
        }
    }

    fn downstream(&self, index: usize, batch: Batch) -> DriverState {
        if index < self.sink_index() {
            DriverState::Operator(index, Some(batch))
        } else {
            DriverState::Sink(Some(batch))
        }
    }

    fn step(&mut self, state: DriverState) -> Result<Step> {
        match state {
            DriverState::Create => self.create(),
            DriverState::Start => self.start(),
            DriverState::Source => self.pull(),
            DriverState::Operator(index, input) => self.execute(index, input),
            DriverState::Sink(batch) => self.sink(batch),
            DriverState::Flush(index) => self.flush(index),
            DriverState::Reclaim(next) => self.reclaim(next),
            DriverState::Finish => self.finish(),
        }
    }

    fn pull(&mut self) -> Result<Step> {
        let Some(source) = &mut self.local_states.source else {
            return Ok(Step::Next(self.flush_from(0)));
        };
        Ok(match source.next(&self.task)? {
            SourceResult::Batch(batch) => {
                self.metrics(0).add_output(batch.num_rows());
                self.stats.record_worker(self.task.worker, batch.num_rows());
                if batch.num_rows() == 0 {
                    return Ok(Step::Next(DriverState::Source));
                }
                Step::Next(self.downstream(0, batch))
            }
            SourceResult::Blocked(gates) => Step::Blocked(DriverState::Source, gates),
            SourceResult::Yield => Step::Yield(DriverState::Source),
            SourceResult::Finished => Step::Next(self.flush_from(0)),
        })
    }

    fn execute(&mut self, index: usize, input: Option<Batch>) -> Result<Step> {
        if let Some(batch) = &input {
            self.metrics(index + 1).add_input(batch.num_rows());
        }
        let Some(operator) = &mut self.local_states.operators[index] else {
            return Ok(Step::Next(DriverState::Finish));
        };
        let result = operator.execute(input, &self.task)?;
        Ok(self.after_operator(index, result, false))
    }

    fn flush(&mut self, index: usize) -> Result<Step> {
        let Some(operator) = &mut self.local_states.operators[index] else {
            return Ok(Step::Next(self.flush_from(index + 1)));
        };
        let result = operator.finish(&self.task)?;
        Ok(self.after_operator(index, result, true))
    }

    fn after_operator(&mut self, index: usize, result: OperatorResult, flushing: bool) -> Step {
        match result {
            // Empty batches are not passed downstream.
            OperatorResult::Batch(batch) if batch.num_rows() == 0 => Step::Next(self.upstream()),
            OperatorResult::HaveMoreOutput(batch) if batch.num_rows() == 0 && !flushing => {
                Step::Next(DriverState::Operator(index, None))
            }
            OperatorResult::HaveMoreOutput(batch) if batch.num_rows() == 0 => {
                Step::Next(DriverState::Flush(index))
            }
            OperatorResult::Batch(batch) => {
                self.metrics(index + 1).add_output(batch.num_rows());
                Step::Next(self.downstream(index + 1, batch))
            }
            OperatorResult::HaveMoreOutput(batch) => {
                self.metrics(index + 1).add_output(batch.num_rows());
                if !flushing {
                    self.local_states.has_more_stack.push(index);
                }
                Step::Next(self.downstream(index + 1, batch))
            }
            OperatorResult::Blocked(gates) if flushing => {
                Step::Blocked(DriverState::Flush(index), gates)
            }
            OperatorResult::Blocked(gates) => {
                Step::Blocked(DriverState::Operator(index, None), gates)
            }
            OperatorResult::Yield if flushing => Step::Yield(DriverState::Flush(index)),
            OperatorResult::Yield => Step::Yield(DriverState::Operator(index, None)),
            OperatorResult::NeedInput if !flushing => Step::Next(self.upstream()),
            OperatorResult::NeedInput | OperatorResult::Finished => {
                Step::Next(self.finish_early_at(index))
            }
        }
    }

    fn sink(&mut self, batch: Option<Batch>) -> Result<Step> {
        if let Some(batch) = &batch {
            self.metrics(self.sink_index() + 1).add_input(batch.num_rows());
        }
        let Some(sink) = &mut self.local_states.sink else { return Ok(Step::Done) };
        Ok(match sink.sink(batch, &self.task)? {
            SinkResult::NeedInput => Step::Next(self.upstream()),
            SinkResult::Blocked(gates) => Step::Blocked(DriverState::Sink(None), gates),
            SinkResult::Yield => Step::Yield(DriverState::Sink(None)),
            SinkResult::Finished => Step::Next(self.finish_early_at(self.sink_index())),
        })
    }

    fn reclaim(&mut self, next: Box<DriverState>) -> Result<Step> {
        let Some(sink) = &mut self.local_states.sink else { return Ok(Step::Next(*next)) };
        Ok(match sink.reclaim(&self.task)? {
            ReclaimResult::Started => Step::Next(*next),
            ReclaimResult::NothingToReclaim => {
                self.reclaim_handle.as_ref().inspect(|handle| handle.decline());
                Step::Next(*next)
            }
            ReclaimResult::Blocked(gates) => Step::Blocked(DriverState::Reclaim(next), gates),
        })
    }

    /// Switches to `Reclaim` if another task has requested memory. A sink that is about to finish
    /// declines.
    fn handle_reclaim_request(&self, state: DriverState) -> DriverState {
        let Some(handle) = &self.reclaim_handle else { return state };
        match state {
            DriverState::Create | DriverState::Start | DriverState::Reclaim(_) => state,
            DriverState::Finish => {
                if handle.requested().is_some() {
                    handle.decline();
                }
                state
            }
            _ if handle.take_request() => DriverState::Reclaim(Box::new(state)),
            _ => state,
        }
    }

    fn finish(&mut self) -> Result<Step> {
        let Some(sink) = &mut self.local_states.sink else { return Ok(Step::Done) };
        Ok(match sink.finish(&self.task)? {
            FinishResult::Blocked(gates) => Step::Blocked(DriverState::Finish, gates),
            FinishResult::Yield => Step::Yield(DriverState::Finish),
            FinishResult::Done => {
                self.local_states.sink = None;
                Step::Done
            }
        })
    }

    /// Finishes early at the last operator or sink whose `closed` gate is ready, in any state.
    /// Drops that gate, so that it is not tested again.
    fn handle_early_finish(&mut self, state: DriverState) -> DriverState {
        if let DriverState::Reclaim(next) = state {
            return DriverState::Reclaim(Box::new(self.handle_early_finish(*next)));
        }
        let ready = self.local_states.closed.iter().filter(|(_, gate)| gate.is_ready());
        let Some(index) = ready.map(|(index, _)| *index).max() else { return state };
        let current_index = match &state {
            DriverState::Source => Some(0),
            DriverState::Operator(at, _) | DriverState::Flush(at) => Some(*at),
            DriverState::Sink(_) => Some(self.sink_index()),
            // Downstream local states still start; a sink that is finishing continues.
            DriverState::Create
            | DriverState::Start
            | DriverState::Finish
            | DriverState::Reclaim(_) => None,
        };
        if current_index.is_some_and(|at| at <= index) {
            return self.finish_early_at(index);
        }
        self.local_states.drop_through(index);
        state
    }

    /// Adds the gates that wake a blocked task when its output is no longer needed or when another
    /// task requests its memory.
    fn with_control_gates(&self, state: &DriverState, mut gates: Gates) -> Gates {
        if let DriverState::Create | DriverState::Finish = state {
            return gates;
        }
        let reclaim_requested = self.reclaim_handle.as_ref().and_then(|handle| handle.requested());
        if let (Some(reclaim_requested), false) =
            (reclaim_requested, matches!(state, DriverState::Start | DriverState::Reclaim(_)))
        {
            gates = gates.or(reclaim_requested.clone());
        }
        self.local_states.closed.iter().fold(gates, |gates, (_, gate)| gates.or(gate.clone()))
    }

    fn run_slice(&mut self) -> Result<RunResult> {
        let started = Instant::now();
        self.task.since = started;
        let slice = self.task.query.time_slice();
        let mut before = started;
        loop {
            self.task.check_cancelled()?;
            let state = std::mem::replace(&mut self.state, DriverState::Finish);
            let state = self.handle_early_finish(state);
            let state = self.handle_reclaim_request(state);
            let index = state.metrics_index(self.sink_index());
            let step = self.step(state)?;
            let now = Instant::now();
            self.metrics(index).add_busy(now - before);
            before = now;
            match step {
                Step::Next(next) => self.state = next,
                Step::Yield(next) => {
                    self.state = next;
                    return Ok(RunResult::Yield);
                }
                Step::Blocked(next, gates) => {
                    // Recorded before the control gates are added: the task is not blocked on
                    // those.
                    self.stats.record_gates(&gates);
                    let gates = self.with_control_gates(&next, gates);
                    self.state = next;
                    trace!(
                        pipeline = %self.pipeline.info.name,
                        task_index = self.stats.task_index,
                        ?gates,
                        "blocked"
                    );
                    return Ok(RunResult::Blocked(gates));
                }
                Step::Done => return Ok(RunResult::Done),
            }
            let ran = now - started;
            if ran >= slice || self.task.query.should_yield(ran) {
                return Ok(RunResult::Yield);
            }
        }
    }

    /// Fails the query and ends this task.
    fn end_with(&mut self, error: Error) -> RunResult {
        self.task.query.fail(error);
        self.abort();
        RunResult::Done
    }

    /// Ends this task as after a failure, without failing the query.
    fn end_alone(&mut self) -> RunResult {
        self.abort();
        RunResult::Done
    }

    /// Fails the query because the scope around this driver misbehaved.
    pub(super) fn fail(&mut self, what: &str) -> RunResult {
        self.end_with(Error::InvalidConfiguration(what.into()))
    }

    /// Aborts and drops all local states.
    pub(super) fn abort(&mut self) {
        std::mem::take(&mut self.local_states).abort();
    }
}

impl Runnable for TaskDriver {
    fn run(&mut self, worker: usize) -> RunResult {
        let span = tracing::trace_span!(
            parent: self.task.query.span(),
            "task",
            pipeline = %self.pipeline.info.name,
            task_index = self.stats.task_index,
            worker
        );
        let _entered = span.enter();
        self.task.worker = worker;
        self.run_slice().unwrap_or_else(|error| match chaos::drops_task(&error) {
            true => self.end_alone(),
            false => self.end_with(error),
        })
    }

    fn panicked(&mut self, payload: Box<dyn Any + Send>) {
        self.record_panic(payload.as_ref());
        self.abort();
    }
}

impl TaskDriver {
    /// Fails the query with a panic of this task.
    pub(super) fn record_panic(&self, payload: &(dyn Any + Send)) {
        let message = match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
            (Some(message), _) => (*message).to_owned(),
            (None, Some(message)) => message.clone(),
            (None, None) => "no message".to_owned(),
        };
        self.task.query.fail(Error::Panic { pipeline: self.pipeline.info.name.clone(), message });
    }
}

impl TaskStats {
    fn record_worker(&self, worker: usize, rows: usize) {
        if rows > 0 {
            self.workers.fetch_or(1 << (worker % 64), Ordering::Relaxed);
        }
    }
}
