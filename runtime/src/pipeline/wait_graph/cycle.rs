//! The waits between instances, and the search for a cycle of them that can be a stall.
//!
//! The search goes from wait to wait, not from instance to instance, because whether a wait may
//! follow depends on the wait before it. Among the walks that close, only those count that visit no
//! instance twice, since an instance waits for one thing at a time. That is checked at *forks* only,
//! the instances that can wait for data of more than one buffer, or of one producer instance rather
//! than another. It suffices there: let a closed walk pass an instance twice, in by wait `a` and out
//! by `b`, later in by `c` and out by `d`. Going from `a` to `d`, or from `c` to `b`, gives a shorter
//! closed walk, unless both are forbidden; then `b` and `d` are data waits of different buffers or
//! for different producers, and the instance is a fork. So if any walk closes that repeats no fork,
//! the shortest of them is a simple cycle.
//!
//! The forks on a walk are a bit each in a word. A graph with more than [`MAX_FORKS`] of them, or
//! with a search beyond [`MAX_STATES`], is searched without them, which can only find too much: a
//! buffer may then overflow needlessly, never stall.
//!
//! Plans of thousands of pipelines are ordinary (a union of as many branches), so what is done for
//! each wait must not grow with the number of waits: no pair of instances is entered twice for a
//! buffer, the waits that a search begins at are known by buffer and filter, and a search passes
//! over all data waits that may not follow at once.

use std::{cell::Cell, collections::HashSet};

use gatework_shared_state::{BufferLimit, OnFull};

use super::WaitEdge;

const MAX_FORKS: usize = 64;
const MAX_STATES: usize = 1 << 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WaitReason {
    /// For the end of a producer.
    End,
    /// For data of a buffer.
    Data(usize),
    /// For room in a buffer.
    Capacity(usize),
    /// For a runtime filter.
    Filter(usize),
    /// For the readers of earlier partitions.
    PartitionOrder,
}

#[derive(Debug)]
struct Wait {
    from: usize,
    to: usize,
    reason: WaitReason,
    ordered: bool,
}

impl Wait {
    /// Whether whoever is waited for in `self` may be stuck in `next`.
    fn allows(&self, next: &Self) -> bool {
        match (self.reason, next.reason) {
            (WaitReason::Capacity(full), WaitReason::Data(empty)) if full == empty => {
                next.ordered && next.to != self.from
            }
            _ => true,
        }
    }
}

/// Which waits have not been taken back.
#[derive(Debug, Clone)]
pub(super) struct KeptWaits {
    /// Buffers that block.
    pub(super) buffers: Vec<bool>,
    /// Filters that are waited for.
    pub(super) filters: Vec<bool>,
}

impl KeptWaits {
    fn has(&self, wait: &Wait) -> bool {
        match wait.reason {
            WaitReason::Capacity(buffer) => self.buffers[buffer],
            WaitReason::Filter(filter) => self.filters[filter],
            WaitReason::End | WaitReason::Data(_) | WaitReason::PartitionOrder => true,
        }
    }
}

/// All waits between instances.
#[derive(Debug, Default)]
pub(super) struct Waits {
    waits: Vec<Wait>,
    /// The waits of each instance, in rows of those that are passed over together.
    by_task: Vec<Vec<WaitRun>>,
    /// The bit of each instance that is a fork; 0 for others.
    forks: Vec<u64>,
    has_forks: bool,
    buffers: Vec<Buffer>,
    /// The waits for each filter.
    filters: Vec<Vec<usize>>,
    /// How many waits all searches have looked at.
    steps: Cell<usize>,
}

/// Waits of one instance that were entered one after the other: for data of one buffer in any
/// order, or others.
#[derive(Debug)]
struct WaitRun {
    /// The buffer, if it is read in any order.
    data: Option<usize>,
    waits: Vec<usize>,
}

#[derive(Debug)]
struct Buffer {
    budget: BufferLimit,
    /// The waits for room in it.
    capacity_waits: Vec<usize>,
    /// The instances at its ends, where one byte count is for all of them.
    producers: TaskSet,
    consumers: TaskSet,
}

