//! Threads for work that recurses deeply, and that may keep its thread busy for long.
//!
//! DataFusion's planner recurses as deep as a statement is nested, and so does dropping its plans.
//! Such work runs on threads of its own: their stacks are large, and a time limit or a signal is
//! heard while they are busy. Only the pages of a stack that were reached take memory.

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

/// Sizes of stacks, in bytes, of which the first is taken that the system has address space for.
/// `statements::depth` refuses what needs more than the largest.
const STACK_BYTES: [usize; 3] = [1 << 30, 128 << 20, 8 << 20];

/// The name of the threads, by which their panics are told from others.
const NAME: &str = "statement";

/// What became of work: its result, or what its panic said.
pub(crate) type Done<T> = oneshot::Receiver<Result<T, String>>;

thread_local! {
    /// Where this thread has panicked.
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps panics of these threads from standard error: they become the one sentence of an error.
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

/// Starts a future on a thread of its own, in the context of the current runtime. `make` makes it
/// there, so it need not be `Send`.
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
        // Nobody waits for it any more if it was late.
        let _late = sender.send(result);
    };
    start(work).map(|()| done)
}

fn start(work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    // A thread that does not start takes what it was given with it.
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

/// Runs `work` on a thread of its own, for at most `limit`. Dropping what this returns ends the
/// work at its next await; what keeps its thread busy is left alone. `what` names it in the error.
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

/// What a panic says, and where it was.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    format!("{} ({})", one_line(text), PLACE.take())
}

/// The error for work that panicked: a library did, by a fault of its own or for a file that it
/// does not expect.
pub(crate) fn panicked(what: &str, said: &str) -> Error {
    Error::failed(format!("{what} failed by a bug, or since a file is damaged: {said}"))
}

#[cfg(test)]
mod tests;
