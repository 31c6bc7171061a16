//! Stream scan: async streams of batches as a source. While all of them are pending a gate of kind *external* is shut,
//! which the waker of any of them opens.

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
    Error, Result,
    pipeline::{Batch, LocalSource, Setup, Source, SourceResult, TaskContext},
};
use gatework_shared_state::{Dependency, DependencyKind, Gate, Take, arrivals::Arrivals};

use crate::OrFail;

#[cfg(test)]
mod tests;

/// A boxed stream of batches.
pub type BatchStream = Pin<Box<dyn Stream<Item = Result<RecordBatch, DataFusionError>> + Send>>;

/// Streams that tasks read side by side: each takes the next batch of whichever has one. So all of them are polled from
/// the start, however many more there are than tasks, and their order is kept only where there is one stream and one
/// task.
pub struct StreamScan {
    name: String,
    streams: Arrivals<BatchStream>,
}

impl StreamScan {
    /// Reads all of `streams`; the name says where they come from.
    pub fn new(name: impl Into<String>, streams: Vec<BatchStream>) -> Self {
        let name = name.into();
        let streams = Arrivals::new(&format!("{name} stream"), streams);
        Self { name, streams }
    }
}

impl fmt::Debug for StreamScan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: streams, {:?}", self.name, self.streams)
    }
}

impl Source for StreamScan {
    fn name(&self) -> &str {
        &self.name
    }

    fn local(&self, _setup: Setup) -> Result<Box<dyn LocalSource>> {
        Ok(Box::new(LocalStreamScan(self.streams.clone())))
    }
}

struct LocalStreamScan(Arrivals<BatchStream>);

impl LocalSource for LocalStreamScan {
    fn next(&mut self, _task: &TaskContext) -> Result<SourceResult> {
        loop {
            let mut arrival = match self.0.take() {
                Take::Item(arrival) => arrival,
                Take::Blocked(gate) => return Ok(SourceResult::Blocked(gate.into())),
                Take::Finished => return Ok(SourceResult::Finished),
                Take::Aborted => return Err(Error::ProducerAborted),
            };
            let waker = arrival.waker();
            let mut context = Context::from_waker(&waker);
            let poll = arrival.thing().map(|stream| stream.as_mut().poll_next(&mut context));
            match poll {
                Some(Poll::Pending) => arrival.pending(),
                // It has ended, and is dropped.
                Some(Poll::Ready(None)) | None => {}
                Some(Poll::Ready(Some(batch))) => {
                    let batch = batch.or_fail()?;
                    arrival.more();
                    return Ok(SourceResult::Batch(Batch::new(batch)));
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
