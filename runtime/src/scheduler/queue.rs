//! The task queue: a deque per worker that others steal from, and injectors by group and level.
//!
//! Woken tasks go to the deque of the worker that woke them (their data is warm there). Tasks woken
//! from outside, tasks whose slice ended, and short ones that would lie behind others go to the injector of
//! their group's level (`resource_group.rs`), cancelled tasks go to the urgent injector.

use std::{cell::RefCell, sync::Arc, time::Duration};

use crossbeam::deque::{Injector, Stealer, Worker as Deque};
use gatework_shared_state::sync::atomic::{AtomicBool, Ordering};
use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;

use super::{
    admission::Admission,
    executor::Core,
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
    /// The first is that of queries of no other.
    groups: RwLock<Vec<Arc<ResourceGroup>>>,
    others: Arc<ResourceGroup>,
    pub(super) admission: Arc<Admission>,
    /// Whether there are more groups than the first.
    has_groups: AtomicBool,
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
                self.last.0.bill(level, *nanos);
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
        let admission = Arc::<Admission>::default();
        let others = ResourceGroup::new("", &admission);
        Self {
            urgent: Injector::new(),
            groups: RwLock::new(vec![others.clone()]),
            others,
            admission,
            has_groups: AtomicBool::new(false),
            stealers: deques.iter().map(Deque::stealer).collect(),
            parked: deques.into_iter().map(|deque| Mutex::new(Some(deque))).collect(),
            seeded: seed.map(SeededQueue::new),
        }
    }

    /// Makes the deque of `worker` of `core` this thread's. `None` if another thread has it.
    pub(super) fn attach(&self, core: &Arc<Core>, worker: usize) -> Option<Attached> {
        let deque = self.parked[worker].lock().take()?;
        let last = (self.others.clone(), 0);
        let local = Local { core: core.clone(), deque, ticks: 0, last, unbilled: [0; LEVELS] };
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

    /// Hands the tasks of a worker that does not run to others.
    pub(super) fn give_away(&self, worker: usize) {
        let parked = self.parked[worker].lock();
        while let Some(task) = parked.as_ref().and_then(Deque::pop) {
            self.push_yielded(task);
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

    /// The group of that name.
    pub(super) fn group(&self, name: &str) -> Arc<ResourceGroup> {
        let known = |groups: &[Arc<ResourceGroup>]| {
            groups.iter().find(|group| group.name() == name).cloned()
        };
        if let Some(group) = known(&self.groups.read()) {
            return group;
        }
        let mut groups = self.groups.write();
        known(&groups).unwrap_or_else(|| {
            let group = ResourceGroup::new(name, &self.admission);
            groups.push(group.clone());
            self.has_groups.store(true, Ordering::Relaxed);
            group
        })
    }

    /// Whether `group` is one of this queue's.
    pub(crate) fn owns(&self, group: &Arc<ResourceGroup>) -> bool {
        self.groups.read().iter().any(|known| Arc::ptr_eq(known, group))
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
        if !self.has_groups.load(Ordering::Relaxed) {
            return false;
        }
        let used = group.used();
        let groups = self.groups.read();
        let before = |other: &Arc<ResourceGroup>| other.used() < used && !other.is_empty();
        groups.iter().any(|other| !Arc::ptr_eq(other, group) && before(other))
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
        self.group_of(&task.group).levels[level].injector.push(task.clone());
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
            && self.groups.read().iter().all(|group| group.is_empty())
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

    /// The next task of the group that has had least of its share.
    fn take_injected(&self) -> Option<Arc<Task>> {
        if !self.has_groups.load(Ordering::Relaxed) {
            return self.others.take();
        }
        let groups = self.groups.read();
        let mut order: SmallVec<[(u64, usize); 8]> =
            groups.iter().enumerate().map(|(place, group)| (group.used(), place)).collect();
        order.sort_unstable();
        let furthest = order.last().map_or(0, |(used, _)| *used);
        order.iter().find_map(|(_, place)| {
            let task = groups[*place].take()?;
            groups[*place].catch_up(furthest);
            Some(task)
        })
    }
}