/// Instances at one end of a buffer, each once.
#[derive(Debug, Default)]
struct TaskSet {
    tasks: Vec<usize>,
    known: HashSet<usize>,
}

impl TaskSet {
    /// Adds those of `instances` that are new, and answers how many were there before.
    fn add(&mut self, tasks: &[usize]) -> usize {
        let before = self.tasks.len();
        for &task in tasks {
            if self.known.insert(task) {
                self.tasks.push(task);
            }
        }
        before
    }
}

/// The search left its bounds.
struct SearchLimitExceeded;

impl Waits {
    /// The waits of `edges` between pipelines, each expanded to at most `max_tasks` instances.
    pub(super) fn expand(num_tasks: &[usize], edges: &[WaitEdge], max_tasks: usize) -> Self {
        let mut this = Self::default();
        let pipelines: Vec<Vec<usize>> =
            num_tasks.iter().map(|&count| this.add_tasks(count.min(max_tasks))).collect();
        let tasks_of = |pipeline: usize| -> &[usize] {
            assert!(pipeline < pipelines.len(), "a wait names pipeline {pipeline}, which is none");
            &pipelines[pipeline]
        };
        for edge in edges {
            match edge {
                WaitEdge::Breaker { producer, consumer } => {
                    this.add_all(tasks_of(*consumer), tasks_of(*producer), WaitReason::End, false);
                }
                WaitEdge::Buffer { producer, consumer, budget, ordered } => {
                    this.add_buffer(tasks_of(*producer), tasks_of(*consumer), budget, *ordered);
                }
                WaitEdge::Partitions { producer, partitions, budget } => {
                    let readers = this.add_tasks((*partitions).min(max_tasks));
                    this.add_buffer(tasks_of(*producer), &readers, budget, false);
                    // Producers do not wait while a reader has nothing, so no reader waits for
                    // others.
                    let in_order = budget.on_full() == OnFull::Block;
                    for (index, &reader) in readers.iter().enumerate().filter(|_| in_order) {
                        this.add_all(
                            &[reader],
                            &readers[..index],
                            WaitReason::PartitionOrder,
                            false,
                        );
                    }
                }
                WaitEdge::RuntimeFilter { build, scan, .. } => {
                    let filter = this.filters.len();
                    this.filters.push(Vec::new());
                    this.add_all(
                        tasks_of(*scan),
                        tasks_of(*build),
                        WaitReason::Filter(filter),
                        false,
                    );
                }
            }
        }
        this.find_forks();
        this
    }

    fn add_tasks(&mut self, count: usize) -> Vec<usize> {
        let first = self.by_task.len();
        self.by_task.resize_with(first + count, Vec::new);
        (first..first + count).collect()
    }

    fn add_buffer(
        &mut self,
        producers: &[usize],
        consumers: &[usize],
        budget: &BufferLimit,
        ordered: bool,
    ) {
        let buffer = self.buffer_index(budget);
        self.add_all(consumers, producers, WaitReason::Data(buffer), ordered);
        if ordered {
            self.add_all(producers, consumers, WaitReason::Capacity(buffer), ordered);
        } else {
            self.add_capacity_waits(buffer, producers, consumers);
        }
    }

    /// The number of the buffer with this budget. Edges of one buffer are declared one after the
    /// other, mostly.
    fn buffer_index(&mut self, budget: &BufferLimit) -> usize {
        let known = self.buffers.iter().rposition(|known| known.budget.is_same(budget));
        known.unwrap_or_else(|| {
            let (producers, consumers) = Default::default();
            let budget = budget.clone();
            self.buffers.push(Buffer { budget, capacity_waits: Vec::new(), producers, consumers });
            self.buffers.len() - 1
        })
    }

