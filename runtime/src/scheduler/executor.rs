//! An executor: workers over one task queue, on threads of its own or on those of a rayon pool.

use std::{
    any::Any,
    fmt, io,
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Weak},
    thread,
};

use crossbeam::sync::{Parker, Unparker};
use gatework_shared_state::{
    memory::MemoryArbitrator,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};
use parking_lot::{Condvar, Mutex};

use super::{
    host::Host,
    queue::TaskQueue,
    resource_group::ResourceGroup,
    seeded::ScheduleTrace,
    sleep::Sleep,
    task::{Runnable, Task, TaskGroup, TaskHandle},
    worker,
};
use crate::{Error, Result};

type StartHook = Arc<dyn Fn(usize) + Send + Sync>;
type ThreadName = Arc<dyn Fn(usize) -> String + Send + Sync>;
type ThreadBody = Box<dyn FnOnce() + Send>;
/// Starts a thread.
type Spawner =
    Arc<dyn Fn(thread::Builder, ThreadBody) -> io::Result<thread::JoinHandle<()>> + Send + Sync>;

/// An object that runs on an executor and must end before the executor does: a query.
pub(crate) trait ShutdownTarget: Send + Sync {
    /// Starts to end the query.
    fn shut_down(&self);
}

enum Threads {
    Own(Box<[Unparker]>),
    Hosted(Host),
}

/// Registered queries, including some that were dropped.
struct RegisteredQueries {
    queries: Vec<Weak<dyn ShutdownTarget>>,
    /// At this length, dropped queries are removed.
    sweep_threshold: usize,
}

const MIN_SWEEP_THRESHOLD: usize = 64;

impl RegisteredQueries {
    fn add(&mut self, query: Weak<dyn ShutdownTarget>) {
        if self.queries.len() >= self.sweep_threshold {
            self.queries.retain(|known| known.strong_count() > 0);
            self.sweep_threshold = MIN_SWEEP_THRESHOLD.max(2 * self.queries.len());
        }
        self.queries.push(query);
    }
}

/// State shared by workers, tasks and handles. It outlives the `Executor` as long as a task lives.
pub(crate) struct Registry {
    pub(crate) queue: TaskQueue,
    pub(super) sleep: Sleep,
    threads: Threads,
    /// Workers with smaller indices run; the others have retired, or were never started.
    workers: AtomicUsize,
    live_tasks: AtomicUsize,
    pub(super) steals: AtomicU64,
    stopping: AtomicBool,
    registered_queries: Mutex<RegisteredQueries>,
    /// Memory arbitration among all queries.
    pub(crate) arbitrator: Arc<MemoryArbitrator>,
    /// Number of active hosted threads, and the signal that one has left.
    hosted_threads: Mutex<usize>,
    hosted_left: Condvar,
    this: Weak<Registry>,
}

impl Registry {
    /// Queues a task that was woken on any thread.
    pub(super) fn push_woken(task: Arc<Task>) {
        if let Some(task) = TaskQueue::push_local(task)
            && let Some(registry) = task.registry().upgrade()
        {
            registry.push(task);
        }
    }

    pub(super) fn push(&self, task: Arc<Task>) {
        self.queue.push(task);
        self.wake_one();
    }

    pub(super) fn push_yielded(&self, task: Arc<Task>) {
        self.queue.push_yielded(task);
        self.wake_one();
    }

    pub(super) fn wake_one(&self) {
        if let Some(worker) = self.sleep.notify_one() {
            self.unpark(worker);
        }
    }

    fn unpark(&self, worker: usize) {
        match &self.threads {
            Threads::Own(unparkers) => unparkers[worker].unpark(),
            Threads::Hosted(host) => {
                let Some(registry) = self.this.upgrade() else { return };
                *self.hosted_threads.lock() += 1;
                host.spawn(move || worker::run_hosted(&registry, worker, true));
            }
        }
    }

    /// Returns the hosted thread of a worker that has work left, and requests another thread for
    /// it.
    pub(super) fn reschedule_hosted(self: &Arc<Self>, worker: usize) {
        if let Threads::Hosted(host) = &self.threads {
            let registry = self.clone();
            host.spawn_at_back(move || worker::run_hosted(&registry, worker, false));
        }
    }

    /// Returns whether a wait on this thread would block a worker: it is a worker, or the only
    /// thread of the hosting pool.
    pub(crate) fn is_worker_thread(&self) -> bool {
        self.queue.is_worker_thread()
            || matches!(&self.threads, Threads::Hosted(host) if host.is_only_thread())
    }

    pub(super) fn hosted_thread_left(&self) {
        let mut hosted_threads = self.hosted_threads.lock();
        *hosted_threads -= 1;
        self.hosted_left.notify_all();
    }

    /// Counts `tasks` more live tasks, all or none.
    ///
    /// SeqCst here, in `shutdown` and in `is_stopped`: either this call sees that the executor
    /// stops, or the workers see the tasks and stay until these have ended.
    pub(crate) fn add_live_tasks(&self, tasks: usize) -> Result<()> {
        self.live_tasks.fetch_add(tasks, Ordering::SeqCst);
        if self.stopping.load(Ordering::SeqCst) {
            self.remove_live_tasks(tasks);
            return Err(Error::InvalidConfiguration("the executor has been shut down".into()));
        }
        Ok(())
    }

    pub(super) fn task_ended(&self) {
        self.remove_live_tasks(1);
    }

