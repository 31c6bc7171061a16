//! An executor: workers over one task queue, on threads of its own or on those of a rayon pool.

use std::{
    any::Any,
    num::NonZeroUsize,
    sync::{Arc, Weak},
    thread,
};

use gatework_shared_state::sync::atomic::Ordering;
use parking_lot::Mutex;

use super::{
    builder::ExecutorBuilder,
    registry::{Registry, Threads},
    resource_group::ResourceGroup,
    seeded::ScheduleTrace,
    task::{Runnable, TaskGroup, TaskHandle},
    threads::ThreadSpec,
};
use crate::{Error, Result};

#[derive(Debug)]
struct Inner {
    registry: Arc<Registry>,
    /// How to start more threads; `None` for a hosted or deterministic executor.
    spec: Option<ThreadSpec>,
    handles: Mutex<Vec<thread::JoinHandle<()>>>,
    extensions: Mutex<Vec<Arc<dyn Any + Send + Sync>>>,
}

/// A set of workers over one task queue. Clones share the workers; dropping the last clone shuts
/// them down.
///
/// ```
/// let executor = gatework_runtime::Executor::builder().threads(2).build()?;
/// assert_eq!(executor.threads(), 2);
/// # Ok::<(), gatework_runtime::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Executor {
    inner: Arc<Inner>,
}

impl Executor {
    /// Returns the configuration of a new executor.
    pub fn builder() -> ExecutorBuilder {
        ExecutorBuilder::default()
    }

    pub(super) fn from_parts(
        registry: Arc<Registry>,
        handles: Vec<thread::JoinHandle<()>>,
        spec: Option<ThreadSpec>,
    ) -> Self {
        let (handles, extensions) = (Mutex::new(handles), Mutex::default());
        Self { inner: Arc::new(Inner { registry, spec, handles, extensions }) }
    }

    /// Returns the number of workers.
    pub fn threads(&self) -> usize {
        self.inner.registry.workers()
    }

    /// Changes the number of workers while queries run. New queries are planned for the new number;
    /// running queries keep their tasks, on more or fewer threads. A surplus worker hands its tasks
    /// to others after its current step.
    ///
    /// ```
    /// let executor = gatework_runtime::Executor::builder().threads(1).max_threads(4).build()?;
    /// executor.set_threads(3)?;
    /// assert_eq!(executor.threads(), 3);
    /// assert!(executor.set_threads(5).is_err());
    /// # Ok::<(), gatework_runtime::Error>(())
    /// ```
    ///
    /// # Errors
    /// If `threads` is 0 or exceeds the builder's `max_threads`; if the executor is hosted or
    /// deterministic; or if the system cannot start a thread.
    pub fn set_threads(&self, threads: usize) -> Result<()> {
        let Some(spec) = &self.inner.spec else {
            return Err(Error::InvalidConfiguration(
                "a hosted or deterministic executor cannot change its number of threads".into(),
            ));
        };
        let max_threads = spec.parkers.lock().len();
        if threads == 0 || threads > max_threads {
            return Err(Error::InvalidConfiguration(format!(
                "cannot run {threads} threads: set 1 to {max_threads}, or raise the builder's \
                 `max_threads`"
            )));
        }
        let registry = &self.inner.registry;
        if registry.stopping.load(Ordering::SeqCst) {
            return Err(Error::InvalidConfiguration("the executor has been shut down".into()));
        }
        // One call at a time, so that the last one decides.
        let _resizing = spec.resizing.lock();
        // `shutdown` holds this lock while it joins the threads, and this thread may be one of
        // them.
        let Some(mut handles) = self.inner.handles.try_lock() else {
            return Err(Error::InvalidConfiguration("the executor has been shut down".into()));
        };
        let before = registry.workers();
        for worker in before..threads {
            handles.extend(spec.spawn(registry, worker)?);
        }
        registry.workers.store(threads, Ordering::SeqCst);
        for worker in threads..before {
            // A sleeping worker must be woken to notice; an awake worker checks before it sleeps.
            if registry.sleep.notify_worker(worker) {
                registry.unpark(worker);
            }
        }
        for worker in before..threads {
            registry.unpark(worker);
        }
        Ok(())
    }

    /// Returns the maximum number of queries that run at a time.
    pub fn max_queries(&self) -> Option<NonZeroUsize> {
        self.inner.registry.queue.admission.max_running()
    }

