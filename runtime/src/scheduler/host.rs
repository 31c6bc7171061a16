//! Threads of a rayon pool, as used by an executor.
//!
//! A worker on a hosted thread runs for a slice, returns the thread, and requests one again, behind
//! the jobs that the pool received meanwhile. A job spawned by a pool thread goes to that thread's
//! own deque, which precedes all jobs from outside. Therefore a *forwarder* thread outside the pool
//! makes these requests. It does nothing else, and starts when a worker has run for a whole slice.
//!
//! Lock: `forwarder`.

use std::{
    fmt,
    sync::{
        Arc,
        mpsc::{self, Sender},
    },
    thread,
};

use parking_lot::Mutex;

type Job = Box<dyn FnOnce() + Send>;

/// The thread that requests pool threads again, and its channel.
#[derive(Default)]
struct Forwarder {
    jobs: Option<Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
    closed: bool,
}

/// A pool whose threads run workers of an executor.
pub(super) struct Host {
    pool: Arc<rayon::ThreadPool>,
    forwarder: Mutex<Forwarder>,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("threads", &self.pool.current_num_threads()).finish()
    }
}

impl Host {
    pub(super) fn new(pool: Arc<rayon::ThreadPool>) -> Self {
        Self { pool, forwarder: Mutex::default() }
    }

    /// Returns whether this is a thread of the pool.
    pub(super) fn is_pool_thread(&self) -> bool {
        self.pool.current_thread_index().is_some()
    }

    /// Returns whether this is the only thread of the pool, so that no other job of the pool runs
    /// meanwhile.
    pub(super) fn is_only_thread(&self) -> bool {
        self.is_pool_thread() && self.pool.current_num_threads() == 1
    }

    /// Runs `job` on a thread of the pool, soon.
    pub(super) fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        self.pool.spawn(job);
    }

    /// Runs `job` on a thread of the pool, behind the jobs that the pool received before.
    pub(super) fn spawn_at_back(&self, job: impl FnOnce() + Send + 'static) {
        let job: Job = Box::new(job);
        let refused = match self.jobs() {
            Some(jobs) => jobs.send(job).err().map(|refused| refused.0),
            None => Some(job),
        };
        // Without the forwarder, other jobs wait longer than they should, but all jobs run.
        if let Some(job) = refused {
            self.pool.spawn(job);
        }
    }

    /// Returns the forwarder's channel. `None` if the system cannot start the thread, or after the
    /// executor's shutdown.
    fn jobs(&self) -> Option<Sender<Job>> {
        let mut forwarder = self.forwarder.lock();
        if forwarder.jobs.is_none() && !forwarder.closed {
            let (jobs, receiver) = mpsc::channel::<Job>();
            let pool = self.pool.clone();
            let body = move || receiver.into_iter().for_each(|job| pool.spawn(job));
            let thread = thread::Builder::new().name("gatework-host".into()).spawn(body);
            forwarder.jobs = thread.is_ok().then_some(jobs);
            forwarder.thread = thread.ok();
        }
        forwarder.jobs.clone()
    }

    /// Ends the forwarder.
    pub(super) fn close(&self) {
        let thread = {
            let mut forwarder = self.forwarder.lock();
            forwarder.closed = true;
            forwarder.jobs = None;
            forwarder.thread.take()
        };
        if let Some(thread) = thread {
            // The forwarder runs no code that could panic.
            let _ended = thread.join();
        }
    }
}
