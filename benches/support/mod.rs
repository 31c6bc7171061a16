//! Shared support of the benches: running a graph to its end, a countdown, and a counting sink.

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    task::{Wake, Waker},
    thread::{self, Thread},
};

use gatework::{
    Executor,
    runtime::{
        Result,
        pipeline::{
            Batch, DriverContext, FinishResult, Graph, LocalSink, OperatorContext, QueryContext,
            QueryOptions, Sink, SinkResult,
        },
    },
};

/// The allocator of the command line: all benches allocate and free on different threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs `graph` until all its tasks have ended.
pub(crate) fn finish(executor: &Executor, graph: Graph) {
    let query = QueryContext::new(executor, QueryOptions::default());
    let _running = graph.start(&query).expect("a graph that can run");
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    while !query.idle().poll_ready(&waker) {
        thread::park();
    }
    assert!(query.error().is_none(), "{:?}", query.error());
}

/// Notifies a receiver when the last of `count` tasks is done.
pub(crate) struct Countdown(AtomicUsize, mpsc::SyncSender<()>);

impl Countdown {
    pub(crate) fn new(count: usize) -> (Arc<Self>, mpsc::Receiver<()>) {
        let (sender, done) = mpsc::sync_channel(1);
        (Arc::new(Self(AtomicUsize::new(count), sender)), done)
    }

    pub(crate) fn one(&self) {
        if self.0.fetch_sub(1, Ordering::AcqRel) == 1 {
            let _nobody_waits = self.1.send(());
        }
    }
}

/// Counts the rows of all tasks of a pipeline.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicUsize);

impl Count {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn rows(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// One task's count.
struct LocalCount(Arc<Count>, usize);

/// A sink that counts rows.
#[derive(Debug)]
pub(crate) struct CountSink(pub(crate) Arc<Count>);

impl Sink for CountSink {
    fn name(&self) -> &str {
        "count"
    }

    fn local(&self, _setup: OperatorContext) -> Result<Box<dyn LocalSink>> {
        Ok(Box::new(LocalCount(self.0.clone(), 0)))
    }
}

impl LocalSink for LocalCount {
    fn sink(&mut self, batch: Option<Batch>, _task: &DriverContext) -> Result<SinkResult> {
        if let Some(batch) = batch {
            self.1 += black_box(batch).num_rows();
        }
        Ok(SinkResult::NeedInput)
    }

    fn finish(&mut self, _task: &DriverContext) -> Result<FinishResult> {
        self.0.0.fetch_add(self.1, Ordering::Relaxed);
        Ok(FinishResult::Done)
    }
}
