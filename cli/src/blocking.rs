//! Blocking calls on threads that the end of the process does not wait for.

use std::thread;

use tokio::sync::oneshot;

use crate::error::Error;

/// Runs a blocking call, such as reading a terminal, on a thread of its own. Dropping the future
/// abandons the call.
pub(crate) async fn call<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    let (sender, done) = oneshot::channel();
    let body = move || {
        // The receiver is dropped if the command was cancelled.
        let _late = sender.send(work());
    };
    let started = thread::Builder::new().name("blocking".into()).spawn(body);
    started.map_err(|error| Error::failed(format!("a thread cannot be started: {error}")))?;
    done.await.map_err(|_| Error::failed("a call ended without a result"))
}
