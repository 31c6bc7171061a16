//! Yields of threads after they release the lock of a shared state, within calls of queries whose
//! chaos asks for it.
//!
//! Between the release of a lock and what follows, other threads then run more often: code that
//! releases a lock and blocks a gate afterwards loses a wake-up.

use std::{cell::Cell, thread, time::Duration};

use gatework_shared_state::sync::set_unlock_hook;

thread_local! {
    /// Number of the unlocks in this thread's call so far; `None` outside calls that yield.
    static UNLOCKS: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Lets this thread yield after each unlock until it is dropped.
pub(super) struct YieldsAfterUnlocks(Option<u32>);

impl YieldsAfterUnlocks {
    pub(super) fn new() -> Self {
        set_unlock_hook(after_unlock);
        Self(UNLOCKS.replace(Some(0)))
    }
}

impl Drop for YieldsAfterUnlocks {
    fn drop(&mut self) {
        UNLOCKS.set(self.0);
    }
}

fn after_unlock() {
    let Some(unlocks) = UNLOCKS.get() else { return };
    UNLOCKS.set(Some(unlocks.wrapping_add(1)));
    // A yield alone rarely lets a sleeping thread run.
    match unlocks % 3 {
        0 => thread::sleep(Duration::from_micros(400)),
        _ => thread::yield_now(),
    }
}
