//! Streaming operators, scans and the result, under every mode.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    thread,
};

use arrow::{
    array::{AsArray, Int64Array, RecordBatch},
    datatypes::{DataType, Field, Int64Type, Schema},
};
use datafusion_common::{DataFusionError, ScalarValue};
use datafusion_expr::Operator as Op;
use datafusion_physical_expr::{
    PhysicalExpr,
    expressions::{BinaryExpr, Column, Literal},
};
use futures_core::Stream;
use gatework_runtime::pipeline::Graph;

use crate::{
    filter::Filter,
    harness::{Case, Harness, Mode, numbers},
    limit::Limit,
    memory_scan::MemoryScan,
    projection::Projection,
    stream_scan::{BatchStream, StreamScan},
};

fn n() -> Arc<dyn PhysicalExpr> {
    Arc::new(Column::new("n", 0))
}

fn number(value: i64) -> Arc<dyn PhysicalExpr> {
    Arc::new(Literal::new(ScalarValue::Int64(Some(value))))
}

fn binary(
    left: Arc<dyn PhysicalExpr>,
    op: Op,
    right: Arc<dyn PhysicalExpr>,
) -> Arc<dyn PhysicalExpr> {
    Arc::new(BinaryExpr::new(left, op, right))
}

fn even() -> Arc<dyn PhysicalExpr> {
    binary(binary(n(), Op::Modulo, number(2)), Op::Eq, number(0))
}

fn table(values: impl IntoIterator<Item = i64>) -> Vec<RecordBatch> {
    let column = Arc::new(Int64Array::from_iter_values(values));
    vec![RecordBatch::try_from_iter([("n", column as _)]).unwrap()]
}

fn values(batches: &[RecordBatch]) -> Vec<i64> {
    let columns = batches.iter().map(|batch| batch.column(0).as_primitive::<Int64Type>());
    columns.flat_map(|column| column.values().to_vec()).collect()
}

#[test]
fn filter() {
    Harness::operator(|_| Filter::new(even(), None))
        .input(numbers(0..60, 9))
        .expect_rows(&table((0..60).step_by(2)))
        .check(Mode::without_memory());
}

#[test]
fn filter_of_nothing_and_of_no_input() {
    for (input, expected) in [(numbers(0..20, 5), table([])), (vec![], table([]))] {
        let never = binary(n(), Op::Lt, number(0));
        Harness::operator(move |_| Filter::new(never.clone(), None))
            .input(input)
            .expect_rows(&expected)
            .run(Mode::all())
            .unwrap();
    }
}

#[test]
fn a_filter_behind_a_filter_never_sees_the_rows_taken_out() {
    // 100 / (n % 2 - 1) fails for odd n.
    let divisor = binary(binary(n(), Op::Modulo, number(2)), Op::Minus, number(1));
    let fails = binary(binary(number(100), Op::Divide, divisor), Op::Lt, number(0));
    Harness::graph(move |case| {
        let mut graph = Graph::new();
        let first = Arc::new(Filter::new(even(), None));
        let second = Arc::new(Filter::new(fails.clone(), None));
        let instances = case.num_tasks();
        let result = case.result(instances);
        graph.add_pipeline("filters", instances, case.source(0), vec![first, second], result)?;
        Ok(graph)
    })
    .input(numbers(0..60, 9))
    .expect_rows(&table((0..60).step_by(2)))
    .check(Mode::without_memory());
}

#[test]
fn projection_of_selected_rows() {
    let schema = Arc::new(Schema::new(vec![
        Field::new("n", DataType::Int64, false),
        Field::new("double", DataType::Int64, false),
    ]));
    let double = binary(n(), Op::Multiply, number(2));
    let expected = RecordBatch::try_from_iter([
        ("n", Arc::new(Int64Array::from_iter_values((0..40).step_by(2))) as _),
        ("double", Arc::new(Int64Array::from_iter_values((0..80).step_by(4))) as _),
    ]);
    Harness::graph(move |case| {
        let mut graph = Graph::new();
        let filter = Arc::new(Filter::new(even(), None));
        let project = Arc::new(Projection::new(vec![n(), double.clone()], schema.clone()));
        let instances = case.num_tasks();
        let result = case.result(instances);
        graph.add_pipeline("project", instances, case.source(0), vec![filter, project], result)?;
        Ok(graph)
    })
    .input(numbers(0..40, 7))
    .expect_rows(&[expected.unwrap()])
    .check(Mode::without_memory());
}

