//! Texts too long for one batch, or in total for one array. The bounds are small in tests
//! ([`MAX_BATCH_BYTES`] and the constants beside it).

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray, StringViewArray},
    compute::SortOptions,
    datatypes::{DataType, Field, Schema},
    error::ArrowError,
};
use datafusion_common::{JoinSide, JoinType};
use datafusion_expr::Operator as BinaryOperator;
use datafusion_physical_expr::{PhysicalExpr, expressions::BinaryExpr};
use gatework_runtime::{
    Error,
    pipeline::{Graph, Operator, QueryContext, QueryOptions, RowStream},
};

use super::{
    expression::watched,
    graphs::{Join, column, grouped, keyed, sorted, streamed},
};
use crate::{
    JoinFilter,
    batch_bytes::{MAX_ARRAY_BYTES, MAX_BATCH_BYTES, SLICE_BYTES, sum_of},
    filter::Filter,
    join::nested_loop_join::NestedLoopJoin,
    projection::Projection,
    set_operation::{self, SetKind},
    test_support::{
        EXECUTOR, ints, random_refusals, result_of, rows, run, scan, sorted_rows, table, wait_idle,
    },
};

const LENGTH: usize = 10_000;
/// Number of rows whose texts are too long for one array, and for several batches.
const ROWS: usize = 200;

/// Creates texts of two types, some of them short and some NULL.
fn texts() -> [ArrayRef; 2] {
    const { assert!(ROWS * LENGTH > 3 * MAX_ARRAY_BYTES && MAX_ARRAY_BYTES > MAX_BATCH_BYTES) };
    let text = |row: usize| match row % 10 {
        3 => None,
        5 => Some(format!("{:03}", row * 37 % ROWS)),
        _ => Some(format!("{:03}{}", row * 37 % ROWS, "x".repeat(LENGTH))),
    };
    let texts: Vec<_> = (0..ROWS).map(text).collect();
    [Arc::new(StringArray::from(texts.clone())), Arc::new(StringViewArray::from(texts))]
}

/// Asserts that no batch exceeds the text bound, except batches of a single row.
fn assert_bounded(batches: &[RecordBatch], what: &str) {
    for batch in batches {
        let bytes = sum_of(batch.columns());
        let rows = batch.num_rows();
        assert!(bytes <= MAX_BATCH_BYTES || rows == 1, "{bytes} bytes, {rows} rows: {what}");
    }
}

#[test]
fn long_texts_are_sorted() {
    let order = SortOptions { descending: true, nulls_first: true };
    for texts in texts() {
        let input = keyed(texts);
        let mut expected = rows(std::slice::from_ref(&input));
        let key = |row: &String| row.split('|').next().map(str::to_owned);
        expected.sort_by_key(|row| std::cmp::Reverse(key(row).filter(|key| key != "NULL")));
        expected.rotate_right(ROWS / 10);
        for sinks in [1, 3] {
            for fetch in [None, Some(50)] {
                let plain = [QueryOptions::default()];
                for options in plain.into_iter().chain((0..5).map(|seed| random_refusals(seed).2)) {
                    let sorted = sorted(options, &input, column(0), order, fetch, sinks);
                    assert_bounded(&sorted, "sorted");
                    let keys = rows(&sorted).iter().map(key).collect::<Vec<_>>();
                    let wanted = expected.iter().take(fetch.unwrap_or(ROWS)).map(key);
                    assert!(keys == wanted.collect::<Vec<_>>(), "{sinks} {fetch:?}");
                    if fetch.is_none() {
                        assert!(sorted_rows(&sorted) == sorted_rows(std::slice::from_ref(&input)));
                    }
                }
            }
        }
    }
}

#[test]
fn long_texts_are_joined() {
    for texts in texts() {
        let left = table([("key", ints((0..ROWS as i32).map(|row| Some(row % 7)))), ("s", texts)]);
        let right = keyed(ints([Some(1), Some(1), Some(2), Some(9), None]));
        for (left, right) in [(&left, &right), (&right, &left)] {
            for kind in [JoinType::Inner, JoinType::Left, JoinType::Right, JoinType::Full] {
                let whole = Join { batch_rows: 1, ..Join::plain(kind) };
                let whole = whole.run(QueryOptions::default(), left, right);
                let join = Join::plain(kind);
                for options in [QueryOptions::default(), random_refusals(3).2] {
                    let joined = join.run(options, left, right);
                    // Rows without a match are rows of the input's batch.
                    if kind == JoinType::Inner || kind == JoinType::Left {
                        assert_bounded(&joined, "joined");
                    }
                    assert!(sorted_rows(&joined) == sorted_rows(&whole), "{kind}");
                }
            }
        }
    }
}

