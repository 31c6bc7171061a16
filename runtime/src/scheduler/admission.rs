//! Which queries run, and which wait for their turn: within each group's limit, and the executor's.
//!
//! Lock: `inner`. What is admitted is started after it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    num::NonZeroUsize,
};

use parking_lot::Mutex;

use super::resource_group::GroupLimits;

/// Begins a query.
pub(crate) type Start = Box<dyn FnOnce() + Send>;

/// The queries of all groups of an executor.
#[derive(Default)]
pub(crate) struct Admission {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// How many queries run at a time, of all groups.
    most: Option<NonZeroUsize>,
    running: usize,
    groups: Vec<Group>,
    /// Places in `groups` of those that are gone.
    free: Vec<usize>,
    /// The groups that only the executor's limit keeps from running another query, the next one
    /// first.
    ready: BTreeSet<Key>,
    /// Queries that came to wait, or were admitted.
    count: u64,
}

/// How many queries a group runs, by weight; when it was last admitted one; its place.
type Key = (u64, u64, usize);

#[derive(Default)]
struct Group {
    limits: GroupLimits,
    running: usize,
    /// Those that wait, in the order in which they came, and where there each is.
    waiting: BTreeMap<u64, (u64, Start)>,
    places: HashMap<u64, u64>,
    /// When one was last admitted.
    admitted: u64,
    /// Under which it is among those that are ready.
    key: Option<Key>,
}

impl Group {
    fn has_room(&self) -> bool {
        self.limits.queries.is_none_or(|most| self.running < most.get())
    }

    /// The group with the fewest that run, by weight, comes first; of those that have as many, the
    /// one whose turn was longest ago. `None` if none of its queries could run.
    fn key_at(&self, place: usize) -> Option<Key> {
        let share = ((self.running as u64) << 32) / u64::from(self.limits.weight.get());
        (self.has_room() && !self.waiting.is_empty()).then_some((share, self.admitted, place))
    }
}

impl Inner {
    fn has_room(&self) -> bool {
        self.most.is_none_or(|most| self.running < most.get())
    }

    /// A group has changed.
    fn update(&mut self, place: usize) {
        let group = &mut self.groups[place];
        let key = group.key_at(place);
        if let Some(before) = std::mem::replace(&mut group.key, key) {
            self.ready.remove(&before);
        }
        self.ready.extend(key);
    }

    /// A query of the group runs from now on.
    fn runs(&mut self, place: usize) {
        self.count += 1;
        self.running += 1;
        let group = &mut self.groups[place];
        group.running += 1;
        group.admitted = self.count;
        self.update(place);
    }

    fn waits(&mut self, place: usize, id: u64, start: Start) {
        self.count += 1;
        let group = &mut self.groups[place];
        group.waiting.insert(self.count, (id, start));
        group.places.insert(id, self.count);
        self.update(place);
    }

    /// Takes those out that may run now.
    fn admit(&mut self) -> Vec<Start> {
        let mut starts = Vec::new();
        while self.has_room()
            && let Some(&(.., place)) = self.ready.first()
            && let Some((_, (id, start))) = self.groups[place].waiting.pop_first()
        {
            self.groups[place].places.remove(&id);
            self.runs(place);
            starts.push(start);
        }
        starts
    }
}

/// Why a query was refused: so many run, and so many wait.
pub(super) struct Full {
    pub(super) running: usize,
    pub(super) waiting: usize,
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.inner.lock();
        let (most, running) = (inner.most, inner.running);
        f.debug_struct("Admission").field("most", &most).field("running", &running).finish()
    }
}

impl Admission {
    /// Another group: its number.
    pub(super) fn add_group(&self) -> usize {
        let mut inner = self.inner.lock();
        inner.free.pop().unwrap_or_else(|| {
            inner.groups.push(Group::default());
            inner.groups.len() - 1
        })
    }

    /// A group that has no queries is gone.
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

    pub(super) fn most(&self) -> Option<NonZeroUsize> {
        self.inner.lock().most
    }

    pub(super) fn set_most(&self, queries: Option<NonZeroUsize>) {
        self.change(|inner| inner.most = queries);
    }

    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let (changed, starts) = {
            let mut inner = self.inner.lock();
            (change(&mut inner), inner.admit())
        };
        starts.into_iter().for_each(|start| start());
        changed
    }

    /// Queries of a group that run, and that wait.
    pub(super) fn queries(&self, group: usize) -> (usize, usize) {
        let inner = self.inner.lock();
        let group = &inner.groups[group];
        (group.running, group.waiting.len())
    }

    /// Calls `start` when query `id` of a group may run, perhaps at once.
    pub(super) fn enter(&self, group: usize, id: u64, start: Start) -> Result<(), Full> {
        {
            let mut inner = self.inner.lock();
            if !inner.has_room() || !inner.groups[group].has_room() {
                let Group { running, waiting, limits, .. } = &inner.groups[group];
                let (running, waiting) = (*running, waiting.len());
                if limits.waiting.is_some_and(|most| waiting >= most) {
                    return Err(Full { running, waiting });
                }
                inner.waits(group, id, start);
                return Ok(());
            }
            inner.runs(group);
        }
        start();
        Ok(())
    }

    /// Query `id` of a group has ended, or waits no longer.
    pub(super) fn leave(&self, group: usize, id: u64) {
        // Dropped behind the lock.
        let _given_up = self.change(|inner| {
            let Group { waiting, places, running, .. } = &mut inner.groups[group];
            let given_up = places.remove(&id).and_then(|place| waiting.remove(&place));
            if given_up.is_none() {
                *running -= 1;
                inner.running -= 1;
            }
            inner.update(group);
            given_up
        });
    }
}
