//! Tests of every way a query ends, at every step.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
    mpsc,
};

use gatework_shared_state::{BufferLimit, DependencyKind, result};

use super::{
    checked::{Checks, Fault},
    operators::{
        Made, batch, empty_build, endless, gate, hoard, limit, numbers, repeat, source, to_result,
        waiting,
    },
    *,
};
use crate::{
    hang_guard::guarded,
    pipeline::{DriverContext, GreedyPool, LocalSink, LocalSource, SourceResult},
};

#[test]
fn the_three_pipelines_give_their_rows() {
    guarded(|guard| {
        let executor = executor(2);
        for fault in [Fault::None, Fault::BlockEveryCall] {
            for _ in 0..20 {
                let (query, checks) = (query(guard, &executor), Checks::new(fault));
                let stream = start_three(&query, &checks).unwrap();
                assert_eq!(rows(stream).unwrap(), OF_THREE);
                assert_gone(&query, &checks);
                assert_eq!((checks.finished(), checks.aborted()), (6, 0));
                assert_eq!(checks.blocks() > 0, fault == Fault::BlockEveryCall);
            }
        }
        executor.shutdown();
        assert_eq!(executor.live_tasks(), 0);
    });
}

/// Runs the three pipelines with `fault` at step 0, 1, 2, … until a run ends before its step.
/// Passes each run's result to `expect`.
fn sweep(fault: fn(usize) -> Fault, expect: fn(usize, Result<Vec<i64>>)) {
    guarded(move |guard| {
        let executor = executor(2);
        for step in 0.. {
            let (query, checks) = (query(guard, &executor), Checks::new(fault(step)));
            let stream = start_three(&query, &checks).unwrap();
            let result = rows(stream);
            assert_gone(&query, &checks);
            if checks.steps() <= step {
                assert_eq!(result.unwrap(), OF_THREE);
                assert!(step > 60, "only {step} steps were seen");
                break;
            }
            expect(step, result);
            assert!(query.error().is_some());
            let refused = start_three(&query, &no_fault()).err().map(|error| error.to_string());
            assert_eq!(refused, query.error().map(|error| error.to_string()));
        }
        executor.shutdown();
        assert_eq!(executor.live_tasks(), 0);
    });
}

#[test]
fn an_error_at_any_step_ends_the_query_with_that_error() {
    sweep(Fault::Error, |step, result| {
        assert_eq!(result.unwrap_err().to_string(), format!("fault at {step}"));
    });
}

#[test]
fn a_panic_at_any_step_is_the_error_of_the_query() {
    sweep(Fault::Panic, |step, result| match result {
        Err(Error::Panic { pipeline, message }) => {
            assert_eq!(message, format!("fault at {step}"));
            assert!(["scan", "sum", "emit"].contains(&pipeline.as_str()));
        }
        other => panic!("{other:?}"),
    });
}

#[test]
fn a_cancel_at_any_step_ends_the_query() {
    sweep(Fault::Cancel, |step, result| match result {
        Err(error) => assert!(is_cancelled(&error), "{step}: {error}"),
        // The cancel arrived after the last sink had finished.
        Ok(rows) => assert_eq!(rows, OF_THREE),
    });
}

/// A task closed between two checks of its gates is neither aborted nor finished twice.
#[test]
fn an_early_end_from_outside_at_any_step_is_a_finish() {
    guarded(|guard| {
        let executor = executor(2);
        for step in 0.. {
            let (query, checks) = (query(guard, &executor), Checks::new(Fault::Close(step)));
            let mut rows = rows(start_three(&query, &checks).unwrap()).unwrap();
            assert_gone(&query, &checks);
            assert_eq!((checks.finished(), checks.aborted()), (6, 0), "at step {step}");
            assert_eq!(query.error().map(|error| error.to_string()), None);
            if checks.steps() <= step {
                assert_eq!(rows, OF_THREE);
                assert!(step > 60, "only {step} steps were seen");
                break;
            }
            // Sums of the rows that arrived before the close.
            assert!(rows.len() <= 2 && rows.pop() <= Some(12));
        }
    });
}

