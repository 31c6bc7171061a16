//! A worker: takes tasks until there are none, then parks, or hands its thread back.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam::sync::Parker;
use gatework_shared_state::sync::atomic::Ordering;

use super::{executor::Registry, queue::NextTask, sleep::ParkToken, task::add};

/// The loop of a thread of our own: runs until the executor stops and no task lives.
pub(super) fn run_thread(registry: &Arc<Registry>, worker: usize, parker: &Parker) {
    while let Some(guard) = registry.queue.attach(registry, worker) {
        let mut searching = false;
        loop {
            drain(registry, worker, searching, None);
            if registry.is_stopped() || registry.is_retired(worker) {
                break;
            }
            let has_work = || {
                !registry.queue.is_empty() || registry.is_stopped() || registry.is_retired(worker)
            };
            searching = registry.sleep.park_unless_work(worker, has_work, || parker.park());
        }
        registry.queue.detach(worker, guard);
        if registry.is_stopped() {
            return;
        }
        // It is entered nowhere now; what it had in its deque is for others.
        registry.hand_off_tasks(worker);
        while registry.is_retired(worker) && !registry.is_stopped() {
            parker.park();
        }
    }
}

/// The time after which a hosted thread is given back, although there is more to do.
const HOSTED_SLICE: Duration = Duration::from_millis(10);

/// The loop of a hosted thread: runs until there is nothing to do, or for a slice, then gives the
/// thread back. `searching`: the worker was woken, and not in the midst of its work.
///
/// The deque is given back before the number is entered, because from then on another thread may be
/// asked to be this worker.
pub(super) fn run_hosted(registry: &Arc<Registry>, worker: usize, mut searching: bool) {
    let until = Instant::now() + HOSTED_SLICE;
    while let Some(guard) = registry.queue.attach(registry, worker) {
        let drained = drain(registry, worker, searching, Some(until));
        searching = false;
        registry.queue.detach(worker, guard);
        if drained == Drained::SliceOver {
            // It is entered nowhere: others can steal from its deque meanwhile.
            registry.reschedule_hosted(worker);
            return;
        }
        if registry.sleep.announce_sleep(worker, || !registry.queue.is_empty()) != ParkToken::Awake
        {
            break;
        }
    }
    if searching {
        // Its deque is another thread's, which does not know that pushes rely on this one.
        registry.sleep.stop_searching();
        registry.wake_one();
    }
    registry.hosted_thread_left();
}

/// Why a worker runs no more tasks at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drained {
    /// There are none, or it is to retire.
    Idle,
    /// Its time is over.
    SliceOver,
}

/// Runs tasks until there are none, the worker is to retire, or its time is over. `searching`: the
/// worker was woken for them, so that pushes have relied on it since.
fn drain(
    registry: &Arc<Registry>,
    worker: usize,
    mut searching: bool,
    until: Option<Instant>,
) -> Drained {
    let mut now = Instant::now();
    while let Some(NextTask { task, stolen }) = registry.queue.take(worker) {
        if searching {
            searching = false;
            registry.sleep.stop_searching();
            if !registry.queue.is_empty() {
                registry.wake_one();
            }
        }
        let last = task.last_worker.load(Ordering::Relaxed);
        task.last_worker.store(worker + 1, Ordering::Relaxed);
        if stolen || (last != 0 && last != worker + 1) {
            add(&task.counters.steals, 1);
            registry.steals.fetch_add(1, Ordering::Relaxed);
        }
        now = task.run(registry, worker, now);
        if registry.is_retired(worker) {
            break;
        }
        if until.is_some_and(|until| now >= until) {
            return Drained::SliceOver;
        }
    }
    if searching {
        registry.sleep.stop_searching();
    }
    Drained::Idle
}
