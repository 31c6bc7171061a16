//! The wrappers: local states between the driver and the operators' local states.
//!
//! A wrapper that blocks keeps its input, as every local state may.

use gatework_shared_state::Gate;

use super::{Call, DriverContext, Role, batch_splitter::BatchSplitter, wrapper::WrapperState};
use crate::{
    Result,
    pipeline::{
        Batch, FinishResult, LocalOperator, LocalSink, LocalSource, Operator, OperatorContext,
        OperatorResult, ReclaimResult, Sink, SinkResult, Source, SourceResult, StartResult,
    },
};

/// Counts the creation of a local state as a step and creates its wrapper's state, if the query has
/// chaos.
fn wrapper_state(role: Role, context: &OperatorContext) -> Result<Option<WrapperState>> {
    let Some(chaos) = context.query.chaos() else { return Ok(None) };
    chaos.step(&context.query, false)?;
    Ok(Some(WrapperState::new(chaos.clone(), role, context)))
}

/// Creates the local state of `source`, wrapped if the query has chaos.
pub(in crate::pipeline) fn local_source(
    source: &dyn Source,
    context: OperatorContext,
) -> Result<Box<dyn LocalSource>> {
    let state = wrapper_state(Role::Source, &context)?;
    let inner = source.local(context)?;
    Ok(match state {
        Some(state) => Box::new(ChaosSource { state, inner, splitter: BatchSplitter::default() }),
        None => inner,
    })
}

/// Creates the local state of `operator`, wrapped if the query has chaos.
pub(in crate::pipeline) fn local_operator(
    operator: &dyn Operator,
    context: OperatorContext,
) -> Result<Box<dyn LocalOperator>> {
    let state = wrapper_state(Role::Operator, &context)?;
    let inner = operator.local(context)?;
    Ok(match state {
        Some(state) => Box::new(ChaosOperator {
            state,
            // Once the gate is ready, the driver drops the wrapper with its chunks.
            splits: inner.closed().is_none(),
            inner,
            blocked_input: None,
            splitter: BatchSplitter::default(),
            has_more: false,
        }),
        None => inner,
    })
}

/// Creates the local state of `sink`, wrapped if the query has chaos.
pub(in crate::pipeline) fn local_sink(
    sink: &dyn Sink,
    context: OperatorContext,
) -> Result<Box<dyn LocalSink>> {
    let state = wrapper_state(Role::Sink, &context)?;
    let inner = sink.local(context)?;
    Ok(match state {
        Some(state) => Box::new(ChaosSink { state, inner, blocked_input: None }),
        None => inner,
    })
}

/// Blocks a start, or passes on the result of `start`.
fn start(
    state: &mut WrapperState,
    task: &DriverContext,
    start: impl FnOnce() -> Result<StartResult>,
) -> Result<StartResult> {
    if let Some(gates) = state.before(Call::Start, task)? {
        return Ok(StartResult::Blocked(gates));
    }
    Ok(match state.call(start)? {
        StartResult::Blocked(gates) => StartResult::Blocked(state.with_spurious_wakeup(gates)),
        other => other,
    })
}

struct ChaosSource {
    state: WrapperState,
    inner: Box<dyn LocalSource>,
    splitter: BatchSplitter,
}

impl LocalSource for ChaosSource {
    fn start(&mut self, task: &DriverContext) -> Result<StartResult> {
        start(&mut self.state, task, || self.inner.start(task))
    }

    fn next(&mut self, task: &DriverContext) -> Result<SourceResult> {
        if let Some(gates) = self.state.before(Call::Run, task)? {
            return Ok(SourceResult::Blocked(gates));
        }
        if let Some(batch) = self.splitter.next() {
            return Ok(SourceResult::Batch(batch));
        }
        Ok(match self.state.call(|| self.inner.next(task))? {
            SourceResult::Batch(batch) => {
                SourceResult::Batch(self.splitter.split(batch, &self.state))
            }
            SourceResult::Blocked(gates) => {
                SourceResult::Blocked(self.state.with_spurious_wakeup(gates))
            }
            other => other,
        })
    }

    fn abort(&mut self) {
        self.inner.abort();
    }
}