/// Each task is woken once. If 30,000 tasks each woke all others, the test would take minutes.
#[test]
fn a_cancel_of_many_tasks_is_told_to_each_once() {
    guarded(|guard| {
        const TASKS: usize = 30_000;
        let (executor, checks) = (executor(2), no_fault());
        let (never, asked) = (gate("never"), Arc::new(AtomicUsize::new(0)));
        let (shut, count) = (never.clone(), asked.clone());
        let waits = source("waits", move |_| {
            let (shut, count) = (shut.clone(), count.clone());
            move |_: &DriverContext| {
                count.fetch_add(1, Ordering::SeqCst);
                Ok(SourceResult::Blocked(shut.clone().into()))
            }
        });
        let query = query(guard, &executor);
        let stream = start_one(&query, &checks, TASKS, waits, vec![], 1).remove(0);
        while asked.load(Ordering::SeqCst) < TASKS {
            std::thread::yield_now();
        }
        query.cancel();
        assert!(is_cancelled(&rows(stream).unwrap_err()));
        assert_gone(&query, &checks);
        assert_eq!(asked.load(Ordering::SeqCst), TASKS, "a cancelled task is asked for nothing");
    });
}

#[test]
fn a_cancel_from_outside_at_any_time_ends_the_query() {
    guarded(|guard| {
        let executor = executor(2);
        for round in 0..300 {
            let (query, checks) = (query(guard, &executor), Checks::new(Fault::BlockEveryCall));
            let stream = start_three(&query, &checks).unwrap();
            let canceller = std::thread::spawn({
                let (query, checks) = (query.clone(), checks.clone());
                move || {
                    // At a different moment in each round, measured in steps.
                    while checks.steps() < round && query.live_tasks() > 0 {
                        std::thread::yield_now();
                    }
                    query.cancel();
                    query.cancel();
                }
            });
            // A thread that dumps and profiles the query does not disturb it.
            let looks = std::thread::spawn({
                let query = query.clone();
                move || {
                    while query.live_tasks() > 0 {
                        let (dump, profile) = (query.dump(), query.profile());
                        assert!(dump.contains("live tasks") && !profile.tasks.is_empty());
                    }
                }
            });
            match rows(stream) {
                Ok(rows) => assert_eq!(rows, OF_THREE),
                Err(error) => assert!(is_cancelled(&error), "{error}"),
            }
            assert_gone(&query, &checks);
            canceller.join().unwrap();
            looks.join().unwrap();
        }
    });
}

#[test]
fn a_query_that_is_cancelled_before_it_starts_is_refused() {
    guarded(|guard| {
        let (executor, checks) = (executor(1), no_fault());
        let query = query(guard, &executor);
        query.cancel();
        let error = start_three(&query, &checks).err().unwrap();
        assert!(is_cancelled(&error), "{error}");
        assert_gone(&query, &checks);
        assert_eq!(executor.live_tasks(), 0);
    });
}

/// Keeps the only worker of `executor` in a source until the sender is dropped.
fn occupy(guard: &Guard, executor: &Executor) -> (mpsc::Sender<()>, RowStream) {
    let (release, released) = mpsc::channel::<()>();
    let (report, running) = mpsc::channel();
    let ends = Mutex::new(Some((report, released)));
    let blocking = source("occupies", move |_| {
        let (report, released) = ends.lock().unwrap().take().unwrap();
        move |_: &DriverContext| {
            report.send(()).unwrap();
            let _released = released.recv();
            Ok(SourceResult::Finished)
        }
    });
    let other = query(guard, executor);
    let stream = start_one(&other, &no_fault(), 1, blocking, vec![], 1).remove(0);
    running.recv().unwrap();
    (release, stream)
}

#[test]
fn tasks_that_never_ran_let_go_of_their_tokens() {
    guarded(|guard| {
        let (executor, checks) = (executor(1), no_fault());
        let (release, occupied) = occupy(guard, &executor);
        let query = query(guard, &executor);
        let stream = start_three(&query, &checks).unwrap();
        query.cancel();
        drop(release);
        // The reader gets the error although no sink was ever created.
        assert!(is_cancelled(&rows(stream).unwrap_err()));
        assert_gone(&query, &checks);
        assert_eq!(checks.steps(), 0);
        rows(occupied).unwrap();
    });
}

#[test]
fn a_cancelled_query_does_not_wait_behind_a_long_queue() {
    guarded(|guard| {
        let executor = executor(1);
        let (release, occupied) = occupy(guard, &executor);
        let queue: Vec<_> = (0..50)
            .map(|_| {
                let other = query(guard, &executor);
                start_one(&other, &no_fault(), 20, numbers(1, 1), vec![], 1).remove(0)
            })
            .collect();
        let (query, checks) = (query(guard, &executor), no_fault());
        let stream = start_three(&query, &checks).unwrap();
        query.cancel();
        drop(release);
        assert!(is_cancelled(&rows(stream).unwrap_err()));
        for stream in queue {
            assert_eq!(rows(stream).unwrap(), [0; 20]);
        }
        rows(occupied).unwrap();
    });
}

