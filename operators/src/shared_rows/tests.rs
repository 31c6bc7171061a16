//! Every reader gets every row once, whatever the other readers do.

use std::sync::{Arc, atomic::Ordering};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use gatework_runtime::{
    Error,
    pipeline::{GreedyPool, Operator, QueryOptions},
};

use super::new;
use crate::{
    limit::Limit,
    test_support::{
        FailingScan, ints, random_refusals, result_of, rows, run_all, run_with, scan, sorted_rows,
        table,
    },
};

fn numbers(count: i32) -> RecordBatch {
    table([("n", ints((0..count).map(Some))), ("twice", ints((0..count).map(|n| Some(2 * n))))])
}

fn schema(names: &[&str]) -> SchemaRef {
    let field = |name: &&str| Field::new(*name, DataType::Int32, true);
    Arc::new(Schema::new(names.iter().map(field).collect::<Vec<_>>()))
}

fn sorted(values: impl Iterator<Item = i32>) -> Vec<String> {
    let mut values: Vec<String> = values.map(|value| value.to_string()).collect();
    values.sort_unstable();
    values
}

#[test]
fn every_reader_reads_every_row_once() {
    for tasks in [1, 3] {
        let readers = run_all(|graph| {
            let (sink, readers) = new(tasks, 3, tasks);
            let scan = scan(&numbers(500), 7);
            graph.add_pipeline("sink", tasks, scan, vec![], Arc::new(sink)).unwrap();
            let columns: [&[usize]; 3] = [&[0], &[1], &[0]];
            let readers = readers
                .into_iter()
                .zip(columns)
                .map(|(reader, columns)| reader.source(columns.into(), schema(&["own name"])));
            readers
                .flat_map(|source| result_of(graph, tasks, 1, Arc::new(source), vec![]))
                .collect()
        })
        .unwrap();
        let expected = [sorted(0..500), sorted((0..500).map(|n| 2 * n)), sorted(0..500)];
        assert_eq!(readers.len(), 3);
        for (batches, expected) in readers.iter().zip(expected) {
            assert_eq!(sorted_rows(batches), expected, "{tasks} tasks");
            assert!(batches.iter().all(|batch| batch.schema().field(0).name() == "own name"));
        }
    }
}

#[test]
fn readers_that_leave_do_not_stall_the_rest() {
    let readers = run_all(|graph| {
        let (sink, readers) = new(1, 3, 1);
        graph.add_pipeline("sink", 1, scan(&numbers(200), 1), vec![], Arc::new(sink)).unwrap();
        let mut results = Vec::new();
        for (reader, fetch) in readers.into_iter().zip([Some(1), None, Some(0)]) {
            let limit: Arc<dyn Operator> = Arc::new(Limit::new(0, fetch));
            let source = reader.source([0].into(), schema(&["n"]));
            results.extend(result_of(graph, 1, 1, Arc::new(source), vec![limit]));
        }
        results
    })
    .unwrap();
    assert_eq!(readers.iter().map(|batches| rows(batches).len()).collect::<Vec<_>>(), [1, 200, 0]);
}

#[test]
fn rows_are_reserved_once_and_released() {
    // 5,000 rows of 8 bytes, for three readers.
    for (limit, fits) in [(30_000, false), (60_000, true)] {
        let memory = Arc::new(GreedyPool::new(limit));
        let options = QueryOptions { memory: memory.clone(), ..QueryOptions::default() };
        let answer = run_with(options, |graph| {
            let (sink, readers) = new(1, 3, 1);
            graph
                .add_pipeline("sink", 1, scan(&numbers(5000), 100), vec![], Arc::new(sink))
                .unwrap();
            let sources =
                readers.into_iter().map(|reader| reader.source([0].into(), schema(&["n"])));
            sources.flat_map(|source| result_of(graph, 1, 1, Arc::new(source), vec![])).collect()
        });
        match answer {
            Ok(readers) => assert!(fits && readers.iter().all(|read| rows(read).len() == 5000)),
            Err(error) => assert!(!fits && matches!(error, Error::OutOfMemory { .. }), "{error}"),
        }
        assert_eq!(memory.reserved(), 0);
    }
}

#[test]
fn spilled_rows_come_back() {
    let expected = sorted(0..200);
    for seed in 0..30 {
        let (pool, spill_space, options) = random_refusals(seed);
        let readers = run_with(options, |graph| {
            let (sink, readers) = new(2, 2, 2);
            graph.add_pipeline("sink", 2, scan(&numbers(200), 3), vec![], Arc::new(sink)).unwrap();
            let sources =
                readers.into_iter().map(|reader| reader.source([0].into(), schema(&["n"])));
            sources.flat_map(|source| result_of(graph, 2, 1, Arc::new(source), vec![])).collect()
        })
        .unwrap();
        for batches in readers {
            assert_eq!(sorted_rows(&batches), expected, "seed {seed}");
        }
        assert!(spill_space.writes.load(Ordering::Relaxed) > 0);
        assert_eq!(pool.reserved(), 0);
    }
}

#[test]
fn a_failed_producer_fails_the_query() {
    let error = run_all(|graph| {
        let (sink, readers) = new(1, 2, 1);
        graph.add_pipeline("sink", 1, Arc::new(FailingScan), vec![], Arc::new(sink)).unwrap();
        let sources = readers.into_iter().map(|reader| reader.source([0].into(), schema(&["n"])));
        sources.flat_map(|source| result_of(graph, 1, 1, Arc::new(source), vec![])).collect()
    })
    .unwrap_err();
    assert_eq!(error.to_string(), "the scan failed");
}
