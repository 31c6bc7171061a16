//! The waits between tasks, and the search for a cycle of waits that can be a stall.
//!
//! The search goes from wait to wait, not from task to task, because whether a wait may follow
//! depends on the wait before it. Among the closed walks, only those count that visit no task
//! twice, since a task waits for one thing at a time. That is checked only at *forks*: tasks that
//! can wait for data of more than one buffer, or of one producer task rather than another.
//!
//! Forks suffice. Let a closed walk pass a task twice: in by wait `a` and out by `b`, later in by
//! `c` and out by `d`. Going from `a` to `d`, or from `c` to `b`, gives a shorter closed walk,
//! unless both are forbidden. Then `b` and `d` are data waits for different buffers or different
//! producers, and the task is a fork. So if there is a closed walk that repeats no fork, the
//! shortest of them is a simple cycle.
//!
//! The forks on a walk are bits of one 64-bit word. A graph with more than [`MAX_FORKS`] forks, or
//! a search beyond [`MAX_STATES`] states, is searched without forks. That can only find too many
//! cycles: a buffer may then overflow needlessly, but the plan never stalls.
//!
//! Plans of thousands of pipelines are ordinary (a union with thousands of branches), so the work
//! per wait must not grow with the number of waits. No pair of tasks is entered twice for a buffer.
//! The waits at which a search starts are indexed by buffer and filter. A search skips data waits
//! that may not follow in whole runs.

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
    /// For capacity in a buffer.
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
    /// Returns whether the task that `self` waits for may be stuck in `next`.
    fn allows(&self, next: &Self) -> bool {
        match (self.reason, next.reason) {
            (WaitReason::Capacity(full), WaitReason::Data(empty)) if full == empty => {
                next.ordered && next.to != self.from
            }
            _ => true,
        }
    }
}