#[test]
fn a_cancel_wakes_blocked_tasks() {
    guarded(|guard| {
        let (executor, checks, never) = (executor(2), no_fault(), gate("never"));
        let query = query(guard, &executor);
        let mut streams = start_one(&query, &checks, 5, waiting(&never), vec![repeat(1)], 1);
        while query.dump().matches("waits for never").count() < 5 {
            std::thread::yield_now();
        }
        query.cancel();
        assert!(is_cancelled(&rows(streams.remove(0)).unwrap_err()));
        assert_gone(&query, &checks);
        assert_eq!((checks.finished(), checks.aborted()), (0, 5));
    });
}

#[test]
fn a_cancel_after_the_end_changes_nothing() {
    guarded(|guard| {
        let (executor, checks) = (executor(2), no_fault());
        let query = query(guard, &executor);
        let stream = start_three(&query, &checks).unwrap();
        assert_eq!(rows(stream).unwrap(), OF_THREE);
        query.cancel();
        assert_gone(&query, &checks);
        assert_eq!((checks.finished(), checks.aborted()), (6, 0));
    });
}

#[test]
fn the_first_error_wins() {
    guarded(|guard| {
        let executor = executor(1);
        let query = query(guard, &executor);
        // A secondary error may arrive before its cause.
        query.fail(Error::ProducerAborted);
        query.fail(Error::operator("the cause"));
        query.fail(Error::operator("a later one"));
        query.cancel();
        assert_eq!(query.error().unwrap().to_string(), "the cause");
        assert!(query.check_cancelled().is_err());
    });
}

#[test]
fn parts_that_cannot_be_made_fail_the_query() {
    guarded(|guard| {
        let executor = executor(2);
        let broken_source = || -> Arc<dyn Source> {
            Made::<dyn LocalSource>::new("broken", |_| Err(Error::operator("no such file")))
        };
        let broken_sink = || -> Arc<dyn Sink> {
            Made::<dyn LocalSink>::new("broken", |_| panic!("no such sink"))
        };
        let (one, checks) = (query(guard, &executor), no_fault());
        let mut streams = start_one(&one, &checks, 2, broken_source(), vec![repeat(1)], 1);
        let error = rows(streams.remove(0)).unwrap_err();
        assert_eq!(error.to_string(), "no such file");
        assert_gone(&one, &checks);
        assert_eq!(checks.finished(), 0);

        let other = query(guard, &executor);
        let running = start_into(&other, numbers(1, 1), vec![], broken_sink());
        streams::wait(running.finished());
        assert!(other.error().unwrap().to_string().contains("no such sink"));
    });
}

#[test]
fn a_destructor_that_panics_is_contained() {
    guarded(|guard| {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("in drop");
            }
        }
        let bombs = || {
            source("bombs", |_| {
                let bomb = Bomb;
                let mut left = 2;
                move |_: &DriverContext| {
                    let _kept = &bomb;
                    left -= 1;
                    match left {
                        0 => Err(Error::operator("over")),
                        _ => Ok(SourceResult::Batch(batch([1]))),
                    }
                }
            })
        };
        let executor = executor(1);
        for _ in 0..3 {
            let (query, checks) = (query(guard, &executor), no_fault());
            let mut streams = start_one(&query, &checks, 1, bombs(), vec![hoard()], 1);
            assert_eq!(rows(streams.remove(0)).unwrap_err().to_string(), "over");
            assert_eq!((query.live_tasks(), query.reserved_bytes()), (0, 0));
        }
    });
}

#[test]
fn memory_that_does_not_fit_is_an_error_that_helps_and_is_given_back() {
    guarded(|guard| {
        let executor = executor(2);
        let pool = Arc::new(GreedyPool::new(100));
        let options = || QueryOptions { memory: pool.clone(), ..QueryOptions::default() };
        let (fits, checks) = (query_with(guard, &executor, options()), no_fault());
        let mut streams = start_one(&fits, &checks, 1, numbers(12, 5), vec![hoard()], 1);
        assert_eq!(rows(streams.remove(0)).unwrap().len(), 12);
        assert_eq!(fits.profile().peak_memory_bytes, 96);
        assert_gone(&fits, &checks);

        let (large, checks) = (query_with(guard, &executor, options()), no_fault());
        let mut streams = start_one(&large, &checks, 2, numbers(50, 5), vec![hoard()], 1);
        match rows(streams.remove(0)).unwrap_err() {
            Error::OutOfMemory(denied) if denied.requested == 40 => {
                assert_eq!(denied.operator, "hoard");
            }
            other => panic!("{other}"),
        }
        assert_gone(&large, &checks);
        assert_eq!(pool.reserved(), 0);
    });
}

