//! Threads for work that recurses deeply, and may keep its thread busy for long.
//!
//! DataFusion's planner recurses once per nesting level of a statement, and so does dropping its
//! plans. Such work runs on threads of its own with large stacks. A time limit or a signal takes
//! effect while they are busy. Only the touched pages of a stack take memory.

use std::any::Any;
use std::cell::RefCell;
use std::future::Future;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::select;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::error::{Error, one_line};

/// Stack sizes in bytes; the first that the system has address space for is used.
/// `statements::depth` refuses statements that need more than the largest.
const STACK_BYTES: [usize; 3] = [1 << 30, 128 << 20, 8 << 20];

/// Name of the threads, which identifies their panics.
const NAME: &str = "statement";

/// Result of the work, or the message of its panic.
pub(crate) type Done<T> = oneshot::Receiver<Result<T, String>>;

thread_local! {
    /// Location of this thread's last panic.
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps panics of these threads from standard error; they become one sentence of an error.
pub(crate) fn capture_panics() {
    let others = panic::take_hook();
    panic::set_hook(Box::new(move |panic| match thread::current().name() {
        Some(NAME) => {
            let location = panic.location().map(ToString::to_string).unwrap_or_default();
            PLACE.with_borrow_mut(|known| *known = location);
        }
        _ => others(panic),
    }));
}

/// Starts a future on a thread of its own, in the context of the current runtime. `make` creates
/// the future there, so it need not be `Send`.
pub(crate) fn spawn<T, F>(make: impl FnOnce() -> F + Send + 'static) -> Result<Done<T>, Error>
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    let (sender, done) = oneshot::channel();
    let runtime = Handle::current();
    let work = move || {
        let result = catch_unwind(AssertUnwindSafe(|| runtime.block_on(make())));
        let result = result.map_err(|panic| said(panic.as_ref()));
        // The receiver is dropped if the time limit has passed.
        let _late = sender.send(result);
    };
    start(work).map(|()| done)
}

fn start(work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    // A thread that fails to start drops its closure, so the work stays in a shared slot.
    let work = Arc::new(Mutex::new(Some(work)));
    let mut failed = None;
    for bytes in STACK_BYTES {
        let work = work.clone();
        let body = move || {
            let work = work.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(work) = work {
                work();
            }
        };
        match thread::Builder::new().name(NAME.into()).stack_size(bytes).spawn(body) {
            Ok(_) => return Ok(()),
            Err(error) => failed = Some(error),
        }
    }
    let reason = failed.map(|error| error.to_string()).unwrap_or_default();
    Err(Error::failed(format!(
        "a thread with a stack of {} MiB cannot be started: {reason}; allow more memory",
        STACK_BYTES[2] >> 20
    )))
}

/// Runs `work` on a thread of its own, for at most `limit`. Dropping the returned future ends the
/// work at its next await; a busy thread is detached. `what` names the work in errors.
pub(crate) async fn run<T: Send + 'static>(
    what: &str,
    limit: Option<Duration>,
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    let (_stop, stopped) = oneshot::channel::<()>();
    let done = spawn(move || async move {
        select! {
            biased;
            _ = stopped => None,
            result = work => Some(result),
        }
    })?;
    let done = match limit {
        None => done.await,
        Some(limit) => timeout(limit, done).await.map_err(|_| {
            Error::failed(format!(
                "{what} was ended after {limit:?}, its time limit; raise --timeout"
            ))
        })?,
    };
    match done {
        Ok(Ok(Some(result))) => result,
        Ok(Err(said)) => Err(panicked(what, &said)),
        Ok(Ok(None)) | Err(_) => Err(Error::failed(format!("{what} ended without a result"))),
    }
}

/// The message and the location of a panic.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    format!("{} ({})", one_line(text), PLACE.take())
}

/// The error of work that panicked: a library has a bug, or does not expect a file's contents.
pub(crate) fn panicked(what: &str, said: &str) -> Error {
    Error::failed(format!("{what} failed because of a bug or a damaged file: {said}"))
}

#[cfg(test)]
mod tests;
