//! Rows keep their order and their partitions, independent of batch boundaries.

mod framed;

use std::{any::Any, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, Float64Array, Int64Array, RecordBatch},
    datatypes::{DataType, Field, FieldRef, Schema, SchemaRef},
};
use datafusion_expr::{LimitEffect, PartitionEvaluator, WindowFrame};
use datafusion_physical_expr::{
    PhysicalExpr,
    expressions::Column,
    window::{StandardWindowExpr, StandardWindowFunctionExpr, WindowExpr},
};
use gatework_runtime::{
    Error,
    pipeline::{GreedyPool, Operator, QueryOptions},
};
use gatework_shared_state::BufferLimit;
use proptest::prelude::*;

use super::new;
use crate::{
    harness::InMemorySpill,
    limit::Limit,
    local_exchange::{self, Routing},
    test_support::{
        FailingScan, Readers, ints, result_of, rows, run, run_with, scan, sorted_rows, table,
    },
};

/// Window function: 1000 × the rows of the partition + the row's index in it.
#[derive(Debug)]
struct Position;

impl Position {
    fn by(columns: &[usize]) -> Arc<dyn WindowExpr> {
        let key = |column: &usize| Arc::new(Column::new("key", *column)) as Arc<dyn PhysicalExpr>;
        let keys: Vec<_> = columns.iter().map(key).collect();
        let frame = Arc::new(WindowFrame::new(None));
        Arc::new(StandardWindowExpr::new(Arc::new(Self), &keys, &[], frame))
    }
}

impl StandardWindowFunctionExpr for Position {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn field(&self) -> datafusion_common::Result<FieldRef> {
        Ok(Arc::new(Field::new("position", DataType::Int64, false)))
    }

    fn expressions(&self) -> Vec<Arc<dyn PhysicalExpr>> {
        vec![]
    }

    fn create_evaluator(&self) -> datafusion_common::Result<Box<dyn PartitionEvaluator>> {
        Ok(Box::new(Self))
    }

    fn limit_effect(&self) -> LimitEffect {
        LimitEffect::Unknown
    }
}

impl PartitionEvaluator for Position {
    fn evaluate_all(
        &mut self,
        _values: &[ArrayRef],
        rows: usize,
    ) -> datafusion_common::Result<ArrayRef> {
        assert!(rows > 0, "a window function must not be evaluated over no rows");
        let rows = rows as i64;
        Ok(Arc::new(Int64Array::from_iter_values((0..rows).map(|row| 1000 * rows + row))))
    }
}

fn output_schema(input: &RecordBatch, expressions: usize) -> SchemaRef {
    let mut fields: Vec<FieldRef> = input.schema().fields().to_vec();
    for number in 0..expressions {
        fields.push(Arc::new(Field::new(format!("w{number}"), DataType::Int64, false)));
    }
    Arc::new(Schema::new(fields))
}

/// Creates a table of two sorted keys and a row number column.
fn input(keys: &mut [(Option<i32>, Option<i32>)]) -> RecordBatch {
    keys.sort_unstable();
    table([
        ("a", ints(keys.iter().map(|key| key.0))),
        ("b", ints(keys.iter().map(|key| key.1))),
        ("n", ints((0..keys.len() as i32).map(Some))),
    ])
}

/// Appends to the rows of `input` their positions in runs of rows that `key` calls equal.
fn model(input: &RecordBatch, key: impl Fn(usize) -> String) -> Vec<String> {
    let text = rows(std::slice::from_ref(input));
    let keys: Vec<String> = (0..text.len()).map(key).collect();
    let mut expected = Vec::new();
    for (start, run) in keys.chunk_by(|a, b| a == b).scan(0, |at, run| {
        *at += run.len();
        Some((*at - run.len(), run))
    }) {
        for row in 0..run.len() {
            expected.push(format!("{}|{}", text[start + row], 1000 * run.len() + row));
        }
    }
    expected
}

