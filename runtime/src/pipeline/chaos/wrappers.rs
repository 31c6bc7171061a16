//! The wrappers: local states that stand between the driver and the real ones.
//!
//! A wrapper that blocks keeps the input it was given, as the contract lets every local state do.

use gatework_shared_state::Gate;

use super::{Call, Role, TaskContext, part::Part, pieces::Pieces};
use crate::{
    Result,
    pipeline::{
        Batch, FinishResult, GiveBack, LocalOperator, LocalSink, LocalSource, Operator,
        OperatorResult, Setup, Sink, SinkResult, Source, SourceResult, Start,
    },
};

/// Counts the creation of a local state as a step and makes what its wrapper needs, if the query has
/// chaos.
fn part_of(role: Role, setup: &Setup) -> Result<Option<Part>> {
    let Some(chaos) = setup.query.chaos() else { return Ok(None) };
    chaos.step(&setup.query)?;
    Ok(Some(Part::new(chaos.clone(), role, setup)))
}

/// The local state of `source`, wrapped if the query has chaos.
pub(in crate::pipeline) fn local_source(
    source: &dyn Source,
    setup: Setup,
) -> Result<Box<dyn LocalSource>> {
    let part = part_of(Role::Source, &setup)?;
    let inner = source.local(setup)?;
    Ok(match part {
        Some(part) => Box::new(ChaosSource { part, inner, rest: Pieces::default() }),
        None => inner,
    })
}

/// The local state of `operator`, wrapped if the query has chaos.
pub(in crate::pipeline) fn local_operator(
    operator: &dyn Operator,
    setup: Setup,
) -> Result<Box<dyn LocalOperator>> {
    let part = part_of(Role::Operator, &setup)?;
    let inner = operator.local(setup)?;
    Ok(match part {
        Some(part) => Box::new(ChaosOperator {
            part,
            inner,
            held: None,
            rest: Pieces::default(),
            has_more: false,
        }),
        None => inner,
    })
}

/// The local state of `sink`, wrapped if the query has chaos.
pub(in crate::pipeline) fn local_sink(sink: &dyn Sink, setup: Setup) -> Result<Box<dyn LocalSink>> {
    let part = part_of(Role::Sink, &setup)?;
    let inner = sink.local(setup)?;
    Ok(match part {
        Some(part) => Box::new(ChaosSink { part, inner, held: None }),
        None => inner,
    })
}

/// Blocks a start, or passes on what `start` answers.
fn start(
    part: &mut Part,
    task: &TaskContext,
    start: impl FnOnce() -> Result<Start>,
) -> Result<Start> {
    if let Some(gates) = part.before(Call::Start, task)? {
        return Ok(Start::Blocked(gates));
    }
    Ok(match start()? {
        Start::Blocked(gates) => Start::Blocked(part.or_recall(gates)),
        other => other,
    })
}

struct ChaosSource {
    part: Part,
    inner: Box<dyn LocalSource>,
    rest: Pieces,
}

impl LocalSource for ChaosSource {
    fn start(&mut self, task: &TaskContext) -> Result<Start> {
        start(&mut self.part, task, || self.inner.start(task))
    }

    fn next(&mut self, task: &TaskContext) -> Result<SourceResult> {
        if let Some(gates) = self.part.before(Call::Run, task)? {
            return Ok(SourceResult::Blocked(gates));
        }
        if let Some(piece) = self.rest.next() {
            return Ok(SourceResult::Batch(piece));
        }
        Ok(match self.inner.next(task)? {
            SourceResult::Batch(batch) => SourceResult::Batch(self.rest.cut(batch, &self.part)),
            SourceResult::Blocked(gates) => SourceResult::Blocked(self.part.or_recall(gates)),
            SourceResult::Finished => SourceResult::Finished,
        })
    }

    fn abort(&mut self) {
        self.inner.abort();
    }
}