#[test]
fn an_executor_that_is_shut_down_cancels_its_queries_and_takes_no_more() {
    guarded(|guard| {
        for dropped in [false, true] {
            let (executor, checks, never) = (executor(2), no_fault(), gate("never"));
            let query = query(guard, &executor);
            let mut streams = start_one(&query, &checks, 3, waiting(&never), vec![], 1);
            let (busy, busy_checks) = (super::query(guard, &executor), no_fault());
            let mut busy_streams =
                start_one(&busy, &busy_checks, 1, endless(), vec![limit(i64::MAX)], 1);
            let later = super::query(guard, &executor);
            if dropped {
                drop(executor);
            } else {
                executor.shutdown();
                assert_eq!(executor.live_tasks(), 0);
            }
            assert_gone(&query, &checks);
            assert_gone(&busy, &busy_checks);
            for stream in [streams.remove(0), busy_streams.remove(0)] {
                assert!(rows(stream).unwrap_err().to_string().contains("shut down"));
            }
            let refused = start_three(&later, &no_fault()).err().unwrap();
            assert!(refused.to_string().contains("shut down"), "{refused}");
            assert_eq!(later.live_tasks(), 0);
        }
    });
}

#[test]
fn queries_that_start_while_the_executor_shuts_down_end() {
    guarded(|guard| {
        for _ in 0..100 {
            let executor = executor(2);
            let queries: Vec<_> = (0..4).map(|_| query(guard, &executor)).collect();
            let starter = std::thread::spawn(move || {
                for query in queries {
                    let checks = no_fault();
                    if let Ok(stream) = start_three(&query, &checks) {
                        match rows(stream) {
                            Ok(rows) => assert_eq!(rows, OF_THREE),
                            Err(error) => assert!(is_cancelled(&error), "{error}"),
                        }
                    }
                    assert_gone(&query, &checks);
                }
            });
            executor.shutdown();
            assert_eq!(executor.live_tasks(), 0);
            starter.join().unwrap();
        }
    });
}

#[test]
fn a_failing_query_leaves_others_alone() {
    guarded(|guard| {
        let executor = executor(2);
        let healthy: Vec<_> =
            (0..5).map(|_| start_three(&query(guard, &executor), &no_fault()).unwrap()).collect();
        let sick: Vec<_> = (0..5)
            .map(|at| {
                let checks = Checks::new(Fault::Panic(10 * at));
                start_three(&query(guard, &executor), &checks).unwrap()
            })
            .collect();
        assert!(sick.into_iter().all(|stream| rows(stream).is_err()));
        assert!(healthy.into_iter().all(|stream| rows(stream).unwrap() == OF_THREE));
    });
}

#[test]
fn a_dump_names_the_gates_of_blocked_tasks() {
    guarded(|guard| {
        let (executor, checks, never) = (executor(2), no_fault(), gate("the missing signal"));
        let options = QueryOptions { name: "demo".into(), ..QueryOptions::default() };
        let query = query_with(guard, &executor, options);
        let (producers, readers) = result::new("result", 2, 1, BufferLimit::new(1));
        let mut graph = Graph::new();
        let operators = vec![checks.operator(repeat(2)), checks.operator(empty_build(None))];
        let sink = checks.sink(to_result(producers));
        graph.add_pipeline("early", 2, checks.source(endless()), operators, sink).unwrap();
        let (producers, _other_readers) = result::new("other", 1, 1, BufferLimit::new(1));
        graph.add_pipeline("late", 1, waiting(&never), vec![], to_result(producers)).unwrap();
        let running = graph.start(&query).unwrap();
        let stream = RowStream::of_query(&running, readers).remove(0);
        let dump = loop {
            let dump = query.dump();
            if dump.contains("'demo': 1 live tasks") && dump.contains("missing signal") {
                break dump;
            }
            std::thread::yield_now();
        };
        for expected in [
            "'demo': 1 live tasks, 0 bytes reserved",
            "early × 2: endless → repeat → empty build → to result",
            "late × 1: waiting → to result",
            "[1] Finished",
            "[0] Blocked, waits for the missing signal (External, blocked)",
            "waits for other closed (ConsumersGone, blocked)",
        ] {
            assert!(dump.contains(expected), "{expected:?} is not in\n{dump}");
        }
        never.set_ready();
        assert_eq!(rows(stream).unwrap(), Vec::<i64>::new());
        assert_eq!(query.profile().gates[0].kind, DependencyKind::External);
        assert_eq!(query.profile().gates.len(), 1, "closed gates are not waited for");
    });
}
