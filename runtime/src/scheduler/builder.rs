//! The configuration of an executor.

use std::{fmt, num::NonZeroUsize, sync::Arc, thread};

use crossbeam::sync::Parker;
use gatework_shared_state::memory::MemoryArbitrator;
use parking_lot::Mutex;

use super::{
    executor::Executor,
    host::Host,
    registry::{Registry, Threads},
    threads::{Spawner, StartHook, ThreadName, ThreadSpec},
};
use crate::{Error, Result};

/// Configuration of an [`Executor`].
#[derive(Default)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct ExecutorBuilder {
    threads: Option<usize>,
    max_threads: Option<usize>,
    name: Option<ThreadName>,
    start_hook: Option<StartHook>,
    spawner: Option<Spawner>,
    pin_to_cores: bool,
    pool: Option<Arc<rayon::ThreadPool>>,
    seed: Option<u64>,
    arbitrator: Option<Arc<MemoryArbitrator>>,
    max_queries: Option<NonZeroUsize>,
}

impl fmt::Debug for ExecutorBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecutorBuilder")
            .field("threads", &self.threads)
            .field("pin_to_cores", &self.pin_to_cores)
            .field("hosted", &self.pool.is_some())
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

impl ExecutorBuilder {
    /// Number of workers. Default: one per core, or one per thread of the hosting pool.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Upper bound for [`Executor::set_threads`]. Default: the number of cores, or `threads` if
    /// that is larger.
    pub fn max_threads(mut self, threads: usize) -> Self {
        self.max_threads = Some(threads);
        self
    }

