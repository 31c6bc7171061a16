//! The size of a blocked task, and the wake-up of a million of them.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Wake, Waker},
    thread::{self, Thread},
};

use gatework_runtime::{
    Executor, Result,
    pipeline::{
        Batch, DriverContext, FinishResult, Graph, LocalSink, LocalSource, OperatorContext,
        QueryContext, QueryOptions, Sink, SinkResult, Source, SourceResult, StartResult,
    },
};
use gatework_shared_state::{Dependency, DependencyKind, Gate};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

const TASKS: usize = 1_000_000;
/// The size limit of a blocked task in bytes, without the local states of its source and sink.
const BYTES: usize = 768;

/// Waits for the gate, then finishes. Counts the tasks that were blocked.
#[derive(Debug)]
struct Waits(Gate, Arc<AtomicUsize>);

impl Source for Waits {
    fn name(&self) -> &str {
        "waits"
    }

    fn local(&self, _context: OperatorContext) -> Result<Box<dyn LocalSource>> {
        Ok(Box::new(Self(self.0.clone(), self.1.clone())))
    }
}

impl LocalSource for Waits {
    fn start(&mut self, _task: &DriverContext) -> Result<StartResult> {
        if self.0.is_ready() {
            return Ok(StartResult::Ready);
        }
        self.1.fetch_add(1, Ordering::Relaxed);
        Ok(StartResult::Blocked(self.0.clone().into()))
    }

    fn next(&mut self, _task: &DriverContext) -> Result<SourceResult> {
        Ok(SourceResult::Finished)
    }
}

/// Counts the tasks that finish.
#[derive(Debug)]
struct Finished(Arc<AtomicUsize>);

impl Sink for Finished {
    fn name(&self) -> &str {
        "finished"
    }

    fn local(&self, _context: OperatorContext) -> Result<Box<dyn LocalSink>> {
        Ok(Box::new(Self(self.0.clone())))
    }
}

impl LocalSink for Finished {
    fn sink(&mut self, _batch: Option<Batch>, _task: &DriverContext) -> Result<SinkResult> {
        Ok(SinkResult::NeedInput)
    }

    fn finish(&mut self, _task: &DriverContext) -> Result<FinishResult> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(FinishResult::Done)
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[test]
fn a_million_blocked_tasks_are_small_and_finish() {
    let executor = Executor::builder().threads(2).build().unwrap();
    let gate = Dependency::blocked("all of them", DependencyKind::External);
    let (waiting, finished) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
    let mut graph = Graph::new();
    let source = Arc::new(Waits(gate.clone(), waiting.clone()));
    let sink = Arc::new(Finished(finished.clone()));
    graph.add_pipeline("waiting", TASKS, source, vec![], sink).unwrap();
    let query = QueryContext::new(&executor, QueryOptions::default());
    let before = ALLOCATED.current_usage();
    let running = graph.start(&query).unwrap();
    while waiting.load(Ordering::Relaxed) < TASKS {
        thread::yield_now();
    }
    let each = (ALLOCATED.current_usage() - before) / TASKS;
    let local = size_of::<Waits>() + size_of::<Finished>();
    assert!(each - local <= BYTES, "a blocked task takes {} bytes", each - local);
    gate.set_ready();
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    while !query.idle().poll_ready(&waker) {
        thread::park();
    }
    assert_eq!(finished.load(Ordering::Relaxed), TASKS);
    drop(running);
}
