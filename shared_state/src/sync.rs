//! The single source of synchronisation types, so that loom and shuttle can replace them.
//!
//! Under `--cfg loom` and `--cfg shuttle` the lock and the atomics are the model checker's; in a
//! normal build they are `parking_lot` and `std`. `Arc` stays `std`'s because `std::task::Waker`
//! is built on it. A shared state takes its lock from [`StateLock`](crate::StateLock), which is
//! built on [`Mutex`]. [`wakes_under_lock`] and [`set_unlock_hook`] are for test harnesses.

mod checks;

#[cfg(loom)]
pub use loom::sync::atomic;
#[cfg(shuttle)]
pub use shuttle::sync::atomic;
#[cfg(not(any(loom, shuttle)))]
pub use std::sync::atomic;

pub(crate) use checks::{HeldLock, check_wake, is_nested};
pub use checks::{set_unlock_hook, wakes_under_lock};

#[cfg(not(any(loom, shuttle)))]
pub use parking_lot::{Mutex, MutexGuard};

#[cfg(any(loom, shuttle))]
pub use model::{Mutex, MutexGuard};

#[cfg(any(loom, shuttle))]
mod model {
    #[cfg(loom)]
    use loom::sync as imp;
    #[cfg(shuttle)]
    use shuttle::sync as imp;

    pub use imp::MutexGuard;

    /// A lock with `parking_lot`'s interface over the model checker's lock.
    #[derive(Debug)]
    pub struct Mutex<T>(imp::Mutex<T>);

    impl<T> Mutex<T> {
        /// Wraps `value`.
        pub fn new(value: T) -> Self {
            Self(imp::Mutex::new(value))
        }

        /// Locks; enters a poisoned lock, as `parking_lot` does.
        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
        }

        /// Locks unless the lock is taken.
        pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok()
        }
    }

    impl<T: Default> Default for Mutex<T> {
        fn default() -> Self {
            Self::new(T::default())
        }
    }
}
