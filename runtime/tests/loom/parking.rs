//! Models of parking workers and of pushes that wake them. No push is lost while a worker sleeps,
//! and an awake worker is not registered as a sleeper.
//!
//! [`WorkerPool`] models workers and pushes over the production [`Sleep`]. Its queue is a number
//! that is read and written `Relaxed`, so that only the fences of the protocol order it.

use std::sync::Arc;

use gatework_runtime::scheduler::Sleep;
use loom::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering, fence},
    },
    thread,
};

use crate::support::{Parker, check, join_all, must_fail};

/// The protocol of sleepers and notifiers, implemented by the production type and by broken ones.
trait Sleepers: Send + Sync + 'static {
    fn park_unless_work(
        &self,
        worker: usize,
        has_work: impl Fn() -> bool,
        park: impl FnOnce(),
    ) -> bool;
    fn stop_searching(&self);
    fn notify_one(&self) -> Option<usize>;
    fn notify_all(&self) -> Vec<usize>;
    fn count(&self) -> usize;
}

impl Sleepers for Sleep {
    fn park_unless_work(
        &self,
        worker: usize,
        has_work: impl Fn() -> bool,
        park: impl FnOnce(),
    ) -> bool {
        self.park_unless_work(worker, has_work, park)
    }

    fn stop_searching(&self) {
        self.stop_searching();
    }

    fn notify_one(&self) -> Option<usize> {
        self.notify_one()
    }

    fn notify_all(&self) -> Vec<usize> {
        self.notify_all()
    }

    fn count(&self) -> usize {
        self.count()
    }
}

struct WorkerPool<S> {
    sleep: S,
    parkers: Vec<Parker>,
    /// The number of items pushed and not taken.
    queue: AtomicUsize,
    /// Whether the next park returns spuriously.
    spurious: AtomicBool,
    /// The number of items taken.
    taken: AtomicUsize,
    stopped: AtomicBool,
    items: usize,
}

impl<S: Sleepers> WorkerPool<S> {
    fn new(sleep: S, workers: usize, items: usize) -> Arc<Self> {
        Arc::new(Self {
            sleep,
            parkers: (0..workers).map(|_| Parker::new()).collect(),
            queue: AtomicUsize::new(0),
            spurious: AtomicBool::new(false),
            taken: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            items,
        })
    }

    fn push(&self) {
        self.queue.fetch_add(1, Ordering::Relaxed);
        self.unpark(self.sleep.notify_one());
    }

    fn unpark(&self, workers: impl IntoIterator<Item = usize>) {
        workers.into_iter().for_each(|worker| self.parkers[worker].unpark());
    }

    fn drain(&self, mut searching: bool) {
        let take = |items: usize| items.checked_sub(1);
        while self.queue.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
            if searching {
                searching = false;
                self.sleep.stop_searching();
                if self.queue.load(Ordering::Relaxed) > 0 {
                    self.unpark(self.sleep.notify_one());
                }
            }
            if self.taken.fetch_add(1, Ordering::Relaxed) + 1 == self.items {
                self.stopped.store(true, Ordering::Relaxed);
                self.unpark(self.sleep.notify_all());
            }
        }
        if searching {
            self.sleep.stop_searching();
        }
    }

    fn has_work(&self) -> bool {
        self.queue.load(Ordering::Relaxed) > 0 || self.stopped.load(Ordering::Relaxed)
    }

    fn park(&self, worker: usize) {
        if !self.spurious.swap(false, Ordering::Relaxed) {
            self.parkers[worker].park();
        }
    }

    /// Runs a worker's loop until all items are taken.
    fn work(&self, worker: usize) {
        let mut searching = false;
        loop {
            self.drain(searching);
            if self.stopped.load(Ordering::Relaxed) {
                return;
            }
            searching =
                self.sleep.park_unless_work(worker, || self.has_work(), || self.park(worker));
            if self.parkers.len() == 1 {
                assert_eq!(self.sleep.count(), 0, "an awake worker is registered as a sleeper");
            }
        }
    }
}

/// Two external pushes, one worker.
fn one_worker<S: Sleepers>(sleep: impl Fn() -> S) {
    let pool = WorkerPool::new(sleep(), 1, 2);
    let pusher = thread::spawn({
        let pool = pool.clone();
        move || {
            pool.push();
            pool.push();
        }
    });
    pool.work(0);
    pusher.join().unwrap();
    assert!(!pool.parkers[0].has_token(), "an unpark was left over");
}

