//! A worker: takes tasks until there are none, then parks, or hands its thread back.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam::sync::Parker;
use gatework_shared_state::sync::atomic::Ordering;

use super::{executor::Core, queue::Taken, sleep::ParkToken, task::add};

/// The loop of a thread of our own: runs until the executor stops and no task lives.
pub(super) fn run_thread(core: &Arc<Core>, worker: usize, parker: &Parker) {
    while let Some(attached) = core.queue.attach(core, worker) {
        let mut searches = false;
        loop {
            drain(core, worker, searches, None);
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

/// The time after which a borrowed thread is given back, although there is more to do.
const BORROWED_SLICE: Duration = Duration::from_millis(10);

/// The loop of a borrowed thread: runs until there is nothing to do, or for a slice, then gives the
/// thread back. `searches`: the worker was woken, and not in the midst of its work.
///
/// The deque is given back before the number is entered, because from then on another thread may be
/// asked to be this worker.
pub(super) fn run_borrowed(core: &Arc<Core>, worker: usize, mut searches: bool) {
    let until = Instant::now() + BORROWED_SLICE;
    while let Some(attached) = core.queue.attach(core, worker) {
        let drained = drain(core, worker, searches, Some(until));
        searches = false;
        core.queue.detach(worker, attached);
        if drained == Drained::SliceOver {
            // It is entered nowhere: others can steal from its deque meanwhile.
            core.borrow_again(worker);
            return;
        }
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

/// Why a worker runs no more tasks at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drained {
    /// There are none, or it is to retire.
    Rests,
    /// Its time is over.
    SliceOver,
}

/// Runs tasks until there are none, the worker is to retire, or its time is over. `searches`: the
/// worker was woken for them, so that pushes have relied on it since.
fn drain(core: &Arc<Core>, worker: usize, mut searches: bool, until: Option<Instant>) -> Drained {
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
        if until.is_some_and(|until| now >= until) {
            return Drained::SliceOver;
        }
    }
    if searches {
        core.sleep.end_search();
    }
    Drained::Rests
}
