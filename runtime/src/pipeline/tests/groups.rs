//! Tests of resource groups: how many queries run at a time.

use gatework_shared_state::Gate;

use super::{
    operators::{gate, waiting},
    *,
};
use crate::{
    hang_guard::guarded,
    scheduler::{GroupLimits, ResourceGroup},
};

fn limits(queries: usize, waiting: Option<usize>) -> GroupLimits {
    GroupLimits {
        max_running: queries.try_into().ok(),
        max_queued: waiting,
        ..GroupLimits::default()
    }
}

/// Starts a query of `group` that ends when its gate is ready.
fn begin(
    guard: &Guard,
    executor: &Executor,
    group: &Arc<ResourceGroup>,
) -> Result<(Arc<QueryContext>, Gate, RowStream)> {
    let options = QueryOptions { group: Some(group.clone()), ..QueryOptions::default() };
    let (query, gate) = (query_with(guard, executor, options), gate("end signal"));
    let (producers, readers) = result::new("result", 2, 1, BufferLimit::new(1));
    let mut graph = Graph::new();
    graph.add_pipeline("only", 2, waiting(&gate), vec![], to_result(producers))?;
    let running = graph.start(&query)?;
    Ok((query, gate, RowStream::of_query(&running, readers).remove(0)))
}

fn has_begun(query: &QueryContext) -> bool {
    query.dump().contains("waits for end signal")
}

#[test]
fn queries_wait_for_their_turn() {
    guarded(|guard| {
        let executor = executor(2);
        let group = executor.group("one at a time");
        group.set_limits(limits(1, None));
        let begun: Vec<_> = (0..4).map(|_| begin(guard, &executor, &group).unwrap()).collect();
        assert_eq!(group.queries(), (1, 3));
        // Other groups are admitted independently.
        let other = begin(guard, &executor, &executor.group("")).unwrap();
        other.1.set_always_ready();
        assert_eq!(rows(other.2).unwrap(), [0; 0]);
        // Cancelling a queued query leaves the queries behind it queued.
        begun[1].0.cancel();
        streams::wait(begun[1].0.idle());
        assert!(!has_begun(&begun[2].0));
        for (index, (query, gate, stream)) in begun.into_iter().enumerate() {
            if index == 1 {
                assert!(is_cancelled(&rows(stream).unwrap_err()));
                continue;
            }
            while !has_begun(&query) {
                std::thread::yield_now();
            }
            assert_eq!(group.queries().0, 1);
            gate.set_always_ready();
            assert_eq!(rows(stream).unwrap(), [0; 0]);
            streams::wait(query.idle());
        }
        while group.queries() != (0, 0) {
            std::thread::yield_now();
        }
    });
}

/// The executor is full: groups are admitted by their running queries and weights, and each group's
/// queries in order.
#[test]
fn groups_wait_for_the_executor() {
    guarded(|guard| {
        let executor = executor(2);
        executor.set_max_queries(4.try_into().ok());
        let groups = ["many", "few"].map(|name| executor.group(name));
        let weight = 300.try_into().unwrap();
        groups[1].set_limits(GroupLimits { weight, ..limits(4, Some(5)) });
        let begin = |group: &Arc<ResourceGroup>| begin(guard, &executor, group);
        let mut many: Vec<_> = (0..6).map(|_| begin(&groups[0]).unwrap()).collect();
        let mut few: Vec<_> = (0..5).map(|_| begin(&groups[1]).unwrap()).collect();
        assert_eq!(groups.each_ref().map(|group| group.queries()), [(4, 2), (0, 5)]);
        let refused = begin(&groups[1]).map(|_| ()).unwrap_err();
        assert!(matches!(&refused, Error::QueueFull { .. }), "{refused}");
        let end = |queries: &mut Vec<(_, Gate, RowStream)>| {
            let (query, gate, stream): (Arc<QueryContext>, _, _) = queries.remove(0);
            gate.set_always_ready();
            assert_eq!(rows(stream).unwrap(), [0; 0]);
            streams::wait(query.idle());
        };
        let becomes = |wanted: [(usize, usize); 2]| {
            while groups.each_ref().map(|group| group.queries()) != wanted {
                std::thread::yield_now();
            }
        };
        for wanted in [[(3, 2), (1, 4)], [(2, 2), (2, 3)], [(1, 2), (3, 2)]] {
            end(&mut many);
            becomes(wanted);
        }
        end(&mut few);
        becomes([(1, 2), (3, 1)]);
        executor.set_max_queries(None);
        becomes([(3, 0), (4, 0)]);
        while !many.is_empty() {
            end(&mut many);
        }
        while !few.is_empty() {
            end(&mut few);
        }
        becomes([(0, 0), (0, 0)]);
    });
}

