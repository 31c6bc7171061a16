//! Stream scan: async streams of batches as a source. While all streams are pending, a gate of kind
//! *external* is blocked; the waker of any stream makes it ready.

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

/// Boxed stream of batches.
pub type BatchStream = Pin<Box<dyn Stream<Item = Result<RecordBatch, DataFusionError>> + Send>>;

/// Source that reads streams concurrently: each task takes the next batch of any stream that has
/// one. All open streams are polled from the start, even if they outnumber the tasks. Row order is
/// preserved only with one stream and one task. If the number of open streams is bounded, the next
/// stream opens when an open one ends.
pub struct StreamScan {
    name: String,
    open: StreamSet<BatchStream>,
    queued: Arc<Mutex<Vec<BatchStream>>>,
}

/// Number of consecutive pending streams that a task polls before it yields.
const MAX_POLLS: usize = 64;

impl StreamScan {
    /// Creates a scan of all `streams` with at most `max_open` open at a time. `name` names their
    /// origin.
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
        write!(f, "{}: streams, {:?}, {queued} queued", self.name, self.open)
    }
}

impl Source for StreamScan {
    fn name(&self) -> &str {
        &self.name
    }

    fn local(&self, _context: OperatorContext) -> Result<Box<dyn LocalSource>> {
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
                    // The next stream takes the slot of the finished one. The finished stream is
                    // dropped after the lock is released, because its drop may take long.
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
    /// True while a task on this thread polls a future or a stream that wakes the task.
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

/// Returns true while a task on this thread polls a future or a stream. In any other case a pending
/// future blocks the worker that waits for it.
pub fn is_polling() -> bool {
    POLLING.get()
}

/// Gate of a pending future or stream: the bridge from async code to tasks.
///
/// The gate is blocked *before* the poll. The waker passed to the poll makes it ready, so a wake-up
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
    /// Creates a gate of kind *external*.
    pub fn new(name: impl Into<String>) -> Self {
        let gate = Dependency::ready(name.into(), DependencyKind::External);
        let waker = Waker::from(Arc::new(GateWaker(gate.clone())));
        Self { gate, waker }
    }

    /// Polls. After `Pending`, the gate becomes ready when another poll can make progress.
    pub fn poll<T>(&self, poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        self.gate.block();
        polling(|| poll(&mut Context::from_waker(&self.waker)))
    }

    /// Returns the gate to wait for after `Pending`.
    pub fn gate(&self) -> Gate {
        self.gate.clone()
    }
}
