//! A result that wants only some rows, and inputs that never end after it has them.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use gatework_runtime::{
    Result,
    pipeline::{
        Batch, DriverContext, FinishResult, LocalSink, LocalSource, OperatorContext, Sink,
        SinkResult, Source, SourceResult, StartResult,
    },
};
use gatework_shared_state::{Dependency, DependencyKind, Gate};

/// The end of a result after a number of rows.
#[derive(Debug)]
pub(super) struct EarlyEnd {
    wanted: usize,
    rows: AtomicUsize,
    /// Ready when the result has enough rows.
    ended: Gate,
    /// The gate of inputs that are read after that. Nothing makes it ready during the run.
    still_read: Gate,
}

impl EarlyEnd {
    /// Creates the end of a result that wants `wanted` rows; it takes the whole last batch.
    pub(super) fn after(wanted: usize) -> Arc<Self> {
        let name = "result has enough rows";
        let ended = Dependency::blocked(name, DependencyKind::ConsumersGone);
        if wanted == 0 {
            ended.set_always_ready();
        }
        Arc::new(Self {
            wanted,
            rows: AtomicUsize::new(0),
            ended,
            still_read: Dependency::blocked(
                "more input, although nobody needs it",
                DependencyKind::Source,
            ),
        })
    }

    /// Returns whether the result had enough rows.
    pub(super) fn has_happened(&self) -> bool {
        self.ended.is_ready()
    }

    /// Returns whether `gate` is one of the harness's own.
    pub(super) fn owns(&self, gate: &Gate) -> bool {
        Arc::ptr_eq(gate, &self.ended) || Arc::ptr_eq(gate, &self.still_read)
    }

    /// Ends the wait of inputs. Called after the run.
    pub(super) fn release_inputs(&self) {
        self.still_read.set_always_ready();
    }
}

/// A result that wants only some rows.
#[derive(Debug)]
pub(super) struct EndingSink {
    pub(super) inner: Arc<dyn Sink>,
    pub(super) end: Arc<EarlyEnd>,
}

impl Sink for EndingSink {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn can_reclaim(&self) -> bool {
        self.inner.can_reclaim()
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSink>> {
        let inner = self.inner.local(context)?;
        Ok(Box::new(LocalEndingSink { inner, end: self.end.clone() }))
    }
}

struct LocalEndingSink {
    inner: Box<dyn LocalSink>,
    end: Arc<EarlyEnd>,
}

impl LocalSink for LocalEndingSink {
    fn start(&mut self, task: &DriverContext) -> Result<StartResult> {
        self.inner.start(task)
    }

    fn sink(&mut self, batch: Option<Batch>, task: &DriverContext) -> Result<SinkResult> {
        let rows = batch.as_ref().map_or(0, Batch::num_rows);
        // Relaxed: the counter publishes nothing.
        let before = self.end.rows.fetch_add(rows, Ordering::Relaxed);
        let result = match batch {
            Some(_) if before >= self.end.wanted => SinkResult::Finished,
            batch => self.inner.sink(batch, task)?,
        };
        let has_enough = self.end.rows.load(Ordering::Relaxed) >= self.end.wanted;
        Ok(match result {
            SinkResult::NeedInput | SinkResult::Finished if has_enough => {
                self.end.ended.set_always_ready();
                SinkResult::Finished
            }
            other => other,
        })
    }

    fn finish(&mut self, task: &DriverContext) -> Result<FinishResult> {
        self.inner.finish(task)
    }

    fn closed(&self) -> Option<Gate> {
        Some(self.end.ended.clone())
    }

    fn abort(&mut self) {
        self.inner.abort();
    }
}

/// An input that yields nothing more once the result has enough rows.
pub(super) struct EndlessSource {
    pub(super) inner: Arc<dyn Source>,
    pub(super) end: Arc<EarlyEnd>,
}

impl fmt::Debug for EndlessSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl Source for EndlessSource {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSource>> {
        let inner = self.inner.local(context)?;
        Ok(Box::new(LocalEndlessSource { inner, end: self.end.clone() }))
    }
}

struct LocalEndlessSource {
    inner: Box<dyn LocalSource>,
    end: Arc<EarlyEnd>,
}

impl LocalSource for LocalEndlessSource {
    fn next(&mut self, task: &DriverContext) -> Result<SourceResult> {
        match self.end.has_happened() {
            true => Ok(SourceResult::Blocked(self.end.still_read.clone().into())),
            false => self.inner.next(task),
        }
    }

    fn abort(&mut self) {
        self.inner.abort();
    }
}
