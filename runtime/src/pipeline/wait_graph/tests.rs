//! Tests of plan shapes with the waits they must keep, and of random plans against a simulation.

mod simulation;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use gatework_shared_state::{BufferLimit, OnFull};
use proptest::prelude::*;

use self::simulation::simulate;
use super::{WaitEdge, WaitGraph, cycle::Waits, decide};

/// A wait of a plan; buffers are numbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Breaker { producer: usize, consumer: usize },
    Buffer { producer: usize, consumer: usize, buffer: usize, ordered: bool },
    Partitions { producer: usize, partitions: usize, buffer: usize },
    Filter { build: usize, scan: usize },
}

/// A graph in a form that the simulation can run too.
#[derive(Debug, Clone, Default)]
struct Plan {
    num_tasks: Vec<usize>,
    links: Vec<Link>,
    buffers: usize,
}

/// Whether each buffer overflows, and whether each filter wait is dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
struct DroppedWaits {
    buffers: Vec<bool>,
    filters: Vec<bool>,
}

impl DroppedWaits {
    fn count(&self) -> usize {
        self.buffers.iter().chain(&self.filters).filter(|dropped| **dropped).count()
    }
}

impl Plan {
    fn new(num_tasks: &[usize]) -> Self {
        Self { num_tasks: num_tasks.to_vec(), ..Self::default() }
    }

    fn breaker(mut self, producer: usize, consumer: usize) -> Self {
        self.links.push(Link::Breaker { producer, consumer });
        self
    }

    fn link(mut self, producer: usize, consumer: usize, buffer: usize, ordered: bool) -> Self {
        self.buffers = self.buffers.max(buffer + 1);
        self.links.push(Link::Buffer { producer, consumer, buffer, ordered });
        self
    }

    fn buffer(self, producer: usize, consumer: usize, buffer: usize) -> Self {
        self.link(producer, consumer, buffer, false)
    }

    fn merge(self, producer: usize, consumer: usize, buffer: usize) -> Self {
        self.link(producer, consumer, buffer, true)
    }

    fn partitions(mut self, producer: usize, partitions: usize, buffer: usize) -> Self {
        self.buffers = self.buffers.max(buffer + 1);
        self.links.push(Link::Partitions { producer, partitions, buffer });
        self
    }

    fn filter(mut self, build: usize, scan: usize) -> Self {
        self.links.push(Link::Filter { build, scan });
        self
    }

    fn filters(&self) -> usize {
        self.links.iter().filter(|link| matches!(link, Link::Filter { .. })).count()
    }

    fn none_dropped(&self) -> DroppedWaits {
        DroppedWaits { buffers: vec![false; self.buffers], filters: vec![false; self.filters()] }
    }

    fn graph(&self) -> (WaitGraph, Vec<BufferLimit>, Vec<Arc<AtomicBool>>) {
        let mut graph = WaitGraph::default();
        let budgets: Vec<_> = (0..self.buffers).map(|_| BufferLimit::new(1)).collect();
        let mut dropped = Vec::new();
        self.num_tasks.iter().for_each(|&num_tasks| graph.add_pipeline(num_tasks));
        for link in &self.links {
            graph.add_edge(match *link {
                Link::Breaker { producer, consumer } => WaitEdge::Breaker { producer, consumer },
                Link::Buffer { producer, consumer, buffer, ordered } => WaitEdge::Buffer {
                    producer,
                    consumer,
                    budget: budgets[buffer].clone(),
                    ordered,
                },
                Link::Partitions { producer, partitions, buffer } => {
                    WaitEdge::Partitions { producer, partitions, budget: budgets[buffer].clone() }
                }
                Link::Filter { build, scan } => {
                    let flag = Arc::new(AtomicBool::new(false));
                    dropped.push(flag.clone());
                    let on_dropped = Arc::new(move || {
                        assert!(!flag.swap(true, Ordering::SeqCst), "dropped once");
                    });
                    WaitEdge::RuntimeFilter { build, scan, on_dropped }
                }
            });
        }
        (graph, budgets, dropped)
    }

