//! The registry of an executor: what its workers, tasks and handles share.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use crossbeam::sync::Unparker;
use gatework_shared_state::{
    memory::MemoryArbitrator,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};
use parking_lot::{Condvar, Mutex};

use super::{
    host::Host,
    queue::TaskQueue,
    sleep::Sleep,
    task::{Runnable, Task, TaskGroup, TaskHandle},
    worker,
};
use crate::{Error, Result};

/// An object that runs on an executor and must end before the executor does: a query.
pub(crate) trait ShutdownTarget: Send + Sync {
    /// Starts to end the query.
    fn shut_down(&self);
}

/// The threads of the workers.
pub(super) enum Threads {
    Own(Box<[Unparker]>),
    Hosted(Host),
}

/// Registered queries, including some that were dropped.
pub(super) struct RegisteredQueries {
    pub(super) queries: Vec<Weak<dyn ShutdownTarget>>,
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
    pub(super) threads: Threads,
    /// Workers with smaller indices run; the others have retired, or were never started.
    pub(super) workers: AtomicUsize,
    pub(super) live_tasks: AtomicUsize,
    pub(super) steals: AtomicU64,
    pub(super) stopping: AtomicBool,
    pub(super) registered_queries: Mutex<RegisteredQueries>,
    /// Memory arbitration among all queries.
    pub(crate) arbitrator: Arc<MemoryArbitrator>,
    /// Number of active hosted threads, and the signal that one has left.
    pub(super) hosted_threads: Mutex<usize>,
    pub(super) hosted_left: Condvar,
    pub(super) this: Weak<Registry>,
}

impl Registry {
    /// Creates the registry of `workers` workers, of at most `max_workers`.
    pub(super) fn new(
        workers: usize,
        max_workers: usize,
        threads: Threads,
        asleep: std::ops::Range<usize>,
        seed: Option<u64>,
        arbitrator: Arc<MemoryArbitrator>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
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
            arbitrator,
            hosted_threads: Mutex::new(0),
            hosted_left: Condvar::new(),
            this: this.clone(),
        })
    }

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

    pub(super) fn unpark(&self, worker: usize) {
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

    pub(super) fn remove_live_tasks(&self, tasks: usize) {
        // A thread that sees 0 sees the effects of all tasks.
        let before = self.live_tasks.fetch_sub(tasks, Ordering::SeqCst);
        if before == tasks && self.stopping.load(Ordering::SeqCst) {
            self.wake_all();
        }
    }

    /// Wakes the sleeping threads, so that they see that the executor stops. Hosted threads that
    /// have left need not return for that; the thread that waits for the last task checks again.
    pub(super) fn wake_all(&self) {
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
    pub(super) fn wait_for_hosted(&self) {
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
