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

use std::collections::HashSet;

use gatework_shared_state::{Budget, OnFull};

use super::Edge;

const MAX_FORKS: usize = 64;
const MAX_STATES: usize = 1 << 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// For the end of a producer.
    End,
    /// For data of a buffer.
    Data(usize),
    /// For room in a buffer.
    Room(usize),
    /// For a runtime filter.
    Filter(usize),
    /// For the readers of earlier partitions.
    Turn,
}

#[derive(Debug)]
struct Wait {
    from: usize,
    to: usize,
    why: Why,
    ordered: bool,
}

impl Wait {
    /// Whether whoever is waited for in `self` may be stuck in `next`.
    fn allows(&self, next: &Self) -> bool {
        match (self.why, next.why) {
            (Why::Room(full), Why::Data(empty)) if full == empty => {
                next.ordered && next.to != self.from
            }
            _ => true,
        }
    }
}

/// Which waits have not been taken back.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    /// Buffers that block.
    pub(super) buffers: Vec<bool>,
    /// Filters that are waited for.
    pub(super) filters: Vec<bool>,
}

impl Kept {
    fn has(&self, wait: &Wait) -> bool {
        match wait.why {
            Why::Room(buffer) => self.buffers[buffer],
            Why::Filter(filter) => self.filters[filter],
            Why::End | Why::Data(_) | Why::Turn => true,
        }
    }
}

/// All waits between instances.
#[derive(Debug, Default)]
pub(super) struct Waits {
    waits: Vec<Wait>,
    /// The waits of each instance.
    of: Vec<Vec<usize>>,
    /// The bit of each instance that is a fork; 0 for others.
    forks: Vec<u64>,
    budgets: Vec<Budget>,
    filters: usize,
}

/// The search left its bounds.
struct TooFar;

impl Waits {
    /// The waits of `edges` between pipelines, each expanded to at most `most` instances.
    pub(super) fn expand(instances: &[usize], edges: &[Edge], most: usize) -> Self {
        let mut this = Self::default();
        let pipelines: Vec<Vec<usize>> =
            instances.iter().map(|&count| this.add_instances(count.min(most))).collect();
        let of = |pipeline: usize| -> &[usize] {
            assert!(pipeline < pipelines.len(), "a wait names pipeline {pipeline}, which is none");
            &pipelines[pipeline]
        };
        for edge in edges {
            match edge {
                Edge::Breaker { producer, consumer } => {
                    this.add_all(of(*consumer), of(*producer), Why::End, false);
                }
                Edge::Buffer { producer, consumer, budget, ordered } => {
                    this.add_buffer(of(*producer), of(*consumer), budget, *ordered);
                }
                Edge::Partitions { producer, partitions, budget } => {
                    let readers = this.add_instances((*partitions).min(most));
                    this.add_buffer(of(*producer), &readers, budget, false);
                    for (place, &reader) in readers.iter().enumerate() {
                        this.add_all(&[reader], &readers[..place], Why::Turn, false);
                    }
                }
                Edge::RuntimeFilter { build, scan, .. } => {
                    this.add_all(of(*scan), of(*build), Why::Filter(this.filters), false);
                    this.filters += 1;
                }
            }
        }
        this.find_forks();
        this
    }

    fn add_instances(&mut self, count: usize) -> Vec<usize> {
        let first = self.of.len();
        self.of.resize_with(first + count, Vec::new);
        (first..first + count).collect()
    }

    fn add_buffer(
        &mut self,
        producers: &[usize],
        consumers: &[usize],
        budget: &Budget,
        ordered: bool,
    ) {
        let known = self.budgets.iter().position(|known| known.is_same(budget));
        let buffer = known.unwrap_or_else(|| {
            self.budgets.push(budget.clone());
            self.budgets.len() - 1
        });
        self.add_all(consumers, producers, Why::Data(buffer), ordered);
        self.add_all(producers, consumers, Why::Room(buffer), ordered);
        if !ordered {
            self.share_room(buffer, producers, consumers);
        }
    }

    /// One byte count for all edges of a buffer: producers wait for the readers of other edges too.
    fn share_room(&mut self, buffer: usize, producers: &[usize], consumers: &[usize]) {
        let room = |wait: &&Wait| wait.why == Why::Room(buffer) && !wait.ordered;
        let (mut all_producers, mut all_consumers): (Vec<_>, Vec<_>) =
            self.waits.iter().filter(room).map(|wait| (wait.from, wait.to)).unzip();
        all_producers.retain(|known| !producers.contains(known));
        all_consumers.retain(|known| !consumers.contains(known));
        for others in [&mut all_producers, &mut all_consumers] {
            others.sort_unstable();
            others.dedup();
        }
        self.add_all(&all_producers, consumers, Why::Room(buffer), false);
        self.add_all(producers, &all_consumers, Why::Room(buffer), false);
    }

    fn add_all(&mut self, from: &[usize], to: &[usize], why: Why, ordered: bool) {
        for &from in from {
            for &to in to {
                self.of[from].push(self.waits.len());
                self.waits.push(Wait { from, to, why, ordered });
            }
        }
    }

