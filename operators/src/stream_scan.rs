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
    pipeline::{Batch, DriverContext, LocalSource, OperatorContext, Source, SourceResult},
};
use gatework_shared_state::{Dependency, DependencyKind, Gate, PopResult, stream_set::StreamSet};
use parking_lot::Mutex;

use crate::ResultExt;

#[cfg(test)]
mod tests;

/// A boxed stream of batches.
pub type BatchStream = Pin<Box<dyn Stream<Item = Result<RecordBatch, DataFusionError>> + Send>>;

/// Streams that tasks read side by side: each takes the next batch of whichever has one. So those that are open are all
/// polled from the start, however many more there are than tasks, and order is kept only where there is one stream and one
/// task. Where not all are open at a time, the next opens when one has ended.
pub struct StreamScan {
    name: String,
    open: StreamSet<BatchStream>,
    queued: Arc<Mutex<Vec<BatchStream>>>,
}

/// How many streams a task looks at in vain before it lets others have their turn.
const MAX_POLLS: usize = 64;

impl StreamScan {
    /// Reads all of `streams`, at most so many at a time; the name says where they come from.
    pub fn new(name: impl Into<String>, streams: Vec<BatchStream>, max_open: usize) -> Self {
        let (name, mut open) = (name.into(), streams);
        let mut queued = open.split_off(max_open.max(1).min(open.len()));
        queued.reverse();
        let open = StreamSet::new(&format!("{name} stream"), open);
        Self { name, open, queued: Arc::new(Mutex::new(queued)) }
    }
}

impl fmt::Debug for StreamScan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queued = self.queued.lock().len();
        write!(f, "{}: streams, {:?}, {queued} to be opened", self.name, self.open)
    }
}

impl Source for StreamScan {
    fn name(&self) -> &str {
        &self.name
    }

    fn local(&self, _setup: OperatorContext) -> Result<Box<dyn LocalSource>> {
        Ok(Box::new(LocalStreamScan { open: self.open.clone(), queued: self.queued.clone() }))
    }
}

struct LocalStreamScan {
    open: StreamSet<BatchStream>,
    queued: Arc<Mutex<Vec<BatchStream>>>,
}

impl LocalSource for LocalStreamScan {
    fn next(&mut self, _task: &DriverContext) -> Result<SourceResult> {
        for _ in 0..MAX_POLLS {
            let mut lease = match self.open.take() {
                PopResult::Item(lease) => lease,
                PopResult::Blocked(gate) => return Ok(SourceResult::Blocked(gate.into())),
                PopResult::Finished => return Ok(SourceResult::Finished),
                PopResult::Aborted => return Err(Error::ProducerAborted),
            };
            let waker = lease.waker();
            let Some(stream) = lease.get_mut() else { continue };
            let polled = polling(|| stream.as_mut().poll_next(&mut Context::from_waker(&waker)));
            match polled {
                Poll::Pending => lease.return_pending(),
                Poll::Ready(None) => {
                    // In its place; the last ones end with their places. Not under the lock: one that ends may be long in
                    // going.
                    let next = self.queued.lock().pop();
                    if let Some(next) = next {
                        *stream = next;
                        lease.return_ready();
                    }
                }
                Poll::Ready(Some(batch)) => {
                    let batch = batch.query_err()?;
                    lease.return_ready();
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
    struct RestoreOnDrop(bool);
    impl Drop for RestoreOnDrop {
        fn drop(&mut self) {
            POLLING.set(self.0);
        }
    }
    let _restore = RestoreOnDrop(POLLING.replace(true));
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

struct GateWaker(Gate);

impl Wake for GateWaker {
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
        let waker = Waker::from(Arc::new(GateWaker(gate.clone())));
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
