//! Waits of threads after they release the lock of a shared state, within calls of queries whose
//! chaos asks for it.
//!
//! After one unlock in three, the thread waits until another thread has released such a lock, too.
//! So other tasks change the state between the release of the lock and what follows: code that
//! releases a lock and blocks a gate afterwards loses a wake-up. The waits of all queries with one
//! [`Chaos`](super::Chaos) are bounded in time, one by one and together.

use std::{
    cell::RefCell,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use gatework_shared_state::sync::set_unlock_hook;

/// Maximum time of a wait. The other thread may have to wait for a processor.
const MAX_WAIT: Duration = Duration::from_millis(10);
/// Maximum time of all waits with one chaos.
const MAX_WAITS: Duration = Duration::from_millis(50);

/// The unlocks in the calls of the queries with one chaos.
#[derive(Debug)]
pub(super) struct Unlocks {
    seed: u64,
    count: AtomicU64,
    waited_nanos: AtomicU64,
}

thread_local! {
    /// The unlocks that the call on this thread counts in; `None` outside of such calls.
    static UNLOCKS: RefCell<Option<Arc<Unlocks>>> = const { RefCell::new(None) };
}

impl Unlocks {
    pub(super) fn new(seed: u64) -> Arc<Self> {
        set_unlock_hook(after_unlock);
        Arc::new(Self { seed, count: AtomicU64::new(0), waited_nanos: AtomicU64::new(0) })
    }

    /// Counts the unlocks of this thread, and lets it wait after them, until the guard is dropped.
    pub(super) fn enter(self: &Arc<Self>) -> InCall {
        InCall(UNLOCKS.replace(Some(self.clone())))
    }

    // Relaxed: the counters publish nothing.
    fn after_unlock(&self) {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let waited = Duration::from_nanos(self.waited_nanos.load(Ordering::Relaxed));
        if !(count + self.seed).is_multiple_of(3) || waited > MAX_WAITS {
            return thread::yield_now();
        }
        let started = Instant::now();
        while self.count.load(Ordering::Relaxed) == count && started.elapsed() < MAX_WAIT {
            thread::yield_now();
        }
        let waited = started.elapsed().as_nanos() as u64;
        self.waited_nanos.fetch_add(waited, Ordering::Relaxed);
    }
}

/// A call on this thread; see [`Unlocks::enter`].
pub(super) struct InCall(Option<Arc<Unlocks>>);

impl Drop for InCall {
    fn drop(&mut self) {
        UNLOCKS.replace(self.0.take());
    }
}

fn after_unlock() {
    // A lock may be released while the thread ends.
    let unlocks = UNLOCKS.try_with(|unlocks| unlocks.borrow().clone());
    if let Ok(Some(unlocks)) = unlocks {
        unlocks.after_unlock();
    }
}