    fn remove_live_tasks(&self, tasks: usize) {
        // A thread that sees 0 sees the effects of all tasks.
        let before = self.live_tasks.fetch_sub(tasks, Ordering::SeqCst);
        if before == tasks && self.stopping.load(Ordering::SeqCst) {
            self.wake_all();
        }
    }

    /// Wakes the sleeping threads, so that they see that the executor stops. Hosted threads that
    /// have left need not return for that; the thread that waits for the last task checks again.
    fn wake_all(&self) {
        match &self.threads {
            Threads::Own(unparkers) => {
                // Retired workers are not among the sleepers.
                unparkers.iter().skip(self.workers()).for_each(Unparker::unpark);
                // All at once: waking them one by one would wake workers that fall asleep again.
                for worker in self.sleep.notify_all() {
                    self.unpark(worker);
                }
            }
            Threads::Hosted(_) => {
                // Under the lock, so that a waiter between its check and its wait does not miss the
                // signal.
                let _hosted_threads = self.hosted_threads.lock();
                self.hosted_left.notify_all();
            }
        }
    }

    /// Waits until no task lives and no hosted thread works for this executor.
    fn wait_for_hosted(&self) {
        let mut hosted_threads = self.hosted_threads.lock();
        while *hosted_threads > 0 || self.live_tasks.load(Ordering::SeqCst) > 0 {
            self.hosted_left.wait(&mut hosted_threads);
        }
    }

    /// Returns whether workers may exit.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopping.load(Ordering::SeqCst) && self.live_tasks.load(Ordering::SeqCst) == 0
    }

    /// Spawns one of the tasks that [`add_live_tasks`](Self::add_live_tasks) counted.
    pub(crate) fn spawn(
        self: &Arc<Self>,
        group: &Arc<TaskGroup>,
        body: Box<dyn Runnable>,
    ) -> TaskHandle {
        TaskHandle(Task::new(self, group.clone(), body))
    }

    /// Wakes several tasks. A deterministic queue sees all of them before it picks the first.
    pub(crate) fn wake_together(&self, tasks: &[TaskHandle]) {
        if let Some(deterministic) = self.queue.deterministic() {
            deterministic.pause_picks();
        }
        for task in tasks {
            task.wake();
        }
        if let Some(deterministic) = self.queue.deterministic() {
            deterministic.resume_picks();
            self.wake_one();
        }
    }

    pub(crate) fn register(&self, query: Weak<dyn ShutdownTarget>) {
        self.registered_queries.lock().add(query);
    }

    pub(crate) fn workers(&self) -> usize {
        self.workers.load(Ordering::SeqCst)
    }

    /// Returns whether `worker` must not run tasks until there are more workers again.
    pub(super) fn is_retired(&self, worker: usize) -> bool {
        worker >= self.workers()
    }

    /// Hands the tasks of a worker that retires to others. Pushes during its search have woken no
    /// other worker, so it checks once more.
    pub(super) fn hand_off_tasks(&self, worker: usize) {
        self.queue.hand_off_tasks(worker);
        if !self.queue.is_empty() {
            self.wake_one();
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("workers", &self.workers())
            .field("asleep", &self.sleep.count())
            .field("live_tasks", &self.live_tasks.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

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
        spawner: impl Fn(thread::Builder, ThreadBody) -> io::Result<thread::JoinHandle<()>>
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
                    Executor::new_registry(workers, workers, threads, 0..workers, None, arbitrator);
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
        let registry =
            Executor::new_registry(workers, max_workers, threads, 0..0, self.seed, arbitrator);
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

/// How the executor's own threads are started.
struct ThreadSpec {
    name: Option<ThreadName>,
    start_hook: Option<StartHook>,
    spawner: Spawner,
    cores: Vec<core_affinity::CoreId>,
    /// By worker; `None` while the worker's thread runs.
    parkers: Mutex<Vec<Option<Parker>>>,
    resizing: Mutex<()>,
}

impl fmt::Debug for ThreadSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadSpec").field("cores", &self.cores).finish_non_exhaustive()
    }
}

impl ThreadSpec {
    /// Starts the thread of `worker`, unless it runs.
    fn spawn(
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

    /// Creates the registry of `workers` workers, of at most `max_workers`.
    fn new_registry(
        workers: usize,
        max_workers: usize,
        threads: Threads,
        asleep: std::ops::Range<usize>,
        seed: Option<u64>,
        arbiter: Arc<MemoryArbitrator>,
    ) -> Arc<Registry> {
        Arc::new_cyclic(|this| Registry {
            queue: TaskQueue::new(max_workers, seed),
            sleep: Sleep::new(asleep),
            threads,
            workers: AtomicUsize::new(workers),
            live_tasks: AtomicUsize::new(0),
            steals: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            registered_queries: Mutex::new(RegisteredQueries {
                queries: Vec::new(),
                sweep_threshold: MIN_SWEEP_THRESHOLD,
            }),
            arbitrator: arbiter,
            hosted_threads: Mutex::new(0),
            hosted_left: Condvar::new(),
            this: this.clone(),
        })
    }

    fn from_parts(
        core: Arc<Registry>,
        handles: Vec<thread::JoinHandle<()>>,
        spec: Option<ThreadSpec>,
    ) -> Self {
        let (handles, companions) = (Mutex::new(handles), Mutex::default());
        Self { inner: Arc::new(Inner { registry: core, spec, handles, extensions: companions }) }
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