    fn break_cycles(&self) -> DroppedWaits {
        let (graph, budgets, dropped) = self.graph();
        let count = graph.break_cycles();
        let dropped_waits = DroppedWaits {
            buffers: budgets.iter().map(|budget| budget.on_full() == OnFull::Overflow).collect(),
            filters: dropped.iter().map(|flag| flag.load(Ordering::SeqCst)).collect(),
        };
        assert_eq!(count, dropped_waits.count());
        dropped_waits
    }

    fn stalls(&self, dropped_waits: &DroppedWaits, seeds: u64) -> Option<String> {
        (0..seeds).find_map(|seed| simulate(self, dropped_waits, seed).err())
    }
}

/// Checks that `plan` runs to its end with exactly `buffers` overflowing and `filters` dropped. The
/// simulation must find a stall with all waits kept; otherwise the check would prove nothing.
fn check(plan: &Plan, buffers: &[usize], filters: &[usize]) {
    let dropped_waits = plan.break_cycles();
    let chosen =
        |dropped: &[bool]| -> Vec<usize> { (0..dropped.len()).filter(|&i| dropped[i]).collect() };
    assert_eq!(chosen(&dropped_waits.buffers), buffers, "buffers that overflow");
    assert_eq!(chosen(&dropped_waits.filters), filters, "filters that are dropped");
    assert_eq!(plan.stalls(&dropped_waits, 300), None, "after break_cycles");
    let before = plan.stalls(&plan.none_dropped(), 3000);
    assert_eq!(before.is_some(), dropped_waits.count() > 0, "before break_cycles: {before:?}");
}

#[test]
fn one_exchange_keeps_blocking() {
    for (producers, consumers) in [(1, 1), (1, 4), (4, 1), (3, 3)] {
        check(&Plan::new(&[producers, consumers]).buffer(0, 1, 0), &[], &[]);
    }
}

#[test]
fn a_chain_of_exchanges_keeps_blocking() {
    let plan = Plan::new(&[2, 3, 2, 1]).buffer(0, 1, 0).buffer(1, 2, 1).buffer(2, 3, 2);
    check(&plan, &[], &[]);
}

#[test]
fn an_exchange_under_a_probe_keeps_blocking() {
    // 0 scans the probe side, 1 builds, 2 probes the rows of 0, 3 reads the result.
    let plan = Plan::new(&[2, 2, 2, 1]).buffer(0, 2, 0).breaker(1, 2).buffer(2, 3, 1);
    check(&plan, &[], &[]);
}

#[test]
fn a_union_keeps_blocking() {
    // One buffer for all children, then one per child.
    check(&Plan::new(&[2, 2, 2]).buffer(0, 2, 0).buffer(1, 2, 0), &[], &[]);
    check(&Plan::new(&[2, 2, 1]).buffer(0, 2, 0).buffer(1, 2, 1), &[], &[]);
    // Readers that insist on different children while the others' buffers are full.
    check(&Plan::new(&[2, 2, 2]).buffer(0, 2, 0).buffer(1, 2, 1), &[1], &[]);
}

#[test]
fn a_merge_with_room_for_each_producer_keeps_blocking() {
    check(&Plan::new(&[3, 1]).merge(0, 1, 0), &[], &[]);
    check(&Plan::new(&[2, 3, 1]).breaker(0, 1).merge(1, 2, 0), &[], &[]);
}

#[test]
fn readers_that_only_meet_behind_breakers_keep_blocking() {
    // A multicast into two aggregates that are joined afterwards.
    let plan = Plan::new(&[2, 2, 2, 2, 2]).buffer(0, 1, 0).buffer(0, 2, 0);
    check(&plan.breaker(1, 3).breaker(2, 4).breaker(3, 4), &[], &[]);
}

#[test]
fn a_multicast_of_both_sides_of_a_join_overflows() {
    let plan = Plan::new(&[1, 1, 1]).buffer(0, 1, 0).buffer(0, 2, 0).breaker(1, 2);
    check(&plan, &[0], &[]);
    let plan = Plan::new(&[2, 2, 2, 2]).buffer(0, 1, 0).buffer(0, 2, 0);
    check(&plan.breaker(1, 2).buffer(2, 3, 1), &[0], &[]);
}

