//! Things that are ready now and then, such as streams from other machines, N:N: whichever is ready is taken by
//! whichever task comes, looked at, and given back. So none waits for another to end, and one task can serve all.
//!
//! Each thing has a waker. It is to be polled with that: a wake-up makes the thing ready, or, if it comes while a task
//! looks at it, is kept until the thing is given back.
//!
//! Locks: `inner`, and that of a thing under it. The gate flips under `inner`; the things themselves are dropped after it.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Weak},
    task::{Wake, Waker},
};

use crate::{Dependency, DependencyKind, Gate, PopResult, Wakeups, sync::Mutex};

/// Things of which some are ready. Clones are the same.
pub struct StreamSet<T> {
    state: Arc<State<T>>,
}

struct State<T> {
    signals: Arc<Signals>,
    /// Each is taken while a task looks at it, and when it has ended.
    streams: Vec<Mutex<Option<T>>>,
}

/// What wakers know. They hold none of the things: one that goes may wait for whoever is waking.
struct Signals {
    /// Open while one is ready, and when all have ended.
    gate: Gate,
    inner: Mutex<Inner>,
}

struct Inner {
    slots: Vec<SlotState>,
    /// In the order in which they became so.
    ready: VecDeque<usize>,
    unfinished: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SlotState {
    Ready,
    Waiting,
    Leased,
    /// It was woken while a task looks at it.
    LeasedAndWoken,
    Finished,
}

/// One that a task looks at. Dropped without having been given back, it has ended.
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
    /// All of these are ready to be looked at.
    pub fn new(name: &str, streams: impl IntoIterator<Item = T>) -> Self {
        let streams: Vec<_> = streams.into_iter().map(|stream| Mutex::new(Some(stream))).collect();
        let count = streams.len();
        let inner = Inner {
            slots: vec![SlotState::Ready; count],
            ready: (0..count).collect(),
            unfinished: count,
        };
        let gate = Dependency::ready(name.to_owned(), DependencyKind::External);
        let signals = Arc::new(Signals { gate, inner: Mutex::new(inner) });
        Self { state: Arc::new(State { signals, streams }) }
    }

    /// One that is ready.
    pub fn take(&self) -> PopResult<StreamLease<T>> {
        let mut wakeups = Wakeups::new();
        let State { signals, streams } = self.state.as_ref();
        let mut inner = signals.inner.lock();
        if inner.unfinished == 0 {
            signals.gate.set_always_ready_deferred(&mut wakeups);
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

    /// Open while there may be one that is ready: for a task that has looked at many and gives way.
    pub fn gate(&self) -> Gate {
        self.state.signals.gate.clone()
    }
}

impl Signals {
    fn woken(&self, index: usize) {
        let mut wakeups = Wakeups::new();
        let mut inner = self.inner.lock();
        match inner.slots[index] {
            SlotState::Leased => inner.slots[index] = SlotState::LeasedAndWoken,
            SlotState::Waiting => {
                inner.slots[index] = SlotState::Ready;
                inner.ready.push_back(index);
                self.gate.set_ready_deferred(&mut wakeups);
            }
            SlotState::Ready | SlotState::LeasedAndWoken | SlotState::Finished => {}
        }
    }
}

impl<T> StreamLease<T> {
    /// What it is polled with.
    pub fn waker(&self) -> Waker {
        let signals = Arc::downgrade(&self.state.signals);
        Waker::from(Arc::new(StreamWaker { signals, index: self.index }))
    }

    /// The thing.
    pub fn get_mut(&mut self) -> Option<&mut T> {
        self.stream.as_mut()
    }

    /// Gives it back: there is more to be had at once.
    pub fn return_ready(self) {
        self.put_back(true);
    }

    /// Gives it back: its waker will say when it is worth looking again.
    pub fn return_pending(self) {
        self.put_back(false);
    }

    fn put_back(mut self, ready: bool) {
        let State { signals, streams } = self.state.as_ref();
        let Some(stream) = self.stream.take() else { return };
        let mut wakeups = Wakeups::new();
        let mut inner = signals.inner.lock();
        *streams[self.index].lock() = Some(stream);
        if ready || inner.slots[self.index] == SlotState::LeasedAndWoken {
            inner.slots[self.index] = SlotState::Ready;
            inner.ready.push_back(self.index);
            signals.gate.set_ready_deferred(&mut wakeups);
        } else {
            inner.slots[self.index] = SlotState::Waiting;
        }
    }
}

impl<T> Drop for StreamLease<T> {
    fn drop(&mut self) {
        // Not under the lock: it may be long in going.
        let Some(stream) = self.stream.take() else { return };
        drop(stream);
        let mut wakeups = Wakeups::new();
        let signals = &self.state.signals;
        let mut inner = signals.inner.lock();
        inner.slots[self.index] = SlotState::Finished;
        inner.unfinished -= 1;
        if inner.unfinished == 0 {
            signals.gate.set_always_ready_deferred(&mut wakeups);
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
