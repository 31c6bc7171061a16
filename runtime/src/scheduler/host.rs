//! Threads that an executor borrows from a rayon pool.
//!
//! A worker on a hosted thread runs for a slice, then gives the thread back and asks for it
//! again, behind what the pool was given meanwhile. What a thread of a pool spawns there goes to
//! the thread's own deque, which comes before whatever the pool is given from outside: so a thread
//! that is no thread of the pool asks for it. It does nothing else, and there is none until a
//! worker has run for a whole slice.
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

/// The pool, and the thread that asks for its threads again.
#[derive(Default)]
struct Forwarder {
    jobs: Option<Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
    closed: bool,
}

/// A pool whose threads are borrowed.
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

    /// Whether this is a thread of the pool.
    pub(super) fn is_pool_thread(&self) -> bool {
        self.pool.current_thread_index().is_some()
    }

    /// Whether this is the only thread of the pool, so that nothing else in it runs meanwhile.
    pub(super) fn is_only_thread(&self) -> bool {
        self.is_pool_thread() && self.pool.current_num_threads() == 1
    }

    /// Runs `job` on a thread of the pool, soon.
    pub(super) fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        self.pool.spawn(job);
    }

    /// Runs `job` on a thread of the pool, behind what the pool was given before.
    pub(super) fn spawn_at_back(&self, job: impl FnOnce() + Send + 'static) {
        let job: Job = Box::new(job);
        let refused = match self.jobs() {
            Some(jobs) => jobs.send(job).err().map(|refused| refused.0),
            None => Some(job),
        };
        // Without the thread others wait longer than they should, but all goes on.
        if let Some(job) = refused {
            self.pool.spawn(job);
        }
    }

    /// Where the thread takes jobs from; `None` if the system refuses it, or when the executor is
    /// shut down.
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

    /// Ends the thread.
    pub(super) fn close(&self) {
        let thread = {
            let mut forwarder = self.forwarder.lock();
            forwarder.closed = true;
            forwarder.jobs = None;
            forwarder.thread.take()
        };
        if let Some(thread) = thread {
            // It runs nothing that could panic.
            let _ended = thread.join();
        }
    }
}
