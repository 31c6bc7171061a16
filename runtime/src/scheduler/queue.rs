//! The task queue: a deque per worker, from which other workers steal, and injectors by group and
//! level.
//!
//! A woken task goes to the deque of the worker that woke it (its data is warm there). The injector
//! of the group's level (`resource_group.rs`, `groups.rs`) gets three kinds of tasks: those woken
//! outside the workers, those whose time slice ended, and short ones that would queue behind
//! others. Cancelled tasks go to the urgent injector.

use std::{cell::RefCell, sync::Arc, time::Duration};

use crossbeam::deque::{Injector, Stealer, Worker as Deque};
use parking_lot::Mutex;

use super::{
    admission::Admission,
    groups::{ActiveGroups, KnownGroups},
    registry::Registry,
    resource_group::{LEVELS, ResourceGroup, level_of, steal},
    seeded::DeterministicQueue,
    task::{Task, TaskGroup},
};

/// Minimum time slice of a task while tasks of higher priority wait.
const MIN_SLICE: Duration = Duration::from_micros(200);
/// Time slice of a first-level task while other tasks of that level wait.
const TOP_LEVEL_SLICE: Duration = Duration::from_millis(1);
/// Number of tasks after which a worker looks at the injectors before its own deque. So a chain of
/// tasks that wake each other cannot starve the tasks in the injectors.
const FAIRNESS_INTERVAL: u32 = 31;

type TaskDeque = Deque<Arc<Task>>;

#[derive(Debug)]
pub(crate) struct TaskQueue {
    urgent: Injector<Arc<Task>>,
    pub(super) groups: KnownGroups,
    /// The groups with tasks, except `default_group`.
    pub(super) active: ActiveGroups,
    /// The group of queries without a group.
    default_group: Arc<ResourceGroup>,
    pub(super) admission: Arc<Admission>,
    stealers: Box<[Stealer<Arc<Task>>]>,
    /// The deques of workers that do not run at the moment.
    idle_deques: Box<[Mutex<Option<TaskDeque>>]>,
    /// Replaces the deques and injectors in a deterministic executor.
    deterministic: Option<DeterministicQueue>,
}

/// A running worker's deque, in a thread local: pushes from within a task find it there.
struct Local {
    registry: Arc<Registry>,
    deque: TaskDeque,
    ticks: u32,
    /// The group and the level of the last task.
    last: (Arc<ResourceGroup>, usize),
    /// Time given to each level of that group, in ns, divided by its weight and not charged yet.
    uncharged: [u64; LEVELS],
    /// The outer worker of this thread: a hosted thread may already be another worker further up
    /// its stack.
    outer: Option<Box<Local>>,
}

/// A worker charges its time to the levels in amounts of about this size, in ns.
const CHARGE_GRANULARITY: u64 = 10_000;

impl Local {
    fn belongs_to(&self, queue: &TaskQueue) -> bool {
        std::ptr::eq(&self.registry.queue, queue)
    }

    fn charge(&mut self) {
        for (level, nanos) in self.uncharged.iter_mut().enumerate() {
            if *nanos > 0 {
                let vruntime = self.last.0.charge(level, *nanos);
                self.registry.queue.active.record_vruntime(vruntime);
                *nanos = 0;
            }
        }
    }
}

/// The right to take from this thread's deque.
#[must_use = "the deque is to be given back"]
pub(super) struct LocalDequeGuard(());

thread_local! {
    static LOCAL: RefCell<Option<Local>> = const { RefCell::new(None) };
}

/// The next task to run, and whether it was stolen.
pub(super) struct NextTask {
    pub(super) task: Arc<Task>,
    pub(super) stolen: bool,
}

impl TaskQueue {
    pub(super) fn new(workers: usize, seed: Option<u64>) -> Self {
        let deques: Vec<_> = (0..workers).map(|_| Deque::new_fifo()).collect();
        let admission = Arc::<Admission>::default();
        let default_group = ResourceGroup::new("", &admission);
        Self {
            urgent: Injector::new(),
            groups: KnownGroups::default(),
            active: ActiveGroups::default(),
            default_group,
            admission,
            stealers: deques.iter().map(Deque::stealer).collect(),
            idle_deques: deques.into_iter().map(|deque| Mutex::new(Some(deque))).collect(),
            deterministic: seed.map(DeterministicQueue::new),
        }
    }

