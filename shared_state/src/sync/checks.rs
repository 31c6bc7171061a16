//! Checks of [`StateLock`](crate::StateLock) for test harnesses: wake-ups under a lock, and a hook
//! that runs between unlocking and waking. Both are process-wide.
//!
//! Model checkers run all threads of a model on one thread of the operating system. Under
//! `--cfg loom` and `--cfg shuttle` the functions are there and do nothing.

#[cfg(not(any(loom, shuttle)))]
pub(crate) use real::{HeldLock, check_wake};
#[cfg(not(any(loom, shuttle)))]
pub use real::{set_unlock_hook, wakes_under_lock};

#[cfg(any(loom, shuttle))]
pub(crate) use inert::{HeldLock, check_wake};
#[cfg(any(loom, shuttle))]
pub use inert::{set_unlock_hook, wakes_under_lock};

#[cfg(not(any(loom, shuttle)))]
mod real {
    use std::{
        cell::Cell,
        sync::atomic::{AtomicBool, Ordering},
    };

    use parking_lot::Mutex;

    thread_local! {
        /// Number of state locks that this thread holds.
        static HELD: Cell<usize> = const { Cell::new(0) };
    }

    /// The number of wake-ups under a lock, and the gate of the last one.
    static WAKES: Mutex<(usize, Option<String>)> = Mutex::new((0, None));

    static HOOK: Mutex<Option<fn()>> = Mutex::new(None);

    /// Whether there is a hook, so that an unlock without one takes no lock.
    static HAS_HOOK: AtomicBool = AtomicBool::new(false);

    /// Returns how often a waker was called under the lock of a shared state, and the name of the
    /// last such gate. For test harnesses: the number must stay 0.
    ///
    /// Counts calls of [`Dependency::set_ready`](crate::Dependency::set_ready) and
    /// [`set_always_ready`](crate::Dependency::set_always_ready) that wake while the thread holds a
    /// [`StateGuard`](crate::StateGuard). Also counts a guard that wakes while the thread holds
    /// another one. Such a waker may need the lock that the thread holds: a deadlock.
    pub fn wakes_under_lock() -> (usize, Option<String>) {
        WAKES.lock().clone()
    }

    /// Sets the function that runs after each release of a [`StateLock`](crate::StateLock), before
    /// the wakers. `None` removes it. For test harnesses.
    ///
    /// A hook that yields the thread lets other threads run between the release of the lock and
    /// what follows. Code that changes data, unlocks, and then blocks a gate then fails more often.
    /// The hook must not panic, and must not lock a `StateLock`.
    pub fn set_unlock_hook(hook: Option<fn()>) {
        let mut current = HOOK.lock();
        *current = hook;
        // Relaxed, as the load in `HeldLock::drop`: the hook itself is read under its lock.
        HAS_HOOK.store(hook.is_some(), Ordering::Relaxed);
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
            // Relaxed, as the store in `set_unlock_hook`.
            if HAS_HOOK.load(Ordering::Relaxed) {
                run_hook();
            }
        }
    }

    #[cold]
    fn run_hook() {
        let hook = *HOOK.lock();
        if let Some(hook) = hook {
            hook();
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
        let mut wakes = WAKES.lock();
        wakes.0 += 1;
        wakes.1 = Some(gate.to_owned());
    }
}

#[cfg(any(loom, shuttle))]
mod inert {
    /// Returns 0 and `None`: models do not count wake-ups under a lock.
    pub fn wakes_under_lock() -> (usize, Option<String>) {
        (0, None)
    }

    /// Does nothing: model checkers choose the interleavings.
    pub fn set_unlock_hook(_hook: Option<fn()>) {}

    #[derive(Debug)]
    pub(crate) struct HeldLock(());

    impl HeldLock {
        pub(crate) fn new() -> Self {
            Self(())
        }
    }

    pub(crate) fn check_wake(_gate: &str) {}
}
