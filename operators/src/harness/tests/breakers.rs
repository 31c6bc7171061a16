//! Breakers under every mode.

use std::sync::Arc;

use arrow::{
    array::{Int64Array, RecordBatch},
    compute::SortOptions,
    datatypes::{DataType, Field, Schema},
};
use datafusion_common::ScalarValue;
use datafusion_expr::Operator as Op;
use datafusion_physical_expr::{
    LexOrdering, PhysicalExpr, PhysicalSortExpr,
    expressions::{BinaryExpr, Column, Literal},
};

use crate::{
    harness::{Case, Harness, Mode, numbers},
    hash_aggregate::{self, AggregateConfig, GroupBy, InputRows, OutputRows, PartialAggregate},
    sort::{self, SortConfig},
};

/// `n * 7 % 50`: the numbers below 50 in another order.
fn shuffled() -> Vec<RecordBatch> {
    let values: Vec<i64> = (0..50).map(|n| n * 7 % 50).collect();
    let schema = numbers(0..1, 1)[0].schema();
    let batch = |values: &[i64]| {
        let column = Arc::new(Int64Array::from(values.to_vec()));
        RecordBatch::try_new(schema.clone(), vec![column]).unwrap()
    };
    values.chunks(6).map(batch).collect()
}

fn ascending(fetch: Option<usize>) -> SortConfig {
    let key = PhysicalSortExpr::new(Arc::new(Column::new("n", 0)), SortOptions::default());
    SortConfig {
        ordering: LexOrdering::new([key]).unwrap(),
        fetch,
        schema: shuffled()[0].schema(),
        batch_rows: 8,
    }
}

#[test]
fn sort_and_top_n() {
    for (fetch, rows) in [(None, 50), (Some(9), 9)] {
        Harness::breaker(move |case: &Case| {
            let (runs, merge) = sort::new(ascending(fetch), case.instances()).unwrap();
            (runs, merge, 1)
        })
        .input(shuffled())
        .expect_sequence(&numbers(0..rows, 8))
        .check(Mode::all());
    }
}

/// `SELECT DISTINCT n % 7`.
fn distinct() -> AggregateConfig {
    let seven = Arc::new(Literal::new(ScalarValue::Int64(Some(7))));
    let n: Arc<dyn PhysicalExpr> = Arc::new(Column::new("n", 0));
    AggregateConfig {
        group_by: GroupBy {
            keys: vec![Arc::new(BinaryExpr::new(n, Op::Modulo, seven))],
            sets: vec![vec![false]],
            ..Default::default()
        },
        calls: vec![],
        input: InputRows::Raw,
        output: OutputRows::Values,
        input_schema: shuffled()[0].schema(),
        schema: Arc::new(Schema::new(vec![Field::new("n % 7", DataType::Int64, true)])),
        batch_rows: 8,
    }
}

/// Each row is a group of its own, so that it makes no difference how often a table is emptied.
#[test]
fn partial_aggregate() {
    let n: Arc<dyn PhysicalExpr> = Arc::new(Column::new("n", 0));
    let group_by = GroupBy { keys: vec![n], sets: vec![vec![false]], ..Default::default() };
    let schema = shuffled()[0].schema();
    let config = AggregateConfig { group_by, output: OutputRows::States, schema, ..distinct() };
    Harness::operator(move |_| PartialAggregate::new(config.clone()).unwrap())
        .input(shuffled())
        .expect_rows(&shuffled())
        .check(Mode::without_spill());
}

#[test]
fn hash_aggregate() {
    Harness::breaker(|case: &Case| {
        let tasks = case.instances();
        let (build, output) = hash_aggregate::new(distinct(), tasks, tasks).unwrap();
        (build, output, tasks)
    })
    .input(shuffled())
    .expect_rows(&numbers(0..7, 7))
    .check(Mode::all());
}