fn nested(
    kind: JoinType,
    filter: Option<JoinFilter>,
    left: &RecordBatch,
    right: &RecordBatch,
) -> NestedLoopJoin {
    NestedLoopJoin {
        join_type: kind,
        filter,
        left_columns: left.num_columns(),
        right_columns: right.num_columns(),
        projection: None,
        schema: Join::plain(kind).schema(left, right),
        batch_size: 1000,
    }
}

/// Creates a join filter that records the bytes of its inputs in `seen`.
fn watching(seen: &Arc<Mutex<Vec<usize>>>) -> JoinFilter {
    let seen = seen.clone();
    let expression = watched(DataType::Boolean, &[0, 1], move |pairs| {
        seen.lock().unwrap().push(sum_of(pairs.columns()));
        let (left, right) = (pairs.column(0), pairs.column(1));
        Ok(Arc::new(arrow::compute::kernels::cmp::gt_eq(left, right)?))
    });
    let text = |name| Field::new(name, DataType::Utf8, true);
    JoinFilter {
        expression,
        columns: vec![(JoinSide::Left, 0), (JoinSide::Right, 0)],
        schema: Arc::new(Schema::new(vec![text("l"), text("r")])),
    }
}

#[test]
fn long_texts_are_paired() {
    let [texts, _] = texts();
    let left = keyed(texts);
    let short: ArrayRef = Arc::new(StringArray::from(vec![Some("050"), None, Some("150")]));
    let right = keyed(short);
    for (left, right) in [(&left, &right), (&right, &left)] {
        for kind in [JoinType::Inner, JoinType::Full, JoinType::LeftAnti] {
            let seen = Arc::new(Mutex::new(Vec::new()));
            for filter in [None, Some(watching(&seen))] {
                let some = filter.is_some();
                let (build, probe) = nested(kind, filter, left, right).operators(2, 2);
                let batches = run(|graph| {
                    graph
                        .add_pipeline("build", 2, scan(left, 100), vec![], Arc::new(build))
                        .unwrap();
                    result_of(graph, 2, 1, scan(right, 100), vec![Arc::new(probe)])
                })
                .unwrap();
                if kind == JoinType::Inner {
                    assert_bounded(&batches, "paired");
                    let pairs: usize = batches.iter().map(RecordBatch::num_rows).sum();
                    assert_eq!(pairs == 3 * ROWS, !some);
                }
            }
            let seen = seen.lock().unwrap();
            assert!(seen.len() > ROWS * LENGTH / SLICE_BYTES);
            assert!(seen.iter().all(|bytes| *bytes <= SLICE_BYTES));
        }
    }
}

#[test]
fn long_texts_are_grouped() {
    for texts in texts() {
        let input = keyed(texts);
        let mut expected = sorted_rows(&[input.project(&[0]).unwrap()]);
        expected.dedup();
        for sinks in [1, 3] {
            let plain = [QueryOptions::default()];
            for options in plain.into_iter().chain((0..5).map(|seed| random_refusals(seed).2)) {
                let groups = grouped(options, &input, column(0), sinks);
                assert_bounded(&groups, "grouped");
                assert!(sorted_rows(&groups) == expected, "{sinks}");
            }
        }
    }
}

#[test]
fn long_texts_are_rows_of_sets() {
    for texts in texts() {
        let rows = table([("s", texts)]);
        let batches = run(|graph| {
            let (sinks, source) =
                set_operation::new(SetKind::IntersectAll, 2, rows.schema(), 1000).unwrap();
            for sink in sinks {
                graph.add_pipeline("child", 1, scan(&rows, 50), vec![], Arc::new(sink)).unwrap();
            }
            result_of(graph, 1, 1, Arc::new(source), vec![])
        })
        .unwrap();
        assert_bounded(&batches, "a set");
        assert!(sorted_rows(&batches) == sorted_rows(&[rows]));
    }
}

