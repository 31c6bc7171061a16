//! Wrappers that check what the driver promises to operators, and inject faults at step *k*.
//!
//! A step is one call of `local`, `start`, `next`, `execute`, `sink` or a `finish`, of any part in
//! any task of a query.

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
        Batch, FinishResult, Gates, LocalOperator, LocalSink, LocalSource, Operator,
        OperatorResult, Setup, Sink, SinkResult, Source, SourceResult, Start, TaskContext,
    },
};

/// What happens at step *k*.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    Error(usize),
    Panic(usize),
    Cancel(usize),
    /// A foreign thread says that nobody wants what lies before a [`Checks::closable`] operator.
    Close(usize),
    /// Every call blocks once and is woken from another thread.
    BlockEveryCall,
}

/// What the wrappers of one query share.
pub(super) struct Checks {
    fault: Fault,
    steps: AtomicUsize,
    blocks: AtomicUsize,
    created: AtomicUsize,
    dropped: AtomicUsize,
    /// Sinks that finished, and those that were aborted.
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
            close: Dependency::blocked("closed by a test", DependencyKind::Closed),
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

    /// Asserts that every promise was kept and every local state is gone.
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

    /// An operator that passes batches on until it is closed.
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
            held: None,
            checks: self.checks.clone(),
        }
    }
}

impl Source for Checked<dyn Source> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalSource>> {
        self.checks.step(setup.query())?;
        Ok(Box::new(self.local(self.inner.local(setup)?)))
    }
}

impl Operator for Checked<dyn Operator> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalOperator>> {
        self.checks.step(setup.query())?;
        Ok(Box::new(self.local(self.inner.local(setup)?)))
    }
}

impl Sink for Checked<dyn Sink> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn holds_memory(&self) -> bool {
        self.inner.holds_memory()
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalSink>> {
        self.checks.step(setup.query())?;
        Ok(Box::new(self.local(self.inner.local(setup)?)))
    }
}

/// Where a local state is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Starting,
    /// It wants input.
    Hungry,
    /// It has more to give or is blocked: to be called without input.
    Owing,
    /// It wants no more input.
    Full,
    Finishing,
    Over,
}

struct Local<L: ?Sized> {
    phase: Phase,
    blocked_once: bool,
    /// Input that came with a call that was made to block.
    held: Option<Batch>,
    checks: Arc<Checks>,
    /// `None` only in the destructor.
    inner: Option<Box<L>>,
}

impl<L: ?Sized> Local<L> {
    fn inner(&mut self) -> &mut L {
        self.inner.as_mut().unwrap()
    }

    /// Counts the step; answers gates if this call is to block first.
    fn enter(&mut self, task: &TaskContext) -> Result<Option<Gates>> {
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
        let (phase, wanted) = (self.phase, if given { Phase::Hungry } else { Phase::Owing });
        self.checks.expect(phase == wanted, || format!("{call}, given: {given}, while {phase:?}"));
    }