    /// Sets the maximum number of queries that run at a time. Running queries go on.
    pub fn set_max_queries(&self, queries: Option<NonZeroUsize>) {
        self.inner.registry.queue.admission.set_max_running(queries);
    }

    /// Returns the group with this name, and creates it on first use. Queries without a group
    /// belong to the group with the empty name. A group that no handle and no query refers to may
    /// be dropped; its limits are kept.
    pub fn group(&self, name: &str) -> Arc<ResourceGroup> {
        self.inner.registry.queue.group(name)
    }

    /// Returns whether this thread is currently one of the executor's workers, or the only thread
    /// of the hosting pool. Such a thread must not wait for a query of this executor, which may
    /// need this thread.
    ///
    /// ```
    /// let executor = gatework_runtime::Executor::builder().threads(1).build()?;
    /// assert!(!executor.is_worker_thread());
    /// # Ok::<(), gatework_runtime::Error>(())
    /// ```
    pub fn is_worker_thread(&self) -> bool {
        self.inner.registry.is_worker_thread()
    }

    /// Returns the number of tasks that have been spawned and have not ended.
    pub fn live_tasks(&self) -> usize {
        self.inner.registry.live_tasks.load(Ordering::Acquire)
    }

    /// Returns the number of runs on another worker than the one that queued the task or ran it
    /// last.
    pub fn steals(&self) -> u64 {
        self.inner.registry.steals.load(Ordering::Relaxed)
    }

    /// Returns the picks of a deterministic executor so far; `None` for other executors.
    pub fn schedule(&self) -> Option<ScheduleTrace> {
        self.inner.registry.queue.deterministic().map(|deterministic| deterministic.schedule())
    }

    /// Spawns a runnable; it starts when its handle is woken.
    ///
    /// # Errors
    /// If the executor has been shut down.
    pub fn spawn(&self, group: &Arc<TaskGroup>, body: Box<dyn Runnable>) -> Result<TaskHandle> {
        self.inner.registry.add_live_tasks(1)?;
        Ok(self.inner.registry.spawn(group, body))
    }

    /// Cancels running queries, waits until every task has ended, and joins the threads.
    ///
    /// On one of the executor's own workers it does not wait, since it would wait for itself. Nor
    /// does it wait on a thread of the hosting pool, whose work may need that thread. It also waits
    /// for a task that was spawned and never woken: wake every spawned task.
    pub fn shutdown(&self) {
        self.inner.shutdown();
    }

    /// Returns the executor's only value of type `T`, and creates it on first use. The value is
    /// dropped after the executor. All sessions on an executor share it, for example threads for
    /// I/O.
    ///
    /// ```
    /// # use std::sync::atomic::{AtomicU32, Ordering};
    /// let executor = gatework_runtime::Executor::builder().threads(1).build()?;
    /// executor.extension(|| AtomicU32::new(7)).fetch_add(1, Ordering::Relaxed);
    /// assert_eq!(executor.clone().extension(AtomicU32::default).load(Ordering::Relaxed), 8);
    /// # Ok::<(), gatework_runtime::Error>(())
    /// ```
    pub fn extension<T: Any + Send + Sync>(&self, make: impl FnOnce() -> T) -> Arc<T> {
        let mut extensions = self.inner.extensions.lock();
        let known = extensions.iter().find_map(|extension| extension.clone().downcast().ok());
        known.unwrap_or_else(|| {
            let extension = Arc::new(make());
            extensions.push(extension.clone());
            extension
        })
    }

    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.inner.registry
    }
}

impl Inner {
    fn shutdown(&self) {
        let registry = &self.registry;
        registry.stopping.store(true, Ordering::SeqCst);
        let queries = std::mem::take(&mut registry.registered_queries.lock().queries);
        for query in queries.iter().filter_map(Weak::upgrade) {
            query.shut_down();
        }
        registry.wake_all();
        if registry.queue.is_worker_thread() {
            return;
        }
        // Joined under the lock, so that a second caller returns no earlier than the first.
        for handle in self.handles.lock().drain(..) {
            // A worker contains the panics of its tasks, so the result carries none.
            let _ended = handle.join();
        }
        if let Threads::Hosted(host) = &registry.threads
            && !host.is_pool_thread()
        {
            registry.wait_for_hosted();
            host.close();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shutdown();
    }
}
