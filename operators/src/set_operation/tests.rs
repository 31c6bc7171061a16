//! All four kinds against counts in a map, over chains of children and all key layouts.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{ArrayRef, Float64Array, RecordBatch, StringArray},
    datatypes::SchemaRef,
};
use gatework_runtime::{
    Error, Result,
    pipeline::{GreedyPool, QueryOptions, Source},
};
use proptest::prelude::*;

use super::{SetKind, new};
use crate::{
    limit::Limit,
    test_support::{FailingScan, ints, result_of, run, run_with, scan, sorted_rows, table},
};

type Row = (Option<i32>, Option<f64>);

const KINDS: [SetKind; 4] =
    [SetKind::Intersect, SetKind::IntersectAll, SetKind::Except, SetKind::ExceptAll];

/// A key that fits 64 bits, 128 bits, or neither.
#[derive(Debug, Clone, Copy)]
enum KeyLayout {
    U64,
    U128,
    Rows,
}

fn batch(rows: &[Row], layout: KeyLayout) -> RecordBatch {
    let keys = ints(rows.iter().map(|row| row.0));
    let floats: ArrayRef = Arc::new(rows.iter().map(|row| row.1).collect::<Float64Array>());
    match layout {
        KeyLayout::U64 => table([("k", keys)]),
        KeyLayout::U128 => table([("k", keys), ("f", floats)]),
        KeyLayout::Rows => {
            let text = rows.iter().map(|row| row.0.map(|key| format!("key {key}")));
            let text: ArrayRef = Arc::new(text.collect::<StringArray>());
            table([("k", keys), ("f", floats), ("t", text)])
        }
    }
}

fn model(kind: SetKind, children: &[RecordBatch]) -> Vec<String> {
    let counts = |child: &RecordBatch| {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for row in sorted_rows(std::slice::from_ref(child)) {
            *counts.entry(row.replace("-0.0", "0.0")).or_default() += 1;
        }
        counts
    };
    let others: Vec<_> = children[1..].iter().map(counts).collect();
    let mut rows = Vec::new();
    for (row, count) in counts(&children[0]) {
        let in_others = others.iter().map(|other| other.get(&row).copied().unwrap_or(0));
        let left = match kind {
            SetKind::Intersect => usize::from(in_others.min().unwrap_or(1) > 0),
            SetKind::IntersectAll => in_others.min().unwrap_or(count).min(count),
            SetKind::Except => usize::from(in_others.sum::<usize>() == 0),
            SetKind::ExceptAll => count.saturating_sub(in_others.sum()),
        };
        rows.extend(std::iter::repeat_n(row, left));
    }
    rows
}

fn run_set(
    kind: SetKind,
    schema: SchemaRef,
    children: Vec<Arc<dyn Source>>,
    batch_size: usize,
) -> Result<Vec<RecordBatch>> {
    run(|graph| {
        let (sinks, source) = new(kind, children.len(), schema, batch_size).unwrap();
        for (child, sink) in children.into_iter().zip(sinks) {
            graph.add_pipeline("child", 1, child, vec![], Arc::new(sink)).unwrap();
        }
        result_of(graph, 1, 1, Arc::new(source), vec![])
    })
}

fn row() -> impl Strategy<Value = Row> {
    let floats = vec![None, Some(0.0), Some(-0.0), Some(1.5), Some(f64::NAN)];
    (prop::option::weighted(0.8, 0..3), prop::sample::select(floats))
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn every_kind_gives_the_rows_of_the_model(
        kind in prop::sample::select(KINDS.to_vec()),
        form in prop::sample::select(vec![KeyLayout::U64, KeyLayout::U128, KeyLayout::Rows]),
        children in prop::collection::vec(prop::collection::vec(row(), 0..24), 1..4),
        morsel in prop::sample::select(vec![1_usize, 3, 8192]),
        batch_size in prop::sample::select(vec![1_usize, 3, 8192]),
    ) {
        let children: Vec<_> = children.iter().map(|rows| batch(rows, form)).collect();
        let scans = children.iter().map(|child| scan(child, morsel) as Arc<dyn Source>).collect();
        let batches = run_set(kind, children[0].schema(), scans, batch_size).unwrap();
        prop_assert!(batches.iter().all(|batch| batch.num_rows() <= batch_size));
        prop_assert_eq!(sorted_rows(&batches), model(kind, &children));
    }
}

