//! The gate: what a task blocks on, and what wakes it.
//!
//! A [`Dependency`] is `Blocked`, `Ready` or `AlwaysReady`. Tests with registration, and the change
//! to ready, happen under one lock (`waiting`). `state` mirrors the flag, so that testing a ready
//! gate, the common case, takes no lock.

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
    check_wake, is_nested,
};

/// A shared [`Dependency`].
pub type Gate = Arc<Dependency>;

const BLOCKED: u8 = 0;
const READY: u8 = 1;
const ALWAYS_READY: u8 = 2;

/// The reason why a task waits at a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DependencyKind {
    /// A source waits for its producers.
    Source,
    /// A sink waits for capacity.
    Sink,
    /// A finished task waits for asynchronous work that it started.
    Finish,
    /// A task waits for its start.
    Start,
    /// A producer watches for the end of its last consumer.
    ConsumersGone,
    /// A scan waits for a runtime filter.
    RuntimeFilter,
    /// A breaker waits for memory that another task, possibly of another query, is asked to
    /// release.
    Memory,
    /// A task waits for work outside the executor: I/O, the stream of a fallback node, the reader
    /// of the result. Gates of all other kinds, except `Memory`, are made ready by tasks of the
    /// same query. A query whose tasks all wait at such gates has stalled, and fails.
    External,
}

/// Collects wakers and runs them when this value is dropped.
///
/// The guard of a shared state owns it ([`StateGuard::parts`](crate::StateGuard::parts)) and drops
/// it after the lock is released. There is no other way to create one:
/// ```compile_fail
/// let wakeups = gatework_shared_state::Wakeups::new();
/// ```
#[derive(Debug)]
pub struct Wakeups {
    wakers: SmallVec<[Waker; 2]>,
    /// A gate of these wakers that became ready while the thread held several state locks.
    nested_gate: Option<String>,
}

impl Wakeups {
    /// Creates an empty list, which allocates nothing.
    #[inline]
    pub(crate) fn new() -> Self {
        Self { wakers: SmallVec::new(), nested_gate: None }
    }

    fn wake_all(&mut self) {
        // The guard's own lock is released. The thread may hold the lock of another state.
        if let Some(gate) = &self.nested_gate {
            check_wake(gate);
        }
        for waker in self.wakers.drain(..) {
            waker.wake();
        }
    }
}

impl Drop for Wakeups {
    #[inline]
    fn drop(&mut self) {
        if !self.wakers.is_empty() {
            self.wake_all();
        }
    }
}

/// From this number of wakers on, a registration appends its waker without looking for a duplicate.
/// Duplicates are removed when the list is twice as long as after the last removal, and before the
/// list is woken. A registration's amortized cost is therefore constant, however many tasks wait at
/// a gate and however often.
const DEDUP_THRESHOLD: usize = 16;