    /// One byte count for all edges of a buffer: producers wait for the readers of other edges too.
    fn add_capacity_waits(&mut self, buffer: usize, producers: &[usize], consumers: &[usize]) {
        let Buffer { producers: all_producers, consumers: all_consumers, .. } =
            &mut self.buffers[buffer];
        let old_producers = all_producers.add(producers);
        let old_consumers = all_consumers.add(consumers);
        let all_producers = std::mem::take(&mut all_producers.tasks);
        let all_consumers = std::mem::take(&mut all_consumers.tasks);
        // Pairs of old ones are there.
        let (old, new) = all_producers.split_at(old_producers);
        self.add_all(new, &all_consumers, WaitReason::Capacity(buffer), false);
        self.add_all(old, &all_consumers[old_consumers..], WaitReason::Capacity(buffer), false);
        self.buffers[buffer].producers.tasks = all_producers;
        self.buffers[buffer].consumers.tasks = all_consumers;
    }

    fn add_all(&mut self, from: &[usize], to: &[usize], reason: WaitReason, ordered: bool) {
        let data = match reason {
            WaitReason::Data(buffer) if !ordered => Some(buffer),
            _ => None,
        };
        for &from in from {
            for &to in to {
                let wait = self.waits.len();
                self.waits.push(Wait { from, to, reason, ordered });
                match reason {
                    WaitReason::Capacity(buffer) => self.buffers[buffer].capacity_waits.push(wait),
                    WaitReason::Filter(filter) => self.filters[filter].push(wait),
                    _ => {}
                }
                match self.by_task[from].last_mut() {
                    Some(run) if run.data == data => run.waits.push(wait),
                    _ => self.by_task[from].push(WaitRun { data, waits: vec![wait] }),
                }
            }
        }
    }

    fn find_forks(&mut self) {
        let is_fork = |runs: &Vec<WaitRun>| {
            let waits = runs.iter().flat_map(|run| &run.waits);
            let mut data = waits.filter_map(|&wait| match &self.waits[wait] {
                Wait { reason: WaitReason::Data(buffer), ordered: true, to, .. } => {
                    Some((buffer, Some(to)))
                }
                Wait { reason: WaitReason::Data(buffer), .. } => Some((buffer, None)),
                _ => None,
            });
            data.next().is_some_and(|first| data.any(|other| other != first))
        };
        let forks: Vec<bool> = self.by_task.iter().map(is_fork).collect();
        let mut bits = (0..MAX_FORKS).map(|bit| 1 << bit);
        self.forks = vec![0; forks.len()];
        for (task, _) in forks.iter().enumerate().filter(|(_, is_fork)| **is_fork) {
            self.forks[task] = bits.next().unwrap_or(0);
        }
        self.has_forks = forks.contains(&true);
    }

    /// The budgets of the buffers, by number.
    pub(super) fn budgets(&self) -> impl Iterator<Item = &BufferLimit> {
        self.buffers.iter().map(|buffer| &buffer.budget)
    }

    /// How many waits there are, and how many the searches have looked at.
    #[cfg(test)]
    pub(super) fn work(&self) -> (usize, usize) {
        (self.waits.len(), self.steps.get())
    }

    /// Where the decision starts: what does not overflow already blocks, no filter is waited for.
    pub(super) fn all_buffers_no_filters(&self) -> KeptWaits {
        let blocks = |budget: &BufferLimit| budget.on_full() != OnFull::Overflow;
        KeptWaits {
            buffers: self.budgets().map(blocks).collect(),
            filters: vec![false; self.filters.len()],
        }
    }

    /// A cycle through a room wait of `buffer`.
    pub(super) fn cycle_at_buffer(&self, buffer: usize, kept: &KeptWaits) -> Option<Vec<usize>> {
        self.cycle_at(&self.buffers[buffer].capacity_waits, kept)
    }

    /// A cycle through the wait for `filter`.
    pub(super) fn cycle_at_filter(&self, filter: usize, kept: &KeptWaits) -> Option<Vec<usize>> {
        self.cycle_at(&self.filters[filter], kept)
    }

