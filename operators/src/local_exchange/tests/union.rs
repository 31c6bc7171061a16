//! An exchange of several pipelines to one task: every row of every child is returned once, under
//! the exchange's column names.

use std::sync::Arc;

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Field, Schema},
};
use gatework_shared_state::BufferLimit;

use crate::{
    limit::Limit,
    local_exchange::{LocalExchangeSink, LocalExchangeSource, Routing, new},
    test_support::{FailingScan, ints, result_of, run, scan, sorted_rows, table},
};

fn child(name: &str, first: i32, rows: i32) -> RecordBatch {
    table([(name, ints((first..first + rows).map(Some)))])
}

fn schema() -> Arc<Schema> {
    Arc::new(Schema::new(vec![Field::new("n", DataType::Int32, true)]))
}

/// Makes a local exchange of `children` to one task, as lowering does for UNION ALL.
fn union(children: &[usize], limit: usize) -> (Vec<LocalExchangeSink>, LocalExchangeSource) {
    let limit = BufferLimit::new(limit);
    let (sinks, source) = new(Routing::PassToOne, children, 1, limit).unwrap();
    (sinks, source.with_schema(schema()))
}

#[test]
fn rows_of_all_children_come_out_once() {
    let children = [child("a", 0, 50), child("b", 50, 1), child("c", 51, 0), child("d", 51, 49)];
    let mut expected: Vec<String> = (0..100).map(|n: i32| n.to_string()).collect();
    expected.sort_unstable();
    for limit in [1, 100, 1 << 20] {
        for morsel in [1, 3, 8192] {
            let batches = run(|graph| {
                let tasks = [2, 1, 1, 3];
                let (sinks, source) = union(&tasks, limit);
                for ((sink, child), tasks) in sinks.into_iter().zip(&children).zip(tasks) {
                    let scan = scan(child, morsel);
                    graph.add_pipeline("child", tasks, scan, vec![], Arc::new(sink)).unwrap();
                }
                result_of(graph, 1, 1, Arc::new(source), vec![])
            })
            .unwrap();
            assert!(batches.iter().all(|batch| batch.schema() == schema()));
            assert_eq!(sorted_rows(&batches), expected, "limit {limit}, morsel {morsel}");
        }
    }
}

#[test]
fn an_early_end_reaches_all_children() {
    let batches = run(|graph| {
        let (sinks, source) = union(&[1, 2], 1);
        for (tasks, sink) in (1..).zip(sinks) {
            let scan = scan(&child("a", 0, 10_000), 1);
            graph.add_pipeline("child", tasks, scan, vec![], Arc::new(sink)).unwrap();
        }
        result_of(graph, 1, 1, Arc::new(source), vec![Arc::new(Limit::new(2, Some(5)))])
    })
    .unwrap();
    assert_eq!(sorted_rows(&batches).len(), 5);
}

#[test]
fn a_failed_child_fails_the_query() {
    let error = run(|graph| {
        let (mut sinks, source) = union(&[1, 1], 100);
        let (failing, sink) = (sinks.remove(1), sinks.remove(0));
        graph
            .add_pipeline("child", 1, scan(&child("a", 0, 10), 1), vec![], Arc::new(sink))
            .unwrap();
        graph.add_pipeline("child", 1, Arc::new(FailingScan), vec![], Arc::new(failing)).unwrap();
        result_of(graph, 1, 1, Arc::new(source), vec![])
    })
    .unwrap_err();
    assert_eq!(error.to_string(), "the scan failed");
}

#[test]
fn a_child_of_another_type_is_an_error() {
    let strings: Arc<arrow::array::StringArray> = Arc::new(vec!["a"].into());
    let error = run(|graph| {
        let (mut sinks, source) = union(&[1], 100);
        let scan = scan(&table([("a", strings)]), 1);
        graph.add_pipeline("child", 1, scan, vec![], Arc::new(sinks.remove(0))).unwrap();
        result_of(graph, 1, 1, Arc::new(source), vec![])
    })
    .unwrap_err();
    assert!(error.to_string().contains("column types must match schema types"), "{error}");
}
