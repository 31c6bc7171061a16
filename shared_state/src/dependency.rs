//! The gate: what a task is blocked on, and what wakes it.
//!
//! A [`Dependency`] is `Blocked`, `Ready` or `AlwaysReady`. Tests and registrations, and the change
//! to ready, happen under one lock (`waiting`); `state` mirrors the flag so that the common test of
//! an open gate takes no lock.

use std::{
    borrow::Cow,
    collections::HashSet,
    fmt,
    sync::Arc,
    task::Waker,
    time::{Duration, Instant},
};

use smallvec::SmallVec;

use crate::sync::{
    Mutex,
    atomic::{AtomicU8, Ordering},
};

/// A shared [`Dependency`].
pub type Gate = Arc<Dependency>;

const BLOCKED: u8 = 0;
const READY: u8 = 1;
const ALWAYS_READY: u8 = 2;

/// What a gate stands for: the reason a task waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DependencyKind {
    /// A source waits for its producers.
    Source,
    /// A sink waits for room.
    Sink,
    /// A finished task waits for work it started elsewhere.
    Finish,
    /// A task waits for its start.
    Start,
    /// A producer watches for the end of its last consumer.
    ConsumersGone,
    /// A scan waits for a runtime filter.
    RuntimeFilter,
    /// A breaker waits for memory that another task gives back, perhaps one of another query.
    Memory,
    /// Something outside the executor: I/O, a foreign stream, the reader of the result. All other kinds, but
    /// for memory, are opened by tasks of the same query: one whose tasks all wait for such has stalled, and
    /// fails.
    External,
}

/// Wakers to be run, at the latest when this value is dropped.
///
/// A shared state declares it *before* it takes its lock, so that wakers run after the lock is
/// released, even if the code in between panics.
#[derive(Debug, Default)]
#[must_use = "dropping it runs the wakers, so keep it alive until the lock is released"]
pub struct Wakeups(SmallVec<[Waker; 2]>);

impl Wakeups {
    /// Nobody to wake yet.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Drop for Wakeups {
    fn drop(&mut self) {
        for waker in self.0.drain(..) {
            waker.wake();
        }
    }
}

/// From so many wakers on, new ones are entered as they come, and those that were known already are taken
/// out when the list has twice as many as were left the last time, and before it is woken. So each
/// that is entered costs the same, however many tasks wait at a gate, and how often.
const DEDUP_THRESHOLD: usize = 16;

#[derive(Debug)]
struct Waiting {
    /// Those to wake at the next change to ready. Up to [`DEDUP_THRESHOLD`], none is in here twice.
    wakers: SmallVec<[Waker; 1]>,
    /// When the gate was blocked while someone waits, for the blocked time.
    waited_since: Option<Instant>,
    blocked: Duration,
    blocks: u64,
    /// How many wakers were looked at for those that come more than once.
    #[cfg(test)]
    examined: usize,
}

impl Waiting {
    fn add(&mut self, waker: Waker) {
        let wakers = &mut self.wakers;
        if wakers.len() < DEDUP_THRESHOLD {
            if !wakers.iter().any(|known| known.will_wake(&waker)) {
                wakers.push(waker);
            }
            return;
        }
        if wakers.len() == wakers.capacity() {
            self.dedup();
            // As many again may come before the next look at all of them.
            self.wakers.reserve(self.wakers.len().max(DEDUP_THRESHOLD));
        }
        self.wakers.push(waker);
    }

    fn dedup(&mut self) {
        // Wakers with the same data and functions wake the same.
        let id = |waker: &Waker| (waker.data(), std::ptr::from_ref(waker.vtable()));
        #[cfg(test)]
        {
            self.examined += self.wakers.len();
        }
        let mut known = HashSet::with_capacity(self.wakers.len());
        self.wakers.retain(|waker| known.insert(id(waker)));
    }

    /// Those to wake, each once.
    fn take(&mut self) -> impl Iterator<Item = Waker> {
        if self.wakers.len() > DEDUP_THRESHOLD {
            self.dedup();
        }
        self.wakers.drain(..)
    }
}

/// A gate. See the crate's documentation for the protocol.
///
/// ```
/// use std::task::Waker;
/// use gatework_shared_state::{Dependency, DependencyKind};
/// let gate = Dependency::blocked("rows", DependencyKind::Source);
/// assert!(!gate.poll_ready(Waker::noop())); // registered
/// gate.set_ready();
/// assert!(gate.poll_ready(Waker::noop()));
/// gate.set_always_ready();
/// gate.block(); // no effect any more
/// assert!(gate.is_ready());
/// ```
pub struct Dependency {
    name: Cow<'static, str>,
    kind: DependencyKind,
    /// Mirror of the gate's state, written only under `waiting`.
    state: AtomicU8,
    waiting: Mutex<Waiting>,
}

impl Dependency {
    /// A gate that is shut.
    pub fn blocked(name: impl Into<Cow<'static, str>>, kind: DependencyKind) -> Gate {
        Self::with_state(name.into(), kind, BLOCKED)
    }

    /// A gate that is open.
    pub fn ready(name: impl Into<Cow<'static, str>>, kind: DependencyKind) -> Gate {
        Self::with_state(name.into(), kind, READY)
    }

