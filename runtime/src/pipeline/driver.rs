//! The driver of one task: moves batches from the source through the operators into the sink.
//!
//! The driver is a state machine over a *position*: who is to be called next. It never recurses and
//! never loops over operators, so it can stop between any two calls (blocked, or its time slice is
//! over) and go on there later. `more` is the stack of operators that said they have more output for
//! the input they hold; whoever behind them wants input gets it from the nearest of them, and only
//! when the stack is empty is the source asked again.
//!
//! Ends: the source finishes; an operator or the sink wants no more (early finish); the query fails
//! or is cancelled. In the first two, what lies before the end is dropped, which tells upstream, and
//! what lies behind is flushed and finished. In the last, everything is aborted and dropped.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use gatework_shared_state::Gate;
use smallvec::SmallVec;
use tracing::trace;

use super::{
    Batch, FinishResult, GiveBack, LocalOperator, LocalSink, LocalSource, OperatorMetrics,
    OperatorResult, Setup, SinkResult, SourceResult, Start, TaskContext, chaos,
    graph::{Pipeline, TaskRecord},
    live::LiveTask,
    relief::Place,
};
use crate::{
    Error, Result,
    scheduler::{Gates, Outcome, Runnable},
};

#[derive(Debug)]
enum Position {
    /// Nothing has been created yet.
    Create,
    /// Waiting for all parts to be ready.
    Start,
    /// The source is to give a batch.
    Source,
    /// Operator `.0` is to be called, with a batch or to go on.
    Operator(usize, Option<Batch>),
    /// The sink is to be called, with a batch or to go on.
    Sink(Option<Batch>),
    /// Operator `.0` is to give what it has left.
    Flush(usize),
    /// The sink is to give memory back; then the task goes on there.
    GiveBack(Box<Position>),
    /// The sink is to finish.
    Finish,
}

/// What one step came to.
enum Step {
    Next(Position),
    Blocked(Position, Gates),
    Done,
}

/// The local states of a task; parts that are over are `None`.
#[derive(Default)]
struct Parts {
    source: Option<Box<dyn LocalSource>>,
    operators: Vec<Option<Box<dyn LocalOperator>>>,
    sink: Option<Box<dyn LocalSink>>,
    /// Which operators (and, last, the sink) have started.
    started: Vec<bool>,
    /// Operators with more output for the input they hold, nearest to the source first.
    more: SmallVec<[usize; 4]>,
    /// The operator whose rest is being flushed.
    flushing: Option<usize>,
    /// Gates that open when operator `.0` (or the sink, behind the last) wants no more input.
    closed: SmallVec<[(usize, Gate); 1]>,
}

pub(super) struct TaskDriver {
    parts: Parts,
    position: Position,
    pipeline: Arc<Pipeline>,
    record: Arc<TaskRecord>,
    task: TaskContext,
    place: Option<Arc<Place>>,
    /// Last, so that the query learns of the end when everything else is gone.
    live: LiveTask,
}

impl TaskDriver {
    pub(super) fn new(pipeline: Arc<Pipeline>, record: Arc<TaskRecord>, live: LiveTask) -> Self {
        let task = TaskContext { query: live.query().clone(), worker: 0, since: Instant::now() };
        Self {
            place: pipeline.sink.holds_memory().then(Arc::default),
            parts: Parts::default(),
            position: Position::Create,
            pipeline,
            record,
            task,
            live,
        }
    }

    /// The number that stands for the sink where operators are numbered.
    fn sink_place(&self) -> usize {
        self.pipeline.operators.len()
    }

    fn metrics(&self, place: usize) -> &Arc<OperatorMetrics> {
        &self.record.metrics[place]
    }

    fn setup(&self, place: usize, name: &str) -> Setup {
        Setup {
            query: self.task.query.clone(),
            instance: self.record.instance,
            instances: self.pipeline.info.instances,
            metrics: self.metrics(place).clone(),
            operator: name.into(),
            place: self.place.clone(),
            region: self.live.region().clone(),
        }
    }

    /// Makes the local states: sink first, then the operators back to the source.
    fn create(&mut self) -> Result<Step> {
        let pipeline = self.pipeline.clone();
        let sink_place = self.sink_place();
        let setup = self.setup(sink_place + 1, pipeline.sink.name());
        let sink = chaos::local_sink(pipeline.sink.as_ref(), setup)?;
        self.parts.closed.extend(sink.closed().map(|gate| (sink_place, gate)));
        self.parts.sink = Some(sink);
        self.parts.operators = (0..sink_place).map(|_| None).collect();
        for (place, operator) in pipeline.operators.iter().enumerate().rev() {
            let setup = self.setup(place + 1, operator.name());
            let local = chaos::local_operator(operator.as_ref(), setup)?;
            self.parts.closed.extend(local.closed().map(|gate| (place, gate)));
            self.parts.operators[place] = Some(local);
        }
        let setup = self.setup(0, pipeline.source.name());
        let source = chaos::local_source(pipeline.source.as_ref(), setup)?;
        self.parts.source = Some(source);
        self.parts.started = vec![false; sink_place + 1];
        Ok(Step::Next(Position::Start))
    }

