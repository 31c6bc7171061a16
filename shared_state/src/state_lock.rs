//! The lock of a shared state, whose guard carries the wake-ups.
//!
//! A state changes its data and its gates under one lock, and wakers run after the lock is released
//! (rules 2 and 3 of the crate). A [`StateGuard`] gives both: it collects the wakers of the gates
//! that become ready. Dropping it, also in a panic, releases the lock and then runs the wakers.
//!
//! Lock: the one that this file defines.

use std::{
    fmt,
    ops::{Deref, DerefMut},
};

use crate::{
    Dependency, Gate, Wakeups,
    sync::{HeldLock, Mutex, MutexGuard},
};

/// The lock of a shared state, around its data.
///
/// ```
/// use std::task::Waker;
/// use gatework_shared_state::{Dependency, DependencyKind, StateLock};
/// let rows = StateLock::new(Vec::new());
/// let gate = Dependency::blocked("rows", DependencyKind::Source);
/// assert!(!gate.poll_ready(Waker::noop())); // registered
/// let mut guard = rows.lock();
/// guard.push(7);
/// guard.set_ready(&gate);
/// assert!(gate.is_ready());
/// drop(guard); // releases the lock, then calls the waker
/// ```
#[derive(Debug, Default)]
pub struct StateLock<T>(Mutex<T>);

impl<T> StateLock<T> {
    /// Wraps `value`.
    pub fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Locks the data until the guard is dropped.
    pub fn lock(&self) -> StateGuard<'_, T> {
        StateGuard { data: self.0.lock(), held: HeldLock::new(), wakeups: Wakeups::new() }
    }
}

/// The right to use the data of a [`StateLock`], and the wakers to run after it is released.
#[must_use = "dropping it releases the lock"]
pub struct StateGuard<'a, T> {
    // Dropped in this order.
    data: MutexGuard<'a, T>,
    held: HeldLock,
    wakeups: Wakeups,
}

impl<T> StateGuard<'_, T> {
    /// Makes `gate` ready. Its waiters are woken after the lock is released.
    pub fn set_ready(&mut self, gate: &Dependency) {
        gate.set_ready_deferred(&mut self.wakeups);
    }

    /// Makes `gate` ready permanently. Its waiters are woken after the lock is released.
    pub fn set_always_ready(&mut self, gate: &Dependency) {
        gate.set_always_ready_deferred(&mut self.wakeups);
    }

    /// Blocks `gate`, under the lock under which it becomes ready, and returns it: for answers that
    /// say "wait for this gate".
    pub fn block(&self, gate: &Gate) -> Gate {
        gate.block();
        gate.clone()
    }

    /// Returns the data and the list of wakers, for functions that take both.
    pub fn parts(&mut self) -> (&mut T, &mut Wakeups) {
        (&mut self.data, &mut self.wakeups)
    }

    /// Releases the lock, drops `value`, and then runs the wakers. For items that were taken out of
    /// the state: dropping them may take long, or call code that locks.
    pub fn unlock_and_drop<V>(self, value: V) {
        let Self { data, held, wakeups } = self;
        drop((data, held));
        drop(value);
        drop(wakeups);
    }
}

impl<T> Deref for StateGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.data
    }
}

impl<T> DerefMut for StateGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.data
    }
}

impl<T: fmt::Debug> fmt::Debug for StateGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        T::fmt(self, f)
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