#[test]
fn limits_change_while_queries_wait() {
    guarded(|guard| {
        let executor = executor(2);
        let group = executor.group("changing");
        group.set_limits(limits(1, None));
        let begun: Vec<_> = (0..4).map(|_| begin(guard, &executor, &group).unwrap()).collect();
        group.set_limits(limits(3, None));
        assert_eq!(group.queries(), (3, 1));
        group.set_limits(GroupLimits::default());
        assert_eq!(group.queries(), (4, 0));
        // The limit is below the number of running queries: none is stopped.
        group.set_limits(limits(1, None));
        for (query, gate, stream) in begun {
            while !has_begun(&query) {
                std::thread::yield_now();
            }
            gate.set_always_ready();
            assert_eq!(rows(stream).unwrap(), [0; 0]);
        }
    });
}

#[test]
fn a_full_group_refuses() {
    guarded(|guard| {
        let executor = executor(1);
        let group = executor.group("full");
        group.set_limits(limits(1, Some(1)));
        let first = begin(guard, &executor, &group).unwrap();
        let second = begin(guard, &executor, &group).unwrap();
        let refused = begin(guard, &executor, &group).unwrap_err();
        assert!(
            refused.to_string().starts_with("the resource group 'full' runs 1 queries and 1 more"),
            "{refused}"
        );
        assert_eq!(group.queries(), (1, 1));
        first.1.set_always_ready();
        second.1.set_always_ready();
        for (query, _, stream) in [first, second] {
            assert_eq!(rows(stream).unwrap(), [0; 0]);
            streams::wait(query.idle());
        }
        while executor.live_tasks() > 0 || group.queries() != (0, 0) {
            std::thread::yield_now();
        }
    });
}

#[test]
fn a_group_of_another_executor_is_refused() {
    guarded(|guard| {
        let (executor, other) = (super::executor(1), super::executor(1));
        let refused = begin(guard, &executor, &other.group("there")).unwrap_err();
        assert!(refused.to_string().contains("belongs to another executor"), "{refused}");
    });
}

/// Whenever the cancel arrives, the query's admission is released exactly once.
#[test]
fn cancels_race_turns() {
    guarded(|guard| {
        let executor = executor(2);
        let group = executor.group("raced");
        group.set_limits(limits(1, None));
        for _ in 0..300 {
            let options = QueryOptions { group: Some(group.clone()), ..QueryOptions::default() };
            let (query, never) = (query_with(guard, &executor, options), gate("never"));
            let (producers, readers) = result::new("result", 2, 1, BufferLimit::new(1));
            let mut graph = Graph::new();
            graph.add_pipeline("only", 2, waiting(&never), vec![], to_result(producers)).unwrap();
            let canceller = std::thread::spawn({
                let query = query.clone();
                move || query.cancel()
            });
            if let Ok(running) = graph.start(&query) {
                let stream = RowStream::of_query(&running, readers).remove(0);
                assert!(is_cancelled(&rows(stream).unwrap_err()));
            }
            canceller.join().unwrap();
            streams::wait(query.idle());
            while group.queries() != (0, 0) {
                std::thread::yield_now();
            }
        }
    });
}

#[test]
fn an_executor_that_is_shut_down_ends_those_that_wait() {
    guarded(|guard| {
        let executor = executor(1);
        let group = executor.group("never");
        group.set_limits(limits(1, None));
        let begun: Vec<_> = (0..3).map(|_| begin(guard, &executor, &group).unwrap()).collect();
        executor.shutdown();
        for (_, _, stream) in begun {
            assert!(is_cancelled(&rows(stream).unwrap_err()));
        }
        assert_eq!((executor.live_tasks(), group.queries()), (0, (0, 0)));
    });
}
