//! Every reader gets every row in order, independent of the other readers.

use std::sync::{Arc, atomic::Ordering};

use arrow::array::RecordBatch;
use gatework_runtime::{
    Error,
    pipeline::{GreedyPool, Operator, QueryOptions},
};
use gatework_shared_state::BufferLimit;

use super::new;
use crate::{
    limit::Limit,
    test_support::{
        FailingScan, ints, random_refusals, result_of, rows, run_all, run_with, scan, table,
    },
};

fn numbers(count: i32) -> RecordBatch {
    table([("n", ints((0..count).map(Some)))])
}

#[test]
fn every_reader_reads_everything_in_order() {
    let expected: Vec<String> = (0..200).map(|n: i32| n.to_string()).collect();
    for (limit, overflow) in [(1, false), (1, true), (500, false), (1 << 20, false)] {
        let readers = run_all(|graph| {
            let budget = BufferLimit::new(limit);
            if overflow {
                budget.allow_overflow();
            }
            let (sink, sources) = new(3, budget);
            graph.add_pipeline("sink", 1, scan(&numbers(200), 3), vec![], Arc::new(sink)).unwrap();
            let readers = sources.into_iter();
            readers.flat_map(|source| result_of(graph, 1, 1, Arc::new(source), vec![])).collect()
        })
        .unwrap();
        assert_eq!(readers.len(), 3);
        for batches in readers {
            assert_eq!(rows(&batches), expected, "limit {limit}, overflow {overflow}");
        }
    }
}

#[test]
fn readers_that_leave_do_not_stall_the_rest() {
    for (fetches, left) in [([Some(1), None, Some(0)], 200), ([Some(1), Some(7), Some(0)], 7)] {
        let readers = run_all(|graph| {
            let (sink, sources) = new(3, BufferLimit::new(1));
            graph.add_pipeline("sink", 1, scan(&numbers(200), 1), vec![], Arc::new(sink)).unwrap();
            let mut readers = Vec::new();
            for (source, fetch) in sources.into_iter().zip(fetches) {
                let limit: Arc<dyn Operator> = Arc::new(Limit::new(0, fetch));
                readers.extend(result_of(graph, 1, 1, Arc::new(source), vec![limit]));
            }
            readers
        })
        .unwrap();
        assert_eq!(rows(&readers[0]).len(), 1);
        assert_eq!(rows(&readers[1]).len(), left);
        assert_eq!(rows(&readers[2]).len(), 0);
    }
}

#[test]
fn what_overflows_is_charged_to_the_query() {
    // 20 kB are buffered for each reader at once: one's in the join, the other's in the multicast.
    for (limit, fits) in [(30_000, false), (60_000, true)] {
        let memory = Arc::new(GreedyPool::new(limit));
        let options = QueryOptions { memory: memory.clone(), ..QueryOptions::default() };
        let answer = run_with(options, |graph| {
            let budget = BufferLimit::new(1);
            budget.allow_overflow();
            let (sink, sources) = new(2, budget);
            graph
                .add_pipeline("sink", 1, scan(&numbers(5000), 100), vec![], Arc::new(sink))
                .unwrap();
            let mut sources = sources.into_iter().map(Arc::new);
            let (first, second) = (sources.next().unwrap(), sources.next().unwrap());
            let after = crate::join::nested_loop_join::NestedLoopJoin {
                join_type: datafusion_common::JoinType::LeftSemi,
                filter: None,
                left_columns: 1,
                right_columns: 1,
                projection: None,
                schema: numbers(0).schema(),
                batch_size: 8192,
            };
            // The probe side of a join is not read before its build side has ended.
            let (build, probe) = after.operators(1, 1);
            graph.add_pipeline("build", 1, first, vec![], Arc::new(build)).unwrap();
            result_of(graph, 1, 1, second, vec![Arc::new(probe)])
        });
        match answer {
            Ok(readers) => assert!(fits && rows(&readers[0]).len() == 5000),
            Err(error) => assert!(!fits && matches!(error, Error::OutOfMemory { .. }), "{error}"),
        }
        assert_eq!(memory.reserved(), 0);
    }
}

#[test]
fn a_failed_producer_fails_the_query() {
    let error = run_all(|graph| {
        let (sink, sources) = new(2, BufferLimit::new(1));
        graph.add_pipeline("sink", 1, Arc::new(FailingScan), vec![], Arc::new(sink)).unwrap();
        let readers = sources.into_iter();
        readers.flat_map(|source| result_of(graph, 1, 1, Arc::new(source), vec![])).collect()
    })
    .unwrap_err();
    assert_eq!(error.to_string(), "the scan failed");
}

#[test]
fn spilled_rows_come_back_in_order() {
    let expected: Vec<String> = (0..200).map(|n: i32| n.to_string()).collect();
    for seed in 0..30 {
        let (pool, spill_space, options) = random_refusals(seed);
        let readers = run_with(options, |graph| {
            let budget = BufferLimit::new(1);
            budget.allow_overflow();
            let (sink, sources) = new(2, budget);
            graph.add_pipeline("sink", 1, scan(&numbers(200), 3), vec![], Arc::new(sink)).unwrap();
            let readers = sources.into_iter();
            readers.flat_map(|source| result_of(graph, 1, 1, Arc::new(source), vec![])).collect()
        })
        .unwrap();
        for batches in readers {
            assert_eq!(rows(&batches), expected, "seed {seed}");
        }
        assert!(spill_space.writes.load(Ordering::Relaxed) > 0);
        assert_eq!(pool.reserved(), 0);
    }
}