struct ChaosOperator {
    part: Part,
    inner: Box<dyn LocalOperator>,
    /// The input of the call that we blocked.
    held: Option<Batch>,
    rest: Pieces,
    /// Behind `rest`, the operator itself has more.
    has_more: bool,
}

impl ChaosOperator {
    fn give(&self, batch: Batch) -> OperatorResult {
        if self.has_more || !self.rest.is_empty() {
            OperatorResult::HaveMore(batch)
        } else {
            OperatorResult::Batch(batch)
        }
    }
}

impl LocalOperator for ChaosOperator {
    fn start(&mut self, task: &TaskContext) -> Result<Start> {
        start(&mut self.part, task, || self.inner.start(task))
    }

    fn execute(&mut self, input: Option<Batch>, task: &TaskContext) -> Result<OperatorResult> {
        let input = input.or_else(|| self.held.take());
        if let Some(gates) = self.part.before(Call::Run, task)? {
            self.held = input;
            return Ok(OperatorResult::Blocked(gates));
        }
        if let Some(piece) = self.rest.next() {
            return Ok(self.give(piece));
        }
        let (batch, has_more) = match self.inner.execute(input, task)? {
            OperatorResult::Batch(batch) => (batch, false),
            OperatorResult::HaveMore(batch) => (batch, true),
            OperatorResult::Blocked(gates) => {
                return Ok(OperatorResult::Blocked(self.part.or_recall(gates)));
            }
            other => return Ok(other),
        };
        self.has_more = has_more;
        let first = self.rest.cut(batch, &self.part);
        Ok(self.give(first))
    }

    fn finish(&mut self, task: &TaskContext) -> Result<OperatorResult> {
        if let Some(gates) = self.part.before(Call::Finish, task)? {
            return Ok(OperatorResult::Blocked(gates));
        }
        if let Some(piece) = self.rest.next() {
            return Ok(OperatorResult::HaveMore(piece));
        }
        Ok(match self.inner.finish(task)? {
            OperatorResult::Batch(batch) | OperatorResult::HaveMore(batch) => {
                OperatorResult::HaveMore(self.rest.cut(batch, &self.part))
            }
            OperatorResult::Blocked(gates) => OperatorResult::Blocked(self.part.or_recall(gates)),
            other => other,
        })
    }

    fn closed(&self) -> Option<Gate> {
        self.inner.closed()
    }

    fn abort(&mut self) {
        self.inner.abort();
    }
}

struct ChaosSink {
    part: Part,
    inner: Box<dyn LocalSink>,
    /// The batch of the call that we blocked.
    held: Option<Batch>,
}

impl LocalSink for ChaosSink {
    fn start(&mut self, task: &TaskContext) -> Result<Start> {
        start(&mut self.part, task, || self.inner.start(task))
    }

    fn sink(&mut self, batch: Option<Batch>, task: &TaskContext) -> Result<SinkResult> {
        let batch = batch.or_else(|| self.held.take());
        if let Some(gates) = self.part.before(Call::Run, task)? {
            self.held = batch;
            return Ok(SinkResult::Blocked(gates));
        }
        Ok(match self.inner.sink(batch, task)? {
            SinkResult::Blocked(gates) => SinkResult::Blocked(self.part.or_recall(gates)),
            other => other,
        })
    }

    fn finish(&mut self, task: &TaskContext) -> Result<FinishResult> {
        if let Some(gates) = self.part.before(Call::Finish, task)? {
            return Ok(FinishResult::Blocked(gates));
        }
        Ok(match self.inner.finish(task)? {
            FinishResult::Blocked(gates) => FinishResult::Blocked(self.part.or_recall(gates)),
            FinishResult::Done => FinishResult::Done,
        })
    }

    fn give_back(&mut self, task: &TaskContext) -> Result<GiveBack> {
        self.inner.give_back(task)
    }

    fn closed(&self) -> Option<Gate> {
        self.inner.closed()
    }

    fn abort(&mut self) {
        self.inner.abort();
    }
}
