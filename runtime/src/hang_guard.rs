//! For tests: fails a test body that exceeds a time limit and prints its registered reports.

use std::{
    any::Any,
    fmt::Write as _,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(30);

type Report = Box<dyn Fn() -> String + Send>;

/// The reports to print when a test hangs.
#[derive(Clone, Default)]
pub(crate) struct Guard(Arc<Mutex<Vec<Report>>>);

impl Guard {
    /// Registers `report`, to be printed if the test hangs.
    pub(crate) fn watch(&self, report: impl Fn() -> String + Send + 'static) {
        self.0.lock().unwrap().push(Box::new(report));
    }
}

/// Runs `body` on its own thread. Fails with the registered reports after 30 seconds.
pub(crate) fn guarded(body: impl FnOnce(&Guard) + Send + 'static) {
    let guard = Guard::default();
    let inner = guard.clone();
    let (sender, receiver) = mpsc::channel::<Result<(), Box<dyn Any + Send>>>();
    thread::spawn(move || {
        let result = catch_unwind(AssertUnwindSafe(|| body(&inner)));
        let _nobody_waits = sender.send(result);
    });
    match receiver.recv_timeout(LIMIT) {
        Ok(Ok(())) => {}
        Ok(Err(panic)) => resume_unwind(panic),
        Err(_) => {
            let mut text = String::new();
            for report in guard.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                let _infallible = writeln!(text, "{}", report());
            }
            panic!("the test hangs\n{text}");
        }
    }
}
