//! Threads for work that recurses deeply, and may keep its thread busy for long.
//!
//! DataFusion's planner recurses once per nesting level of a statement, and so does dropping its
//! plans. Such work runs on threads of its own with large stacks. A time limit or a signal takes
//! effect while they are busy.
//!
//! Starting a thread with a stack of its own costs as much as planning a small statement, so
//! threads that have finished their work wait for more. Only the touched pages of a stack take
//! memory; a thread that deep work has touched ends after it (`end_after_work`), which frees them.
//! Lock: `IDLE`; a thread adds itself before it waits, and only a caller that took it from there
//! sends it work.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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

/// Maximum number of threads that wait for work. A command has at most as many pieces of work at
/// once unless time limits have passed.
const MAX_IDLE: usize = 4;

type Work = Box<dyn FnOnce() + Send>;

/// Senders to the threads that wait for work.
static IDLE: Mutex<Vec<Sender<Work>>> = Mutex::new(Vec::new());

/// Result of the work, or the message of its panic.
pub(crate) type Done<T> = oneshot::Receiver<Result<T, String>>;

thread_local! {
    /// Location of this thread's last panic.
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
    /// Whether this thread ends after its work.
    static ENDS: Cell<bool> = const { Cell::new(false) };
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

/// Ends the calling thread after its current work. Called by work that recurses deeply.
pub(crate) fn end_after_work() {
    ENDS.set(true);
}

fn idle_threads() -> MutexGuard<'static, Vec<Sender<Work>>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives `work` to a thread that waits for some, or else to a new one.
fn start(work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let idle = idle_threads().pop();
    let Some(thread) = idle else { return start_thread(Box::new(work)) };
    // A thread that waits receives until its sender is dropped.
    thread.send(Box::new(work)).map_err(|_| Error::failed("a thread of the command has ended"))
}

fn start_thread(work: Work) -> Result<(), Error> {
    // A thread that fails to start drops its closure, so the work stays in a shared slot.
    let work = Arc::new(Mutex::new(Some(work)));
    let mut failed = None;
    for bytes in STACK_BYTES {
        let work = work.clone();
        let body = move || {
            let work = work.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(work) = work {
                serve(work);
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

/// Does `work`, and then the work that callers send, until enough other threads wait.
fn serve(work: Work) {
    work();
    loop {
        let (sender, receiver) = mpsc::channel();
        {
            let mut idle = idle_threads();
            if ENDS.get() || idle.len() == MAX_IDLE {
                return;
            }
            idle.push(sender);
        }
        let Ok(work) = receiver.recv() else { return };
        work();
    }
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