/// Expects `count` distinct rows of the first `of` numbers.
fn some_of(count: usize, of: i64) -> impl Fn(&[RecordBatch]) -> Result<(), String> {
    move |batches| {
        let mut values = values(batches);
        values.sort_unstable();
        let rows = values.len();
        values.dedup();
        if rows == count && values.len() == count && values.iter().all(|n| (0..of).contains(n)) {
            return Ok(());
        }
        Err(format!("{rows} rows instead of {count}: {values:?}"))
    }
}

#[test]
fn limit() {
    for (skip, fetch, count) in
        [(0, Some(10), 10), (7, Some(3), 3), (7, None, 43), (45, Some(10), 5), (0, Some(0), 0)]
    {
        Harness::operator(move |_| Limit::new(skip, fetch))
            .input(numbers(0..50, 6))
            .expect_with(some_of(count, 50))
            .seeds(0..5)
            .run(Mode::without_memory())
            .unwrap();
    }
}

#[test]
fn limit_of_one_task_keeps_the_order() {
    Harness::operator(|_| Limit::new(7, Some(12)))
        .input(numbers(0..50, 6))
        .expect_sequence(&table(7..19))
        .num_tasks(1..=1)
        .run(Mode::without_memory())
        .unwrap();
}

#[test]
fn memory_scan() {
    let rows = numbers(0..50, 20);
    Harness::source(|case| MemoryScan::new(case.batches(0), Some(vec![0]), 6))
        .input(rows.clone())
        .expect_rows(&rows)
        .check(Mode::without_memory());
}

#[test]
fn memory_scan_without_columns_keeps_its_rows() {
    Harness::source(|case| MemoryScan::new(case.batches(0), Some(vec![]), 6))
        .input(numbers(0..50, 20))
        .expect_with(|batches| {
            let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
            if rows == 50 { Ok(()) } else { Err(format!("{rows} rows instead of 50")) }
        })
        .check(Mode::without_memory());
}

/// Stream that is pending before each batch, and woken by a thread.
struct Trickle {
    batches: VecDeque<RecordBatch>,
    was_pending: bool,
}

impl Stream for Trickle {
    type Item = Result<RecordBatch, DataFusionError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.was_pending = !self.was_pending;
        if self.was_pending {
            let waker = context.waker().clone();
            thread::spawn(move || waker.wake());
            return Poll::Pending;
        }
        Poll::Ready(self.batches.pop_front().map(Ok))
    }
}

fn trickles(case: &Case) -> Vec<BatchStream> {
    let batches = case.batches(0);
    let streams = batches.chunks(3).map(|batches| {
        Box::pin(Trickle { batches: batches.iter().cloned().collect(), was_pending: false }) as _
    });
    streams.collect()
}

#[test]
fn stream_scan() {
    let rows = numbers(0..50, 6);
    Harness::source(|case| StreamScan::new("trickle", trickles(case), 2))
        .input(rows.clone())
        .expect_rows(&rows)
        .seeds(0..5)
        .check(Mode::without_memory());
}

#[test]
fn stream_scan_passes_an_error_on() {
    let finding = Harness::source(|_case| {
        let error = DataFusionError::Execution("the disk is gone".into());
        let mut error = Some(error);
        let stream = PollFn(move || error.take().map(Err));
        StreamScan::new("broken", vec![Box::pin(stream)], 1)
    })
    .expect_rows(&[])
    .run(&[Mode::Plain])
    .unwrap_err();
    assert!(finding.message.contains("the disk is gone"), "{finding}");
}

/// Stream that is always ready.
struct PollFn<F>(F);

impl<F> Stream for PollFn<F>
where
    F: FnMut() -> Option<Result<RecordBatch, DataFusionError>> + Unpin,
{
    type Item = Result<RecordBatch, DataFusionError>;

    fn poll_next(mut self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready((self.0)())
    }
}

#[test]
fn result_by_the_hash_of_a_key() {
    let rows = numbers(0..60, 9);
    Harness::graph(|case| {
        let mut graph = Graph::new();
        let result = case.partitioned_result(case.num_tasks(), 3, vec![n()]);
        graph.add_pipeline("partitions", case.num_tasks(), case.source(0), vec![], result)?;
        Ok(graph)
    })
    .input(rows.clone())
    .expect_rows(&rows)
    .check(Mode::without_memory());
}