    /// Attaches the deque of `worker` of `registry` to this thread. `None` if another thread has
    /// it.
    pub(super) fn attach(
        &self,
        registry: &Arc<Registry>,
        worker: usize,
    ) -> Option<LocalDequeGuard> {
        let deque = self.idle_deques[worker].lock().take()?;
        let last = (self.default_group.clone(), 0);
        let outer = LOCAL.take().map(Box::new);
        LOCAL.set(Some(Local {
            registry: registry.clone(),
            deque,
            ticks: 0,
            last,
            uncharged: [0; LEVELS],
            outer,
        }));
        Some(LocalDequeGuard(()))
    }

    /// Detaches this thread's deque.
    pub(super) fn detach(&self, worker: usize, _guard: LocalDequeGuard) {
        if let Some(mut local) = LOCAL.take() {
            local.charge();
            LOCAL.set(local.outer.map(|outer| *outer));
            *self.idle_deques[worker].lock() = Some(local.deque);
        }
    }

    /// Hands the tasks of a worker that does not run to others.
    pub(super) fn hand_off_tasks(&self, worker: usize) {
        let idle_deque = self.idle_deques[worker].lock();
        while let Some(task) = idle_deque.as_ref().and_then(Deque::pop) {
            self.push_yielded(task);
        }
    }

    /// Returns whether this thread is currently one of this queue's workers, possibly further up
    /// its stack.
    pub(super) fn is_worker_thread(&self) -> bool {
        LOCAL.with_borrow(|local| {
            let mut local = local.as_ref();
            while let Some(current) = local {
                if current.belongs_to(self) {
                    return true;
                }
                local = current.outer.as_deref();
            }
            false
        })
    }

    /// Returns the queue of a deterministic executor.
    pub(super) fn deterministic(&self) -> Option<&DeterministicQueue> {
        self.deterministic.as_ref()
    }

    /// Returns the group with this name.
    pub(super) fn group(&self, name: &str) -> Arc<ResourceGroup> {
        match name {
            "" => self.default_group.clone(),
            _ => self.groups.get(name, &self.admission),
        }
    }

    /// Returns whether `group` belongs to this queue.
    pub(crate) fn owns(&self, group: &ResourceGroup) -> bool {
        group.belongs_to(&self.admission)
    }

    fn group_of<'a>(&'a self, tasks: &'a TaskGroup) -> &'a Arc<ResourceGroup> {
        tasks.resource_group().unwrap_or(&self.default_group)
    }

    /// Returns whether a waiting task should preempt a task of `tasks` that has run for `ran`.
    pub(crate) fn should_preempt(&self, tasks: &TaskGroup, ran: Duration) -> bool {
        if ran < MIN_SLICE || self.deterministic.is_some() {
            return false;
        }
        let (group, level) = (self.group_of(tasks), level_of(tasks.consumed()));
        // Which tasks of the first level are short is not known yet.
        let peer_is_due = level == 0 && ran >= TOP_LEVEL_SLICE && group.has_tasks_above(1);
        peer_is_due || self.has_higher_priority_task(group, level)
    }

    /// Returns whether a task outside the deques has priority over those of this group and level.
    fn has_higher_priority_task(&self, group: &Arc<ResourceGroup>, level: usize) -> bool {
        if !self.urgent.is_empty() || group.has_tasks_above(level) {
            return true;
        }
        let vruntime = group.vruntime();
        let default_group_competes =
            !Arc::ptr_eq(&self.default_group, group) && !self.default_group.is_empty();
        default_group_competes && self.default_group.vruntime() < vruntime
            || self.active.has_vruntime_below(vruntime)
    }

