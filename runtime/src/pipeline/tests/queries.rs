//! Tests of several graphs in one query, of profiles, and of invalid graphs.

use std::sync::{Arc, Mutex};

use gatework_shared_state::{
    DependencyKind,
    result::{self, ResultReader},
};

use super::{
    operators::{endless, gate, multiples, numbers, source, waiting},
    *,
};
use crate::{
    hang_guard::guarded,
    pipeline::{BufferRead, BufferReader, BufferedBatch, DriverContext, SourceResult},
};

/// Starts two graphs in one query: the second reads the result of the first.
fn start_two(
    query: &Arc<QueryContext>,
    checks: &Arc<Checks>,
    source: Arc<dyn Source>,
    outer: Vec<Arc<dyn Operator>>,
) -> RowStream {
    let (producers, inner_readers) = result::new("inner", 2, 1, BufferLimit::new(1));
    let mut graph = Graph::new();
    let sink = checks.sink(to_result(producers));
    graph.add_pipeline("inner", 2, checks.source(source), vec![], sink).unwrap();
    let inner = graph.start(query).unwrap();
    assert_eq!(inner.query().id(), query.id());

    let reader = Mutex::new(Some(inner_readers));
    let relay = operators::source("relay", move |context| {
        let mut reader: ResultReader<BufferedBatch> =
            reader.lock().unwrap().take().unwrap().remove(0);
        let mut buffer_reader = BufferReader::new(&context);
        move |_: &DriverContext| match buffer_reader.next(|| reader.take())? {
            BufferRead::Batch(batch) => Ok(SourceResult::Batch(batch)),
            BufferRead::Blocked(gate) => Ok(SourceResult::Blocked(gate.into())),
            BufferRead::Finished => Ok(SourceResult::Finished),
            BufferRead::Aborted => Err(Error::ProducerAborted),
        }
    });
    start_one(query, checks, 1, relay, outer, 1).remove(0)
}

#[test]
fn two_graphs_of_one_query_end_together() {
    guarded(|guard| {
        let executor = executor(2);
        for fault in [Fault::None, Fault::BlockEveryCall] {
            let (query, checks) = (query(guard, &executor), Checks::new(fault));
            let stream = start_two(&query, &checks, numbers(4, 1), vec![multiples(2)]);
            assert_eq!(rows(stream).unwrap(), [0, 0, 2, 2]);
            streams::wait(query.idle());
            assert_gone(&query, &checks);
            let tasks = query.profile().tasks;
            let indices: Vec<_> = tasks.iter().map(|task| task.pipeline_index).collect();
            assert_eq!(indices, [0, 0, 1]);
        }
    });
}

#[test]
fn an_early_end_of_one_graph_ends_the_other() {
    guarded(|guard| {
        let (executor, checks) = (executor(2), no_fault());
        let query = query(guard, &executor);
        let limit = operators::limit(3);
        let stream = start_two(&query, &checks, endless(), vec![limit]);
        assert_eq!(rows(stream).unwrap(), [1; 3]);
        streams::wait(query.idle());
        assert_gone(&query, &checks);
        assert_eq!(checks.aborted(), 0);
    });
}

#[test]
fn an_error_in_one_graph_is_the_error_of_both() {
    guarded(|guard| {
        let executor = executor(2);
        for step in 0..30 {
            let (query, checks) = (query(guard, &executor), Checks::new(Fault::Error(step)));
            // The second graph may be refused because the first has failed before.
            let (producers, readers) = result::new("inner", 2, 1, BufferLimit::new(1));
            let mut graph = Graph::new();
            let sink = checks.sink(to_result(producers));
            graph.add_pipeline("inner", 2, checks.source(numbers(9, 1)), vec![], sink).unwrap();
            let running = graph.start(&query).unwrap();
            let inner = RowStream::of_region(&running, readers).remove(0);
            let error = rows(inner).unwrap_err().to_string();
            assert_eq!(error, format!("fault at {step}"));
            let refused = start_three(&query, &checks).err().unwrap();
            assert_eq!(refused.to_string(), error);
            streams::wait(query.idle());
            assert_gone(&query, &checks);
        }
    });
}

#[test]
fn dropping_the_stream_of_an_inner_graph_ends_that_graph_only() {
    guarded(|guard| {
        let (executor, checks) = (executor(2), no_fault());
        let query = query(guard, &executor);
        let (producers, readers) = result::new("inner", 2, 1, BufferLimit::new(1));
        let mut graph = Graph::new();
        let sink = checks.sink(to_result(producers));
        graph.add_pipeline("inner", 2, checks.source(endless()), vec![], sink).unwrap();
        let running = graph.start(&query).unwrap();
        drop(RowStream::of_region(&running, readers));
        streams::wait(running.finished());
        assert!(query.error().is_none());
        assert_eq!(rows(start_three(&query, &checks).unwrap()).unwrap(), OF_THREE);
        assert_gone(&query, &checks);
    });
}

