//! Tests of queries in which no task can run any more.

use gatework_shared_state::{Dependency, DependencyKind};

use super::{
    operators::{endless, gate, numbers, source, waiting},
    *,
};
use crate::{
    hang_guard::guarded,
    pipeline::{DriverContext, SourceResult},
};

fn stalled(answer: Result<Vec<i64>>) -> String {
    match answer {
        Err(Error::Stalled { dump }) => dump,
        other => panic!("the query should have stalled: {other:?}"),
    }
}

#[test]
fn tasks_that_wait_for_nobody_fail_with_what_they_wait_for() {
    guarded(|guard| {
        let (executor, checks) = (executor(2), no_fault());
        for kind in [DependencyKind::Source, DependencyKind::Finish, DependencyKind::Start] {
            let query = query(guard, &executor);
            let never = Dependency::blocked("never ready", kind);
            let streams = start_one(&query, &checks, 3, waiting(&never), vec![], 1);
            let dump = stalled(rows(streams.into_iter().next().unwrap()));
            let line = format!("[2] Blocked, waits for never ready ({kind:?}, blocked)");
            assert!(dump.contains(&line), "{dump}");
            streams::wait(query.idle());
            assert_gone(&query, &checks);
        }
    });
}

/// The task that the other one waits for ends without making the gate ready.
#[test]
fn the_last_task_that_ran_may_be_the_reason() {
    guarded(|guard| {
        let (executor, checks) = (executor(2), no_fault());
        for end in [1, 1000] {
            let query = query(guard, &executor);
            let never = Dependency::blocked("lost signal", DependencyKind::Source);
            let (producers, readers) = result::new("result", 2, 1, BufferLimit::new(1 << 20));
            let mut producers = producers.into_iter();
            let mut graph = Graph::new();
            let mut add = |name, source: Arc<dyn Source>| {
                let sink = to_result(vec![producers.next().unwrap()]);
                graph
                    .add_pipeline(name, 1, checks.source(source), vec![], checks.sink(sink))
                    .unwrap();
            };
            add("silent", numbers(end, 1));
            add("waiting", waiting(&never));
            let running = graph.start(&query).unwrap();
            let dump = stalled(rows(RowStream::of_query(&running, readers).remove(0)));
            assert!(dump.contains("waits for lost signal"), "{dump}");
            streams::wait(query.idle());
            assert_gone(&query, &checks);
        }
    });
}

/// Runs a query to its end.
fn another_query_ends(guard: &Guard, executor: &Executor) {
    let (other, checks) = (query(guard, executor), no_fault());
    let stream = start_one(&other, &checks, 1, numbers(3, 1), vec![], 1).remove(0);
    assert_eq!(rows(stream).unwrap().len(), 3);
}

/// As long as one task waits for external work, all others may wait for that task.
#[test]
fn what_comes_from_outside_is_waited_for() {
    guarded(|guard| {
        let (executor, checks) = (executor(2), no_fault());
        for order in [[0, 1], [1, 0]] {
            let query = query(guard, &executor);
            let outside = gate("outside");
            let inside = Dependency::blocked("inside", DependencyKind::Source);
            let (producers, readers) = result::new("result", 2, 1, BufferLimit::new(1));
            let mut producers = producers.into_iter();
            let opened = inside.clone();
            let (outer, gate) = (outside.clone(), outside.clone());
            let opens = source("opens", move |_| {
                let (gate, opened) = (gate.clone(), opened.clone());
                move |_: &DriverContext| {
                    if !gate.is_ready() {
                        return Ok(SourceResult::Blocked(gate.clone().into()));
                    }
                    opened.set_always_ready();
                    Ok(SourceResult::Finished)
                }
            });
            let both = [opens, waiting(&inside)];
            let mut graph = Graph::new();
            for index in order {
                let sink = checks.sink(to_result(vec![producers.next().unwrap()]));
                let source = checks.source(both[index].clone());
                graph.add_pipeline("one of two", 1, source, vec![], sink).unwrap();
            }
            let running = graph.start(&query).unwrap();
            while query.dump().matches("Blocked, waits for").count() < 2 {
                std::thread::yield_now();
            }
            another_query_ends(guard, &executor);
            outer.set_always_ready();
            assert_eq!(rows(RowStream::of_query(&running, readers).remove(0)).unwrap(), [0_i64; 0]);
            streams::wait(query.idle());
            assert_gone(&query, &checks);
        }
    });
}

#[test]
fn a_slow_reader_is_no_stall() {
    guarded(|guard| {
        let (executor, checks) = (executor(1), no_fault());
        let query = query(guard, &executor);
        let stream = start_one(&query, &checks, 2, endless(), vec![], 1).remove(0);
        let waits = || {
            let dump = query.dump();
            dump.matches("Blocked, waits for result [").count() == 2 && dump.contains("reader")
        };
        while !waits() {
            std::thread::yield_now();
        }
        // The only worker runs another task once it has checked that the last one to block is no
        // stall.
        another_query_ends(guard, &executor);
        assert!(query.error().is_none());
        let mut stream = stream.into_blocking_iter();
        assert_eq!(values(&stream.next().unwrap().unwrap()), [1]);
        drop(stream);
        streams::wait(query.idle());
        assert_gone(&query, &checks);
    });
}