/// One external push, one worker whose first park returns spuriously.
fn spurious_unpark<S: Sleepers>(sleep: impl Fn() -> S) {
    let pool = WorkerPool::new(sleep(), 1, 1);
    pool.spurious.store(true, Ordering::Relaxed);
    let pusher = thread::spawn({
        let pool = pool.clone();
        move || pool.push()
    });
    pool.work(0);
    pusher.join().unwrap();
}

/// One external push, one push from a worker's thread, two workers, and the stop that wakes all.
fn two_workers<S: Sleepers>(sleep: impl Fn() -> S) {
    let pool = WorkerPool::new(sleep(), 2, 2);
    let others = [
        thread::spawn({
            let pool = pool.clone();
            move || pool.work(1)
        }),
        thread::spawn({
            let pool = pool.clone();
            move || pool.push()
        }),
    ];
    pool.push();
    pool.work(0);
    join_all(others);
    assert_eq!(pool.taken.load(Ordering::Relaxed), 2);
}

impl WorkerPool<Sleep> {
    /// Runs the loop of a worker that may retire; if `rechecks`, it then looks for work left
    /// behind.
    fn work_until_retired(&self, worker: usize, retired: &AtomicBool, rechecks: bool) {
        let mut searching = false;
        loop {
            self.drain(searching);
            let is_finished =
                || self.stopped.load(Ordering::Relaxed) || retired.load(Ordering::SeqCst);
            if is_finished() {
                if rechecks && self.queue.load(Ordering::Relaxed) > 0 {
                    self.unpark(self.sleep.notify_one());
                }
                return;
            }
            let has_work = || self.has_work() || is_finished();
            searching = self.sleep.park_unless_work(worker, has_work, || self.park(worker));
        }
    }
}

/// An external push while worker 1 retires: worker 0 takes it, or worker 1 does before it retires.
fn a_worker_retires(rechecks: bool) {
    let pool = WorkerPool::new(Sleep::new([]), 2, 1);
    let retired = Arc::new(AtomicBool::new(false));
    let others = [
        thread::spawn({
            let (pool, retired) = (pool.clone(), retired.clone());
            move || pool.work_until_retired(1, &retired, rechecks)
        }),
        thread::spawn({
            let pool = pool.clone();
            move || pool.push()
        }),
    ];
    retired.store(true, Ordering::SeqCst);
    if pool.sleep.notify_worker(1) {
        pool.unpark([1]);
    }
    pool.work(0);
    join_all(others);
    assert_eq!(pool.taken.load(Ordering::Relaxed), 1);
}

/// All workers are registered as sleepers at the start, as those on hosted threads are. One of two
/// pushes wakes a worker, which then searches and wakes the other.
fn one_push_one_worker<S: Sleepers>(sleep: impl Fn() -> S) {
    let sleep = Arc::new(sleep());
    let notifier = thread::spawn({
        let sleep = sleep.clone();
        move || sleep.notify_one()
    });
    let mut woken: Vec<_> =
        [sleep.notify_one(), notifier.join().unwrap()].into_iter().flatten().collect();
    // Both are woken if neither push saw the other's searching worker.
    if woken.len() == 1 {
        assert_eq!(sleep.notify_one(), None);
        sleep.stop_searching();
        woken.extend(sleep.notify_one());
    }
    woken.sort_unstable();
    assert_eq!(woken, [0, 1]);
    assert_eq!(sleep.notify_one(), None);
}

mod ships {
    use super::*;

    #[test]
    fn one_worker() {
        check(|| super::one_worker(|| Sleep::new([])));
    }

    #[test]
    fn spurious_unpark() {
        check(|| super::spurious_unpark(|| Sleep::new([])));
    }

    #[test]
    fn two_workers() {
        check(|| super::two_workers(|| Sleep::new([])));
    }

    #[test]
    fn a_worker_retires() {
        check(|| super::a_worker_retires(true));
    }

    #[test]
    fn one_push_one_worker() {
        check(|| super::one_push_one_worker(|| Sleep::new(0..2)));
    }
}

/// Implementations of [`Sleepers`] with one fault each.
mod broken {
    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Fault {
        None,
        /// No fence between registration and recheck, nor between push and notification.
        NoFence,
        /// Parks without a recheck for work after registration.
        NoRecheck,
        /// Checks for work, then registers.
        ChecksThenEnters,
        /// Leaves the unpark of a worker that found work as a token for its next park.
        TokenLeftOver,
        /// Removes a sleeper without unparking it: `notify_one` drops the sleeper's index.
        TakenButNotWoken,
        /// A worker that found nothing stops searching only after its last check.
        SearchesInItsSleep,
    }

