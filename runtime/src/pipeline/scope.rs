//! The scope that an embedder puts around every time slice of a query's tasks, such as the context
//! of an async runtime.

use std::{
    any::Any,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use super::driver::TaskDriver;
use crate::scheduler::{RunResult, Runnable};

/// A scope around the time slices of a query's tasks. It is set up on the worker's thread before
/// each time slice and taken down after it. It serves code that looks up thread-local state, such
/// as a runtime's handle or a span.
///
/// The scope also surrounds the abort of a task, and the drop of its local states and of its
/// pipeline. It costs nothing when none is set.
///
/// ```
/// use std::cell::Cell;
/// use gatework_runtime::pipeline::SliceScope;
/// thread_local! { static TENANT: Cell<u32> = const { Cell::new(0) } }
/// #[derive(Debug)]
/// struct OfTenant(u32);
/// impl SliceScope for OfTenant {
///     fn run(&self, slice: &mut dyn FnMut()) {
///         struct Leave(u32);
///         impl Drop for Leave {
///             fn drop(&mut self) {
///                 TENANT.set(self.0);
///             }
///         }
///         let _leave = Leave(TENANT.replace(self.0));
///         slice();
///     }
/// }
/// ```
pub trait SliceScope: Send + Sync + fmt::Debug {
    /// Calls `slice` once, on this thread. A panic of the slice unwinds through the scope and then
    /// becomes the query's error. So the scope must be taken down by a destructor.
    fn run(&self, slice: &mut dyn FnMut());
}

/// A task's driver that runs, aborts and is dropped within a scope.
pub(super) struct ScopedDriver {
    scope: Arc<dyn SliceScope>,
    /// `None` once the driver is dropped.
    driver: Option<Box<TaskDriver>>,
}

impl ScopedDriver {
    pub(super) fn new(scope: Arc<dyn SliceScope>, driver: Box<TaskDriver>) -> Self {
        Self { scope, driver: Some(driver) }
    }
}

impl Runnable for ScopedDriver {
    fn run(&mut self, worker: usize) -> RunResult {
        let Some(driver) = &mut self.driver else { return RunResult::Done };
        let mut outcome = None;
        // A scope that calls its slice twice gets one slice; the result of the first would be lost
        // otherwise.
        self.scope.run(&mut || _ = outcome.get_or_insert_with(|| driver.run(worker)));
        // A scope that never calls its slice would keep the task on its worker indefinitely.
        outcome.unwrap_or_else(|| driver.fail("the scope around a time slice did not run it"))
    }

    fn panicked(&mut self, payload: Box<dyn Any + Send>) {
        let Some(driver) = &mut self.driver else { return };
        // Recorded first: the panic may be the scope's own and happen again below.
        driver.record_panic(payload.as_ref());
        let mut aborted = false;
        contain(|| {
            self.scope.run(&mut || {
                driver.abort();
                aborted = true;
            });
        });
        if !aborted {
            driver.abort();
        }
    }
}

impl Drop for ScopedDriver {
    fn drop(&mut self) {
        let mut driver = self.driver.take();
        // A panic must not leave a destructor. If the scope panics, the driver is dropped without
        // it.
        contain(|| self.scope.run(&mut || drop(driver.take())));
    }
}

/// Runs code of the embedder. Its panic is either recorded already or too late to be reported.
fn contain(body: impl FnOnce()) {
    let _contained = catch_unwind(AssertUnwindSafe(body));
}
