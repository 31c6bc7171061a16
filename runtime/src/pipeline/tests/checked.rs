//! Wrappers that check the driver's side of the operator contract, and inject faults at step *k*.
//!
//! A step is one call of `local`, `start`, `next`, `execute`, `sink` or `finish`, on any operator
//! in any task of a query.

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Sender},
    },
    thread,
};

use gatework_shared_state::{Dependency, DependencyKind, Gate};

use super::operators::until;
use crate::{
    Error, Result,
    pipeline::{
        Batch, DriverContext, FinishResult, Gates, LocalOperator, LocalSink, LocalSource, Operator,
        OperatorContext, OperatorResult, Sink, SinkResult, Source, SourceResult, StartResult,
    },
};

/// The fault injected at step *k*.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    Error(usize),
    Panic(usize),
    Cancel(usize),
    /// Another thread signals that no input upstream of a [`Checks::closable`] operator is wanted.
    Close(usize),
    /// Every call blocks once and is woken from another thread.
    BlockEveryCall,
}

/// The state that the wrappers of one query share.
pub(super) struct Checks {
    fault: Fault,
    steps: AtomicUsize,
    blocks: AtomicUsize,
    created: AtomicUsize,
    dropped: AtomicUsize,
    /// Number of finished sinks; `aborted` counts the aborted ones.
    finished: AtomicUsize,
    aborted: AtomicUsize,
    broken: Mutex<Vec<String>>,
    close: Gate,
    opener: Sender<Gate>,
}

impl fmt::Debug for Checks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} after {} steps", self.fault, self.steps())
    }
}

impl Checks {
    pub(super) fn new(fault: Fault) -> Arc<Self> {
        let (opener, gates) = mpsc::channel::<Gate>();
        thread::spawn(move || gates.iter().for_each(|gate| gate.set_ready()));
        Arc::new(Self {
            fault,
            steps: AtomicUsize::new(0),
            blocks: AtomicUsize::new(0),
            created: AtomicUsize::new(0),
            dropped: AtomicUsize::new(0),
            finished: AtomicUsize::new(0),
            aborted: AtomicUsize::new(0),
            broken: Mutex::default(),
            close: Dependency::blocked("closed by a test", DependencyKind::ConsumersGone),
            opener,
        })
    }

    pub(super) fn steps(&self) -> usize {
        self.steps.load(Ordering::SeqCst)
    }

    pub(super) fn blocks(&self) -> usize {
        self.blocks.load(Ordering::SeqCst)
    }

    pub(super) fn finished(&self) -> usize {
        self.finished.load(Ordering::SeqCst)
    }

    pub(super) fn aborted(&self) -> usize {
        self.aborted.load(Ordering::SeqCst)
    }

    /// Asserts that the driver kept the contract and dropped every local state.
    pub(super) fn assert_kept(&self) {
        let broken = self.broken.lock().unwrap();
        assert!(broken.is_empty(), "{self:?}: {broken:#?}");
        let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
        assert_eq!(count(&self.created), count(&self.dropped), "{self:?}: local states are left");
    }

    fn expect(&self, kept: bool, what: impl FnOnce() -> String) {
        if !kept {
            self.broken.lock().unwrap().push(what());
        }
    }

    fn step(&self, query: &super::super::QueryContext) -> Result<()> {
        let step = self.steps.fetch_add(1, Ordering::SeqCst);
        match self.fault {
            Fault::Error(at) if at == step => Err(Error::operator(format!("fault at {at}"))),
            Fault::Panic(at) if at == step => panic!("fault at {at}"),
            Fault::Close(at) if at == step => {
                self.opener.send(self.close.clone()).unwrap();
                Ok(())
            }
            Fault::Cancel(at) if at == step => {
                query.cancel();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Returns an operator that passes batches on until it is closed.
    pub(super) fn closable(self: &Arc<Self>) -> Arc<dyn Operator> {
        self.operator(until(&self.close))
    }

    pub(super) fn source(self: &Arc<Self>, inner: Arc<dyn Source>) -> Arc<dyn Source> {
        Arc::new(Checked { inner, checks: self.clone() })
    }

    pub(super) fn operator(self: &Arc<Self>, inner: Arc<dyn Operator>) -> Arc<dyn Operator> {
        Arc::new(Checked { inner, checks: self.clone() })
    }

    pub(super) fn sink(self: &Arc<Self>, inner: Arc<dyn Sink>) -> Arc<dyn Sink> {
        Arc::new(Checked { inner, checks: self.clone() })
    }
}

#[derive(Debug)]
struct Checked<P: ?Sized> {
    inner: Arc<P>,
    checks: Arc<Checks>,
}

impl<P: ?Sized> Checked<P> {
    fn local<L: ?Sized>(&self, local: Box<L>) -> Local<L> {
        self.checks.created.fetch_add(1, Ordering::SeqCst);
        Local {
            inner: Some(local),
            phase: Phase::Starting,
            blocked_once: false,
            blocked_input: None,
            checks: self.checks.clone(),
        }
    }
}

impl Source for Checked<dyn Source> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSource>> {
        self.checks.step(context.query())?;
        Ok(Box::new(self.local(self.inner.local(context)?)))
    }
}

impl Operator for Checked<dyn Operator> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalOperator>> {
        self.checks.step(context.query())?;
        Ok(Box::new(self.local(self.inner.local(context)?)))
    }
}

impl Sink for Checked<dyn Sink> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn can_reclaim(&self) -> bool {
        self.inner.can_reclaim()
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSink>> {
        self.checks.step(context.query())?;
        Ok(Box::new(self.local(self.inner.local(context)?)))
    }
}

/// The phase of a local state's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Starting,
    /// The local state wants input.
    NeedsInput,
    /// The local state has more output or is blocked: it must be called without input.
    HasMoreOrBlocked,
    /// The local state wants no more input.
    Full,
    Finishing,
    Ended,
}