#[test]
fn of_two_multicasts_only_the_one_that_meets_itself_overflows() {
    // 0 feeds build 2 and probe 3; 1 feeds 4 and 5, which do not meet.
    let plan = Plan::new(&[1, 1, 1, 1, 1, 1]).buffer(0, 2, 0).buffer(0, 3, 0).breaker(2, 3);
    check(&plan.buffer(1, 4, 1).buffer(1, 5, 1), &[0], &[]);
}

#[test]
fn an_exchange_on_the_way_to_the_probe_side_does_not_help() {
    // 0 feeds build 1 and, through 2, probe 3. One of the two buffers to the probe must hold all
    // rows: the one at which the rows fan out.
    let plan = Plan::new(&[2, 2, 2, 2]).buffer(0, 1, 0).buffer(0, 2, 0).buffer(2, 3, 1);
    check(&plan.breaker(1, 3), &[0], &[]);
}

#[test]
fn a_hash_exchange_below_an_ordered_merge_overflows() {
    // 0 sends by hash to 1, whose tasks are merged by 2.
    check(&Plan::new(&[2, 2, 1]).buffer(0, 1, 0).merge(1, 2, 1), &[0], &[]);
    check(&Plan::new(&[1, 3, 1]).buffer(0, 1, 0).merge(1, 2, 1), &[0], &[]);
    // The exchange itself preserves the order for each of several consumers.
    check(&Plan::new(&[2, 2]).merge(0, 1, 0), &[0], &[]);
}

#[test]
fn partitions_read_one_after_the_other_overflow() {
    check(&Plan::new(&[1]).partitions(0, 2, 0), &[0], &[]);
    check(&Plan::new(&[2, 3]).buffer(0, 1, 0).partitions(1, 4, 1), &[1], &[]);
    check(&Plan::new(&[2]).partitions(0, 1, 0), &[], &[]);
}

#[test]
fn diamonds_overflow_once() {
    // 0 fans out to 1 and 2, and 3 reads one of them while the other is full.
    let diamond = Plan::new(&[1, 1, 1, 1]).buffer(0, 1, 0).buffer(0, 2, 0);
    check(&diamond.clone().buffer(1, 3, 1).buffer(2, 3, 2), &[0], &[]);
    // As children of one union they are read in order of arrival.
    check(&diamond.buffer(1, 3, 1).buffer(2, 3, 1), &[], &[]);
    // A sink that fills two buffers is a diamond as well.
    let two = Plan::new(&[1, 1, 1, 1]).buffer(0, 1, 0).buffer(0, 2, 1);
    check(&two.buffer(1, 3, 2).buffer(2, 3, 3), &[0, 1], &[]);
}

#[test]
fn a_filter_of_an_independent_build_is_waited_for() {
    // 0 scans the probe side through an exchange into 2, which publishes the filter of build 1.
    let plan = Plan::new(&[2, 2, 2]).buffer(0, 2, 0).breaker(1, 2).filter(1, 0);
    check(&plan, &[], &[]);
    // And through another probe, which waits for a build that waits for a filter of its own.
    let plan = Plan::new(&[2, 2, 2, 2, 2]).buffer(0, 1, 0).buffer(1, 2, 1).breaker(3, 1);
    check(&plan.breaker(4, 2).filter(4, 0).filter(3, 0).filter(4, 3), &[], &[]);
}

#[test]
fn a_build_waits_for_the_filter_of_another_build_of_the_same_probe() {
    // 2 probes the build sides 0 and 1; the scan of 0 is filtered by build 1.
    check(&Plan::new(&[2, 2, 2]).breaker(0, 2).breaker(1, 2).filter(1, 0), &[], &[]);
}

#[test]
fn a_filter_of_the_scans_own_pipeline_is_no_wait() {
    check(&Plan::new(&[2, 2]).breaker(0, 1).filter(0, 1), &[], &[]);
}

