//! The task queue: a deque per worker that others steal from, and injectors by level.
//!
//! Woken tasks go to the deque of the worker that woke them (their data is warm there), tasks woken
//! from outside and tasks whose slice ended go to the injector of their group's level, cancelled
//! tasks go to the urgent injector. A level is a span of consumed worker time, so that the first
//! slices of a short query come before the hundredth of a long one; a level below still gets its
//! share, because levels are picked by time used divided by weight.

use std::{cell::RefCell, sync::Arc, time::Duration};

use crossbeam::{
    deque::{Injector, Steal, Stealer, Worker as Deque},
    utils::CachePadded,
};
use gatework_shared_state::sync::atomic::{AtomicU64, Ordering};
use parking_lot::Mutex;

use super::{seeded::SeededQueue, task::Task};

/// Upper ends of the levels, in consumed worker time; the last level has none.
const LEVEL_ENDS: [Duration; LEVELS - 1] =
    [Duration::from_millis(50), Duration::from_millis(500), Duration::from_secs(5)];
const LEVELS: usize = 4;
/// A worker looks at the injectors before its own deque every so many tasks, so that a chain of
/// tasks waking each other cannot keep those outside waiting.
const FAIRNESS_INTERVAL: u32 = 31;

type TaskDeque = Deque<Arc<Task>>;

#[derive(Debug)]
struct Level {
    injector: Injector<Arc<Task>>,
    /// Worker time given to this level, divided by its weight.
    virtual_nanos: CachePadded<AtomicU64>,
}

#[derive(Debug)]
pub(super) struct Queue {
    urgent: Injector<Arc<Task>>,
    levels: [Level; LEVELS],
    stealers: Box<[Stealer<Arc<Task>>]>,
    /// The deques of workers that do not run at the moment.
    parked: Box<[Mutex<Option<TaskDeque>>]>,
    /// Tells this queue's local deques from those of other executors.
    id: u64,
    /// Takes the place of the deques and injectors in a seeded executor.
    seeded: Option<SeededQueue>,
}

/// A worker's deque, while it runs, in a thread local: pushes from within a task find it there.
struct Local {
    queue: u64,
    deque: TaskDeque,
    ticks: u32,
}

/// The right to take from the deque that is this thread's. A thread borrowed from a pool may already
/// be another worker further up its stack, whose deque comes back at the end.
pub(super) struct Attached {
    outer: Option<Local>,
}

thread_local! {
    static LOCAL: RefCell<Option<Local>> = const { RefCell::new(None) };
}

/// A task to run, and how it was come by.
pub(super) struct Taken {
    pub(super) task: Arc<Task>,
    pub(super) stolen: bool,
}

impl Queue {
    pub(super) fn new(workers: usize, seed: Option<u64>) -> Self {
        static NEXT_ID: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let deques: Vec<_> = (0..workers).map(|_| Deque::new_fifo()).collect();
        Self {
            urgent: Injector::new(),
            levels: std::array::from_fn(|_| Level {
                injector: Injector::new(),
                virtual_nanos: CachePadded::new(AtomicU64::new(0)),
            }),
            stealers: deques.iter().map(Deque::stealer).collect(),
            parked: deques.into_iter().map(|deque| Mutex::new(Some(deque))).collect(),
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            seeded: seed.map(SeededQueue::new),
        }
    }

    /// Makes `worker`'s deque this thread's. `None` if another thread has it.
    pub(super) fn attach(&self, worker: usize) -> Option<Attached> {
        let deque = self.parked[worker].lock().take()?;
        let outer = LOCAL.replace(Some(Local { queue: self.id, deque, ticks: 0 }));
        Some(Attached { outer })
    }

    /// Gives this thread's deque back.
    pub(super) fn detach(&self, worker: usize, attached: Attached) {
        if let Some(local) = LOCAL.replace(attached.outer) {
            *self.parked[worker].lock() = Some(local.deque);
        }
    }

    /// Whether this thread is one of this queue's workers at the moment.
    pub(super) fn is_here(&self) -> bool {
        LOCAL.with_borrow(|local| local.as_ref().is_some_and(|local| local.queue == self.id))
    }

