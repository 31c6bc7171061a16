//! What an embedder puts around every time slice of a query's tasks, such as the context of its
//! runtime.

use std::{
    any::Any,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use super::driver::TaskDriver;
use crate::scheduler::{RunResult, Runnable};

/// A scope that the tasks of a query run in: set up on the worker's thread before each time slice
/// and taken down after it, for code of the query that looks for something in its thread (a
/// runtime's handle, a span).
///
/// The scope is around the abort of a task as well, and around the drop of its local states and of
/// its pipeline. It costs nothing where none is set.
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
    /// Calls `slice` once, on this thread. A panic of the slice passes through it, so what it sets
    /// up is to be taken down by a destructor; the panic becomes the query's error behind it.
    fn run(&self, slice: &mut dyn FnMut());
}

/// A task's driver that runs, aborts and goes within a scope.
pub(super) struct ScopedDriver {
    scope: Arc<dyn SliceScope>,
    /// `None` once it has gone.
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
        // A scope that calls its slice twice gets one slice; what one came to would be lost
        // otherwise.
        self.scope.run(&mut || _ = outcome.get_or_insert_with(|| driver.run(worker)));
        // A scope that never calls it would keep the task on its worker without end.
        outcome.unwrap_or_else(|| driver.fail("the scope around a slice did not run it"))
    }

    fn panicked(&mut self, payload: Box<dyn Any + Send>) {
        let Some(driver) = &mut self.driver else { return };
        // Told first: the panic may be the scope's own, and so come again.
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
        // A panic must not leave a destructor. Without the scope, the driver goes all the same.
        contain(|| self.scope.run(&mut || drop(driver.take())));
    }
}

/// Runs something of the embedder's whose panic the query has been told of, or which comes too late
/// for it.
fn contain(body: impl FnOnce()) {
    let _contained = catch_unwind(AssertUnwindSafe(body));
}