    /// The shortest cycle through one of `starts`; a short one, if the search for it is long.
    fn cycle_at(&self, starts: &[usize], kept: &KeptWaits) -> Option<Vec<usize>> {
        let until = self.steps.get() + MAX_STATES;
        let mut shortest: Option<Vec<usize>> = None;
        for &start in starts {
            let cycle = self.cycle_from(start, kept);
            if let Some(cycle) = cycle
                && shortest.as_ref().is_none_or(|shortest| cycle.len() < shortest.len())
            {
                shortest = Some(cycle);
            }
            if shortest.is_some() && self.steps.get() > until {
                break;
            }
        }
        shortest
    }

    /// Whether there is a cycle through any wait that can be taken back.
    pub(super) fn has_cycle(&self, kept: &KeptWaits) -> bool {
        let capacity_waits = self.buffers.iter().flat_map(|buffer| &buffer.capacity_waits);
        let mut starts = capacity_waits.chain(self.filters.iter().flatten());
        starts.any(|&start| self.cycle_from(start, kept).is_some())
    }

    /// The buffer at which `cycle` turns from going upstream to going downstream.
    pub(super) fn fan_out(&self, cycle: &[usize]) -> Option<usize> {
        let after = cycle.iter().cycle().skip(1);
        cycle.iter().zip(after).find_map(|(&before, &after)| {
            match (self.waits[before].reason, self.waits[after].reason) {
                (WaitReason::Capacity(_), _) => None,
                (_, WaitReason::Capacity(buffer)) => Some(buffer),
                _ => None,
            }
        })
    }

    fn cycle_from(&self, start: usize, kept: &KeptWaits) -> Option<Vec<usize>> {
        if !kept.has(&self.waits[start]) {
            return None;
        }
        let exact = self.search(start, kept, self.has_forks);
        exact.or_else(|SearchLimitExceeded| self.search(start, kept, false)).ok().flatten()
    }

    /// Breadth first from `start`, over waits and, if it is to be `exact`, the forks passed on the
    /// way to them.
    fn search(
        &self,
        start: usize,
        kept: &KeptWaits,
        exact: bool,
    ) -> Result<Option<Vec<usize>>, SearchLimitExceeded> {
        let first = &self.waits[start];
        let fork = |task: usize| if exact { self.forks[task] } else { 0 };
        // A walk's last wait, the place of the walk before it, the forks on it.
        let mut walks = vec![(start, usize::MAX, fork(first.from) | fork(first.to))];
        let mut seen = HashSet::new();
        let mut index = 0;
        while index < walks.len() {
            let (last, _, passed) = walks[index];
            let wait = &self.waits[last];
            if wait.to == first.from && wait.allows(first) {
                return Ok(Some(path(&walks, index)));
            }
            for next in self.after(wait) {
                let after = &self.waits[next];
                if !kept.has(after) || !wait.allows(after) {
                    continue;
                }
                let bit = fork(after.to);
                // The walk may come back to where it started only to close.
                let closes = after.to == first.from && after.allows(first);
                if passed & bit != 0 && !closes {
                    continue;
                }
                if seen.insert((next, passed | bit)) {
                    walks.push((next, index, passed | bit));
                }
            }
            if exact && walks.len() > MAX_STATES {
                return Err(SearchLimitExceeded);
            }
            index += 1;
        }
        Ok(None)
    }
}

impl Waits {
    /// The waits in which the instance that is waited for in `wait` may be stuck, and a few more.
    fn after(&self, wait: &Wait) -> impl Iterator<Item = usize> {
        let full = match wait.reason {
            WaitReason::Capacity(buffer) => Some(buffer),
            _ => None,
        };
        let runs = self.by_task[wait.to].iter().inspect(|_| self.steps.set(self.steps.get() + 1));
        let runs = runs.filter(move |run| run.data.is_none() || run.data != full);
        let waits = runs.flat_map(|run| run.waits.iter().copied());
        waits.inspect(|_| self.steps.set(self.steps.get() + 1))
    }
}

/// The waits of the walk at `index`, in order.
fn path(walks: &[(usize, usize, u64)], mut index: usize) -> Vec<usize> {
    let mut waits = Vec::new();
    while let Some(&(wait, before, _)) = walks.get(index) {
        waits.push(wait);
        index = before;
    }
    waits.reverse();
    waits
}
