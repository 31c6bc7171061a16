//! Volatile expressions are evaluated once for each row.

use std::sync::{Arc, atomic::Ordering};

use arrow::{
    array::{AsArray, Int64Array, RecordBatch},
    compute::SortOptions,
    datatypes::{DataType, Field, Int32Type, Schema},
};
use datafusion_common::JoinType;
use datafusion_expr::Operator as BinaryOperator;
use datafusion_physical_expr::{
    PhysicalExpr,
    expressions::{BinaryExpr, lit},
};
use gatework_runtime::pipeline::{GreedyPool, QueryOptions};

use super::{
    expression::draws,
    graphs::{Join, column, grouped, keyed, sorted, streamed},
};
use crate::{
    filter::Filter,
    projection::Projection,
    test_support::{InMemorySpill, ints, random_refusals, rows},
};

/// Permutes the numbers below a prime.
fn scattered(number: i64) -> i64 {
    number * 7919 % 100_003
}

const ROWS: i64 = 60_000;

fn input(rows: i64) -> RecordBatch {
    keyed(ints((0..rows as i32).map(Some)))
}

const ASCENDING: SortOptions = SortOptions { descending: false, nulls_first: false };

/// Creates query options with a memory limit of `bytes`, and a spill space for larger queries.
fn limited_memory(bytes: usize) -> (Arc<InMemorySpill>, QueryOptions) {
    let spill_space = Arc::new(InMemorySpill::default());
    let memory = Arc::new(GreedyPool::new(bytes));
    let spill = Some(spill_space.clone() as _);
    (spill_space, QueryOptions { memory, spill, ..QueryOptions::default() })
}

#[test]
fn a_sort_key_is_drawn_once() {
    let input = input(ROWS);
    for fetch in [None, Some(1), Some(100), Some(20_000)] {
        for (sinks, short) in [(1, false), (2, false), (1, true)] {
            let (spill_space, options) = limited_memory(if short { 1 << 20 } else { 1 << 30 });
            let (drawn, key) = draws(scattered);
            let batches = sorted(options, &input, key, ASCENDING, fetch, sinks);
            assert_eq!(drawn.load(Ordering::Relaxed), ROWS, "{fetch:?} {sinks} {short}");
            let wanted = fetch.unwrap_or(ROWS as usize);
            assert!(batches.iter().all(|batch| batch.num_columns() == 2));
            let rows = batches
                .iter()
                .flat_map(|batch| batch.column(1).as_primitive::<Int32Type>().values().to_vec());
            let rows: Vec<i64> = rows.map(i64::from).collect();
            assert_eq!(rows.len(), wanted);
            if sinks == 1 {
                // The single task draws for the rows in their order.
                let mut expected: Vec<i64> = (0..ROWS).collect();
                expected.sort_by_key(|row| scattered(*row));
                assert!(rows == expected[..wanted], "{fetch:?} {short}");
            }
            let spilled = spill_space.writes.load(Ordering::Relaxed) > 0;
            assert!(spilled || !short || fetch.is_some(), "{fetch:?}");
        }
    }
}

#[test]
fn a_key_of_a_join_is_drawn_once() {
    // Each row of one side matches the row of the other side with the value that it drew.
    let input = input(60_000);
    let values = |number: i64| number % 60_000;
    let numbers = keyed(Arc::new(Int64Array::from_iter_values(0..60_000)));
    for drawn_left in [false, true] {
        let mut spilled = 0;
        for limit in [1 << 30, 1 << 18, 1 << 17] {
            let (spill_space, options) = limited_memory(limit);
            let (drawn, key) = draws(values);
            let plain = Join::plain(JoinType::Inner);
            let keys = if drawn_left { (key, column(0)) } else { (column(0), key) };
            let join = Join { keys, ..plain };
            let (left, right) = if drawn_left { (&input, &numbers) } else { (&numbers, &input) };
            let batches = join.run(options, left, right);
            assert_eq!(drawn.load(Ordering::Relaxed), 60_000, "{drawn_left} {limit}");
            let found: usize = batches.iter().map(RecordBatch::num_rows).sum();
            assert_eq!(found, 60_000, "{drawn_left} {limit}");
            spilled += spill_space.writes.load(Ordering::Relaxed);
        }
        assert!(spilled > 0);
    }
}

#[test]
fn a_group_key_is_drawn_once() {
    let input = input(5000);
    for sinks in [1, 3] {
        for seed in 0..5 {
            let (drawn, key) = draws(|number| number % 100);
            let groups = grouped(random_refusals(seed).2, &input, key, sinks);
            assert_eq!(drawn.load(Ordering::Relaxed), 5000);
            assert_eq!(rows(&groups).len(), 100);
        }
    }
}

fn compare(
    left: Arc<dyn PhysicalExpr>,
    operator: BinaryOperator,
    right: Arc<dyn PhysicalExpr>,
) -> Arc<dyn PhysicalExpr> {
    Arc::new(BinaryExpr::new(left, operator, right))
}

#[test]
fn conjuncts_and_projections_draw_once() {
    let input = input(5000);
    let (drawn, draw) = draws(|number| number % 2);
    let odd = compare(draw, BinaryOperator::Eq, lit(1_i64));
    let some = compare(column(0), BinaryOperator::Lt, lit(4000));
    let predicate = compare(odd, BinaryOperator::And, some);
    let passed = streamed(&input, 100, vec![Arc::new(Filter::new(predicate, None))]);
    assert_eq!(drawn.load(Ordering::Relaxed), 5000);
    assert_eq!(rows(&passed).len(), 2000);

    let (drawn, draw) = draws(|number| number);
    let schema = Schema::new(vec![Field::new("drawn", DataType::Int64, true)]);
    let projection = Projection::new(vec![draw], Arc::new(schema));
    let projected = streamed(&input, 100, vec![Arc::new(projection)]);
    assert_eq!(drawn.load(Ordering::Relaxed), 5000);
    assert!(rows(&projected).iter().enumerate().all(|(at, row)| *row == at.to_string()));
}