/// The waits that have not been dropped.
#[derive(Debug, Clone)]
pub(super) struct KeptWaits {
    /// Whether each buffer blocks.
    pub(super) buffers: Vec<bool>,
    /// Whether each filter is waited for.
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

/// All waits between tasks.
#[derive(Debug, Default)]
pub(super) struct Waits {
    waits: Vec<Wait>,
    /// The waits of each task, in runs that a search can skip as a whole.
    by_task: Vec<Vec<WaitRun>>,
    /// The bit of each task that is a fork; 0 for other tasks, and for forks beyond [`MAX_FORKS`].
    forks: Vec<u64>,
    has_forks: bool,
    buffers: Vec<Buffer>,
    /// The waits for each filter.
    filters: Vec<Vec<usize>>,
    /// The number of waits that all searches have visited.
    steps: Cell<usize>,
}

/// Consecutive waits of one task: either data waits for one unordered buffer, or other waits.
#[derive(Debug)]
struct WaitRun {
    /// The buffer, if it is unordered.
    data: Option<usize>,
    waits: Vec<usize>,
}

#[derive(Debug)]
struct Buffer {
    budget: BufferLimit,
    /// The capacity waits at this buffer.
    capacity_waits: Vec<usize>,
    /// The tasks at the buffer's ends, if all of them share one byte count.
    producers: TaskSet,
    consumers: TaskSet,
}

/// Tasks at one end of a buffer, each once.
#[derive(Debug, Default)]
struct TaskSet {
    tasks: Vec<usize>,
    known: HashSet<usize>,
}

impl TaskSet {
    /// Adds the tasks that are new. Returns the number of tasks before the call.
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

/// The search exceeded [`MAX_STATES`] states.
struct SearchLimitExceeded;

impl Waits {
    /// Collects the waits of `edges`, with each pipeline expanded to at most `max_tasks` tasks.
    pub(super) fn expand(num_tasks: &[usize], edges: &[WaitEdge], max_tasks: usize) -> Self {
        let mut this = Self::default();
        let pipelines: Vec<Vec<usize>> =
            num_tasks.iter().map(|&count| this.add_tasks(count.min(max_tasks))).collect();
        let tasks_of = |pipeline: usize| -> &[usize] {
            assert!(pipeline < pipelines.len(), "pipeline {pipeline} of a wait was not added");
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
                    // If the limit overflows, producers never block, so no reader waits for another
                    // reader.
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

    /// Returns the index of the buffer with this limit. Searches from the end, because edges of one
    /// buffer are usually declared one after the other.
    fn buffer_index(&mut self, budget: &BufferLimit) -> usize {
        let known = self.buffers.iter().rposition(|known| known.budget.is_same(budget));
        known.unwrap_or_else(|| {
            let (producers, consumers) = Default::default();
            let budget = budget.clone();
            self.buffers.push(Buffer { budget, capacity_waits: Vec::new(), producers, consumers });
            self.buffers.len() - 1
        })
    }

    /// Adds capacity waits. All edges of a buffer share one byte count, so producers also wait for
    /// the readers of other edges.
    fn add_capacity_waits(&mut self, buffer: usize, producers: &[usize], consumers: &[usize]) {
        let Buffer { producers: all_producers, consumers: all_consumers, .. } =
            &mut self.buffers[buffer];
        let old_producers = all_producers.add(producers);
        let old_consumers = all_consumers.add(consumers);
        let all_producers = std::mem::take(&mut all_producers.tasks);
        let all_consumers = std::mem::take(&mut all_consumers.tasks);
        // Pairs of a known producer and a known consumer are already entered.
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

    /// Returns the limits of the buffers, by index.
    pub(super) fn budgets(&self) -> impl Iterator<Item = &BufferLimit> {
        self.buffers.iter().map(|buffer| &buffer.budget)
    }

    /// Returns the number of waits, and the number of waits that all searches have visited.
    #[cfg(test)]
    pub(super) fn work(&self) -> (usize, usize) {
        (self.waits.len(), self.steps.get())
    }

    /// Returns the initial decision: every buffer blocks unless it overflows already, and no filter
    /// is waited for.
    pub(super) fn all_buffers_no_filters(&self) -> KeptWaits {
        let blocks = |budget: &BufferLimit| budget.on_full() != OnFull::Overflow;
        KeptWaits {
            buffers: self.budgets().map(blocks).collect(),
            filters: vec![false; self.filters.len()],
        }
    }

    /// Finds a cycle through a capacity wait of `buffer`.
    pub(super) fn cycle_at_buffer(&self, buffer: usize, kept: &KeptWaits) -> Option<Vec<usize>> {
        self.cycle_at(&self.buffers[buffer].capacity_waits, kept)
    }

    /// Finds a cycle through a wait for `filter`.
    pub(super) fn cycle_at_filter(&self, filter: usize, kept: &KeptWaits) -> Option<Vec<usize>> {
        self.cycle_at(&self.filters[filter], kept)
    }

    /// Finds the shortest cycle through one of `starts`; a short one if the search takes long.
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

    /// Returns whether there is a cycle through any wait that can be dropped.
    pub(super) fn has_cycle(&self, kept: &KeptWaits) -> bool {
        let capacity_waits = self.buffers.iter().flat_map(|buffer| &buffer.capacity_waits);
        let mut starts = capacity_waits.chain(self.filters.iter().flatten());
        starts.any(|&start| self.cycle_from(start, kept).is_some())
    }

    /// Returns the buffer at which `cycle` turns from going upstream to going downstream.
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

    /// Searches breadth first from `start` over waits. If `exact`, a state also includes the forks
    /// passed on the way.
    fn search(
        &self,
        start: usize,
        kept: &KeptWaits,
        exact: bool,
    ) -> Result<Option<Vec<usize>>, SearchLimitExceeded> {
        let first = &self.waits[start];
        let fork = |task: usize| if exact { self.forks[task] } else { 0 };
        // Per walk: its last wait, the index of its parent walk, and the forks on it.
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
                // A walk may return to its first task only to close.
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
    /// Returns the waits that the task `wait` waits for may be stuck in, and possibly a few more.
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

/// Returns the waits of the walk at `index`, in order.
fn path(walks: &[(usize, usize, u64)], mut index: usize) -> Vec<usize> {
    let mut waits = Vec::new();
    while let Some(&(wait, before, _)) = walks.get(index) {
        waits.push(wait);
        index = before;
    }
    waits.reverse();
    waits
}