/// Creates a projection of the upper-case text of column 0; `seen` records the bytes of each call.
fn upper(seen: &Arc<Mutex<Vec<usize>>>, max_rows: usize) -> Projection {
    let seen = seen.clone();
    let expression = watched(DataType::Utf8, &[0], move |rows| {
        seen.lock().unwrap().push(sum_of(&rows.columns()[..1]));
        if rows.num_rows() > max_rows {
            return Err(ArrowError::OffsetOverflowError(usize::MAX).into());
        }
        let texts = arrow::compute::cast(rows.column(0), &DataType::Utf8)?;
        let texts = texts.as_string::<i32>().iter().map(|text| text.map(str::to_uppercase));
        Ok(Arc::new(texts.collect::<StringArray>()))
    });
    let field = |name, kind| Field::new(name, kind, true);
    let schema = Schema::new(vec![field("s", DataType::Utf8), field("n", DataType::Int32)]);
    Projection::new(vec![expression, column(1)], Arc::new(schema))
}

#[test]
fn projections_are_computed_in_slices() {
    for texts in texts() {
        let input = keyed(texts);
        let expected: Vec<_> =
            rows(std::slice::from_ref(&input)).iter().map(|row| row.replace('x', "X")).collect();
        for max_rows in [1, 3, ROWS] {
            let seen = Arc::new(Mutex::new(Vec::new()));
            let batches = streamed(&input, ROWS, vec![Arc::new(upper(&seen, max_rows))]);
            assert!(rows(&batches) == expected);
            let seen = seen.lock().unwrap();
            assert!(seen.len() > 1 && seen.iter().all(|bytes| *bytes <= SLICE_BYTES));
        }
    }
}

#[test]
fn an_overflow_of_one_row_is_an_error() {
    let input = keyed(texts()[0].slice(0, 10));
    let upper = Arc::new(upper(&Arc::default(), 0));
    let result = run(|graph| result_of(graph, 1, 1, scan(&input, 10), vec![upper]));
    assert!(result.unwrap_err().to_string().contains("overflow"));
}

/// Creates a filter by a predicate over column 0 that is `value` for all rows; `on_call` gets the
/// bytes of each call.
fn constant(value: bool, on_call: impl Fn(usize) + Send + Sync + 'static) -> Arc<dyn Operator> {
    let predicate = watched(DataType::Boolean, &[0], move |rows| {
        on_call(sum_of(rows.columns()));
        Ok(Arc::new(BooleanArray::from(vec![value; rows.num_rows()])))
    });
    Arc::new(Filter::new(predicate, None))
}

#[test]
fn filters_are_evaluated_in_slices() {
    for texts in texts() {
        let input = keyed(texts);
        let all = rows(std::slice::from_ref(&input));
        for value in [true, false] {
            let seen = Arc::new(Mutex::new(Vec::new()));
            let calls = seen.clone();
            let filter = constant(value, move |bytes| calls.lock().unwrap().push(bytes));
            let number = Arc::new(Filter::new(less(), None));
            let passed = streamed(&input, ROWS, vec![number, filter]);
            let expected = if value { &all[..ROWS / 2] } else { &[] };
            assert!(rows(&passed) == expected);
            let seen = seen.lock().unwrap();
            assert!(seen.len() > 1 && seen.iter().all(|bytes| *bytes <= SLICE_BYTES));
        }
    }
}

/// Creates a predicate for the first half of the rows, by row number.
fn less() -> Arc<dyn PhysicalExpr> {
    let half = datafusion_physical_expr::expressions::lit(ROWS as i32 / 2);
    Arc::new(BinaryExpr::new(column(1), BinaryOperator::Lt, half))
}

#[test]
fn a_cancel_is_heard_between_two_slices() {
    let input = keyed(texts()[0].clone());
    let query = QueryContext::new(&EXECUTOR, QueryOptions::default());
    let calls = Arc::new(AtomicUsize::new(0));
    let (cancelled, counted) = (query.clone(), calls.clone());
    let filter = constant(false, move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        cancelled.cancel();
    });
    let mut graph = Graph::new();
    let readers = result_of(&mut graph, 1, 1, scan(&input, ROWS), vec![filter]);
    let running = graph.start(&query).unwrap();
    let streams = RowStream::of_query(&running, readers);
    wait_idle(&query);
    let answer = streams.into_iter().next().unwrap().into_blocking_iter().next();
    assert!(matches!(answer, Some(Err(Error::Cancelled { .. }))));
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}