#[test]
fn a_profile_counts_what_was_done() {
    guarded(|guard| {
        let executor = executor(2);
        let query = query(guard, &executor);
        let wait = gate("first row");
        let gated = source("gated", {
            let wait = wait.clone();
            move |context| {
                context.metrics().add("made", 1);
                let (wait, mut left) = (wait.clone(), 4);
                move |_: &DriverContext| {
                    if !wait.is_ready() {
                        return Ok(SourceResult::Blocked(wait.clone().into()));
                    }
                    left -= 1;
                    Ok(match left {
                        0 => SourceResult::Finished,
                        _ => SourceResult::Batch(operators::batch(0..10)),
                    })
                }
            }
        });
        let (producers, readers) = result::new("result", 2, 1, BufferLimit::new(1 << 20));
        let mut graph = Graph::new();
        let tags = vec![Some(7), None, Some(8)];
        let operators = vec![multiples(5)];
        graph.add_pipeline_with_tags("p", 2, gated, operators, to_result(producers), tags).unwrap();
        let stream = RowStream::of_query(&graph.start(&query).unwrap(), readers).remove(0);
        while query.dump().matches("waits for first row").count() < 2 {
            std::thread::yield_now();
        }
        wait.set_ready();
        assert_eq!(rows(stream).unwrap().len(), 12);
        query.record_fallback("SomeExec");

        let profile = query.profile();
        let counts: Vec<_> = profile
            .operators
            .iter()
            .map(|op| (op.name.as_str(), op.tag, op.rows_in, op.rows_out, op.batches_out))
            .collect();
        assert_eq!(
            counts,
            [
                ("gated", Some(7), 0, 60, 6),
                ("multiples", None, 60, 12, 6),
                ("to result", Some(8), 12, 0, 0)
            ]
        );
        assert_eq!(profile.operators[0].counters["made"], 2);
        for task in &profile.tasks {
            assert_eq!((task.pipeline.as_str(), task.source_rows), ("p", 30));
            assert!(task.runs >= 2 && task.blocks >= 1 && task.workers != 0);
            assert!(task.last_worker.is_some_and(|worker| worker < 2));
        }
        let gate = &profile.gates[0];
        assert_eq!((gate.name.as_str(), gate.kind), ("first row", DependencyKind::External));
        assert!(gate.blocked_count >= 1 && !gate.blocked.is_zero());
        assert_eq!(profile.fallbacks, ["SomeExec"]);
        let text = profile.to_string();
        for expected in ["gated: 0 rows in, 60 rows out", "made 2", "p [1]: 30 rows", "SomeExec"] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
    });
}

#[test]
fn a_query_without_tasks_is_idle() {
    guarded(|guard| {
        let executor = executor(1);
        let query = query(guard, &executor);
        assert!(query.idle().is_ready());
        assert_eq!((query.live_tasks(), query.workers()), (0, 1));
        let running = Graph::new().start(&query).unwrap();
        assert!(running.finished().is_ready());
        assert!(query.profile().tasks.is_empty() && query.error().is_none());
    });
}

#[test]
fn graphs_that_cannot_work_are_refused() {
    guarded(|guard| {
        let executor = executor(2);
        let mut graph = Graph::new();
        let (producers, _readers) = result::new("result", 1, 1, BufferLimit::new(1));
        let sink = to_result(producers);
        let none = graph.add_pipeline("none", 0, numbers(1, 1), vec![], sink.clone());
        assert!(none.unwrap_err().to_string().contains("'none' needs at least 1 task"));
        let tags = graph.add_pipeline_with_tags("tags", 1, numbers(1, 1), vec![], sink, vec![None]);
        assert!(tags.unwrap_err().to_string().contains("one tag per operator"));

        // A shared state for one task in a pipeline of two. Then a shared state for two tasks in a
        // pipeline of one: its second token would count as aborted.
        for (made, tasks) in [(1, 2), (2, 1)] {
            let (query, checks) = (query(guard, &executor), no_fault());
            let (producers, readers) = result::new("result", made, 1, BufferLimit::new(1));
            let sink = checks.sink(to_result(producers));
            let mut graph = Graph::new();
            graph.add_pipeline("some", tasks, checks.source(numbers(1, 1)), vec![], sink).unwrap();
            let running = graph.start(&query).unwrap();
            let stream = RowStream::of_query(&running, readers).remove(0);
            let error = rows(stream).unwrap_err();
            let expected = format!("made for {made} tasks in a pipeline of {tasks}");
            assert!(error.to_string().contains(&expected), "{error}");
            streams::wait(query.idle());
            assert_gone(&query, &checks);
        }
        // Rows for a source that does not exist would be lost.
        let (query, checks) = (query(guard, &executor), no_fault());
        let (producers, consumers) =
            exchange::new("exchange", LocalExchangeKind::Hash, 1, 2, BufferLimit::new(1 << 20));
        let (result_producers, readers) = result::new("result", 1, 1, BufferLimit::new(1));
        let mut graph = Graph::new();
        let sink = checks.sink(to_exchange(producers));
        graph.add_pipeline("into", 1, checks.source(numbers(6, 2)), vec![], sink).unwrap();
        let sink = checks.sink(to_result(result_producers));
        graph
            .add_pipeline("out of", 1, checks.source(from_exchange(consumers)), vec![], sink)
            .unwrap();
        let running = graph.start(&query).unwrap();
        let error = rows(RowStream::of_query(&running, readers).remove(0)).unwrap_err();
        assert!(error.to_string().contains("made for 2 tasks in a pipeline of 1"), "{error}");
        streams::wait(query.idle());
        assert_gone(&query, &checks);
    });
}

#[test]
fn a_query_does_not_outlive_its_handles() {
    guarded(|guard| {
        let executor = executor(1);
        let opens = gate("opens");
        let query = query(guard, &executor);
        let weak = Arc::downgrade(&query);
        let stream = start_one(&query, &no_fault(), 2, waiting(&opens), vec![], 1).remove(0);
        drop(query);
        assert!(weak.upgrade().is_some(), "tasks hold their query");
        opens.set_ready();
        assert!(rows(stream).unwrap().is_empty());
        // The worker may still hold the last task; the next query's tasks run after it is dropped.
        let other = super::query(guard, &executor);
        rows(start_one(&other, &no_fault(), 1, numbers(1, 1), vec![], 1).remove(0)).unwrap();
        assert!(weak.upgrade().is_none());
    });
}
