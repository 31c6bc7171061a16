//! Streams that become ready independently, such as streams from other machines, N:N: any task
//! leases any ready stream, polls it, and returns it. So no stream waits for the end of another,
//! and one task can serve all of them.
//!
//! Each stream has a waker, and must be polled with it. A wake-up makes the stream ready. If it
//! comes while the stream is leased, it takes effect when the stream is returned.
//!
//! Locks: `inner`, and a stream's lock under it. The gate changes under `inner`; streams are
//! dropped outside the locks.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Weak},
    task::{Wake, Waker},
};

use crate::{Dependency, DependencyKind, Gate, PopResult, StateLock, sync::Mutex};

/// A set of streams, some of which are ready. Clones are the same set.
pub struct StreamSet<T> {
    state: Arc<State<T>>,
}

struct State<T> {
    signals: Arc<Signals>,
    /// Each stream; `None` while it is leased and after its end.
    streams: Vec<Mutex<Option<T>>>,
}

/// The state that wakers share. It owns no stream: dropping a stream may wait for the thread that
/// calls its waker.
struct Signals {
    /// Ready while a stream is ready, and when all have ended.
    gate: Gate,
    inner: StateLock<Inner>,
}

struct Inner {
    slots: Vec<SlotState>,
    /// Ready streams, oldest first.
    ready: VecDeque<usize>,
    unfinished: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SlotState {
    Ready,
    Waiting,
    Leased,
    /// Leased, and woken since.
    LeasedAndWoken,
    Finished,
}

/// A stream leased to a task. Dropping the lease without returning the stream ends the stream.
pub struct StreamLease<T> {
    state: Arc<State<T>>,
    index: usize,
    stream: Option<T>,
}

impl<T> Clone for StreamSet<T> {
    fn clone(&self) -> Self {
        Self { state: self.state.clone() }
    }
}

impl<T> fmt::Debug for StreamSet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.state.signals.inner.lock();
        write!(f, "{} of {} ready", inner.ready.len(), inner.unfinished)
    }
}

impl<T> fmt::Debug for StreamLease<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stream {}", self.index)
    }
}

impl<T> StreamSet<T> {
    /// Creates a set of streams, all of them ready.
    pub fn new(name: &str, streams: impl IntoIterator<Item = T>) -> Self {
        let streams: Vec<_> = streams.into_iter().map(|stream| Mutex::new(Some(stream))).collect();
        let count = streams.len();
        let inner = Inner {
            slots: vec![SlotState::Ready; count],
            ready: (0..count).collect(),
            unfinished: count,
        };
        let gate = Dependency::ready(name.to_owned(), DependencyKind::External);
        let signals = Arc::new(Signals { gate, inner: StateLock::new(inner) });
        Self { state: Arc::new(State { signals, streams }) }
    }

    /// Leases a ready stream.
    pub fn take(&self) -> PopResult<StreamLease<T>> {
        let State { signals, streams } = self.state.as_ref();
        let mut inner = signals.inner.lock();
        if inner.unfinished == 0 {
            inner.set_always_ready(&signals.gate);
            return PopResult::Finished;
        }
        let Some(index) = inner.ready.pop_front() else {
            signals.gate.block();
            return PopResult::Blocked(signals.gate.clone());
        };
        inner.slots[index] = SlotState::Leased;
        let stream = streams[index].lock().take();
        PopResult::Item(StreamLease { state: self.state.clone(), index, stream })
    }

    /// Returns the gate that is ready while there may be a ready stream; for a task that has polled
    /// many streams and yields.
    pub fn gate(&self) -> Gate {
        self.state.signals.gate.clone()
    }
}

impl Signals {
    fn woken(&self, index: usize) {
        let mut inner = self.inner.lock();
        match inner.slots[index] {
            SlotState::Leased => inner.slots[index] = SlotState::LeasedAndWoken,
            SlotState::Waiting => {
                inner.slots[index] = SlotState::Ready;
                inner.ready.push_back(index);
                inner.set_ready(&self.gate);
            }
            SlotState::Ready | SlotState::LeasedAndWoken | SlotState::Finished => {}
        }
    }
}

impl<T> StreamLease<T> {
    /// Returns the waker with which to poll the stream.
    pub fn waker(&self) -> Waker {
        let signals = Arc::downgrade(&self.state.signals);
        Waker::from(Arc::new(StreamWaker { signals, index: self.index }))
    }

    /// Returns the stream.
    pub fn get_mut(&mut self) -> Option<&mut T> {
        self.stream.as_mut()
    }

    /// Returns the stream as ready: it has more rows at once.
    pub fn return_ready(self) {
        self.put_back(true);
    }

    /// Returns the stream as pending: its waker makes it ready again.
    pub fn return_pending(self) {
        self.put_back(false);
    }

    fn put_back(mut self, ready: bool) {
        let State { signals, streams } = self.state.as_ref();
        let Some(stream) = self.stream.take() else { return };
        let mut inner = signals.inner.lock();
        *streams[self.index].lock() = Some(stream);
        if ready || inner.slots[self.index] == SlotState::LeasedAndWoken {
            inner.slots[self.index] = SlotState::Ready;
            inner.ready.push_back(self.index);
            inner.set_ready(&signals.gate);
        } else {
            inner.slots[self.index] = SlotState::Waiting;
        }
    }
}

impl<T> Drop for StreamLease<T> {
    fn drop(&mut self) {
        // Not under the lock: dropping the stream may take long.
        let Some(stream) = self.stream.take() else { return };
        drop(stream);
        let signals = &self.state.signals;
        let mut inner = signals.inner.lock();
        inner.slots[self.index] = SlotState::Finished;
        inner.unfinished -= 1;
        if inner.unfinished == 0 {
            inner.set_always_ready(&signals.gate);
        }
    }
}

struct StreamWaker {
    signals: Weak<Signals>,
    index: usize,
}

impl Wake for StreamWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(signals) = self.signals.upgrade() {
            signals.woken(self.index);
        }
    }
}