struct ChaosOperator {
    state: WrapperState,
    inner: Box<dyn LocalOperator>,
    /// The input of the call that the wrapper blocked.
    blocked_input: Option<Batch>,
    splits: bool,
    splitter: BatchSplitter,
    /// Whether the operator has more output after the chunks in `splitter`.
    has_more: bool,
}

impl ChaosOperator {
    fn split(&mut self, batch: Batch) -> Batch {
        if self.splits { self.splitter.split(batch, &self.state) } else { batch }
    }

    fn emit(&self, batch: Batch) -> OperatorResult {
        if self.has_more || !self.splitter.is_empty() {
            OperatorResult::HaveMoreOutput(batch)
        } else {
            OperatorResult::Batch(batch)
        }
    }
}

impl LocalOperator for ChaosOperator {
    fn start(&mut self, task: &DriverContext) -> Result<StartResult> {
        start(&mut self.state, task, || self.inner.start(task))
    }

    fn execute(&mut self, input: Option<Batch>, task: &DriverContext) -> Result<OperatorResult> {
        let input = input.or_else(|| self.blocked_input.take());
        if let Some(gates) = self.state.before(Call::Run, task)? {
            self.blocked_input = input;
            return Ok(OperatorResult::Blocked(gates));
        }
        if let Some(batch) = self.splitter.next() {
            return Ok(self.emit(batch));
        }
        let (batch, has_more) = match self.state.call(|| self.inner.execute(input, task))? {
            OperatorResult::Batch(batch) => (batch, false),
            OperatorResult::HaveMoreOutput(batch) => (batch, true),
            OperatorResult::Blocked(gates) => {
                return Ok(OperatorResult::Blocked(self.state.with_spurious_wakeup(gates)));
            }
            other => return Ok(other),
        };
        self.has_more = has_more;
        let first = self.split(batch);
        Ok(self.emit(first))
    }

    fn finish(&mut self, task: &DriverContext) -> Result<OperatorResult> {
        if let Some(gates) = self.state.before(Call::Finish, task)? {
            return Ok(OperatorResult::Blocked(gates));
        }
        if let Some(batch) = self.splitter.next() {
            return Ok(OperatorResult::HaveMoreOutput(batch));
        }
        Ok(match self.state.call(|| self.inner.finish(task))? {
            OperatorResult::Batch(batch) | OperatorResult::HaveMoreOutput(batch) => {
                OperatorResult::HaveMoreOutput(self.split(batch))
            }
            OperatorResult::Blocked(gates) => {
                OperatorResult::Blocked(self.state.with_spurious_wakeup(gates))
            }
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
    state: WrapperState,
    inner: Box<dyn LocalSink>,
    /// The batch of the call that the wrapper blocked.
    blocked_input: Option<Batch>,
}

impl LocalSink for ChaosSink {
    fn start(&mut self, task: &DriverContext) -> Result<StartResult> {
        start(&mut self.state, task, || self.inner.start(task))
    }

    fn sink(&mut self, batch: Option<Batch>, task: &DriverContext) -> Result<SinkResult> {
        let batch = batch.or_else(|| self.blocked_input.take());
        if let Some(gates) = self.state.before(Call::Run, task)? {
            self.blocked_input = batch;
            return Ok(SinkResult::Blocked(gates));
        }
        Ok(match self.state.call(|| self.inner.sink(batch, task))? {
            SinkResult::Blocked(gates) => {
                SinkResult::Blocked(self.state.with_spurious_wakeup(gates))
            }
            other => other,
        })
    }

    fn finish(&mut self, task: &DriverContext) -> Result<FinishResult> {
        if let Some(gates) = self.state.before(Call::Finish, task)? {
            return Ok(FinishResult::Blocked(gates));
        }
        Ok(match self.state.call(|| self.inner.finish(task))? {
            FinishResult::Blocked(gates) => {
                FinishResult::Blocked(self.state.with_spurious_wakeup(gates))
            }
            other => other,
        })
    }

    fn reclaim(&mut self, task: &DriverContext) -> Result<ReclaimResult> {
        self.state.call(|| self.inner.reclaim(task))
    }

    fn closed(&self) -> Option<Gate> {
        self.inner.closed()
    }

    fn abort(&mut self) {
        self.inner.abort();
    }
}
