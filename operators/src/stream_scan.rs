//! Stream scan: async streams of batches as a source. A pending stream shuts a gate of kind
//! *external*, and the stream's waker opens it.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use arrow::array::RecordBatch;
use datafusion_common::DataFusionError;
use futures_core::Stream;
use gatework_runtime::{
    Result,
    pipeline::{Batch, LocalSource, Setup, Source, SourceResult, TaskContext},
};
use gatework_shared_state::{Dependency, DependencyKind, Gate};
use parking_lot::Mutex;

use crate::OrFail;

#[cfg(test)]
mod tests;

/// A boxed stream of batches.
pub type BatchStream = Pin<Box<dyn Stream<Item = Result<RecordBatch, DataFusionError>> + Send>>;

/// Streams that tasks read one after the other, each whole by one task.
pub struct StreamScan {
    name: String,
    streams: Arc<Mutex<Vec<BatchStream>>>,
}

impl StreamScan {
    /// Reads all of `streams`; the name says where they come from.
    pub fn new(name: impl Into<String>, streams: Vec<BatchStream>) -> Self {
        let mut streams = streams;
        streams.reverse();
        Self { name: name.into(), streams: Arc::new(Mutex::new(streams)) }
    }
}

impl fmt::Debug for StreamScan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} streams left)", self.name, self.streams.lock().len())
    }
}

impl Source for StreamScan {
    fn name(&self) -> &str {
        &self.name
    }

    fn local(&self, _setup: Setup) -> Result<Box<dyn LocalSource>> {
        Ok(Box::new(LocalStreamScan {
            streams: self.streams.clone(),
            current: None,
            gate: PollGate::new(format!("{} stream", self.name)),
        }))
    }
}

struct LocalStreamScan {
    streams: Arc<Mutex<Vec<BatchStream>>>,
    current: Option<BatchStream>,
    gate: PollGate,
}

impl LocalSource for LocalStreamScan {
    fn next(&mut self, _task: &TaskContext) -> Result<SourceResult> {
        loop {
            let Some(stream) = &mut self.current else {
                self.current = self.streams.lock().pop();
                if self.current.is_none() {
                    return Ok(SourceResult::Finished);
                }
                continue;
            };
            match self.gate.poll(|context| stream.as_mut().poll_next(context)) {
                Poll::Pending => return Ok(SourceResult::Blocked(self.gate.gate().into())),
                Poll::Ready(None) => self.current = None,
                Poll::Ready(Some(batch)) => {
                    return Ok(SourceResult::Batch(Batch::new(batch.or_fail()?)));
                }
            }
        }
    }
}

/// A gate that stands for a pending future or stream: the seam from the async world to tasks.
///
/// The gate is shut *before* the poll, and opened by the waker that the poll was given, so a wake-up
/// during the poll is never lost.
#[derive(Debug)]
pub struct PollGate {
    gate: Gate,
    waker: Waker,
}

struct OpenGate(Gate);

impl Wake for OpenGate {
    fn wake(self: Arc<Self>) {
        self.0.set_ready();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.set_ready();
    }
}

impl PollGate {
    /// A gate of kind *external*.
    pub fn new(name: impl Into<String>) -> Self {
        let gate = Dependency::ready(name.into(), DependencyKind::External);
        let waker = Waker::from(Arc::new(OpenGate(gate.clone())));
        Self { gate, waker }
    }

    /// Polls; after `Pending` the gate opens when polling again makes sense.
    pub fn poll<T>(&self, poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        self.gate.block();
        poll(&mut Context::from_waker(&self.waker))
    }

    /// The gate to wait for after `Pending`.
    pub fn gate(&self) -> Gate {
        self.gate.clone()
    }
}