    /// Maximum number of queries that run at a time, over all [groups](Executor::group). Further
    /// queries are queued. The next query comes from the group with the fewest running queries
    /// relative to its weight; within a group, the oldest goes first. Default: no limit.
    /// [`Executor::set_max_queries`] changes it.
    ///
    /// ```
    /// let executor = gatework_runtime::Executor::builder().max_queries(16.try_into()?).build()?;
    /// assert_eq!(executor.max_queries().map(|max| max.get()), Some(16));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn max_queries(mut self, queries: NonZeroUsize) -> Self {
        self.max_queries = Some(queries);
        self
    }

    /// Names the threads by worker index. Default: `gatework-0`, `gatework-1`, …
    pub fn thread_name(mut self, name: impl Fn(usize) -> String + Send + Sync + 'static) -> Self {
        self.name = Some(Arc::new(name));
        self
    }

    /// Runs `hook` with the worker's index at the start of each thread.
    pub fn on_thread_start(mut self, hook: impl Fn(usize) + Send + Sync + 'static) -> Self {
        self.start_hook = Some(Arc::new(hook));
        self
    }

    /// Pins worker `n` to the `n`-th core that the process may use.
    pub fn pin_to_cores(mut self, pin: bool) -> Self {
        self.pin_to_cores = pin;
        self
    }

    /// Runs the workers on the threads of `pool` while there is work, instead of on threads of the
    /// executor. A worker returns its thread after a time slice (10 ms, or the task's own slice if
    /// that is longer). It then requests a thread again, behind the jobs that the pool has received
    /// meanwhile. (One more thread makes these requests; it sleeps otherwise.)
    pub fn on_rayon_pool(mut self, pool: Arc<rayon::ThreadPool>) -> Self {
        self.pool = Some(pool);
        self
    }

    /// Shares `other`'s memory arbitrator: tasks of both executors that share a memory pool release
    /// memory for each other.
    pub fn share_arbitrator_with(mut self, other: &Executor) -> Self {
        self.arbitrator = Some(other.registry().arbitrator.clone());
        self
    }

    /// Uses one worker, which picks the next task at random from `seed`. For tests: with
    /// `QueryOptions::time_slice` 0, any step of any task can come after any other. The same seed
    /// gives the same order, as long as no other thread wakes tasks. [`Executor::schedule`] returns
    /// a hash of the schedule.
    ///
    /// ```
    /// let executor = gatework_runtime::Executor::builder().deterministic(42).build()?;
    /// assert_eq!(executor.threads(), 1);
    /// assert_eq!(executor.schedule().map(|schedule| schedule.choices), Some(0));
    /// # Ok::<(), gatework_runtime::Error>(())
    /// ```
    pub fn deterministic(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Starts threads with `spawner`, which may fail.
    #[cfg(test)]
    pub(super) fn spawn_with(
        mut self,
        spawner: impl Fn(
            thread::Builder,
            super::threads::ThreadBody,
        ) -> std::io::Result<thread::JoinHandle<()>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        self.spawner = Some(Arc::new(spawner));
        self
    }

    /// Starts the executor.
    ///
    /// # Errors
    /// If `threads` is 0; if thread names, hooks or pinning are set for a hosted executor; if a
    /// deterministic executor is hosted or has several threads; or if the system cannot start a
    /// thread. In the last case, the threads started before have ended when this returns.
    pub fn build(self) -> Result<Executor> {
        let max_queries = self.max_queries;
        let executor = self.build_inner()?;
        executor.set_max_queries(max_queries);
        Ok(executor)
    }

    fn build_inner(self) -> Result<Executor> {
        let default = || match &self.pool {
            Some(pool) => pool.current_num_threads(),
            None if self.seed.is_some() => 1,
            None => thread::available_parallelism().map_or(1, usize::from),
        };
        let workers = self.threads.unwrap_or_else(default);
        if workers == 0 {
            return Err(Error::InvalidConfiguration(
                "an executor needs at least 1 thread: set 1 or more, or leave it unset for one per \
                 core"
                    .into(),
            ));
        }
        if self.seed.is_some() && (workers > 1 || self.pool.is_some()) {
            return Err(Error::InvalidConfiguration(
                "a deterministic executor runs on one thread of its own: unset `threads` and pool"
                    .into(),
            ));
        }
        match self.pool {
            Some(_) if self.name.is_some() || self.start_hook.is_some() || self.pin_to_cores => {
                Err(Error::InvalidConfiguration(
                    "a hosted executor runs on the pool's threads: name, hook and pin them in \
                     the pool"
                        .into(),
                ))
            }
            Some(pool) => {
                let threads = Threads::Hosted(Host::new(pool));
                let arbitrator = self.arbitrator.unwrap_or_default();
                let registry =
                    Registry::new(workers, workers, threads, 0..workers, None, arbitrator);
                Ok(Executor::from_parts(registry, Vec::new(), None))
            }
            None => self.build_own_threads(workers),
        }
    }

    fn build_own_threads(self, workers: usize) -> Result<Executor> {
        let cores = || thread::available_parallelism().map_or(1, usize::from);
        let max_workers = match (self.seed, self.max_threads) {
            (Some(_), _) => 1,
            (None, Some(max_threads)) => max_threads.max(workers),
            (None, None) => cores().max(workers),
        };
        let parkers: Vec<Parker> = (0..max_workers).map(|_| Parker::new()).collect();
        let unparkers = parkers.iter().map(|parker| parker.unparker().clone()).collect();
        let pinned = self.pin_to_cores.then(core_affinity::get_core_ids).flatten();
        let spec = ThreadSpec {
            name: self.name,
            start_hook: self.start_hook,
            cores: pinned.unwrap_or_default(),
            spawner: self.spawner.unwrap_or_else(|| Arc::new(thread::Builder::spawn)),
            parkers: Mutex::new(parkers.into_iter().map(Some).collect()),
            resizing: Mutex::default(),
        };
        let resizable = self.seed.is_none();
        let threads = Threads::Own(unparkers);
        let arbitrator = self.arbitrator.unwrap_or_default();
        let registry = Registry::new(workers, max_workers, threads, 0..0, self.seed, arbitrator);
        let mut handles = Vec::new();
        let refused = (0..workers).find_map(|worker| match spec.spawn(&registry, worker) {
            Ok(handle) => {
                handles.extend(handle);
                None
            }
            Err(error) => Some(error),
        });
        let executor = Executor::from_parts(registry, handles, resizable.then_some(spec));
        match refused {
            None => Ok(executor),
            Some(error) => {
                // The threads that have been started are stopped and joined.
                executor.shutdown();
                Err(error)
            }
        }
    }
}