struct Local<L: ?Sized> {
    phase: Phase,
    blocked_once: bool,
    /// The input of a call that was made to block.
    blocked_input: Option<Batch>,
    checks: Arc<Checks>,
    /// `None` only in the destructor.
    inner: Option<Box<L>>,
}

impl<L: ?Sized> Local<L> {
    fn inner(&mut self) -> &mut L {
        self.inner.as_mut().unwrap()
    }

    /// Counts the step. Returns gates if this call must block first.
    fn enter(&mut self, task: &DriverContext) -> Result<Option<Gates>> {
        self.checks.step(task.query())?;
        if self.checks.fault != Fault::BlockEveryCall {
            return Ok(None);
        }
        self.blocked_once = !self.blocked_once;
        if !self.blocked_once {
            return Ok(None);
        }
        self.checks.blocks.fetch_add(1, Ordering::SeqCst);
        let gate = Dependency::blocked("every call", DependencyKind::External);
        self.checks.opener.send(gate.clone()).unwrap();
        Ok(Some(gate.into()))
    }

    fn expect(&self, phases: &[Phase], call: &str) {
        let phase = self.phase;
        self.checks.expect(phases.contains(&phase), || format!("{call} while {phase:?}"));
    }

    fn expect_input(&self, given: bool, call: &str) {
        let (phase, wanted) =
            (self.phase, if given { Phase::NeedsInput } else { Phase::HasMoreOrBlocked });
        self.checks.expect(phase == wanted, || format!("{call}, given: {given}, while {phase:?}"));
    }

    fn started(&mut self, start: &StartResult) {
        match start {
            StartResult::Ready => self.phase = Phase::NeedsInput,
            StartResult::Finished => self.phase = Phase::Full,
            StartResult::Blocked(_) | StartResult::Yield => {}
        }
    }
}

