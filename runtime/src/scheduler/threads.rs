//! The threads of an executor that has its own.

use std::{
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
};

use crossbeam::sync::Parker;
use parking_lot::Mutex;

use super::{registry::Registry, worker};
use crate::{Error, Result};

pub(super) type StartHook = Arc<dyn Fn(usize) + Send + Sync>;
pub(super) type ThreadName = Arc<dyn Fn(usize) -> String + Send + Sync>;
pub(super) type ThreadBody = Box<dyn FnOnce() + Send>;
/// Starts a thread.
pub(super) type Spawner =
    Arc<dyn Fn(thread::Builder, ThreadBody) -> io::Result<thread::JoinHandle<()>> + Send + Sync>;

/// How the executor's own threads are started.
pub(super) struct ThreadSpec {
    pub(super) name: Option<ThreadName>,
    pub(super) start_hook: Option<StartHook>,
    pub(super) spawner: Spawner,
    pub(super) cores: Vec<core_affinity::CoreId>,
    /// By worker; `None` while the worker's thread runs.
    pub(super) parkers: Mutex<Vec<Option<Parker>>>,
    pub(super) resizing: Mutex<()>,
}

impl fmt::Debug for ThreadSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadSpec").field("cores", &self.cores).finish_non_exhaustive()
    }
}

impl ThreadSpec {
    /// Starts the thread of `worker`, unless it runs.
    pub(super) fn spawn(
        &self,
        registry: &Arc<Registry>,
        worker: usize,
    ) -> Result<Option<thread::JoinHandle<()>>> {
        let Some(parker) = self.parkers.lock()[worker].take() else { return Ok(None) };
        // Taken back below if the thread cannot be started.
        let parker = Arc::new(Mutex::new(Some(parker)));
        let mine = parker.clone();
        let (registry, hook) = (registry.clone(), self.start_hook.clone());
        let pin_to = self.cores.get(worker % self.cores.len().max(1)).copied();
        let name = match &self.name {
            Some(name) => name(worker),
            None => format!("gatework-{worker}"),
        };
        let body = move || {
            if let Some(pin_to) = pin_to {
                core_affinity::set_for_current(pin_to);
            }
            if let Some(hook) = hook {
                // A missing worker would strand its executor's tasks. The process's panic hook has
                // reported the panic.
                let _contained = catch_unwind(AssertUnwindSafe(|| hook(worker)));
            }
            let parker = mine.lock().take();
            if let Some(parker) = parker {
                worker::run_thread(&registry, worker, &parker);
            }
        };
        let builder = thread::Builder::new().name(name).stack_size(STACK_BYTES);
        let handle = (self.spawner)(builder, Box::new(body)).map_err(|error| {
            self.parkers.lock()[worker] = parker.lock().take();
            Error::InvalidConfiguration(format!(
                "the system cannot start worker thread {worker}: {error}"
            ))
        })?;
        Ok(Some(handle))
    }
}

/// Stack size of a worker, in bytes. Expressions are evaluated recursively, about 1 KiB a level.
/// Only touched pages take memory.
const STACK_BYTES: usize = 16 << 20;
