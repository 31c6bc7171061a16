//! The task queue: a deque per worker that others steal from, and injectors by group and level.
//!
//! Woken tasks go to the deque of the worker that woke them (their data is warm there). Tasks woken
//! from outside, tasks whose slice ended, and short ones that would lie behind others go to the injector of
//! their group's level (`resource_group.rs`, `groups.rs`), cancelled tasks go to the urgent
//! injector.

use std::{cell::RefCell, sync::Arc, time::Duration};

use crossbeam::deque::{Injector, Stealer, Worker as Deque};
use parking_lot::Mutex;

use super::{
    admission::Admission,
    executor::Core,
    groups::{ActiveGroups, KnownGroups},
    resource_group::{LEVELS, ResourceGroup, level_of, steal},
    seeded::SeededQueue,
    task::{Task, TaskGroup},
};

/// A task that runs while others that are to come first wait runs at least so long.
const LEAST_SLICE: Duration = Duration::from_micros(200);
/// One of the first level gives way to others of that level after so long.
const FIRST_SLICE: Duration = Duration::from_millis(1);
/// A worker looks at the injectors before its own deque every so many tasks, so that a chain of
/// tasks waking each other cannot keep those outside waiting.
const FAIRNESS_INTERVAL: u32 = 31;

type TaskDeque = Deque<Arc<Task>>;

#[derive(Debug)]
pub(crate) struct Queue {
    urgent: Injector<Arc<Task>>,
    pub(super) groups: KnownGroups,
    /// Those with tasks, but for the next.
    pub(super) active: ActiveGroups,
    /// The group of queries of no other.
    others: Arc<ResourceGroup>,
    pub(super) admission: Arc<Admission>,
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
    /// The group and the level of the last task.
    last: (Arc<ResourceGroup>, usize),
    /// Time given to each level of that group, divided by its weight, that is not in its accounts yet.
    unbilled: [u64; LEVELS],
    /// What this thread was before: one borrowed from a pool may already be another worker further
    /// up its stack.
    outer: Option<Box<Local>>,
}

/// A worker puts its time on the levels' accounts in parts of about this size.
const BILLED_NANOS: u64 = 10_000;

impl Local {
    fn is_of(&self, queue: &Queue) -> bool {
        std::ptr::eq(&self.core.queue, queue)
    }

    fn bill(&mut self) {
        for (level, nanos) in self.unbilled.iter_mut().enumerate() {
            if *nanos > 0 {
                let used = self.last.0.bill(level, *nanos);
                self.core.queue.active.note_used(used);
                *nanos = 0;
            }
        }
    }
}