    /// Starts what has not started; all parts are asked, so that none keeps another from working.
    fn start(&mut self) -> Result<Step> {
        let mut gates: Option<Gates> = None;
        for place in (0..self.parts.started.len()).rev() {
            if self.parts.started[place] {
                continue;
            }
            let answer = match self.parts.operators.get_mut(place) {
                Some(Some(operator)) => operator.start(&self.task)?,
                Some(None) => Start::Ready,
                None => match &mut self.parts.sink {
                    Some(sink) => sink.start(&self.task)?,
                    None => Start::Ready,
                },
            };
            match answer {
                Start::Ready => self.parts.started[place] = true,
                // What is behind it still starts before it is finished.
                Start::Finished => self.drop_up_to(place),
                Start::Blocked(more) => {
                    gates = Some(match gates {
                        Some(gates) => gates.or_any(more),
                        None => more,
                    });
                }
            }
        }
        if let Some(gates) = gates {
            return Ok(Step::Blocked(Position::Start, gates));
        }
        match self.parts.source.as_mut().map(|source| source.start(&self.task)).transpose()? {
            Some(Start::Blocked(gates)) => Ok(Step::Blocked(Position::Start, gates)),
            Some(Start::Finished) => Ok(Step::Next(self.flush_from(0))),
            Some(Start::Ready) | None => Ok(Step::Next(Position::Source)),
        }
    }

    /// Drops everything up to `place`, which wants no more, and goes on with what lies behind.
    fn end_at(&mut self, place: usize) -> Position {
        self.drop_up_to(place);
        self.flush_from(place + 1)
    }

    /// Drops the source and the operators up to `place`, the sink excepted: it is yet to finish.
    fn drop_up_to(&mut self, place: usize) {
        self.parts.source = None;
        self.parts.closed.retain(|(closed, _)| *closed > place);
        self.parts.more.retain(|more| *more > place);
        for operator in self.parts.operators.iter_mut().take(place + 1) {
            *operator = None;
        }
        for started in self.parts.started.iter_mut().take(place + 1) {
            *started = true;
        }
    }

    fn flush_from(&mut self, place: usize) -> Position {
        if place == 0 {
            self.parts.source = None;
        }
        if place < self.sink_place() {
            self.parts.flushing = Some(place);
            Position::Flush(place)
        } else {
            Position::Finish
        }
    }

    /// Where the next batch for `place` comes from.
    fn upstream(&mut self) -> Position {
        if let Some(place) = self.parts.more.pop() {
            return Position::Operator(place, None);
        }
        match self.parts.flushing {
            Some(place) => Position::Flush(place),
            None => Position::Source,
        }
    }

    fn downstream(&self, place: usize, batch: Batch) -> Position {
        if place < self.sink_place() {
            Position::Operator(place, Some(batch))
        } else {
            Position::Sink(Some(batch))
        }
    }

    fn step(&mut self, position: Position) -> Result<Step> {
        match position {
            Position::Create => self.create(),
            Position::Start => self.start(),
            Position::Source => self.pull(),
            Position::Operator(place, input) => self.execute(place, input),
            Position::Sink(batch) => self.sink(batch),
            Position::Flush(place) => self.flush(place),
            Position::GiveBack(next) => self.give_back(next),
            Position::Finish => self.finish(),
        }
    }

    fn pull(&mut self) -> Result<Step> {
        let Some(source) = &mut self.parts.source else {
            return Ok(Step::Next(self.flush_from(0)));
        };
        Ok(match source.next(&self.task)? {
            SourceResult::Batch(batch) => {
                self.metrics(0).add_output(batch.rows());
                self.record.note_worker(self.task.worker, batch.rows());
                if batch.rows() == 0 {
                    return Ok(Step::Next(Position::Source));
                }
                Step::Next(self.downstream(0, batch))
            }
            SourceResult::Blocked(gates) => Step::Blocked(Position::Source, gates),
            SourceResult::Finished => Step::Next(self.flush_from(0)),
        })
    }

    fn execute(&mut self, place: usize, input: Option<Batch>) -> Result<Step> {
        if let Some(batch) = &input {
            self.metrics(place + 1).add_input(batch.rows());
        }
        let Some(operator) = &mut self.parts.operators[place] else {
            return Ok(Step::Next(Position::Finish));
        };
        let result = operator.execute(input, &self.task)?;
        Ok(self.after_operator(place, result, false))
    }