impl<L: ?Sized> Drop for Local<L> {
    fn drop(&mut self) {
        self.inner = None;
        self.checks.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

impl LocalSource for Local<dyn LocalSource> {
    fn start(&mut self, task: &DriverContext) -> Result<StartResult> {
        self.expect(&[Phase::Starting], "start of a source");
        if let Some(gates) = self.enter(task)? {
            return Ok(StartResult::Blocked(gates));
        }
        let start = self.inner().start(task)?;
        self.started(&start);
        Ok(start)
    }

    fn next(&mut self, task: &DriverContext) -> Result<SourceResult> {
        self.expect(&[Phase::NeedsInput], "next");
        if let Some(gates) = self.enter(task)? {
            return Ok(SourceResult::Blocked(gates));
        }
        let result = self.inner().next(task)?;
        if let SourceResult::Finished = result {
            self.phase = Phase::Ended;
        }
        Ok(result)
    }

    fn abort(&mut self) {
        self.phase = Phase::Ended;
        self.inner().abort();
    }
}

impl LocalOperator for Local<dyn LocalOperator> {
    fn start(&mut self, task: &DriverContext) -> Result<StartResult> {
        self.expect(&[Phase::Starting], "start of an operator");
        if let Some(gates) = self.enter(task)? {
            return Ok(StartResult::Blocked(gates));
        }
        let start = self.inner().start(task)?;
        self.started(&start);
        Ok(start)
    }

    fn execute(&mut self, input: Option<Batch>, task: &DriverContext) -> Result<OperatorResult> {
        self.expect_input(input.is_some(), "execute");
        self.checks.expect(input.as_ref().is_none_or(|batch| batch.num_rows() > 0), || {
            "execute with an empty batch".into()
        });
        self.phase = Phase::HasMoreOrBlocked;
        let input = input.or_else(|| self.blocked_input.take());
        if let Some(gates) = self.enter(task)? {
            self.blocked_input = input;
            return Ok(OperatorResult::Blocked(gates));
        }
        let result = self.inner().execute(input, task)?;
        self.phase = match result {
            OperatorResult::NeedInput | OperatorResult::Batch(_) => Phase::NeedsInput,
            OperatorResult::HaveMoreOutput(_)
            | OperatorResult::Blocked(_)
            | OperatorResult::Yield => Phase::HasMoreOrBlocked,
            OperatorResult::Finished => Phase::Ended,
        };
        Ok(result)
    }

    fn finish(&mut self, task: &DriverContext) -> Result<OperatorResult> {
        self.expect(&[Phase::NeedsInput, Phase::Finishing], "finish of an operator");
        self.phase = Phase::Finishing;
        if let Some(gates) = self.enter(task)? {
            return Ok(OperatorResult::Blocked(gates));
        }
        let result = self.inner().finish(task)?;
        if let OperatorResult::Finished | OperatorResult::NeedInput = result {
            self.phase = Phase::Ended;
        }
        Ok(result)
    }

    fn closed(&self) -> Option<Gate> {
        self.inner.as_ref().and_then(|inner| inner.closed())
    }

    fn abort(&mut self) {
        self.expect(
            &[Phase::Starting, Phase::NeedsInput, Phase::HasMoreOrBlocked, Phase::Finishing],
            "abort",
        );
        self.phase = Phase::Ended;
        self.inner().abort();
    }
}

impl LocalSink for Local<dyn LocalSink> {
    fn start(&mut self, task: &DriverContext) -> Result<StartResult> {
        self.expect(&[Phase::Starting], "start of a sink");
        if let Some(gates) = self.enter(task)? {
            return Ok(StartResult::Blocked(gates));
        }
        let start = self.inner().start(task)?;
        self.started(&start);
        Ok(start)
    }

    fn sink(&mut self, batch: Option<Batch>, task: &DriverContext) -> Result<SinkResult> {
        self.expect_input(batch.is_some(), "sink");
        self.checks.expect(batch.as_ref().is_none_or(|batch| batch.num_rows() > 0), || {
            "sink with an empty batch".into()
        });
        self.phase = Phase::HasMoreOrBlocked;
        let batch = batch.or_else(|| self.blocked_input.take());
        if let Some(gates) = self.enter(task)? {
            self.blocked_input = batch;
            return Ok(SinkResult::Blocked(gates));
        }
        let result = self.inner().sink(batch, task)?;
        self.phase = match result {
            SinkResult::NeedInput => Phase::NeedsInput,
            SinkResult::Blocked(_) | SinkResult::Yield => Phase::HasMoreOrBlocked,
            SinkResult::Finished => Phase::Full,
        };
        Ok(result)
    }

    fn finish(&mut self, task: &DriverContext) -> Result<FinishResult> {
        // A blocked sink may be finished only if its output is no longer needed.
        let unwanted = self.closed().is_some_and(|gate| gate.is_ready());
        let early = unwanted && matches!(self.phase, Phase::Starting | Phase::HasMoreOrBlocked);
        if !early {
            self.expect(&[Phase::NeedsInput, Phase::Full, Phase::Finishing], "finish of a sink");
        }
        self.phase = Phase::Finishing;
        if let Some(gates) = self.enter(task)? {
            return Ok(FinishResult::Blocked(gates));
        }
        let result = self.inner().finish(task)?;
        if let FinishResult::Done = result {
            self.phase = Phase::Ended;
            self.checks.finished.fetch_add(1, Ordering::SeqCst);
        }
        Ok(result)
    }

    fn closed(&self) -> Option<Gate> {
        self.inner.as_ref().and_then(|inner| inner.closed())
    }

    fn abort(&mut self) {
        let alive = [
            Phase::Starting,
            Phase::NeedsInput,
            Phase::HasMoreOrBlocked,
            Phase::Full,
            Phase::Finishing,
        ];
        self.expect(&alive, "abort of a sink");
        self.phase = Phase::Ended;
        self.checks.aborted.fetch_add(1, Ordering::SeqCst);
        self.inner().abort();
    }
}