#[test]
fn a_filter_for_the_scan_that_feeds_the_build_is_dropped() {
    // A CTE joined with itself: the multicast overflows, and its scan does not wait for the build.
    let plan = Plan::new(&[1, 1, 1]).buffer(0, 1, 0).buffer(0, 2, 0).breaker(1, 2).filter(1, 0);
    check(&plan, &[0], &[0]);
}

#[test]
fn of_filters_that_wait_for_each_other_one_is_dropped() {
    // Scans 0 and 1 are build sides of 3 and 2, and each waits for the filter of the other's probe.
    let two = Plan::new(&[2, 2, 2, 2]).breaker(1, 2).breaker(0, 3).filter(1, 0).filter(0, 1);
    check(&two, &[], &[1]);
}

#[test]
fn a_filter_is_dropped_rather_than_that_a_buffer_overflows() {
    // Build 1 and pipeline 2 read 0. If 2 waited for the filter of build 1, 0 would wait for 2, and
    // 1 for 0.
    let plan = Plan::new(&[1, 1, 1, 1]).buffer(0, 1, 0).buffer(0, 2, 0).breaker(1, 3);
    check(&plan.filter(1, 2), &[], &[0]);
}

#[test]
fn what_overflows_already_is_not_counted() {
    let (graph, budgets, _) =
        Plan::new(&[1, 1, 1]).buffer(0, 1, 0).buffer(0, 2, 0).breaker(1, 2).graph();
    budgets[0].allow_overflow();
    assert_eq!(graph.break_cycles(), 0);
}

#[test]
fn a_cycle_of_breakers_is_left_alone() {
    let (graph, budgets, _) =
        Plan::new(&[1, 1, 1]).breaker(0, 1).breaker(1, 0).buffer(1, 2, 0).graph();
    assert_eq!(graph.break_cycles(), 0);
    assert_eq!(budgets[0].on_full(), OnFull::Block);
}

#[test]
fn a_large_plan_with_many_forks_is_resolved() {
    // 60 self-joined CTEs, each of which feeds the next, all read by one pipeline: many forks.
    let ctes = 60;
    let mut plan = Plan::new(&vec![4; 3 * ctes + 1]);
    for cte in 0..ctes {
        let (scan, build, probe) = (3 * cte, 3 * cte + 1, 3 * cte + 2);
        plan = plan.buffer(scan, build, 3 * cte).buffer(scan, probe, 3 * cte).breaker(build, probe);
        plan = plan.buffer(probe, 3 * ctes, 3 * cte + 1).filter(build, scan);
        if cte + 1 < ctes {
            plan = plan.buffer(probe, 3 * (cte + 1), 3 * cte + 2);
        }
    }
    let dropped_waits = plan.break_cycles();
    assert!(dropped_waits.filters.iter().all(|dropped| *dropped));
    assert!((0..ctes).all(|cte| dropped_waits.buffers[3 * cte]), "every multicast overflows");
}