    fn flush(&mut self, place: usize) -> Result<Step> {
        let Some(operator) = &mut self.parts.operators[place] else {
            return Ok(Step::Next(self.flush_from(place + 1)));
        };
        let result = operator.finish(&self.task)?;
        Ok(self.after_operator(place, result, true))
    }

    fn after_operator(&mut self, place: usize, result: OperatorResult, flushing: bool) -> Step {
        match result {
            // Nobody behind needs to see an empty batch.
            OperatorResult::Batch(batch) if batch.rows() == 0 => Step::Next(self.upstream()),
            OperatorResult::HaveMore(batch) if batch.rows() == 0 && !flushing => {
                Step::Next(Position::Operator(place, None))
            }
            OperatorResult::HaveMore(batch) if batch.rows() == 0 => {
                Step::Next(Position::Flush(place))
            }
            OperatorResult::Batch(batch) => {
                self.metrics(place + 1).add_output(batch.rows());
                Step::Next(self.downstream(place + 1, batch))
            }
            OperatorResult::HaveMore(batch) => {
                self.metrics(place + 1).add_output(batch.rows());
                if !flushing {
                    self.parts.more.push(place);
                }
                Step::Next(self.downstream(place + 1, batch))
            }
            OperatorResult::Blocked(gates) if flushing => {
                Step::Blocked(Position::Flush(place), gates)
            }
            OperatorResult::Blocked(gates) => Step::Blocked(Position::Operator(place, None), gates),
            OperatorResult::NeedInput if !flushing => Step::Next(self.upstream()),
            OperatorResult::NeedInput | OperatorResult::Finished => Step::Next(self.end_at(place)),
        }
    }

    fn sink(&mut self, batch: Option<Batch>) -> Result<Step> {
        if let Some(batch) = &batch {
            self.metrics(self.sink_place() + 1).add_input(batch.rows());
        }
        let Some(sink) = &mut self.parts.sink else { return Ok(Step::Done) };
        Ok(match sink.sink(batch, &self.task)? {
            SinkResult::NeedInput => Step::Next(self.upstream()),
            SinkResult::Blocked(gates) => Step::Blocked(Position::Sink(None), gates),
            SinkResult::Finished => Step::Next(self.end_at(self.sink_place())),
        })
    }

    fn give_back(&mut self, next: Box<Position>) -> Result<Step> {
        let Some(sink) = &mut self.parts.sink else { return Ok(Step::Next(*next)) };
        Ok(match sink.give_back(&self.task)? {
            GiveBack::Begun => Step::Next(*next),
            GiveBack::Nothing => {
                self.place.as_ref().inspect(|place| place.gave_nothing());
                Step::Next(*next)
            }
            GiveBack::Blocked(gates) => Step::Blocked(Position::GiveBack(next), gates),
        })
    }

    /// Has the sink give memory back if somebody asks for it, unless it is about to hand over what it has.
    fn heed_question(&self, position: Position) -> Position {
        let Some(place) = &self.place else { return position };
        match position {
            Position::Create | Position::Start | Position::GiveBack(_) => position,
            Position::Finish => {
                if place.asked().is_some() {
                    place.gave_nothing();
                }
                position
            }
            _ if place.take_question() => Position::GiveBack(Box::new(position)),
            _ => position,
        }
    }

    fn finish(&mut self) -> Result<Step> {
        let Some(sink) = &mut self.parts.sink else { return Ok(Step::Done) };
        Ok(match sink.finish(&self.task)? {
            FinishResult::Blocked(gates) => Step::Blocked(Position::Finish, gates),
            FinishResult::Done => {
                self.parts.sink = None;
                Step::Done
            }
        })
    }

    /// Ends whoever wants no more input although the task has not been told yet, and what lies
    /// before it, wherever the task stands. A gate that is open is not asked again.
    fn heed_closed(&mut self, position: Position) -> Position {
        if let Position::GiveBack(next) = position {
            return Position::GiveBack(Box::new(self.heed_closed(*next)));
        }
        let open = self.parts.closed.iter().filter(|(_, gate)| gate.is_ready());
        let Some(place) = open.map(|(place, _)| *place).max() else { return position };
        let stands_at = match &position {
            Position::Source => Some(0),
            Position::Operator(at, _) | Position::Flush(at) => Some(*at),
            Position::Sink(_) => Some(self.sink_place()),
            // What lies behind still starts; what finishes is finished.
            Position::Create | Position::Start | Position::Finish | Position::GiveBack(_) => None,
        };
        if stands_at.is_some_and(|at| at <= place) {
            return self.end_at(place);
        }
        self.drop_up_to(place);
        position
    }

