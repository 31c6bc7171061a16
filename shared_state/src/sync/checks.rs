//! Checks of [`StateLock`](crate::StateLock) for test harnesses: wake-ups under a lock, and a hook
//! that runs between unlocking and waking. Both are process-wide.
//!
//! Model checkers run all threads of a model on one thread of the operating system. Under
//! `--cfg loom` and `--cfg shuttle` the functions are there and do nothing.

#[cfg(not(any(loom, shuttle)))]
pub(crate) use real::{HeldLock, check_wake, is_nested};
#[cfg(not(any(loom, shuttle)))]
pub use real::{set_unlock_hook, wakes_under_lock};

#[cfg(any(loom, shuttle))]
pub(crate) use inert::{HeldLock, check_wake, is_nested};
#[cfg(any(loom, shuttle))]
pub use inert::{set_unlock_hook, wakes_under_lock};

#[cfg(not(any(loom, shuttle)))]
mod real {
    use std::{cell::Cell, collections::BTreeMap, sync::OnceLock};

    use parking_lot::Mutex;

    thread_local! {
        /// Number of state locks that this thread holds.
        static HELD: Cell<usize> = const { Cell::new(0) };
    }

    /// The number of wake-ups under a lock, by gate.
    static WAKES: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());

    static HOOK: OnceLock<fn()> = OnceLock::new();

    /// Returns how often wakers were called under the lock of a shared state, by the name of their
    /// gate. For test harnesses: there must be none.
    ///
    /// Counts calls of [`Dependency::set_ready`](crate::Dependency::set_ready) and
    /// [`set_always_ready`](crate::Dependency::set_always_ready) that wake while the thread holds a
    /// [`StateGuard`](crate::StateGuard). Also counts a guard that wakes while the thread holds
    /// another one. Such a waker may need the lock that the thread holds: a deadlock.
    pub fn wakes_under_lock() -> BTreeMap<String, usize> {
        WAKES.lock().clone()
    }

    /// Sets the function that runs after each release of a [`StateLock`](crate::StateLock), before
    /// the wakers. For test harnesses. The first function stays; later calls have no effect.
    ///
    /// A hook that yields the thread lets other threads run between the release of the lock and
    /// what follows. Code that changes data, unlocks, and then blocks a gate then fails more often.
    /// The hook must not panic, and must not lock a `StateLock`.
    pub fn set_unlock_hook(hook: fn()) {
        HOOK.get_or_init(|| hook);
    }

    /// Returns whether this thread holds several state locks, so that the guard of the inner one
    /// wakes under the outer one.
    pub(crate) fn is_nested() -> bool {
        HELD.get() > 1
    }

    /// Counts a lock as held by this thread. Dropped right after the lock is released.
    #[derive(Debug)]
    pub(crate) struct HeldLock(());

    impl HeldLock {
        #[inline]
        pub(crate) fn new() -> Self {
            HELD.set(HELD.get() + 1);
            Self(())
        }
    }

    impl Drop for HeldLock {
        #[inline]
        fn drop(&mut self) {
            HELD.set(HELD.get() - 1);
            if let Some(hook) = HOOK.get() {
                hook();
            }
        }
    }

    /// Records a wake-up if this thread holds a state lock. Called before wakers run.
    pub(crate) fn check_wake(gate: &str) {
        if HELD.get() > 0 {
            record_wake(gate);
        }
    }

    #[cold]
    fn record_wake(gate: &str) {
        *WAKES.lock().entry(gate.to_owned()).or_default() += 1;
    }
}

#[cfg(any(loom, shuttle))]
mod inert {
    use std::collections::BTreeMap;

    /// Returns nothing: models do not count wake-ups under a lock.
    pub fn wakes_under_lock() -> BTreeMap<String, usize> {
        BTreeMap::new()
    }

    /// Does nothing: model checkers choose the interleavings.
    pub fn set_unlock_hook(_hook: fn()) {}

    pub(crate) fn is_nested() -> bool {
        false
    }

    #[derive(Debug)]
    pub(crate) struct HeldLock(());

    impl HeldLock {
        pub(crate) fn new() -> Self {
            Self(())
        }
    }

    pub(crate) fn check_wake(_gate: &str) {}
}
