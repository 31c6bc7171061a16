//! Waiting for something asynchronous on a plain thread, but not for ever.

use std::{
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::{Duration, Instant},
};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// What `poll` comes to; `None` if that takes longer than `longest`.
pub(super) fn wait<T>(
    longest: Duration,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Option<T> {
    let started = Instant::now();
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        if let Poll::Ready(value) = poll(&mut Context::from_waker(&waker)) {
            return Some(value);
        }
        // An unpark that comes before this leaves a token, so it is not lost.
        thread::park_timeout(longest.checked_sub(started.elapsed())?);
    }
}