    /// The queue of a seeded executor.
    pub(super) fn seeded(&self) -> Option<&SeededQueue> {
        self.seeded.as_ref()
    }

    fn level_of(task: &Task) -> usize {
        let consumed = task.group.consumed();
        LEVEL_ENDS.iter().position(|end| consumed < *end).unwrap_or(LEVELS - 1)
    }

    /// Queues a task that became runnable.
    pub(super) fn push(&self, task: Arc<Task>) {
        if let Some(seeded) = &self.seeded {
            seeded.push(task);
            return;
        }
        if task.is_urgent() {
            self.urgent.push(task);
            return;
        }
        let outside = LOCAL.with_borrow(|local| match local {
            Some(local) if local.queue == self.id => {
                local.deque.push(task);
                None
            }
            _ => Some(task),
        });
        if let Some(task) = outside {
            self.push_yielded(task);
        }
    }

    /// Queues a task behind those of its level.
    pub(super) fn push_yielded(&self, task: Arc<Task>) {
        if let Some(seeded) = &self.seeded {
            seeded.push(task);
            return;
        }
        if task.is_urgent() {
            self.urgent.push(task);
            return;
        }
        self.levels[Self::level_of(&task)].injector.push(task);
    }

    /// Charges a run to the level of the task's group.
    pub(super) fn charge(&self, task: &Task, spent: Duration) {
        let level = Self::level_of(task);
        // Level l gets half the share of level l - 1.
        let nanos = (spent.as_nanos() as u64) << level;
        self.levels[level].virtual_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    pub(super) fn is_empty(&self) -> bool {
        if let Some(seeded) = &self.seeded {
            return seeded.is_empty();
        }
        self.urgent.is_empty()
            && self.levels.iter().all(|level| level.injector.is_empty())
            && self.stealers.iter().all(Stealer::is_empty)
    }

    /// The next task for `worker`, whose deque is attached to this thread.
    pub(super) fn take(&self, worker: usize) -> Option<Taken> {
        let own = |task| Taken { task, stolen: false };
        if let Some(seeded) = &self.seeded {
            return seeded.take().map(own);
        }
        if let Some(task) = steal(|| self.urgent.steal()) {
            return Some(own(task));
        }
        let outside_first = LOCAL.with_borrow_mut(|local| {
            local.as_mut().is_some_and(|local| {
                local.ticks = local.ticks.wrapping_add(1);
                local.ticks % FAIRNESS_INTERVAL == 0
            })
        });
        if outside_first && let Some(task) = self.take_injected() {
            return Some(own(task));
        }
        let local = LOCAL.with_borrow(|local| local.as_ref().and_then(|local| local.deque.pop()));
        if let Some(task) = local.or_else(|| self.take_injected()) {
            return Some(own(task));
        }
        let count = self.stealers.len();
        (1..count)
            .map(|step| &self.stealers[(worker + step) % count])
            .find_map(|stealer| steal(|| stealer.steal()))
            .map(|task| Taken { task, stolen: true })
    }

    /// The oldest task of the level that has had least of its share.
    fn take_injected(&self) -> Option<Arc<Task>> {
        let mut order: [usize; LEVELS] = std::array::from_fn(|level| level);
        order.sort_by_key(|&level| self.levels[level].virtual_nanos.load(Ordering::Relaxed));
        let furthest = order[LEVELS - 1];
        for level in order {
            if let Some(task) = steal(|| self.levels[level].injector.steal()) {
                self.catch_up(level, furthest);
                return Some(task);
            }
        }
        None
    }

    /// A level that was idle may not save its share up: it starts close to the busiest one.
    fn catch_up(&self, level: usize, furthest: usize) {
        const HEAD_START_NANOS: u64 = 100_000_000;
        let furthest = self.levels[furthest].virtual_nanos.load(Ordering::Relaxed);
        let floor = furthest.saturating_sub(HEAD_START_NANOS);
        self.levels[level].virtual_nanos.fetch_max(floor, Ordering::Relaxed);
    }
}

fn steal(mut attempt: impl FnMut() -> Steal<Arc<Task>>) -> Option<Arc<Task>> {
    loop {
        match attempt() {
            Steal::Success(task) => return Some(task),
            Steal::Empty => return None,
            Steal::Retry => {}
        }
    }
}
