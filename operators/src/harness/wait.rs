//! Blocking wait on an asynchronous condition, with a timeout.

use std::{
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::{Duration, Instant},
};

struct ThreadWaker(Thread);

impl Wake for ThreadWaker {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Polls until `poll` is ready and returns its value; `None` after `timeout`.
pub(super) fn block_on_timeout<T>(
    timeout: Duration,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Option<T> {
    let started = Instant::now();
    let waker = Waker::from(Arc::new(ThreadWaker(thread::current())));
    loop {
        if let Poll::Ready(value) = poll(&mut Context::from_waker(&waker)) {
            return Some(value);
        }
        // An unpark before this call leaves a token, so it is not lost.
        thread::park_timeout(timeout.checked_sub(started.elapsed())?);
    }
}
