//! The resource groups of an executor: those that are named, and the order of those that have tasks
//! in the queue.
//!
//! A group is kept as long as a handle, a query or a task names it. Others are forgotten when there
//! are twice as many groups as were left the last time; the limits of such a group are remembered,
//! if they were set.
//!
//! A group is *listed* while it has tasks in its injectors. Protocol: a pusher pushes its task
//! first, then lists the group if it finds it unlisted. A worker that finds no task takes the mark
//! away first, then looks again, and only then takes the group out. So either the pusher finds the
//! mark gone, or the worker the task; and the order never lacks a group with a task that has been
//! announced. A group's time only grows, so an entry says how much the group has used at least: it
//! is put right when it is the first.
//!
//! Locks: `Known` for names, `Order` for the order. Neither is held while a task runs.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, binary_heap::PeekMut},
    sync::Arc,
};

use gatework_shared_state::sync::{
    Mutex,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use super::{
    admission::Admission,
    resource_group::{GroupLimits, ResourceGroup},
    task::Task,
};

/// The number of groups up to which none is forgotten.
const MIN_FORGET_THRESHOLD: usize = 64;

/// The groups that have a name.
#[derive(Debug)]
pub(super) struct KnownGroups(Mutex<Known>);

#[derive(Debug)]
struct Known {
    groups: HashMap<Box<str>, Arc<ResourceGroup>>,
    /// The limits of groups that were forgotten.
    limits: HashMap<Box<str>, GroupLimits>,
    /// At this number of groups, those without a handle, query or task are forgotten.
    forget_threshold: usize,
}

impl Default for KnownGroups {
    fn default() -> Self {
        let (groups, limits) = Default::default();
        Self(Mutex::new(Known { groups, limits, forget_threshold: MIN_FORGET_THRESHOLD }))
    }
}

impl KnownGroups {
    /// The group of that name.
    pub(super) fn get(&self, name: &str, admission: &Arc<Admission>) -> Arc<ResourceGroup> {
        let mut known = self.0.lock();
        if let Some(group) = known.groups.get(name) {
            return group.clone();
        }
        let forgotten =
            if known.groups.len() < known.forget_threshold { Vec::new() } else { known.forget() };
        let group = ResourceGroup::new(name, admission);
        if let Some(limits) = known.limits.remove(name) {
            group.set_limits(limits);
        }
        known.groups.insert(name.into(), group.clone());
        drop(known);
        drop(forgotten);
        group
    }

    /// How many groups there are, and of how many the limits are remembered.
    #[cfg(test)]
    pub(super) fn count(&self) -> (usize, usize) {
        let known = self.0.lock();
        (known.groups.len(), known.limits.len())
    }
}

impl Known {
    /// Takes out the groups that have no handle, query or task.
    fn forget(&mut self) -> Vec<Arc<ResourceGroup>> {
        // Groups are handed out under this lock only, so a group that is held once is held here
        // only.
        let forgotten: HashMap<_, _> =
            self.groups.extract_if(|_, group| Arc::strong_count(group) == 1).collect();
        for (name, group) in &forgotten {
            if group.limits() != GroupLimits::default() {
                self.limits.insert(name.clone(), group.limits());
            }
        }
        self.forget_threshold = MIN_FORGET_THRESHOLD.max(2 * self.groups.len());
        forgotten.into_values().collect()
    }
}

/// A group with tasks: how much it had used when it was last looked at, and when it came.
#[derive(Debug)]
struct Entry {
    key: Reverse<(u64, u64)>,
    group: Arc<ResourceGroup>,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}

#[derive(Debug, Default)]
struct Order {
    heap: BinaryHeap<Entry>,
    entered: u64,
    /// Entries that were looked at.
    #[cfg(test)]
    looked_at: usize,
}

/// The groups that have tasks in the queue, but for the one of queries without a group.
#[derive(Debug)]
pub(super) struct ActiveGroups {
    /// How many there are, written under the lock.
    count: AtomicUsize,
    /// The least that any of them has used, written under the lock: a hint.
    min_vruntime: AtomicU64,
    /// The most that any group has used.
    max_vruntime: AtomicU64,
    order: Mutex<Order>,
}

impl Default for ActiveGroups {
    fn default() -> Self {
        Self {
            count: AtomicUsize::new(0),
            min_vruntime: AtomicU64::new(u64::MAX),
            max_vruntime: AtomicU64::new(0),
            order: Mutex::default(),
        }
    }
}

impl ActiveGroups {
    /// Whether no group has a task. A task pushed after this look is announced to a worker after
    /// the push.
    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }

    /// A task of `group` was pushed.
    pub(super) fn list(&self, group: &Arc<ResourceGroup>) {
        if group.list() {
            return;
        }
        let mut order = self.order.lock();
        order.entered += 1;
        let key = Reverse((group.vruntime(), order.entered));
        order.heap.push(Entry { key, group: group.clone() });
        self.publish(&order);
    }

    fn publish(&self, order: &Order) {
        self.count.store(order.heap.len(), Ordering::SeqCst);
        let min_vruntime = order.heap.peek().map_or(u64::MAX, |entry| entry.key.0.0);
        // Relaxed: before it is acted on, it is looked at under the lock.
        self.min_vruntime.store(min_vruntime, Ordering::Relaxed);
    }

    /// Records the time that a group has used.
    pub(super) fn record_vruntime(&self, vruntime: u64) {
        // Relaxed: it only says how far behind the others one that was idle starts.
        if self.max_vruntime.load(Ordering::Relaxed) < vruntime {
            self.max_vruntime.fetch_max(vruntime, Ordering::Relaxed);
        }
    }

    /// Whether a group with tasks has used less.
    pub(super) fn has_vruntime_below(&self, vruntime: u64) -> bool {
        if self.is_empty() || self.min_vruntime.load(Ordering::Relaxed) >= vruntime {
            return false;
        }
        let mut order = self.order.lock();
        let first = order.first();
        self.publish(&order);
        first.is_some_and(|(min_vruntime, _)| min_vruntime < vruntime)
    }

    /// The next task of the group that has had least of its share; `default_group` is the group that is
    /// not listed.
    pub(super) fn take(&self, default_group: &ResourceGroup) -> Option<Arc<Task>> {
        if self.is_empty() {
            return default_group.take();
        }
        let max_vruntime = self.max_vruntime.load(Ordering::Relaxed);
        let mut order = self.order.lock();
        let task = loop {
            let first = order.first();
            let comes_first = |vruntime: u64| {
                first.as_ref().is_none_or(|(min_vruntime, _)| vruntime <= *min_vruntime)
            };
            if comes_first(default_group.vruntime())
                && let Some(task) = default_group.take()
            {
                default_group.clamp_vruntime(max_vruntime);
                break Some(task);
            }
            let Some((_, group)) = first else { break None };
            if let Some(task) = group.take() {
                group.clamp_vruntime(max_vruntime);
                order.drop_if_empty(&group);
                break Some(task);
            }
        };
        self.publish(&order);
        task
    }

    /// How many groups have tasks, and how many entries were looked at.
    #[cfg(test)]
    pub(super) fn work(&self) -> (usize, usize) {
        let order = self.order.lock();
        (order.heap.len(), order.looked_at)
    }
}

impl Order {
    /// The group with tasks that has used least, and how much that is.
    fn first(&mut self) -> Option<(u64, Arc<ResourceGroup>)> {
        while let Some(mut entry) = self.heap.peek_mut() {
            #[cfg(test)]
            {
                self.looked_at += 1;
            }
            let vruntime = entry.group.vruntime();
            let Reverse((known, entered)) = entry.key;
            if entry.group.is_empty() {
                if entry.group.unlist() {
                    PeekMut::pop(entry);
                }
            } else if vruntime > known {
                entry.key = Reverse((vruntime, entered));
            } else {
                return Some((known, entry.group.clone()));
            }
        }
        None
    }

    /// Takes `group`, which is the first, out if it has no task.
    fn drop_if_empty(&mut self, group: &ResourceGroup) {
        if group.is_empty() && group.unlist() {
            self.heap.pop();
        }
    }
}