#[derive(Debug)]
struct Waiting {
    /// Wakers for the next change to ready. Up to [`DEDUP_THRESHOLD`], the list has no duplicates.
    wakers: SmallVec<[Waker; 1]>,
    /// When the first waker was registered since the gate was blocked; for the blocked time.
    waited_since: Option<Instant>,
    blocked: Duration,
    blocks: u64,
    /// Number of wakers examined for duplicates.
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
            // The list doubles before its next deduplication.
            self.wakers.reserve(self.wakers.len().max(DEDUP_THRESHOLD));
        }
        self.wakers.push(waker);
    }

    fn dedup(&mut self) {
        // Wakers with the same data and vtable wake the same task.
        let id = |waker: &Waker| (waker.data(), std::ptr::from_ref(waker.vtable()));
        #[cfg(test)]
        {
            self.examined += self.wakers.len();
        }
        let mut known = HashSet::with_capacity(self.wakers.len());
        self.wakers.retain(|waker| known.insert(id(waker)));
    }

    /// Takes the wakers out, each once.
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
/// gate.block(); // no effect on a gate that is always ready
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
    /// Creates a blocked gate.
    pub fn blocked(name: impl Into<Cow<'static, str>>, kind: DependencyKind) -> Gate {
        Self::with_state(name.into(), kind, BLOCKED)
    }

    /// Creates a ready gate.
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

    /// Returns the gate's name, for profiles and dumps.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the gate's kind.
    pub fn kind(&self) -> DependencyKind {
        self.kind
    }

    /// Returns whether the gate is ready at this moment. To wait for a blocked gate, use
    /// [`poll_ready`](Self::poll_ready).
    pub fn is_ready(&self) -> bool {
        // Acquire pairs with the Release store in `transition`: a thread that sees the gate ready
        // sees everything that was done before it became ready.
        self.state.load(Ordering::Acquire) != BLOCKED
    }

    /// Blocks the gate, unless it is always ready.
    pub fn block(&self) {
        let _waiting = self.waiting.lock();
        if self.state.load(Ordering::Relaxed) == READY {
            // Relaxed: a reader that still sees READY acts as if it had come before.
            self.state.store(BLOCKED, Ordering::Relaxed);
        }
    }

    /// Makes the gate ready and wakes all waiters. A caller under the lock of a shared state uses
    /// [`StateGuard::set_ready`](crate::StateGuard::set_ready) instead.
    pub fn set_ready(&self) {
        self.make_ready_and_wake(READY);
    }

    /// Makes the gate ready permanently and wakes all waiters. A caller under the lock of a shared
    /// state uses [`StateGuard::set_always_ready`](crate::StateGuard::set_always_ready) instead.
    pub fn set_always_ready(&self) {
        self.make_ready_and_wake(ALWAYS_READY);
    }

    /// Does what [`set_ready`](Self::set_ready) does, for a caller under a lock: the wakers are
    /// added to `wakeups`.
    pub fn set_ready_deferred(&self, wakeups: &mut Wakeups) {
        self.make_ready(READY, wakeups);
    }

    /// Does what [`set_ready_deferred`](Self::set_ready_deferred) does, for a caller under the only
    /// lock under which this gate is blocked. Takes no lock if the gate is ready, since no other
    /// thread can block it now.
    pub(crate) fn set_ready_exclusive(&self, wakeups: &mut Wakeups) {
        // Relaxed: the last `block` happened under the caller's lock, and a ready gate has no
        // waiters.
        if self.state.load(Ordering::Relaxed) == BLOCKED {
            self.make_ready(READY, wakeups);
        }
    }

    /// Does what [`set_always_ready`](Self::set_always_ready) does, for a caller under a lock: the
    /// wakers are added to `wakeups`.
    pub fn set_always_ready_deferred(&self, wakeups: &mut Wakeups) {
        self.make_ready(ALWAYS_READY, wakeups);
    }

    fn make_ready_and_wake(&self, to: u8) {
        let mut others: SmallVec<[Waker; 2]> = SmallVec::new();
        let only = {
            let mut waiting = self.waiting.lock();
            self.transition(to, &mut waiting);
            match waiting.wakers.len() {
                0 | 1 => waiting.wakers.pop(),
                _ => {
                    others.extend(waiting.take());
                    None
                }
            }
        };
        if only.is_some() || !others.is_empty() {
            check_wake(&self.name);
        }
        if let Some(waker) = only {
            waker.wake();
        }
        others.into_iter().for_each(Waker::wake);
    }

    fn make_ready(&self, to: u8, wakeups: &mut Wakeups) {
        let mut waiting = self.waiting.lock();
        self.transition(to, &mut waiting);
        if !waiting.wakers.is_empty() && is_nested() {
            wakeups.nested_gate = Some(self.name.to_string());
        }
        wakeups.wakers.extend(waiting.take());
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

    /// Tests the gate and, if it is blocked, registers `waker`, in one atomic step.
    ///
    /// Returns `true` if the gate is ready; then nothing was registered. Returns `false` if `waker`
    /// will be woken when the gate becomes ready. A waker that is registered twice is woken once.
    pub fn poll_ready(&self, waker: &Waker) -> bool {
        self.is_ready() || self.register(waker.clone(), Instant::now)
    }

    /// Does what [`poll_ready`](Self::poll_ready) does, for a caller that passes its waker by value
    /// and knows the time.
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

    /// Returns the time for which tasks have waited at the gate so far.
    pub fn blocked_time(&self) -> Duration {
        let waiting = self.waiting.lock();
        waiting.blocked + waiting.waited_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Returns the number of times that the gate changed from having no waiter to having one.
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