    fn started(&mut self, start: &Start) {
        match start {
            Start::Ready => self.phase = Phase::Hungry,
            Start::Finished => self.phase = Phase::Full,
            Start::Blocked(_) => {}
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
    fn start(&mut self, task: &TaskContext) -> Result<Start> {
        self.expect(&[Phase::Starting], "start of a source");
        if let Some(gates) = self.enter(task)? {
            return Ok(Start::Blocked(gates));
        }
        let start = self.inner().start(task)?;
        self.started(&start);
        Ok(start)
    }

    fn next(&mut self, task: &TaskContext) -> Result<SourceResult> {
        self.expect(&[Phase::Hungry], "next");
        if let Some(gates) = self.enter(task)? {
            return Ok(SourceResult::Blocked(gates));
        }
        let result = self.inner().next(task)?;
        if let SourceResult::Finished = result {
            self.phase = Phase::Over;
        }
        Ok(result)
    }

    fn abort(&mut self) {
        self.phase = Phase::Over;
        self.inner().abort();
    }
}

impl LocalOperator for Local<dyn LocalOperator> {
    fn start(&mut self, task: &TaskContext) -> Result<Start> {
        self.expect(&[Phase::Starting], "start of an operator");
        if let Some(gates) = self.enter(task)? {
            return Ok(Start::Blocked(gates));
        }
        let start = self.inner().start(task)?;
        self.started(&start);
        Ok(start)
    }

    fn execute(&mut self, input: Option<Batch>, task: &TaskContext) -> Result<OperatorResult> {
        self.expect_input(input.is_some(), "execute");
        self.checks.expect(input.as_ref().is_none_or(|batch| batch.rows() > 0), || {
            "execute with an empty batch".into()
        });
        self.phase = Phase::Owing;
        let input = input.or_else(|| self.held.take());
        if let Some(gates) = self.enter(task)? {
            self.held = input;
            return Ok(OperatorResult::Blocked(gates));
        }
        let result = self.inner().execute(input, task)?;
        self.phase = match result {
            OperatorResult::NeedInput | OperatorResult::Batch(_) => Phase::Hungry,
            OperatorResult::HaveMore(_) | OperatorResult::Blocked(_) => Phase::Owing,
            OperatorResult::Finished => Phase::Over,
        };
        Ok(result)
    }

    fn finish(&mut self, task: &TaskContext) -> Result<OperatorResult> {
        self.expect(&[Phase::Hungry, Phase::Finishing], "finish of an operator");
        self.phase = Phase::Finishing;
        if let Some(gates) = self.enter(task)? {
            return Ok(OperatorResult::Blocked(gates));
        }
        let result = self.inner().finish(task)?;
        if let OperatorResult::Finished | OperatorResult::NeedInput = result {
            self.phase = Phase::Over;
        }
        Ok(result)
    }

    fn closed(&self) -> Option<Gate> {
        self.inner.as_ref().and_then(|inner| inner.closed())
    }

    fn abort(&mut self) {
        self.expect(&[Phase::Starting, Phase::Hungry, Phase::Owing, Phase::Finishing], "abort");
        self.phase = Phase::Over;
        self.inner().abort();
    }
}

impl LocalSink for Local<dyn LocalSink> {
    fn start(&mut self, task: &TaskContext) -> Result<Start> {
        self.expect(&[Phase::Starting], "start of a sink");
        if let Some(gates) = self.enter(task)? {
            return Ok(Start::Blocked(gates));
        }
        let start = self.inner().start(task)?;
        self.started(&start);
        Ok(start)
    }

    fn sink(&mut self, batch: Option<Batch>, task: &TaskContext) -> Result<SinkResult> {
        self.expect_input(batch.is_some(), "sink");
        self.checks.expect(batch.as_ref().is_none_or(|batch| batch.rows() > 0), || {
            "sink with an empty batch".into()
        });
        self.phase = Phase::Owing;
        let batch = batch.or_else(|| self.held.take());
        if let Some(gates) = self.enter(task)? {
            self.held = batch;
            return Ok(SinkResult::Blocked(gates));
        }
        let result = self.inner().sink(batch, task)?;
        self.phase = match result {
            SinkResult::NeedInput => Phase::Hungry,
            SinkResult::Blocked(_) => Phase::Owing,
            SinkResult::Finished => Phase::Full,
        };
        Ok(result)
    }

    fn finish(&mut self, task: &TaskContext) -> Result<FinishResult> {
        // A sink that is blocked is finished only because nobody wants what it makes.
        let unwanted = self.closed().is_some_and(|gate| gate.is_ready());
        let early = unwanted && matches!(self.phase, Phase::Starting | Phase::Owing);
        if !early {
            self.expect(&[Phase::Hungry, Phase::Full, Phase::Finishing], "finish of a sink");
        }
        self.phase = Phase::Finishing;
        if let Some(gates) = self.enter(task)? {
            return Ok(FinishResult::Blocked(gates));
        }
        let result = self.inner().finish(task)?;
        if let FinishResult::Done = result {
            self.phase = Phase::Over;
            self.checks.finished.fetch_add(1, Ordering::SeqCst);
        }
        Ok(result)
    }

    fn closed(&self) -> Option<Gate> {
        self.inner.as_ref().and_then(|inner| inner.closed())
    }

    fn abort(&mut self) {
        let alive = [Phase::Starting, Phase::Hungry, Phase::Owing, Phase::Full, Phase::Finishing];
        self.expect(&alive, "abort of a sink");
        self.phase = Phase::Over;
        self.checks.aborted.fetch_add(1, Ordering::SeqCst);
        self.inner().abort();
    }
}