/// Plans whose rows flow from lower to higher numbers, with filters in any direction.
fn plans() -> impl Strategy<Value = Plan> {
    let link = (0..10_u8, any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..4_usize);
    let links = prop::collection::vec(link, 1..9);
    (prop::collection::vec(1..4_usize, 2..6), links).prop_map(|(num_tasks, links)| {
        let pipelines = num_tasks.len();
        let mut plan = Plan::new(&num_tasks);
        for (kind, one, other, share) in links {
            let producer = one.index(pipelines - 1);
            let consumer = producer + 1 + other.index(pipelines - 1 - producer);
            let fresh = plan.buffers;
            // A buffer with several producers or consumers: a union or a multicast.
            let shared = plan.links.iter().rev().find_map(|link| match *link {
                Link::Buffer { producer: p, consumer: c, buffer, ordered }
                    if (p == producer) != (c == consumer) =>
                {
                    Some((buffer, ordered))
                }
                _ => None,
            });
            plan = match kind {
                0..=1 => plan.breaker(producer, consumer),
                2 => plan.filter(producer, consumer),
                3 => plan.filter(consumer, producer),
                4 if share > 1 => plan.partitions(producer, share, fresh),
                5..=7 if shared.is_some() && share > 0 => {
                    let (buffer, ordered) = shared.unwrap();
                    plan.link(producer, consumer, buffer, ordered)
                }
                _ => plan.link(producer, consumer, fresh, kind == 9),
            };
        }
        plan
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_random_plan_stalls_after_resolve(plan in plans()) {
        let dropped_waits = plan.break_cycles();
        prop_assert_eq!(plan.stalls(&dropped_waits, 60), None, "{:?}", dropped_waits);
    }

    #[test]
    fn nothing_is_taken_back_needlessly(plan in plans()) {
        let (graph, ..) = plan.graph();
        let waits = Waits::expand(&graph.num_tasks, &graph.edges, 2);
        let kept = decide(&waits);
        let bare =
            super::cycle::KeptWaits { filters: vec![false; kept.filters.len()], ..kept.clone() };
        for buffer in (0..kept.buffers.len()).filter(|&buffer| !kept.buffers[buffer]) {
            let mut again = bare.clone();
            again.buffers[buffer] = true;
            prop_assert!(waits.has_cycle(&again));
        }
        for filter in (0..kept.filters.len()).filter(|&filter| !kept.filters[filter]) {
            let mut again = kept.clone();
            again.filters[filter] = true;
            prop_assert!(waits.has_cycle(&again));
        }
    }

    #[test]
    fn two_instances_stand_for_all(plan in plans()) {
        let (graph, ..) = plan.graph();
        let kept = decide(&Waits::expand(&graph.num_tasks, &graph.edges, 2));
        let more = Waits::expand(&graph.num_tasks, &graph.edges, 3);
        prop_assert!(!more.has_cycle(&kept));
    }
}

#[test]
fn a_taken_back_wait_of_a_random_plan_is_a_stall_in_the_simulation() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let mut found = 0;
    for _ in 0..300 {
        let plan = plans().new_tree(&mut runner).unwrap().current();
        if plan.break_cycles().count() > 0 {
            // The simulation picks inputs at random; 3000 runs find all stalls.
            let stall = plan.stalls(&plan.none_dropped(), 3000);
            assert!(stall.is_some(), "{plan:?} would not have stalled: {:?}", plan.break_cycles());
            found += 1;
        }
    }
    assert!(found > 50, "only {found} plans of 300 could stall");
}

/// Returns the number of a plan's waits, and the number that the cycle searches have visited.
fn work(plan: &Plan) -> (usize, usize) {
    let (graph, ..) = plan.graph();
    let waits = Waits::expand(&graph.num_tasks, &graph.edges, 2);
    decide(&waits);
    waits.work()
}

/// Branches of a union share one buffer, but the cost is not quadratic: neither waits nor search
/// steps are per pair of branches.
#[test]
fn what_a_union_costs_grows_with_its_branches_only() {
    let union = |branches: usize| {
        let filtered = (0..branches).fold(Plan::new(&vec![2; 2 * branches + 1]), |plan, branch| {
            // A scan that waits for the filter of a build in its branch.
            plan.buffer(branch, 2 * branches, 0).filter(branches + branch, branch)
        });
        work(&filtered)
    };
    let (few, many) = (union(100), union(1000));
    assert!(many.0 <= 11 * few.0, "{few:?} waits and steps for 100 branches, {many:?} for 1000");
    assert!(many.1 <= 11 * few.1, "{few:?} waits and steps for 100 branches, {many:?} for 1000");
    assert!(many.0 + many.1 < 100_000, "{many:?}");
}

#[test]
fn a_multicast_costs_as_much_as_it_has_readers() {
    let multicast =
        |readers: usize| {
            let plan = Plan::new(&vec![2; readers + 2]);
            // Each reader sends its rows into one union.
            work(&(1..=readers).fold(plan, |plan, reader| {
                plan.buffer(0, reader, 0).buffer(reader, readers + 1, 1)
            }))
        };
    let (few, many) = (multicast(100), multicast(1000));
    assert!(many.0 <= 11 * few.0 && many.1 <= 11 * few.1, "{few:?} {many:?}");
}
