//! Admission control: which queries run and which are queued, within each group's limit and the
//! executor's.
//!
//! Lock: `inner`. Admitted queries are started after it is released.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    num::NonZeroUsize,
};

use parking_lot::Mutex;

use super::resource_group::GroupLimits;

/// Starts a query.
pub(crate) type StartFn = Box<dyn FnOnce() + Send>;

/// Admission control for the queries of all groups of an executor.
#[derive(Default)]
pub(crate) struct Admission {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Maximum number of running queries, over all groups.
    max_running: Option<NonZeroUsize>,
    running: usize,
    groups: Vec<Group>,
    /// Indices in `groups` of removed groups.
    free: Vec<usize>,
    /// Groups with a queued query that only the executor's limit keeps from running; the next one
    /// first.
    ready: BTreeSet<Key>,
    /// Number of times that a query was queued or admitted.
    count: u64,
}

/// The group's running queries divided by its weight; its last admission; its index.
type Key = (u64, u64, usize);

#[derive(Default)]
struct Group {
    limits: GroupLimits,
    running: usize,
    /// Queued queries, oldest first; `queue_keys` has the key of each id.
    queued: BTreeMap<u64, (u64, StartFn)>,
    queue_keys: HashMap<u64, u64>,
    /// Value of `count` at the group's last admission.
    last_admitted: u64,
    /// The group's key in `ready`, if it is there.
    key: Option<Key>,
}

impl Group {
    fn has_capacity(&self) -> bool {
        self.limits.max_running.is_none_or(|max| self.running < max.get())
    }

    /// Returns the group's key in `ready`. The group with the fewest running queries relative to
    /// its weight comes first; among equals, the one with the oldest last admission. `None` if no
    /// query of the group could run.
    fn key_at(&self, index: usize) -> Option<Key> {
        let share = ((self.running as u64) << 32) / u64::from(self.limits.weight.get());
        (self.has_capacity() && !self.queued.is_empty()).then_some((
            share,
            self.last_admitted,
            index,
        ))
    }
}

impl Inner {
    fn has_capacity(&self) -> bool {
        self.max_running.is_none_or(|max| self.running < max.get())
    }

    /// Updates the key of a group that has changed.
    fn update(&mut self, index: usize) {
        let group = &mut self.groups[index];
        let key = group.key_at(index);
        if let Some(before) = std::mem::replace(&mut group.key, key) {
            self.ready.remove(&before);
        }
        self.ready.extend(key);
    }

    /// Counts one more running query of the group.
    fn mark_running(&mut self, index: usize) {
        self.count += 1;
        self.running += 1;
        let group = &mut self.groups[index];
        group.running += 1;
        group.last_admitted = self.count;
        self.update(index);
    }

    fn enqueue(&mut self, index: usize, id: u64, start: StartFn) {
        self.count += 1;
        let group = &mut self.groups[index];
        group.queued.insert(self.count, (id, start));
        group.queue_keys.insert(id, self.count);
        self.update(index);
    }

    /// Removes the queued queries that can run now, and returns their start functions.
    fn admit(&mut self) -> Vec<StartFn> {
        let mut starts = Vec::new();
        while self.has_capacity()
            && let Some(&(.., index)) = self.ready.first()
            && let Some((_, (id, start))) = self.groups[index].queued.pop_first()
        {
            self.groups[index].queue_keys.remove(&id);
            self.mark_running(index);
            starts.push(start);
        }
        starts
    }
}

/// Rejection of a query: the group's running and queued queries.
pub(super) struct QueueFull {
    pub(super) running: usize,
    pub(super) queued: usize,
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.inner.lock();
        let (max_running, running) = (inner.max_running, inner.running);
        f.debug_struct("Admission")
            .field("max_running", &max_running)
            .field("running", &running)
            .finish()
    }
}

impl Admission {
    /// Adds a group and returns its index.
    pub(super) fn add_group(&self) -> usize {
        let mut inner = self.inner.lock();
        inner.free.pop().unwrap_or_else(|| {
            inner.groups.push(Group::default());
            inner.groups.len() - 1
        })
    }

    /// Removes a group, which has no queries.
    pub(super) fn remove_group(&self, group: usize) {
        let mut inner = self.inner.lock();
        inner.groups[group] = Group::default();
        inner.free.push(group);
    }

    pub(super) fn limits(&self, group: usize) -> GroupLimits {
        self.inner.lock().groups[group].limits
    }

    pub(super) fn set_limits(&self, group: usize, limits: GroupLimits) {
        self.change(|inner| {
            inner.groups[group].limits = limits;
            inner.update(group);
        });
    }

    pub(super) fn max_running(&self) -> Option<NonZeroUsize> {
        self.inner.lock().max_running
    }

    pub(super) fn set_max_running(&self, max_running: Option<NonZeroUsize>) {
        self.change(|inner| inner.max_running = max_running);
    }

    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let (changed, starts) = {
            let mut inner = self.inner.lock();
            (change(&mut inner), inner.admit())
        };
        starts.into_iter().for_each(|start| start());
        changed
    }

    /// Returns the numbers of running and of queued queries of a group.
    pub(super) fn queries(&self, group: usize) -> (usize, usize) {
        let inner = self.inner.lock();
        let group = &inner.groups[group];
        (group.running, group.queued.len())
    }

    /// Calls `start` when query `id` of a group is admitted, perhaps at once.
    pub(super) fn admit_or_queue(
        &self,
        group: usize,
        id: u64,
        start: StartFn,
    ) -> Result<(), QueueFull> {
        {
            let mut inner = self.inner.lock();
            if !inner.has_capacity() || !inner.groups[group].has_capacity() {
                let Group { running, queued: waiting, limits, .. } = &inner.groups[group];
                let (running, waiting) = (*running, waiting.len());
                if limits.max_queued.is_some_and(|max| waiting >= max) {
                    return Err(QueueFull { running, queued: waiting });
                }
                inner.enqueue(group, id, start);
                return Ok(());
            }
            inner.mark_running(group);
        }
        start();
        Ok(())
    }

    /// Releases the admission of query `id` of a group, which has ended or left the queue.
    pub(super) fn release(&self, group: usize, id: u64) {
        // Dropped after the lock is released.
        let _given_up = self.change(|inner| {
            let Group { queued: waiting, queue_keys: places, running, .. } =
                &mut inner.groups[group];
            let given_up = places.remove(&id).and_then(|key| waiting.remove(&key));
            if given_up.is_none() {
                *running -= 1;
                inner.running -= 1;
            }
            inner.update(group);
            given_up
        });
    }
}
