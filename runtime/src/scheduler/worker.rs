//! A worker: takes tasks until there are none, then parks, or hands its thread back.

use std::{sync::Arc, time::Instant};

use crossbeam::sync::Parker;
use gatework_shared_state::sync::atomic::Ordering;

use super::{executor::Core, queue::Taken, sleep::ParkToken};

/// The loop of a thread of our own: runs until the executor stops and no task lives.
pub(super) fn run_thread(core: &Arc<Core>, worker: usize, parker: &Parker) {
    let Some(attached) = core.queue.attach(worker) else { return };
    loop {
        drain(core, worker);
        if core.is_stopped() {
            break;
        }
        let has_work = || !core.queue.is_empty() || core.is_stopped();
        core.sleep.rest(worker, has_work, || parker.park());
    }
    core.queue.detach(worker, attached);
}

/// The loop of a borrowed thread: runs until there is nothing to do, then gives the thread back.
///
/// The deque is given back before the number is entered, because from then on another thread may be
/// asked to be this worker.
pub(super) fn run_borrowed(core: &Arc<Core>, worker: usize) {
    while let Some(attached) = core.queue.attach(worker) {
        drain(core, worker);
        core.queue.detach(worker, attached);
        if core.sleep.prepare(worker, || !core.queue.is_empty()) != ParkToken::Awake {
            break;
        }
    }
    core.borrowed_thread_left();
}

fn drain(core: &Arc<Core>, worker: usize) {
    while let Some(Taken { task, stolen }) = core.queue.take(worker) {
        let last = task.last_worker.swap(worker + 1, Ordering::Relaxed);
        if stolen || (last != 0 && last != worker + 1) {
            task.counters.steals.fetch_add(1, Ordering::Relaxed);
            core.steals.fetch_add(1, Ordering::Relaxed);
        }
        let started = Instant::now();
        let (group, kept) = (task.group.clone(), task.clone());
        task.run(core, worker);
        let spent = started.elapsed();
        group.charge(spent);
        kept.counters.busy_nanos.fetch_add(spent.as_nanos() as u64, Ordering::Relaxed);
        core.queue.charge(&kept, spent);
    }
}