    fn with_state(name: Cow<'static, str>, kind: DependencyKind, state: u8) -> Gate {
        Arc::new(Self {
            name,
            kind,
            state: AtomicU8::new(state),
            waiting: Mutex::new(Waiting {
                wakers: SmallVec::new(),
                waited_since: None,
                blocked: Duration::ZERO,
                blocks: 0,
                #[cfg(test)]
                examined: 0,
            }),
        })
    }

    /// The gate's name, for profiles and dumps.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The gate's kind.
    pub fn kind(&self) -> DependencyKind {
        self.kind
    }

    /// Whether the gate is open at this moment. To act on "no", use [`poll_ready`](Self::poll_ready).
    pub fn is_ready(&self) -> bool {
        // Acquire pairs with the Release stores in `transition`: who sees the gate open sees what was
        // done before it was opened.
        self.state.load(Ordering::Acquire) != BLOCKED
    }

    /// Shuts the gate, unless it is always ready.
    pub fn block(&self) {
        let _waiting = self.waiting.lock();
        if self.state.load(Ordering::Relaxed) == READY {
            // Relaxed: readers that still see READY act as if they had come before.
            self.state.store(BLOCKED, Ordering::Relaxed);
        }
    }

    /// Opens the gate and wakes all who wait.
    pub fn set_ready(&self) {
        self.make_ready_and_wake(READY);
    }

    /// Opens the gate for ever and wakes all who wait.
    pub fn set_always_ready(&self) {
        self.make_ready_and_wake(ALWAYS_READY);
    }

    /// [`set_ready`](Self::set_ready) under a lock: the wakers go to `wakeups`.
    pub fn set_ready_deferred(&self, wakeups: &mut Wakeups) {
        self.make_ready(READY, wakeups);
    }

    /// The same under the one lock under which this gate is shut: free if it is open, since nobody can shut it now.
    pub(crate) fn set_ready_exclusive(&self, wakeups: &mut Wakeups) {
        // Relaxed: the last to shut it did so under the caller's lock. One that is open has nobody waiting.
        if self.state.load(Ordering::Relaxed) == BLOCKED {
            self.make_ready(READY, wakeups);
        }
    }

    /// [`set_always_ready`](Self::set_always_ready) under a lock: the wakers go to `wakeups`.
    pub fn set_always_ready_deferred(&self, wakeups: &mut Wakeups) {
        self.make_ready(ALWAYS_READY, wakeups);
    }

    fn make_ready_and_wake(&self, to: u8) {
        let mut wakeups = Wakeups::new();
        let only = {
            let mut waiting = self.waiting.lock();
            self.transition(to, &mut waiting);
            match waiting.wakers.len() {
                0 | 1 => waiting.wakers.pop(),
                _ => {
                    wakeups.0.extend(waiting.take());
                    None
                }
            }
        };
        if let Some(waker) = only {
            waker.wake();
        }
    }

    fn make_ready(&self, to: u8, wakeups: &mut Wakeups) {
        let mut waiting = self.waiting.lock();
        self.transition(to, &mut waiting);
        wakeups.0.extend(waiting.take());
    }

    fn transition(&self, to: u8, waiting: &mut Waiting) {
        let from = self.state.load(Ordering::Relaxed);
        if from < to {
            // Release pairs with the Acquire in `is_ready`.
            self.state.store(to, Ordering::Release);
        }
        if let Some(since) = waiting.waited_since.take() {
            waiting.blocked += since.elapsed();
        }
    }

    /// Tests the gate and, if it is shut, registers `waker`, in one atomic step.
    ///
    /// `true`: the gate is open, nothing was registered. `false`: `waker` will be woken when the
    /// gate opens. A waker that is registered already is not woken twice.
    pub fn poll_ready(&self, waker: &Waker) -> bool {
        self.is_ready() || self.register(waker.clone(), Instant::now)
    }

    /// [`poll_ready`](Self::poll_ready) for a caller that gives its waker away and knows the time.
    pub fn poll_ready_at(&self, waker: Waker, now: Instant) -> bool {
        self.is_ready() || self.register(waker, || now)
    }

    fn register(&self, waker: Waker, now: impl FnOnce() -> Instant) -> bool {
        let mut waiting = self.waiting.lock();
        if self.state.load(Ordering::Relaxed) != BLOCKED {
            return true;
        }
        if waiting.waited_since.is_none() {
            waiting.waited_since = Some(now());
            waiting.blocks += 1;
        }
        waiting.add(waker);
        false
    }

    /// How long the gate was shut with someone waiting, so far.
    pub fn blocked_time(&self) -> Duration {
        let waiting = self.waiting.lock();
        waiting.blocked + waiting.waited_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// How often someone found the gate shut and waited.
    pub fn blocked_count(&self) -> u64 {
        self.waiting.lock().blocks
    }
}

impl fmt::Debug for Dependency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state.load(Ordering::Relaxed) {
            BLOCKED => "blocked",
            READY => "ready",
            _ => "always ready",
        };
        write!(f, "{} ({:?}, {state})", self.name, self.kind)
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests;
