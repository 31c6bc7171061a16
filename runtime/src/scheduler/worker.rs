//! A worker: takes tasks until there are none, then parks, or hands its thread back.

use std::{sync::Arc, time::Instant};

use crossbeam::sync::Parker;
use gatework_shared_state::sync::atomic::Ordering;

use super::{executor::Core, queue::Taken, sleep::ParkToken, task::add};

/// The loop of a thread of our own: runs until the executor stops and no task lives.
pub(super) fn run_thread(core: &Arc<Core>, worker: usize, parker: &Parker) {
    while let Some(attached) = core.queue.attach(core, worker) {
        let mut searches = false;
        loop {
            drain(core, worker, searches);
            if core.is_stopped() || core.is_retired(worker) {
                break;
            }
            let has_work =
                || !core.queue.is_empty() || core.is_stopped() || core.is_retired(worker);
            searches = core.sleep.rest(worker, has_work, || parker.park());
        }
        core.queue.detach(worker, attached);
        if core.is_stopped() {
            return;
        }
        // It is entered nowhere now; what it had in its deque is for others.
        core.give_away(worker);
        while core.is_retired(worker) && !core.is_stopped() {
            parker.park();
        }
    }
}

/// The loop of a borrowed thread: runs until there is nothing to do, then gives the thread back.
///
/// The deque is given back before the number is entered, because from then on another thread may be
/// asked to be this worker.
pub(super) fn run_borrowed(core: &Arc<Core>, worker: usize) {
    // Whoever asked for the thread took the worker out of the sleepers.
    let mut searches = true;
    while let Some(attached) = core.queue.attach(core, worker) {
        drain(core, worker, searches);
        searches = false;
        core.queue.detach(worker, attached);
        if core.sleep.prepare(worker, || !core.queue.is_empty()) != ParkToken::Awake {
            break;
        }
    }
    if searches {
        // Its deque is another thread's, which does not know that pushes rely on this one.
        core.sleep.end_search();
        core.wake_one();
    }
    core.borrowed_thread_left();
}

/// Runs tasks until there are none, or the worker is to retire. `searches`: the worker was woken for them, so that pushes have
/// relied on it since.
fn drain(core: &Arc<Core>, worker: usize, mut searches: bool) {
    let mut now = Instant::now();
    while let Some(Taken { task, stolen }) = core.queue.take(worker) {
        if searches {
            searches = false;
            core.sleep.end_search();
            if !core.queue.is_empty() {
                core.wake_one();
            }
        }
        let last = task.last_worker.load(Ordering::Relaxed);
        task.last_worker.store(worker + 1, Ordering::Relaxed);
        if stolen || (last != 0 && last != worker + 1) {
            add(&task.counters.steals, 1);
            core.steals.fetch_add(1, Ordering::Relaxed);
        }
        now = task.run(core, worker, now);
        if core.is_retired(worker) {
            break;
        }
    }
    if searches {
        core.sleep.end_search();
    }
}
