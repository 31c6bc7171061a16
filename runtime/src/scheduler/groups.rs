//! The resource groups of an executor: the named groups, and the order of the groups with queued
//! tasks.
//!
//! A group is kept as long as a handle, a query or a task refers to it. Other groups are forgotten
//! when the number of groups has doubled since the last removal. Their limits are kept if they were
//! set.
//!
//! A group is *listed* while it has tasks in its injectors. Protocol: a pusher pushes its task
//! first, then lists the group if it is unlisted. A worker that finds no task clears the mark
//! first, then looks again, and only then removes the group. So either the pusher finds the mark
//! cleared, or the worker finds the task.
//!
//! Invariant: the order contains every group with an announced task. A group's vruntime only grows,
//! so an entry's key is a lower bound; it is updated when the entry is the first.
//!
//! Locks: `Known` for names, `Order` for the order. Neither is locked while a task runs.

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

/// Up to this number of groups, none is forgotten.
const MIN_FORGET_THRESHOLD: usize = 64;

/// The groups that have a name.
#[derive(Debug)]
pub(super) struct KnownGroups(Mutex<Known>);

#[derive(Debug)]
struct Known {
    groups: HashMap<Box<str>, Arc<ResourceGroup>>,
    /// Non-default limits of forgotten groups.
    limits: HashMap<Box<str>, GroupLimits>,
    /// From this number of groups on, those without a handle, query or task are forgotten.
    forget_threshold: usize,
}

impl Default for KnownGroups {
    fn default() -> Self {
        let (groups, limits) = Default::default();
        Self(Mutex::new(Known { groups, limits, forget_threshold: MIN_FORGET_THRESHOLD }))
    }
}

impl KnownGroups {
    /// Returns the group with this name, and creates it if needed.
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

    /// Returns the number of groups, and the number of remembered limits.
    #[cfg(test)]
    pub(super) fn count(&self) -> (usize, usize) {
        let known = self.0.lock();
        (known.groups.len(), known.limits.len())
    }
}

impl Known {
    /// Removes the groups without a handle, query or task.
    fn forget(&mut self) -> Vec<Arc<ResourceGroup>> {
        // Groups are cloned under this lock only, so a strong count of 1 means that only `groups`
        // refers to the group.
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

/// A group with tasks. The key is its vruntime when last looked at, and its order of entry.
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
    /// Number of entries that were looked at.
    #[cfg(test)]
    looked_at: usize,
}

/// The groups that have tasks in the queue, except the group of queries without a group.
#[derive(Debug)]
pub(super) struct ActiveGroups {
    /// Number of groups, written under the lock.
    count: AtomicUsize,
    /// A hint: the smallest known vruntime of these groups, written under the lock.
    min_vruntime: AtomicU64,
    /// The largest vruntime of any group.
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
    /// Returns whether no group has a task. A task pushed after this check is announced to a worker
    /// after the push.
    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }

    /// Lists `group`, to which a task was pushed.
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
        // Relaxed: it is checked under the lock before it is acted on.
        self.min_vruntime.store(min_vruntime, Ordering::Relaxed);
    }

    /// Records a group's vruntime.
    pub(super) fn record_vruntime(&self, vruntime: u64) {
        // Relaxed: it only determines how far behind the others an idle group starts.
        if self.max_vruntime.load(Ordering::Relaxed) < vruntime {
            self.max_vruntime.fetch_max(vruntime, Ordering::Relaxed);
        }
    }

    /// Returns whether a group with tasks has a smaller vruntime.
    pub(super) fn has_vruntime_below(&self, vruntime: u64) -> bool {
        if self.is_empty() || self.min_vruntime.load(Ordering::Relaxed) >= vruntime {
            return false;
        }
        let mut order = self.order.lock();
        let first = order.first();
        self.publish(&order);
        first.is_some_and(|(min_vruntime, _)| min_vruntime < vruntime)
    }

    /// Takes the next task of the group with the smallest vruntime; `default_group` is the group
    /// that is never listed.
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

    /// Returns the number of groups with tasks, and the number of entries looked at.
    #[cfg(test)]
    pub(super) fn work(&self) -> (usize, usize) {
        let order = self.order.lock();
        (order.heap.len(), order.looked_at)
    }
}

impl Order {
    /// Returns the group with tasks that has the smallest vruntime, with this vruntime.
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

    /// Removes `group`, which is the first, if it has no task.
    fn drop_if_empty(&mut self, group: &ResourceGroup) {
        if group.is_empty() && group.unlist() {
            self.heap.pop();
        }
    }
}
