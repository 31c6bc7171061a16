//! Shuttle model of an executor whose number of threads changes while workers push and steal.
//!
//! Run by `.ci/models`; without `--cfg shuttle` this file is empty. [`WorkerPool`] models the
//! workers of `scheduler/worker.rs` and `Executor::set_threads` over the production [`Sleep`]. It
//! has deques that other workers steal from, and an injector. Its workers retire between two tasks,
//! hand off their tasks, and return. A lost task shows as a deadlock, which Shuttle detects; each
//! injected fault must be detected.

#![cfg(shuttle)]
#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

use std::{
    collections::VecDeque,
    panic::{self, AssertUnwindSafe},
    sync::Arc,
};

use gatework_runtime::scheduler::Sleep;
use shuttle::{
    Config, FailurePersistence, Runner,
    rand::{Rng, thread_rng},
    scheduler::{PctScheduler, RandomScheduler},
    sync::{
        Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

const WORKERS: usize = 3;
/// Tasks that are pushed externally; each pushes two tasks to its worker's deque when it runs.
const SEEDS: usize = 3;
const TASKS: usize = 3 * SEEDS;
const RESIZES: usize = 4;
const SCHEDULES: usize = 3000;
const PCT_DEPTH: usize = 3;
const SEED: u64 = 0x6761_7465;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// A retiring worker hands off its tasks and wakes no worker for them.
    HandsOffSilently,
    /// A retiring worker keeps its tasks.
    KeepsItsTasks,
}

#[derive(Default)]
struct Parker {
    token: Mutex<bool>,
    changed: Condvar,
}

impl Parker {
    fn park(&self) {
        let mut token = self.token.lock().unwrap();
        while !std::mem::take(&mut *token) {
            token = self.changed.wait(token).unwrap();
        }
    }

    fn unpark(&self) {
        *self.token.lock().unwrap() = true;
        self.changed.notify_one();
    }
}

struct WorkerPool {
    sleep: Sleep,
    parkers: Vec<Parker>,
    deques: Vec<Mutex<VecDeque<usize>>>,
    injector: Mutex<VecDeque<usize>>,
    /// Workers with a smaller index are active, the others retired.
    workers: AtomicUsize,
    runs: Vec<AtomicUsize>,
    ran: AtomicUsize,
    fault: Fault,
}

impl WorkerPool {
    fn new(fault: Fault) -> Arc<Self> {
        Arc::new(Self {
            sleep: Sleep::new([]),
            parkers: (0..WORKERS).map(|_| Parker::default()).collect(),
            deques: (0..WORKERS).map(|_| Mutex::default()).collect(),
            injector: Mutex::default(),
            workers: AtomicUsize::new(WORKERS),
            runs: (0..TASKS).map(|_| AtomicUsize::new(0)).collect(),
            ran: AtomicUsize::new(0),
            fault,
        })
    }

    fn is_retired(&self, worker: usize) -> bool {
        worker >= self.workers.load(Ordering::SeqCst)
    }

    fn is_finished(&self) -> bool {
        self.ran.load(Ordering::SeqCst) == TASKS
    }

    fn is_empty(&self) -> bool {
        self.injector.lock().unwrap().is_empty()
            && self.deques.iter().all(|deque| deque.lock().unwrap().is_empty())
    }

    fn wake_one(&self) {
        if let Some(worker) = self.sleep.notify_one() {
            self.parkers[worker].unpark();
        }
    }

    fn inject(&self, task: usize) {
        self.injector.lock().unwrap().push_back(task);
        self.wake_one();
    }

    fn take(&self, worker: usize) -> Option<usize> {
        let own = self.deques[worker].lock().unwrap().pop_back();
        let injected = || self.injector.lock().unwrap().pop_front();
        let steal = || {
            let others = (1..WORKERS).map(|step| (worker + step) % WORKERS);
            others
                .filter(|other| !self.is_lost(*other))
                .find_map(|other| self.deques[other].lock().unwrap().pop_front())
        };
        own.or_else(injected).or_else(steal)
    }

    /// Returns whether the worker's deque is lost: the worker retired and kept its tasks.
    fn is_lost(&self, worker: usize) -> bool {
        self.fault == Fault::KeepsItsTasks && self.is_retired(worker)
    }

    fn run(&self, worker: usize, task: usize) {
        assert_eq!(self.runs[task].fetch_add(1, Ordering::SeqCst), 0, "a task ran twice");
        if task < SEEDS {
            for child in [SEEDS + 2 * task, SEEDS + 2 * task + 1] {
                self.deques[worker].lock().unwrap().push_back(child);
                self.wake_one();
            }
        }
        if self.ran.fetch_add(1, Ordering::SeqCst) + 1 == TASKS {
            self.stop();
        }
    }

    fn stop(&self) {
        let _asleep = self.sleep.notify_all();
        self.parkers.iter().for_each(Parker::unpark);
    }

    fn drain(&self, worker: usize, mut searching: bool) {
        while let Some(task) = self.take(worker) {
            if std::mem::take(&mut searching) {
                self.sleep.stop_searching();
                if !self.is_empty() {
                    self.wake_one();
                }
            }
            self.run(worker, task);
            if self.is_retired(worker) {
                break;
            }
        }
        if searching {
            self.sleep.stop_searching();
        }
    }

    fn hand_off_tasks(&self, worker: usize) {
        if self.fault == Fault::KeepsItsTasks {
            return;
        }
        loop {
            let Some(task) = self.deques[worker].lock().unwrap().pop_back() else { break };
            match self.fault {
                Fault::HandsOffSilently => self.injector.lock().unwrap().push_back(task),
                _ => self.inject(task),
            }
        }
        if self.fault != Fault::HandsOffSilently && !self.is_empty() {
            self.wake_one();
        }
    }

    /// The loop of a worker's thread, which parks while the worker is retired.
    fn work(&self, worker: usize) {
        while !self.is_finished() {
            let mut searching = false;
            loop {
                self.drain(worker, searching);
                if self.is_finished() || self.is_retired(worker) {
                    break;
                }
                let has_work = || !self.is_empty() || self.is_finished() || self.is_retired(worker);
                searching =
                    self.sleep.park_unless_work(worker, has_work, || self.parkers[worker].park());
            }
            self.hand_off_tasks(worker);
            while self.is_retired(worker) && !self.is_finished() {
                self.parkers[worker].park();
            }
        }
    }

    fn resize(&self, to: usize) {
        let before = self.workers.swap(to, Ordering::SeqCst);
        for worker in to..before {
            if self.sleep.notify_worker(worker) {
                self.parkers[worker].unpark();
            }
        }
        for worker in before..to {
            self.parkers[worker].unpark();
        }
    }
}

fn model(fault: Fault) {
    let pool = WorkerPool::new(fault);
    let mut threads: Vec<_> = (0..WORKERS)
        .map(|worker| {
            let pool = pool.clone();
            thread::spawn(move || pool.work(worker))
        })
        .collect();
    threads.push(thread::spawn({
        let pool = pool.clone();
        move || (0..SEEDS).for_each(|task| pool.inject(task))
    }));
    for _ in 0..RESIZES {
        pool.resize(thread_rng().gen_range(1..=WORKERS));
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let once = |runs: &AtomicUsize| runs.load(Ordering::SeqCst) == 1;
    assert!(pool.runs.iter().all(once), "a task was lost");
}

#[test]
fn no_task_is_lost_while_the_number_of_threads_changes() {
    shuttle::check_random(|| model(Fault::None), SCHEDULES);
    shuttle::check_pct(|| model(Fault::None), SCHEDULES, PCT_DEPTH);
}

fn caught(fault: Fault) {
    let mut config = Config::new();
    config.failure_persistence = FailurePersistence::None;
    let random = Runner::new(RandomScheduler::new_from_seed(SEED, SCHEDULES), config.clone());
    let pct = Runner::new(PctScheduler::new_from_seed(SEED, PCT_DEPTH, SCHEDULES), config);
    let passes = panic::catch_unwind(AssertUnwindSafe(move || {
        random.run(move || model(fault));
        pct.run(move || model(fault));
    }));
    assert!(passes.is_err(), "the model does not detect {fault:?}");
}

#[test]
fn tasks_handed_on_silently_are_seen() {
    caught(Fault::HandsOffSilently);
}

#[test]
fn tasks_that_a_worker_keeps_are_seen() {
    caught(Fault::KeepsItsTasks);
}
