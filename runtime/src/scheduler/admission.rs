//! Which queries run, and which wait for their turn: within each group's limit, and the executor's.
//!
//! Lock: `inner`. What is admitted is started after it.

use std::{
    collections::VecDeque,
    fmt,
    num::{NonZeroU32, NonZeroUsize},
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
}

#[derive(Default)]
struct Group {
    limits: GroupLimits,
    running: usize,
    /// Those that wait, by number.
    waiting: VecDeque<(u64, Start)>,
}

impl Group {
    fn has_room(&self) -> bool {
        self.limits.queries.is_none_or(|most| self.running < most.get())
    }

    /// Whether another query of this group has a better right to run than one of `other`: it has fewer, by weight.
    fn comes_before(&self, other: &Self) -> bool {
        let share = |running: usize, weight: NonZeroU32| running as u64 * u64::from(weight.get());
        share(self.running, other.limits.weight) < share(other.running, self.limits.weight)
    }
}

impl Inner {
    fn has_room(&self) -> bool {
        self.most.is_none_or(|most| self.running < most.get())
    }

    /// The group whose turn it is.
    fn next(&mut self) -> Option<&mut Group> {
        let ready = |group: &&mut Group| group.has_room() && !group.waiting.is_empty();
        let mut groups = self.groups.iter_mut().filter(ready);
        let first = groups.next()?;
        Some(groups.fold(first, |best, group| if group.comes_before(best) { group } else { best }))
    }

    /// Takes those out that may run now.
    fn admit(&mut self) -> Vec<Start> {
        let mut starts = Vec::new();
        while self.has_room()
            && let Some(group) = self.next()
            && let Some((_, start)) = group.waiting.pop_front()
        {
            group.running += 1;
            self.running += 1;
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
        inner.groups.push(Group::default());
        inner.groups.len() - 1
    }

    pub(super) fn limits(&self, group: usize) -> GroupLimits {
        self.inner.lock().groups[group].limits
    }

    pub(super) fn set_limits(&self, group: usize, limits: GroupLimits) {
        self.change(|inner| inner.groups[group].limits = limits);
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
            let room = inner.has_room();
            let group = &mut inner.groups[group];
            if !room || !group.has_room() {
                let (running, waiting) = (group.running, group.waiting.len());
                if group.limits.waiting.is_some_and(|most| waiting >= most) {
                    return Err(Full { running, waiting });
                }
                group.waiting.push_back((id, start));
                return Ok(());
            }
            group.running += 1;
            inner.running += 1;
        }
        start();
        Ok(())
    }

    /// Query `id` of a group has ended, or waits no longer.
    pub(super) fn leave(&self, group: usize, id: u64) {
        // Dropped behind the lock.
        let _given_up = self.change(|inner| {
            let group = &mut inner.groups[group];
            let waits = group.waiting.iter().position(|(waiting, _)| *waiting == id);
            if let Some(place) = waits {
                return group.waiting.remove(place);
            }
            group.running -= 1;
            inner.running -= 1;
            None
        });
    }
}
