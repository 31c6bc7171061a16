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

use super::{
    executor::Core,
    seeded::SeededQueue,
    task::{Task, TaskGroup},
};

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
    /// Takes the place of the deques and injectors in a seeded executor.
    seeded: Option<SeededQueue>,
}

/// A worker's deque, while it runs, in a thread local: pushes from within a task find it there.
struct Local {
    core: Arc<Core>,
    deque: TaskDeque,
    ticks: u32,
    /// Time given to each level, divided by its weight, that is not in the queue's accounts yet.
    unbilled: [u64; LEVELS],
}

/// A worker puts its time on the levels' accounts in parts of about this size.
const BILLED_NANOS: u64 = 10_000;

impl Local {
    fn is_of(&self, queue: &Queue) -> bool {
        std::ptr::eq(&self.core.queue, queue)
    }

    fn bill(&mut self) {
        for (level, nanos) in self.core.queue.levels.iter().zip(&mut self.unbilled) {
            if *nanos > 0 {
                level.virtual_nanos.fetch_add(*nanos, Ordering::Relaxed);
                *nanos = 0;
            }
        }
    }
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
        let deques: Vec<_> = (0..workers).map(|_| Deque::new_fifo()).collect();
        Self {
            urgent: Injector::new(),
            levels: std::array::from_fn(|_| Level {
                injector: Injector::new(),
                virtual_nanos: CachePadded::new(AtomicU64::new(0)),
            }),
            stealers: deques.iter().map(Deque::stealer).collect(),
            parked: deques.into_iter().map(|deque| Mutex::new(Some(deque))).collect(),
            seeded: seed.map(SeededQueue::new),
        }
    }

    /// Makes the deque of `worker` of `core` this thread's. `None` if another thread has it.
    pub(super) fn attach(&self, core: &Arc<Core>, worker: usize) -> Option<Attached> {
        let deque = self.parked[worker].lock().take()?;
        let local = Local { core: core.clone(), deque, ticks: 0, unbilled: [0; LEVELS] };
        let outer = LOCAL.replace(Some(local));
        Some(Attached { outer })
    }

    /// Gives this thread's deque back.
    pub(super) fn detach(&self, worker: usize, attached: Attached) {
        if let Some(mut local) = LOCAL.replace(attached.outer) {
            local.bill();
            *self.parked[worker].lock() = Some(local.deque);
        }
    }

    /// Whether this thread is one of this queue's workers at the moment.
    pub(super) fn is_here(&self) -> bool {
        LOCAL.with_borrow(|local| local.as_ref().is_some_and(|local| local.is_of(self)))
    }

    /// The queue of a seeded executor.
    pub(super) fn seeded(&self) -> Option<&SeededQueue> {
        self.seeded.as_ref()
    }

    fn level_of(group: &TaskGroup) -> usize {
        let consumed = group.consumed();
        LEVEL_ENDS.iter().position(|end| consumed < *end).unwrap_or(LEVELS - 1)
    }

    /// Queues a task that was woken on the thread of one of its executor's workers, and answers that; any
    /// other task comes back.
    pub(super) fn push_here(task: Arc<Task>) -> Option<Arc<Task>> {
        LOCAL.with_borrow(|local| match local {
            Some(Local { core, deque, .. })
                if std::ptr::eq(Arc::as_ptr(core), task.core().as_ptr())
                    && core.queue.seeded.is_none()
                    && !task.is_urgent() =>
            {
                deque.push(task);
                core.wake_one();
                None
            }
            _ => Some(task),
        })
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
            Some(local) if local.is_of(self) => {
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
        self.levels[Self::level_of(&task.group)].injector.push(task);
    }

    /// Charges a run on this thread to the level of its group.
    pub(super) fn charge(&self, group: &TaskGroup, spent: Duration) {
        let level = Self::level_of(group);
        // Level l gets half the share of level l - 1.
        let nanos = (spent.as_nanos() as u64) << level;
        LOCAL.with_borrow_mut(|local| {
            let Some(local) = local.as_mut().filter(|local| local.is_of(self)) else { return };
            local.unbilled[level] += nanos;
            if local.unbilled[level] > BILLED_NANOS {
                local.bill();
            }
        });
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
        if !self.urgent.is_empty()
            && let Some(task) = steal(|| self.urgent.steal())
        {
            return Some(own(task));
        }
        let (local, outside_first) = LOCAL.with_borrow_mut(|local| {
            let Some(local) = local else { return (None, false) };
            local.ticks = local.ticks.wrapping_add(1);
            let outside_first = local.ticks.is_multiple_of(FAIRNESS_INTERVAL);
            (if outside_first { None } else { local.deque.pop() }, outside_first)
        });
        let again = || LOCAL.with_borrow(|local| local.as_ref()?.deque.pop());
        let task = local.or_else(|| self.take_injected());
        if let Some(task) = task.or_else(|| if outside_first { again() } else { None }) {
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