fn key_text(input: &RecordBatch, columns: &[usize], row: usize) -> String {
    rows(&[input.slice(row, 1).project(columns).unwrap()]).remove(0)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn positions_are_those_of_the_model(
        mut keys in prop::collection::vec(
            (prop::option::weighted(0.8, 0..4), prop::option::weighted(0.8, 0..3)), 0..40),
        morsel in prop::sample::select(vec![1_usize, 3, 7, 8192]),
        batch_size in prop::sample::select(vec![1_usize, 3, 8192]),
        columns in prop::sample::select(vec![vec![], vec![0], vec![0, 1]]),
        limit in prop::sample::select(vec![1_usize, 1 << 20]),
    ) {
        let input = input(&mut keys);
        let batches = run(|graph| {
            let schema = output_schema(&input, 1);
            let (sink, source) =
                new(vec![Position::by(&columns)], schema, batch_size, 1, limit).unwrap();
            graph.add_pipeline("sort", 1, scan(&input, morsel), vec![], Arc::new(sink)).unwrap();
            result_of(graph, 1, 1, Arc::new(source), vec![])
        }).unwrap();
        prop_assert!(batches.iter().all(|batch| (1..=batch_size).contains(&batch.num_rows())));
        let expected = model(&input, |row| match columns.as_slice() {
            [] => String::new(),
            columns => key_text(&input, columns, row),
        });
        prop_assert_eq!(rows(&batches), expected);
    }
}

#[test]
fn instances_keep_their_own_partitions() {
    let mut keys: Vec<_> = (0..500).map(|n| ((n % 3 > 0).then_some(n % 23), None)).collect();
    let input = input(&mut keys);
    for batch_size in [1, 3, 8192] {
        let batches = run(|graph| {
            let key = Arc::new(Column::new("a", 0));
            let routing = Routing::Hash(vec![key]);
            let (mut sinks, channels) =
                local_exchange::new(routing, &[1], 3, BufferLimit::new(100)).unwrap();
            graph
                .add_pipeline("scan", 1, scan(&input, 7), vec![], Arc::new(sinks.remove(0)))
                .unwrap();
            let expressions = vec![Position::by(&[0]), Position::by(&[0])];
            let schema = output_schema(&input, 2);
            let (sink, source) = new(expressions, schema, batch_size, 3, 100).unwrap();
            graph.add_pipeline("window", 3, Arc::new(channels), vec![], Arc::new(sink)).unwrap();
            result_of(graph, 3, 1, Arc::new(source), vec![])
        })
        .unwrap();
        let mut expected = model(&input, |row| key_text(&input, &[0], row));
        for row in &mut expected {
            let position = row.rsplit('|').next().unwrap().to_owned();
            row.push_str(&format!("|{position}"));
        }
        expected.sort_unstable();
        assert_eq!(sorted_rows(&batches), expected);
    }
}

#[test]
fn zeros_of_different_signs_and_nans_are_partitions_of_their_own() {
    let keys = [None, None, Some(-0.0), Some(0.0), Some(0.0), Some(f64::NAN), Some(f64::NAN)];
    let column: ArrayRef = Arc::new(Float64Array::from(keys.to_vec()));
    let input = table([("key", column)]);
    for morsel in [1, 2, 8192] {
        let batches = run(|graph| {
            let schema = output_schema(&input, 1);
            let (sink, source) = new(vec![Position::by(&[0])], schema, 3, 1, 100).unwrap();
            graph.add_pipeline("sort", 1, scan(&input, morsel), vec![], Arc::new(sink)).unwrap();
            result_of(graph, 1, 1, Arc::new(source), vec![])
        })
        .unwrap();
        let positions: Vec<_> =
            rows(&batches).iter().map(|row| row.rsplit('|').next().unwrap().to_owned()).collect();
        assert_eq!(positions, ["2000", "2001", "1000", "2000", "2001", "2000", "2001"]);
    }
}

#[test]
fn a_large_partition_of_tiny_batches_is_copied_once() {
    // Copying the open partition for every batch would move 10^10 rows.
    let mut keys = vec![(Some(1), None); 100_000];
    let input = input(&mut keys);
    let batches = run(|graph| {
        let schema = output_schema(&input, 1);
        let (sink, source) = new(vec![Position::by(&[0])], schema, 8192, 1, 100).unwrap();
        graph.add_pipeline("sort", 1, scan(&input, 1), vec![], Arc::new(sink)).unwrap();
        result_of(graph, 1, 1, Arc::new(source), vec![])
    })
    .unwrap();
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 100_000);
    assert_eq!(batches[0].column(3).len(), 8192);
}