    /// Adds the gates by which a blocked task learns that its output is not wanted any more, or that it is
    /// asked for memory.
    fn or_closed(&self, position: &Position, mut gates: Gates) -> Gates {
        if let Position::Create | Position::Finish = position {
            return gates;
        }
        let asked = self.place.as_ref().and_then(|place| place.asked());
        if let (Some(asked), false) =
            (asked, matches!(position, Position::Start | Position::GiveBack(_)))
        {
            gates = gates.or(asked.clone());
        }
        self.parts.closed.iter().fold(gates, |gates, (_, gate)| gates.or(gate.clone()))
    }

    fn place_of(position: &Position, sink_place: usize) -> usize {
        match position {
            Position::Create | Position::Start | Position::Source => 0,
            Position::Operator(place, _) | Position::Flush(place) => place + 1,
            Position::Sink(_) | Position::GiveBack(_) | Position::Finish => sink_place + 1,
        }
    }

    fn run_slice(&mut self) -> Result<Outcome> {
        let started = Instant::now();
        self.task.since = started;
        let slice = self.task.query.time_slice();
        let mut before = started;
        loop {
            self.task.check()?;
            let position = std::mem::replace(&mut self.position, Position::Finish);
            let position = self.heed_closed(position);
            let position = self.heed_question(position);
            let place = Self::place_of(&position, self.sink_place());
            let step = self.step(position)?;
            let now = Instant::now();
            self.metrics(place).add_busy(now - before);
            before = now;
            match step {
                Step::Next(next) => self.position = next,
                // It only lets others go first.
                Step::Blocked(next, gates) if self.task.query.is_breath(&gates) => {
                    self.position = next;
                    return Ok(Outcome::Yield);
                }
                Step::Blocked(next, gates) => {
                    // The others are no reason to wait, only one to stop waiting.
                    self.record.note_gates(&gates);
                    let gates = self.or_closed(&next, gates);
                    self.position = next;
                    trace!(pipeline = %self.pipeline.info.name, instance = self.record.instance, ?gates, "blocked");
                    return Ok(Outcome::Blocked(gates));
                }
                Step::Done => return Ok(Outcome::Done),
            }
            let ran = now - started;
            if ran >= slice || self.task.query.gives_way(ran) {
                return Ok(Outcome::Yield);
            }
        }
    }

    /// Ends the query, and this task at once.
    fn end_with(&mut self, error: Error) -> Outcome {
        self.task.query.fail(error);
        self.abort();
        Outcome::Done
    }

    /// The same for a fault of what runs the task.
    pub(super) fn fail(&mut self, what: &str) -> Outcome {
        self.end_with(Error::Setup(what.into()))
    }

    /// Aborts and drops all parts, each on its own, so that one that panics spares the others.
    pub(super) fn abort(&mut self) {
        let parts = std::mem::take(&mut self.parts);
        let contained = |abort: &mut dyn FnMut()| {
            let _ = catch_unwind(AssertUnwindSafe(abort));
        };
        let mut sink = parts.sink;
        contained(&mut || {
            if let Some(mut sink) = sink.take() {
                sink.abort();
            }
        });
        for mut operator in parts.operators.into_iter().rev() {
            contained(&mut || {
                if let Some(mut operator) = operator.take() {
                    operator.abort();
                }
            });
        }
        let mut source = parts.source;
        contained(&mut || {
            if let Some(mut source) = source.take() {
                source.abort();
            }
        });
    }
}

impl Runnable for TaskDriver {
    fn run(&mut self, worker: usize) -> Outcome {
        let span = tracing::trace_span!(
            parent: self.task.query.span(),
            "task",
            pipeline = %self.pipeline.info.name,
            instance = self.record.instance,
            worker
        );
        let _entered = span.enter();
        self.task.worker = worker;
        self.run_slice().unwrap_or_else(|error| self.end_with(error))
    }

    fn panicked(&mut self, payload: Box<dyn Any + Send>) {
        self.note_panic(payload.as_ref());
        self.abort();
    }
}

impl TaskDriver {
    /// Ends the query with a panic of this task.
    pub(super) fn note_panic(&self, payload: &(dyn Any + Send)) {
        let message = match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
            (Some(message), _) => (*message).to_owned(),
            (None, Some(message)) => message.clone(),
            (None, None) => "no message".to_owned(),
        };
        self.task.query.fail(Error::Panic { pipeline: self.pipeline.info.name.clone(), message });
    }
}

impl TaskRecord {
    fn note_worker(&self, worker: usize, rows: usize) {
        if rows > 0 {
            self.workers.fetch_or(1 << (worker % 64), Ordering::Relaxed);
        }
    }
}
