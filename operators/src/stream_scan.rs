//! Stream scan: async streams of batches as a source. While all of them are pending a gate of kind *external* is shut,
//! which the waker of any of them opens.

use std::{
    cell::Cell,
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
use parking_lot::Mutex;

use crate::OrFail;

#[cfg(test)]
mod tests;

/// A boxed stream of batches.
pub type BatchStream = Pin<Box<dyn Stream<Item = Result<RecordBatch, DataFusionError>> + Send>>;

/// Streams that tasks read side by side: each takes the next batch of whichever has one. So those that are open are all
/// polled from the start, however many more there are than tasks, and order is kept only where there is one stream and one
/// task. Where not all are open at a time, the next opens when one has ended.
pub struct StreamScan {
    name: String,
    open: Arrivals<BatchStream>,
    later: Arc<Mutex<Vec<BatchStream>>>,
}

/// How many streams a task looks at in vain before it lets others have their turn.
const LOOKS: usize = 64;

impl StreamScan {
    /// Reads all of `streams`, at most so many at a time; the name says where they come from.
    pub fn new(name: impl Into<String>, streams: Vec<BatchStream>, most: usize) -> Self {
        let (name, mut open) = (name.into(), streams);
        let mut later = open.split_off(most.max(1).min(open.len()));
        later.reverse();
        let open = Arrivals::new(&format!("{name} stream"), open);
        Self { name, open, later: Arc::new(Mutex::new(later)) }
    }
}

impl fmt::Debug for StreamScan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let later = self.later.lock().len();
        write!(f, "{}: streams, {:?}, {later} to be opened", self.name, self.open)
    }
}

impl Source for StreamScan {
    fn name(&self) -> &str {
        &self.name
    }

    fn local(&self, _setup: Setup) -> Result<Box<dyn LocalSource>> {
        Ok(Box::new(LocalStreamScan { open: self.open.clone(), later: self.later.clone() }))
    }
}

struct LocalStreamScan {
    open: Arrivals<BatchStream>,
    later: Arc<Mutex<Vec<BatchStream>>>,
}

impl LocalSource for LocalStreamScan {
    fn next(&mut self, _task: &TaskContext) -> Result<SourceResult> {
        for _ in 0..LOOKS {
            let mut arrival = match self.open.take() {
                Take::Item(arrival) => arrival,
                Take::Blocked(gate) => return Ok(SourceResult::Blocked(gate.into())),
                Take::Finished => return Ok(SourceResult::Finished),
                Take::Aborted => return Err(Error::ProducerAborted),
            };
            let waker = arrival.waker();
            let Some(stream) = arrival.thing() else { continue };
            let polled = polling(|| stream.as_mut().poll_next(&mut Context::from_waker(&waker)));
            match polled {
                Poll::Pending => arrival.pending(),
                Poll::Ready(None) => {
                    // In its place; the last ones end with their places. Not under the lock: one that ends may be long in
                    // going.
                    let next = self.later.lock().pop();
                    if let Some(next) = next {
                        *stream = next;
                        arrival.more();
                    }
                }
                Poll::Ready(Some(batch)) => {
                    let batch = batch.or_fail()?;
                    arrival.more();
                    return Ok(SourceResult::Batch(Batch::new(batch)));
                }
            }
        }
        Ok(SourceResult::Blocked(self.open.gate().into()))
    }
}

thread_local! {
    /// A task on this thread polls a future or a stream, and comes back when that wakes it.
    static POLLING: Cell<bool> = const { Cell::new(false) };
}

fn polling<T>(poll: impl FnOnce() -> T) -> T {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            POLLING.set(self.0);
        }
    }
    let _before = Before(POLLING.replace(true));
    poll()
}

/// Whether a task on this thread is polling a future or a stream. What is pending on a worker otherwise is
/// waited for by a function that blocks the worker.
pub fn is_polling() -> bool {
    POLLING.get()
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
        polling(|| poll(&mut Context::from_waker(&self.waker)))
    }

    /// The gate to wait for after `Pending`.
    pub fn gate(&self) -> Gate {
        self.gate.clone()
    }
}