/// The right to take from the deque that is this thread's.
#[must_use = "the deque is to be given back"]
pub(super) struct Attached(());

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
        let admission = Arc::<Admission>::default();
        let others = ResourceGroup::new("", &admission);
        Self {
            urgent: Injector::new(),
            groups: KnownGroups::default(),
            active: ActiveGroups::default(),
            others,
            admission,
            stealers: deques.iter().map(Deque::stealer).collect(),
            parked: deques.into_iter().map(|deque| Mutex::new(Some(deque))).collect(),
            seeded: seed.map(SeededQueue::new),
        }
    }

    /// Makes the deque of `worker` of `core` this thread's. `None` if another thread has it.
    pub(super) fn attach(&self, core: &Arc<Core>, worker: usize) -> Option<Attached> {
        let deque = self.parked[worker].lock().take()?;
        let last = (self.others.clone(), 0);
        let outer = LOCAL.take().map(Box::new);
        let unbilled = [0; LEVELS];
        LOCAL.set(Some(Local { core: core.clone(), deque, ticks: 0, last, unbilled, outer }));
        Some(Attached(()))
    }

    /// Gives this thread's deque back.
    pub(super) fn detach(&self, worker: usize, _attached: Attached) {
        if let Some(mut local) = LOCAL.take() {
            local.bill();
            LOCAL.set(local.outer.map(|outer| *outer));
            *self.parked[worker].lock() = Some(local.deque);
        }
    }

    /// Hands the tasks of a worker that does not run to others.
    pub(super) fn give_away(&self, worker: usize) {
        let parked = self.parked[worker].lock();
        while let Some(task) = parked.as_ref().and_then(Deque::pop) {
            self.push_yielded(task);
        }
    }

    /// Whether this thread is one of this queue's workers at the moment, be it further up its
    /// stack.
    pub(super) fn is_here(&self) -> bool {
        LOCAL.with_borrow(|local| {
            let mut local = local.as_ref();
            while let Some(here) = local {
                if here.is_of(self) {
                    return true;
                }
                local = here.outer.as_deref();
            }
            false
        })
    }

    /// The queue of a seeded executor.
    pub(super) fn seeded(&self) -> Option<&SeededQueue> {
        self.seeded.as_ref()
    }

    /// The group of that name.
    pub(super) fn group(&self, name: &str) -> Arc<ResourceGroup> {
        match name {
            "" => self.others.clone(),
            _ => self.groups.get(name, &self.admission),
        }
    }

    /// Whether `group` is one of this queue's.
    pub(crate) fn owns(&self, group: &ResourceGroup) -> bool {
        group.is_of(&self.admission)
    }

    fn group_of<'a>(&'a self, tasks: &'a TaskGroup) -> &'a Arc<ResourceGroup> {
        tasks.resource_group().unwrap_or(&self.others)
    }

    /// Whether a task that waits for a worker is to come before one of these, which has run for so long.
    pub(crate) fn is_wanted(&self, tasks: &TaskGroup, ran: Duration) -> bool {
        if ran < LEAST_SLICE || self.seeded.is_some() {
            return false;
        }
        let (group, level) = (self.group_of(tasks), level_of(tasks.consumed()));
        // Nobody knows yet which of these are short.
        let in_turn = level == 0 && ran >= FIRST_SLICE && group.waits_above(1);
        in_turn || self.comes_first(group, level)
    }

    /// Whether a task waits outside of the deques that is to come before those of this group and level.
    fn comes_first(&self, group: &Arc<ResourceGroup>, level: usize) -> bool {
        if !self.urgent.is_empty() || group.waits_above(level) {
            return true;
        }
        let used = group.used();
        let of_others = !Arc::ptr_eq(&self.others, group) && !self.others.is_empty();
        of_others && self.others.used() < used || self.active.has_before(used)
    }

    /// Queues a task that was woken on the thread of one of its executor's workers, and answers that; any
    /// other task comes back.
    pub(super) fn push_here(task: Arc<Task>) -> Option<Arc<Task>> {
        LOCAL.with_borrow(|local| match local {
            Some(Local { core, deque, .. })
                if std::ptr::eq(Arc::as_ptr(core), task.core().as_ptr())
                    && core.queue.seeded.is_none()
                    && !task.is_urgent()
                    && (deque.is_empty() || level_of(task.group.consumed()) > 0) =>
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
            Some(local)
                if local.is_of(self)
                    && (local.deque.is_empty() || level_of(task.group.consumed()) > 0) =>
            {
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
        let level = level_of(task.group.consumed());
        let tasks = task.group.clone();
        let group = self.group_of(&tasks);
        group.levels[level].injector.push(task);
        if !Arc::ptr_eq(&self.others, group) {
            self.active.list(group);
        }
    }

    /// Charges a run on this thread to the level of its group.
    pub(super) fn charge(&self, tasks: &TaskGroup, spent: Duration) {
        let (group, level) = (self.group_of(tasks), level_of(tasks.consumed()));
        // Level l gets half the share of level l - 1.
        let nanos = (spent.as_nanos() as u64) << level;
        LOCAL.with_borrow_mut(|local| {
            let Some(local) = local.as_mut().filter(|local| local.is_of(self)) else { return };
            if !Arc::ptr_eq(&local.last.0, group) {
                local.bill();
                local.last.0 = group.clone();
            }
            local.last.1 = level;
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
            && self.others.is_empty()
            && self.active.is_empty()
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
            let outside_first = local.ticks.is_multiple_of(FAIRNESS_INTERVAL)
                || local.ticks.is_multiple_of(2) && self.comes_first(&local.last.0, local.last.1);
            (if outside_first { None } else { local.deque.pop() }, outside_first)
        });
        let again = || LOCAL.with_borrow(|local| local.as_ref()?.deque.pop());
        let task = local.or_else(|| self.active.take(&self.others));
        if let Some(task) = task.or_else(|| if outside_first { again() } else { None }) {
            return Some(own(task));
        }
        let count = self.stealers.len();
        (1..count)
            .map(|step| &self.stealers[(worker + step) % count])
            .find_map(|stealer| steal(|| stealer.steal()))
            .map(|task| Taken { task, stolen: true })
    }
}