    struct Broken {
        sleepers: Mutex<Vec<usize>>,
        count: AtomicUsize,
        searching: AtomicUsize,
        fault: Fault,
    }

    impl Broken {
        fn enter(&self, worker: usize) {
            let mut sleepers = self.sleepers.lock().unwrap();
            sleepers.push(worker);
            self.count.store(sleepers.len(), Ordering::SeqCst);
        }

        /// Removes `worker`, or the last sleeper.
        fn take_out(&self, worker: Option<usize>) -> Option<usize> {
            let mut sleepers = self.sleepers.lock().unwrap();
            let index = match worker {
                Some(worker) => sleepers.iter().position(|entered| *entered == worker)?,
                None => sleepers.len().checked_sub(1)?,
            };
            let taken = sleepers.swap_remove(index);
            self.count.store(sleepers.len(), Ordering::SeqCst);
            Some(taken)
        }

        fn fence(&self) {
            if self.fault != Fault::NoFence {
                fence(Ordering::SeqCst);
            }
        }
    }

    impl Sleepers for Broken {
        fn park_unless_work(
            &self,
            worker: usize,
            has_work: impl Fn() -> bool,
            park: impl FnOnce(),
        ) -> bool {
            if self.fault == Fault::ChecksThenEnters {
                let found = has_work();
                self.enter(worker);
                self.fence();
                if found && self.take_out(Some(worker)).is_some() {
                    return false;
                }
                park();
                return true;
            }
            self.enter(worker);
            self.fence();
            if self.fault == Fault::NoRecheck || !has_work() {
                if self.fault == Fault::SearchesInItsSleep {
                    self.searching.store(0, Ordering::SeqCst);
                }
                park();
                return true;
            }
            let unparked = self.take_out(Some(worker)).is_none();
            if unparked && self.fault != Fault::TokenLeftOver {
                park();
            }
            unparked
        }

        fn stop_searching(&self) {
            if self.fault != Fault::SearchesInItsSleep {
                self.searching.fetch_sub(1, Ordering::SeqCst);
                self.fence();
            }
        }

        fn notify_one(&self) -> Option<usize> {
            self.fence();
            let searching = self.searching.load(Ordering::SeqCst) > 0;
            if searching || self.count.load(Ordering::SeqCst) == 0 {
                return None;
            }
            let taken = self.take_out(None)?;
            self.searching.fetch_add(1, Ordering::SeqCst);
            (self.fault != Fault::TakenButNotWoken).then_some(taken)
        }

        fn notify_all(&self) -> Vec<usize> {
            let all: Vec<usize> = std::iter::from_fn(|| self.take_out(None)).collect();
            self.searching.fetch_add(all.len(), Ordering::SeqCst);
            all
        }

        fn count(&self) -> usize {
            self.count.load(Ordering::SeqCst)
        }
    }

    const ASLEEP: &[&str] = &["deadlock"];

    fn with(fault: Fault) -> impl Fn() -> Broken + Copy {
        move || Broken {
            sleepers: Mutex::new(Vec::new()),
            count: AtomicUsize::new(0),
            searching: AtomicUsize::new(0),
            fault,
        }
    }

    #[test]
    fn without_a_fault_it_passes() {
        let sleep = with(Fault::None);
        check(move || one_worker(sleep));
        check(move || two_workers(sleep));
    }

    #[test]
    fn no_fence() {
        must_fail(ASLEEP, || one_worker(with(Fault::NoFence)));
    }

    #[test]
    fn no_recheck() {
        must_fail(ASLEEP, || one_worker(with(Fault::NoRecheck)));
    }

    #[test]
    fn checks_then_enters() {
        must_fail(ASLEEP, || one_worker(with(Fault::ChecksThenEnters)));
    }

    #[test]
    fn taken_but_not_woken() {
        must_fail(ASLEEP, || one_worker(with(Fault::TakenButNotWoken)));
    }

    #[test]
    fn searches_in_its_sleep() {
        must_fail(ASLEEP, || one_worker(with(Fault::SearchesInItsSleep)));
    }

    #[test]
    fn retires_without_a_recheck() {
        must_fail(ASLEEP, || a_worker_retires(false));
    }

    #[test]
    fn token_left_over() {
        let why = &["an awake worker is registered as a sleeper", "an unpark was left over"];
        must_fail(why, || one_worker(with(Fault::TokenLeftOver)));
    }
}