    fn find_forks(&mut self) {
        let is_fork = |waits: &Vec<usize>| {
            let mut data = waits.iter().filter_map(|&wait| match &self.waits[wait] {
                Wait { why: Why::Data(buffer), ordered: true, to, .. } => Some((buffer, Some(to))),
                Wait { why: Why::Data(buffer), .. } => Some((buffer, None)),
                _ => None,
            });
            data.next().is_some_and(|first| data.any(|other| other != first))
        };
        let forks: Vec<bool> = self.of.iter().map(is_fork).collect();
        let mut bits = (0..MAX_FORKS).map(|bit| 1 << bit);
        self.forks = vec![0; forks.len()];
        for (instance, _) in forks.iter().enumerate().filter(|(_, is_fork)| **is_fork) {
            self.forks[instance] = bits.next().unwrap_or(0);
        }
    }

    /// The buffers, by number.
    pub(super) fn budgets(&self) -> &[Budget] {
        &self.budgets
    }

    /// Where the decision starts: what does not overflow already blocks, no filter is waited for.
    pub(super) fn all_buffers_no_filters(&self) -> Kept {
        let blocks = |budget: &Budget| budget.on_full() == OnFull::Block;
        Kept {
            buffers: self.budgets.iter().map(blocks).collect(),
            filters: vec![false; self.filters],
        }
    }

    /// A cycle through a room wait of `buffer`.
    pub(super) fn cycle_at_buffer(&self, buffer: usize, kept: &Kept) -> Option<Vec<usize>> {
        self.cycle_at(Why::Room(buffer), kept)
    }

    /// A cycle through the wait for `filter`.
    pub(super) fn cycle_at_filter(&self, filter: usize, kept: &Kept) -> Option<Vec<usize>> {
        self.cycle_at(Why::Filter(filter), kept)
    }

    fn cycle_at(&self, why: Why, kept: &Kept) -> Option<Vec<usize>> {
        let starts = (0..self.waits.len()).filter(|&wait| self.waits[wait].why == why);
        starts.filter_map(|start| self.cycle_from(start, kept)).min_by_key(Vec::len)
    }

    /// Whether there is a cycle through any wait that can be taken back.
    pub(super) fn has_cycle(&self, kept: &Kept) -> bool {
        let removable = |wait: &&Wait| matches!(wait.why, Why::Room(_) | Why::Filter(_));
        let starts = self.waits.iter().enumerate().filter(|(_, wait)| removable(wait));
        starts.into_iter().any(|(start, _)| self.cycle_from(start, kept).is_some())
    }

    /// The buffer at which `cycle` turns from going upstream to going downstream.
    pub(super) fn fan_out(&self, cycle: &[usize]) -> Option<usize> {
        let after = cycle.iter().cycle().skip(1);
        cycle.iter().zip(after).find_map(|(&before, &after)| {
            match (self.waits[before].why, self.waits[after].why) {
                (Why::Room(_), _) => None,
                (_, Why::Room(buffer)) => Some(buffer),
                _ => None,
            }
        })
    }

    fn cycle_from(&self, start: usize, kept: &Kept) -> Option<Vec<usize>> {
        if !kept.has(&self.waits[start]) {
            return None;
        }
        let exact = self.search(start, kept, &self.forks);
        exact.or_else(|TooFar| self.search(start, kept, &vec![0; self.forks.len()])).ok().flatten()
    }

    /// Breadth first from `start`, over waits and the forks passed on the way to them.
    fn search(
        &self,
        start: usize,
        kept: &Kept,
        forks: &[u64],
    ) -> Result<Option<Vec<usize>>, TooFar> {
        let first = &self.waits[start];
        let exact = forks.iter().any(|&bit| bit != 0);
        // A walk's last wait, the place of the walk before it, the forks on it.
        let mut walks = vec![(start, usize::MAX, forks[first.from] | forks[first.to])];
        let mut seen = HashSet::new();
        let mut place = 0;
        while place < walks.len() {
            let (last, _, passed) = walks[place];
            let wait = &self.waits[last];
            if wait.to == first.from && wait.allows(first) {
                return Ok(Some(path(&walks, place)));
            }
            for &next in &self.of[wait.to] {
                let after = &self.waits[next];
                if !kept.has(after) || !wait.allows(after) {
                    continue;
                }
                let bit = forks[after.to];
                // The walk may come back to where it started only to close.
                let closes = after.to == first.from && after.allows(first);
                if passed & bit != 0 && !closes {
                    continue;
                }
                if seen.insert((next, passed | bit)) {
                    walks.push((next, place, passed | bit));
                }
            }
            if exact && walks.len() > MAX_STATES {
                return Err(TooFar);
            }
            place += 1;
        }
        Ok(None)
    }
}

/// The waits of the walk at `place`, in order.
fn path(walks: &[(usize, usize, u64)], mut place: usize) -> Vec<usize> {
    let mut waits = Vec::new();
    while let Some(&(wait, before, _)) = walks.get(place) {
        waits.push(wait);
        place = before;
    }
    waits.reverse();
    waits
}