    /// Queues a task that was woken on a worker thread of its executor. Returns any other task to
    /// the caller.
    pub(super) fn push_local(task: Arc<Task>) -> Option<Arc<Task>> {
        LOCAL.with_borrow(|local| match local {
            Some(Local { registry, deque, .. })
                if std::ptr::eq(Arc::as_ptr(registry), task.registry().as_ptr())
                    && registry.queue.deterministic.is_none()
                    && !task.is_urgent()
                    && (deque.is_empty() || level_of(task.group.consumed()) > 0) =>
            {
                deque.push(task);
                registry.wake_one();
                None
            }
            _ => Some(task),
        })
    }

    /// Queues a task that became runnable.
    pub(super) fn push(&self, task: Arc<Task>) {
        if let Some(deterministic) = &self.deterministic {
            deterministic.push(task);
            return;
        }
        if task.is_urgent() {
            self.urgent.push(task);
            return;
        }
        let not_local = LOCAL.with_borrow(|local| match local {
            Some(local)
                if local.belongs_to(self)
                    && (local.deque.is_empty() || level_of(task.group.consumed()) > 0) =>
            {
                local.deque.push(task);
                None
            }
            _ => Some(task),
        });
        if let Some(task) = not_local {
            self.push_yielded(task);
        }
    }

    /// Queues a task behind the others of its level.
    pub(super) fn push_yielded(&self, task: Arc<Task>) {
        if let Some(deterministic) = &self.deterministic {
            deterministic.push(task);
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
        if !Arc::ptr_eq(&self.default_group, group) {
            self.active.list(group);
        }
    }

    /// Charges a run on this thread to the level of its group.
    pub(super) fn charge(&self, tasks: &TaskGroup, spent: Duration) {
        let (group, level) = (self.group_of(tasks), level_of(tasks.consumed()));
        // Level l gets half the share of level l - 1.
        let nanos = (spent.as_nanos() as u64) << level;
        LOCAL.with_borrow_mut(|local| {
            let Some(local) = local.as_mut().filter(|local| local.belongs_to(self)) else { return };
            if !Arc::ptr_eq(&local.last.0, group) {
                local.charge();
                local.last.0 = group.clone();
            }
            local.last.1 = level;
            local.uncharged[level] += nanos;
            if local.uncharged[level] > CHARGE_GRANULARITY {
                local.charge();
            }
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        if let Some(deterministic) = &self.deterministic {
            return deterministic.is_empty();
        }
        self.urgent.is_empty()
            && self.default_group.is_empty()
            && self.active.is_empty()
            && self.stealers.iter().all(Stealer::is_empty)
    }

    /// Takes the next task for `worker`, whose deque is attached to this thread.
    pub(super) fn take(&self, worker: usize) -> Option<NextTask> {
        let own = |task| NextTask { task, stolen: false };
        if let Some(deterministic) = &self.deterministic {
            return deterministic.take().map(own);
        }
        if !self.urgent.is_empty()
            && let Some(task) = steal(|| self.urgent.steal())
        {
            return Some(own(task));
        }
        let (local, injectors_first) = LOCAL.with_borrow_mut(|local| {
            let Some(local) = local else { return (None, false) };
            local.ticks = local.ticks.wrapping_add(1);
            let injectors_first = local.ticks.is_multiple_of(FAIRNESS_INTERVAL)
                || local.ticks.is_multiple_of(2)
                    && self.has_higher_priority_task(&local.last.0, local.last.1);
            (if injectors_first { None } else { local.deque.pop() }, injectors_first)
        });
        let pop_local = || LOCAL.with_borrow(|local| local.as_ref()?.deque.pop());
        let task = local.or_else(|| self.active.take(&self.default_group));
        if let Some(task) = task.or_else(|| if injectors_first { pop_local() } else { None }) {
            return Some(own(task));
        }
        let count = self.stealers.len();
        (1..count)
            .map(|step| &self.stealers[(worker + step) % count])
            .find_map(|stealer| steal(|| stealer.steal()))
            .map(|task| NextTask { task, stolen: true })
    }
}
