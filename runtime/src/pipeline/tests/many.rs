//! Graphs of thousands of pipelines, and tasks that wait for thousands of gates: the cost per
//! pipeline or gate must not grow with their number.

use gatework_shared_state::{Dependency, DependencyKind, Gate};

use super::{
    operators::{gate, numbers, source, waiting},
    *,
};
use crate::{
    hang_guard::guarded,
    pipeline::{DriverContext, SourceResult},
};

/// Starts `branches` pipelines of two tasks into one exchange, which two tasks read into a result.
fn start_union(query: &Arc<QueryContext>, branches: usize, batches: i64) -> RowStream {
    let budget = BufferLimit::new(1 << 10);
    let (producers, consumers) =
        exchange::new("union", LocalExchangeKind::PassThrough, 2 * branches, 2, budget.clone());
    let mut producers = producers.into_iter();
    let mut graph = Graph::new();
    let ids: Vec<_> = (0..branches)
        .map(|_| {
            let sink = to_exchange(producers.by_ref().take(2).collect());
            graph.add_pipeline("branch", 2, numbers(batches, 1), vec![], sink).unwrap()
        })
        .collect();
    let (producers, readers) = result::new("result", 2, 1, BufferLimit::new(1 << 10));
    let all = graph
        .add_pipeline("all", 2, from_exchange(consumers), vec![], to_result(producers))
        .unwrap();
    for producer in ids {
        graph.add_edge(WaitEdge::Buffer {
            producer,
            consumer: all,
            budget: budget.clone(),
            ordered: false,
        });
    }
    RowStream::of_query(&graph.start(query).unwrap(), readers).remove(0)
}

/// The start once took 24 s: each pair of branches was a wait, entered once for each later branch.
#[test]
fn a_union_of_a_thousand_branches_gives_all_rows() {
    guarded(|guard| {
        let executor = executor(2);
        let query = query(guard, &executor);
        assert_eq!(rows(start_union(&query, 1000, 5)).unwrap().len(), 10_000);
    });
}

/// A source that blocks on `gate` again each time it is ready, `ticks` times.
fn ticking(gate: &Gate, ticks: usize, end: &Gate) -> Arc<dyn Source> {
    let (gate, end) = (gate.clone(), end.clone());
    source("ticking", move |_| {
        let (gate, end, mut left) = (gate.clone(), end.clone(), ticks);
        move |_: &DriverContext| {
            if !gate.is_ready() {
                return Ok(SourceResult::Blocked(gate.clone().into()));
            }
            gate.block();
            left -= 1;
            if left == 0 {
                end.set_always_ready();
                return Ok(SourceResult::Finished);
            }
            Ok(SourceResult::Blocked(gate.clone().into()))
        }
    })
}

/// Whenever all tasks are blocked, the query looks for a task that waits for external work. It
/// starts with the task found last time, so it does not visit all tasks.
#[test]
fn a_query_that_waits_looks_at_one_of_its_tasks() {
    const TASKS: usize = 1000;
    const TICKS: usize = 200;
    guarded(|guard| {
        let executor = executor(1);
        let query = query(guard, &executor);
        let (tick, inside) = (gate("tick"), Dependency::blocked("inside", DependencyKind::Source));
        let (producers, readers) = result::new("result", TASKS + 1, 1, BufferLimit::new(1));
        let mut producers = producers.into_iter();
        let mut graph = Graph::new();
        let sink = to_result(producers.by_ref().take(TASKS).collect());
        graph.add_pipeline("waits", TASKS, waiting(&inside), vec![], sink).unwrap();
        let sink = to_result(producers.collect());
        graph.add_pipeline("ticks", 1, ticking(&tick, TICKS, &inside), vec![], sink).unwrap();
        let stream = RowStream::of_query(&graph.start(&query).unwrap(), readers).remove(0);
        let tasks_checked = || query.with_graphs(|graphs| graphs.tasks_checked);
        while query.live_tasks() > TASKS {
            let before = tasks_checked();
            tick.set_ready();
            // Usually until the task has ticked and all tasks wait again.
            while tasks_checked() == before && tick.is_ready() && query.live_tasks() > TASKS {
                std::thread::yield_now();
            }
        }
        assert_eq!(rows(stream).unwrap(), [0_i64; 0]);
        assert!(tasks_checked() < 10 * (TASKS + TICKS), "{}", tasks_checked());
    });
}

/// Starts a graph of two tasks and reads its result to the end.
fn one_round(query: &Arc<QueryContext>, round: usize) -> GraphHandle {
    let (producers, readers) = result::new("round", 2, 1, BufferLimit::new(1));
    let mut graph = Graph::new();
    let tags = vec![Some(2 * round), Some(2 * round + 1)];
    let parts = (numbers(6, 2), to_result(producers));
    graph.add_pipeline_with_tags("round", 2, parts.0, vec![], parts.1, tags).unwrap();
    let running = graph.start(query).unwrap();
    let stream = RowStream::of_region(&running, readers).remove(0);
    assert_eq!(rows(stream).unwrap().len(), 12);
    running
}

/// As in a recursive query, which starts one graph per round.
#[test]
fn graphs_that_have_ended_cost_nothing_afterwards() {
    guarded(|guard| {
        let executor = executor(2);
        let query = query(guard, &executor);
        let outer = gate("the rounds are over");
        let stream = start_one(&query, &no_fault(), 1, waiting(&outer), vec![], 1).remove(0);
        let kept = || query.with_graphs(|graphs| graphs.kept());
        for rounds in 1..=300 {
            let running = one_round(&query, rounds);
            // The last task ends a moment after the reader has seen the end.
            while kept().0 > 1 {
                std::thread::yield_now();
            }
            let (live, [pipelines, tasks, gates]) = kept();
            assert_eq!((live, pipelines, tasks), (1, 1, 2), "after {rounds} rounds");
            assert!(gates <= 4, "{gates} gates after {rounds} rounds");
            // The graph's own counters are still available.
            let own = running.operators();
            assert_eq!((own[0].rows_out, own[0].tag), (12, Some(2 * rounds)));
            assert_eq!(running.profile().tasks.len(), 2);
            let profile = query.profile();
            let names: Vec<_> = profile.operators.iter().map(|op| op.name.as_str()).collect();
            assert_eq!(names, ["waiting", "to result", "numbers", "to result"]);
            assert_eq!(profile.operators[2].rows_out, 12 * rounds as u64);
            assert_eq!(profile.operators[3].rows_in, 12 * rounds as u64);
            let of_tasks: u64 = profile.tasks.iter().map(|task| task.source_rows).sum();
            assert_eq!(of_tasks, 12 * rounds as u64);
            let indices: Vec<_> = profile.tasks.iter().map(|task| task.pipeline_index).collect();
            assert_eq!(indices, [0, 1, 1]);
        }
        assert!(query.dump().contains("graphs that have ended: 300"), "{}", query.dump());
        outer.set_always_ready();
        assert_eq!(rows(stream).unwrap(), [0_i64; 0]);
    });
}

#[test]
fn fallbacks_that_are_named_round_by_round_are_kept_once() {
    guarded(|guard| {
        let executor = executor(1);
        let query = query(guard, &executor);
        for round in 0..3000 {
            query.record_fallback(if round % 2 == 0 { "SomeExec" } else { "OtherExec" });
        }
        query.record_fallback("LateExec");
        let fallbacks = query.profile().fallbacks;
        assert_eq!((fallbacks.len(), fallbacks.last().unwrap().as_str()), (1001, "LateExec"));
    });
}