#[test]
fn an_open_partition_is_charged_to_the_query() {
    let mut keys = vec![(Some(1), Some(1)); 10_000];
    let input = input(&mut keys);
    for (limit, fits) in [(100_000, false), (1_000_000, true)] {
        let memory = Arc::new(GreedyPool::new(limit));
        let options = QueryOptions { memory: memory.clone(), ..QueryOptions::default() };
        let answer = run_with(options, |graph| {
            let schema = output_schema(&input, 1);
            let (sink, source) = new(vec![Position::by(&[0])], schema, 100, 1, 100).unwrap();
            graph.add_pipeline("sort", 1, scan(&input, 100), vec![], Arc::new(sink)).unwrap();
            result_of(graph, 1, 1, Arc::new(source), vec![])
        });
        match answer {
            Ok(readers) => assert!(fits && rows(&readers[0]).len() == 10_000),
            Err(error) => assert!(!fits && matches!(error, Error::OutOfMemory { .. }), "{error}"),
        }
        assert_eq!(memory.reserved(), 0);
    }
}

/// A pool that grants nothing, and a spill space that takes everything: the query ends, one way or
/// the other.
#[test]
fn a_window_that_gets_no_memory_ends() {
    let mut keys: Vec<_> = (0..2000).map(|row| (Some(row / 500), None)).collect();
    let input = input(&mut keys);
    for large_bytes in [1, 1 << 20] {
        let memory = Arc::new(GreedyPool::new(1));
        let spill = Arc::new(InMemorySpill { eager: true, ..InMemorySpill::default() });
        let options =
            QueryOptions { memory: memory.clone(), spill: Some(spill), ..QueryOptions::default() };
        let answer = run_with(options, |graph| {
            let schema = output_schema(&input, 1);
            let (sink, source) =
                new(vec![Position::by(&[0])], schema, 100, 1, large_bytes).unwrap();
            graph.add_pipeline("sort", 1, scan(&input, 100), vec![], Arc::new(sink)).unwrap();
            result_of(graph, 1, 1, Arc::new(source), vec![])
        });
        match answer {
            Ok(readers) => assert_eq!(rows(&readers[0]).len(), 2000),
            Err(error) => assert!(matches!(error, Error::OutOfMemory { .. }), "{error}"),
        }
        assert_eq!(memory.reserved(), 0);
    }
}

#[test]
fn ended_partitions_do_not_wait_for_the_end_of_the_input() {
    let mut keys: Vec<_> = (0..20_000).map(|row| (Some(row / 100), None)).collect();
    let input = input(&mut keys);
    // Batches that end with partitions, and batches that do not. All rows take 240 kB.
    for morsel in [100, 30] {
        let options =
            QueryOptions { memory: Arc::new(GreedyPool::new(30_000)), ..QueryOptions::default() };
        let readers = run_with(options, |graph| {
            let schema = output_schema(&input, 1);
            let (sink, source) = new(vec![Position::by(&[0])], schema, 100, 1, 1).unwrap();
            graph.add_pipeline("sort", 1, scan(&input, morsel), vec![], Arc::new(sink)).unwrap();
            result_of(graph, 1, 1, Arc::new(source), vec![])
        })
        .unwrap();
        assert_eq!(rows(&readers[0]), model(&input, |row| key_text(&input, &[0], row)));
    }
}

#[test]
fn ends_travel_both_ways() {
    let mut keys: Vec<_> = (0..1000).map(|n| (Some(n), None)).collect();
    let input = input(&mut keys);
    let window = |graph: &mut gatework_runtime::pipeline::Graph, failing: bool| -> Readers {
        let schema = output_schema(&input, 1);
        let (sink, source) = new(vec![Position::by(&[0])], schema, 1, 1, 1).unwrap();
        let sink = Arc::new(sink);
        if failing {
            graph.add_pipeline("sort", 1, Arc::new(FailingScan), vec![], sink).unwrap();
        } else {
            graph.add_pipeline("sort", 1, scan(&input, 1), vec![], sink).unwrap();
        }
        let limit: Arc<dyn Operator> = Arc::new(Limit::new(0, Some(2)));
        result_of(graph, 1, 1, Arc::new(source), vec![limit])
    };
    assert_eq!(rows(&run(|graph| window(graph, false)).unwrap()).len(), 2);
    assert_eq!(run(|graph| window(graph, true)).unwrap_err().to_string(), "the scan failed");
}

#[test]
fn expressions_of_different_partitions_are_refused() {
    let schema = output_schema(&input(&mut []), 2);
    let build = |expressions| new(expressions, schema.clone(), 1, 1, 1);
    assert!(build(vec![Position::by(&[0, 1]), Position::by(&[1, 0])]).is_ok());
    let error = build(vec![Position::by(&[0, 1]), Position::by(&[0])]).unwrap_err();
    assert!(error.to_string().contains("give each its own window"), "{error}");
    assert!(build(vec![]).is_err());
}
