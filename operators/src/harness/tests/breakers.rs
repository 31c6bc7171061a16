//! Breakers under every mode.

use std::sync::Arc;

use arrow::{
    array::{Int64Array, RecordBatch},
    compute::SortOptions,
    datatypes::{DataType, Field, Schema},
};
use datafusion_common::ScalarValue;
use datafusion_expr::{Operator as Op, WindowFrame, WindowFrameBound, WindowFrameUnits};
use datafusion_functions_aggregate::sum::sum_udaf;
use datafusion_physical_expr::{
    LexOrdering, PhysicalExpr, PhysicalSortExpr,
    aggregate::AggregateExprBuilder,
    expressions::{BinaryExpr, Column, Literal},
    window::{PlainAggregateWindowExpr, WindowExpr},
};

use crate::{
    harness::{Case, Harness, Mode, numbers},
    hash_aggregate::{
        self, AggregateConfig, AggregateInput, AggregateResult, GroupBy, PartialAggregate,
    },
    sort::{self, SortConfig},
    window::{self, WindowExpression, WindowFunction},
};

/// Creates batches of `n * 7 % 50`: the numbers below 50 in another order.
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
            let (runs, merge) = sort::new(ascending(fetch), case.num_tasks()).unwrap();
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
        aggregates: vec![],
        input: AggregateInput::Raw,
        output: AggregateResult::Final,
        input_schema: shuffled()[0].schema(),
        schema: Arc::new(Schema::new(vec![Field::new("n % 7", DataType::Int64, true)])),
        batch_rows: 8,
        memory_is_limited: true,
    }
}

/// Each row is its own group, so the number of flushes makes no difference.
#[test]
fn partial_aggregate() {
    let n: Arc<dyn PhysicalExpr> = Arc::new(Column::new("n", 0));
    let group_by = GroupBy { keys: vec![n], sets: vec![vec![false]], ..Default::default() };
    let schema = shuffled()[0].schema();
    let config =
        AggregateConfig { group_by, output: AggregateResult::Partial, schema, ..distinct() };
    Harness::operator(move |_| PartialAggregate::new(config.clone()).unwrap())
        .input(shuffled())
        .expect_rows(&shuffled())
        .check(Mode::without_spill());
}

#[test]
fn hash_aggregate() {
    Harness::breaker(|case: &Case| {
        let tasks = case.num_tasks();
        let (build, output) = hash_aggregate::new(distinct(), tasks, tasks).unwrap();
        (build, output, tasks)
    })
    .input(shuffled())
    .expect_rows(&numbers(0..7, 7))
    .check(Mode::all());
}

/// Nearly every row is a group, so rows bypass the tables of several tasks.
#[test]
fn hash_aggregate_of_distinct_rows() {
    let n: Arc<dyn PhysicalExpr> = Arc::new(Column::new("n", 0));
    let group_by = GroupBy { keys: vec![n], sets: vec![vec![false]], ..Default::default() };
    let schema = shuffled()[0].schema();
    let config = AggregateConfig { group_by, schema, ..distinct() };
    Harness::breaker(move |case: &Case| {
        let tasks = case.num_tasks();
        let (build, output) = hash_aggregate::new(config.clone(), tasks, tasks).unwrap();
        (build, output, tasks)
    })
    .input(numbers(0..400, 7))
    .expect_rows(&numbers(0..400, 7))
    .check(Mode::all());
}

/// `sum(n) OVER (PARTITION BY n / 20 ORDER BY n ROWS BETWEEN UNBOUNDED PRECEDING AND …)`.
fn sum_up_to(end: WindowFrameBound) -> Arc<dyn WindowExpr> {
    let n: Arc<dyn PhysicalExpr> = Arc::new(Column::new("n", 0));
    let schema = shuffled()[0].schema();
    let sum = AggregateExprBuilder::new(sum_udaf(), vec![n.clone()]).schema(schema).alias("sum(n)");
    let twenty = Arc::new(Literal::new(ScalarValue::Int64(Some(20))));
    let partition: Arc<dyn PhysicalExpr> = Arc::new(BinaryExpr::new(n.clone(), Op::Divide, twenty));
    let order = [PhysicalSortExpr::new(n, SortOptions::default())];
    let start = WindowFrameBound::Preceding(ScalarValue::UInt64(None));
    let frame = Arc::new(WindowFrame::new_bounds(WindowFrameUnits::Rows, start, end));
    let sum = Arc::new(sum.build().unwrap());
    Arc::new(PlainAggregateWindowExpr::new(sum, &[partition], &order, frame, None))
}

/// Creates the numbers below 50, with the total and the running sum of each block of twenty.
fn sums() -> RecordBatch {
    let of = |range: std::ops::Range<i64>| range.sum::<i64>();
    let total = (0..50).map(|n| of(n / 20 * 20..50.min(n / 20 * 20 + 20)));
    let running = (0..50).map(|n| of(n / 20 * 20..n + 1));
    let column = |values| Arc::new(Int64Array::from_iter_values::<Vec<i64>>(values)) as _;
    let columns =
        vec![column((0..50).collect()), column(total.collect()), column(running.collect())];
    let sums = ["total", "running"].map(|name| Field::new(name, DataType::Int64, true));
    let fields = [vec![Field::new("n", DataType::Int64, false)], sums.to_vec()].concat();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

/// Every window partition is large, and is spilled where its reservation is denied; with and
/// without kernels.
#[test]
fn window_of_totals() {
    for function in [None, Some(WindowFunction::Sum)] {
        Harness::breaker(move |_| {
            let end = WindowFrameBound::Following(ScalarValue::UInt64(None));
            let expressions = [sum_up_to(end), sum_up_to(WindowFrameBound::CurrentRow)];
            let with_function = |expr| WindowExpression { expr, function: function.clone() };
            let expressions = expressions.map(with_function);
            let (sink, source) = window::new(expressions, sums().schema(), 3, 1, 1).unwrap();
            (sink, source, 1)
        })
        .input(numbers(0..50, 7))
        .num_tasks(1..=1)
        .expect_sequence(&[sums()])
        .check(Mode::all());
    }
}
