//! A worker: runs tasks until there are none, then parks, or returns its hosted thread.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam::sync::Parker;
use gatework_shared_state::sync::atomic::Ordering;

use super::{queue::NextTask, registry::Registry, sleep::ParkToken, task::add};

/// Runs a worker on a thread of its own, until the executor stops and no task lives.
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
        // The worker is not among the sleepers now; the tasks in its deque are for others.
        registry.hand_off_tasks(worker);
        while registry.is_retired(worker) && !registry.is_stopped() {
            parker.park();
        }
    }
}

/// The time after which a hosted thread is returned, although there is more work.
const HOSTED_SLICE: Duration = Duration::from_millis(10);

/// Runs a worker on a hosted thread, until there is no work or its slice is over, then returns the
/// thread. `searching`: the worker was woken, rather than rescheduled with work left.
///
/// The deque is detached before the worker is added to the sleepers. From then on another thread
/// may become this worker.
pub(super) fn run_hosted(registry: &Arc<Registry>, worker: usize, mut searching: bool) {
    let until = Instant::now() + HOSTED_SLICE;
    while let Some(guard) = registry.queue.attach(registry, worker) {
        let drained = drain(registry, worker, searching, Some(until));
        searching = false;
        registry.queue.detach(worker, guard);
        if drained == Drained::SliceOver {
            // The worker is not among the sleepers; others can steal from its deque meanwhile.
            registry.reschedule_hosted(worker);
            return;
        }
        if registry.sleep.announce_sleep(worker, || !registry.queue.is_empty()) != ParkToken::Awake
        {
            break;
        }
    }
    if searching {
        // Another thread has this worker's deque, and does not know that pushes rely on this
        // search.
        registry.sleep.stop_searching();
        registry.wake_one();
    }
    registry.hosted_thread_left();
}

/// Why a worker stopped running tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drained {
    /// There are no tasks, or the worker must retire.
    Idle,
    /// Its time slice is used up.
    SliceOver,
}

/// Runs tasks until there are none, the worker must retire, or `until` has passed. `searching`: the
/// worker was woken to search, so that pushes have relied on it since.
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