#[test]
fn tables_grow() {
    let numbers = |from: i32, to: i32| -> RecordBatch {
        let rows: Vec<Row> = (from..to).map(|key| (Some(key), None)).collect();
        batch(&rows, KeyLayout::Rows)
    };
    let children = [numbers(0, 20_000), numbers(15_000, 40_000), numbers(16_000, 16_500)];
    for kind in KINDS {
        let scans = children.iter().map(|child| scan(child, 1000) as Arc<dyn Source>).collect();
        let batches = run_set(kind, children[0].schema(), scans, 8192).unwrap();
        assert_eq!(sorted_rows(&batches), model(kind, &children), "{kind:?}");
    }
}

#[test]
fn children_are_not_read_when_nothing_can_change() {
    let none = batch(&[], KeyLayout::U128);
    let some = batch(&[(Some(1), None)], KeyLayout::U128);
    for kind in KINDS {
        let children: Vec<Arc<dyn Source>> = vec![scan(&none, 1), Arc::new(FailingScan)];
        assert!(run_set(kind, none.schema(), children, 3).unwrap().is_empty());
    }
    // The second child leaves nothing.
    let children: Vec<Arc<dyn Source>> =
        vec![scan(&some, 1), scan(&some, 1), Arc::new(FailingScan)];
    assert!(run_set(SetKind::ExceptAll, some.schema(), children, 3).unwrap().is_empty());
}

#[test]
fn a_failed_child_fails_the_query() {
    let some = batch(&[(Some(1), None)], KeyLayout::U64);
    for failing in 0..2 {
        let mut children: Vec<Arc<dyn Source>> = vec![scan(&some, 1)];
        children.insert(failing, Arc::new(FailingScan));
        let error = run_set(SetKind::Except, some.schema(), children, 3).unwrap_err();
        assert_eq!(error.to_string(), "the scan failed");
    }
}

#[test]
fn a_child_of_another_type_is_an_error() {
    let some = batch(&[(Some(1), None)], KeyLayout::U128);
    let other = batch(&[(Some(1), None)], KeyLayout::U64);
    let children: Vec<Arc<dyn Source>> = vec![scan(&some, 1), scan(&other, 1)];
    let error = run_set(SetKind::Except, some.schema(), children, 3).unwrap_err();
    assert!(error.to_string().contains("a child of a set operation returns"), "{error}");
}

#[test]
fn an_early_end_reaches_all_children() {
    let some = batch(&vec![(Some(1), None); 100], KeyLayout::U64);
    for fetch in [0, 1] {
        let batches = run(|graph| {
            let (sinks, source) = new(SetKind::IntersectAll, 3, some.schema(), 1).unwrap();
            for sink in sinks {
                graph.add_pipeline("child", 1, scan(&some, 1), vec![], Arc::new(sink)).unwrap();
            }
            let limit = Arc::new(Limit::new(0, Some(fetch)));
            result_of(graph, 1, 1, Arc::new(source), vec![limit])
        })
        .unwrap();
        assert_eq!(sorted_rows(&batches).len(), fetch);
    }
}

#[test]
fn the_table_reserves_query_memory() {
    let rows: Vec<Row> = (0..10_000).map(|key| (Some(key), None)).collect();
    let rows = batch(&rows, KeyLayout::Rows);
    let memory = Arc::new(GreedyPool::new(100_000));
    let options = QueryOptions { memory: memory.clone(), ..QueryOptions::default() };
    let error = run_with(options, |graph| {
        let (mut sinks, source) = new(SetKind::Except, 1, rows.schema(), 8192).unwrap();
        graph
            .add_pipeline("child", 1, scan(&rows, 100), vec![], Arc::new(sinks.remove(0)))
            .unwrap();
        result_of(graph, 1, 1, Arc::new(source), vec![])
    })
    .unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    assert_eq!(memory.reserved(), 0);
}
