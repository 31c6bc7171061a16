//! More rows than a build morsel, an unmatched-scan morsel or a chunk of pairs has; memory;
//! cancellation.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{AsArray, Int64Array, RecordBatch, StringArray},
    datatypes::Int32Type,
};
use datafusion_common::JoinType;
use gatework_runtime::{
    Error,
    pipeline::{Graph, GreedyPool, QueryContext, QueryOptions, RowStream},
};

use super::{Case, KeyKind, TYPES};
use crate::test_support::{EXECUTOR, ints, run_with, scan, table, wait_idle};

pub(super) const LEFT_ROWS: i32 = 150_000;
const RIGHT_ROWS: i32 = 40_000;

/// The keys of both sides: some only on the left, some only on the right, some twice, some NULL.
pub(super) fn left_key(row: i32) -> Option<i32> {
    (row % 1000 != 7).then_some(row % 100_000)
}

fn right_key(row: i32) -> Option<i32> {
    (row % 501 != 0).then_some(row * 5)
}

pub(super) fn rows_of(kind: KeyKind, rows: i32, key: fn(i32) -> Option<i32>) -> RecordBatch {
    let numbers = ("row", ints((0..rows).map(Some)));
    let values = ("value", ints((0..rows).map(|row| Some(row % 3))));
    let keys = || (0..rows).map(key);
    match kind {
        KeyKind::Longs => {
            let high =
                keys().map(|key| key.map(|key| i64::from(key) << 40)).collect::<Int64Array>();
            let low = keys().map(|key| key.map(|key| i64::from(key % 10))).collect::<Int64Array>();
            table([("key", Arc::new(high)), ("key2", Arc::new(low)), values, numbers])
        }
        KeyKind::Text => {
            let text = keys().map(|key| key.map(|key| format!("key number {key}")));
            table([("key", Arc::new(text.collect::<StringArray>())), values, numbers])
        }
        _ => table([("key", ints(keys())), values, numbers]),
    }
}

/// A row of the result: the numbers of its left and right row, and the mark.
type Row = (Option<i32>, Option<i32>, Option<bool>);

pub(super) fn expected(kind: JoinType) -> Vec<Row> {
    let mut by_key: HashMap<i32, Vec<i32>> = HashMap::new();
    for row in 0..RIGHT_ROWS {
        by_key.entry(right_key(row).unwrap_or(-1)).or_default().push(row);
    }
    by_key.remove(&-1);
    let mut found = vec![false; RIGHT_ROWS as usize];
    let mut rows: Vec<Row> = Vec::new();
    for left in 0..LEFT_ROWS {
        let matches = left_key(left).and_then(|key| by_key.get(&key));
        let pairs = matches.into_iter().flatten().copied();
        pairs.clone().for_each(|right| found[right as usize] = true);
        match (kind, matches.is_some()) {
            (JoinType::LeftMark, matched) => rows.push((Some(left), None, Some(matched))),
            (JoinType::LeftSemi, true)
            | (JoinType::LeftAnti | JoinType::Left | JoinType::Full, false) => {
                rows.push((Some(left), None, None));
            }
            (JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full, true) => {
                rows.extend(pairs.map(|right| (Some(left), Some(right), None)));
            }
            _ => {}
        }
    }
    for (right, found) in (0..).zip(found) {
        match (kind, found) {
            (JoinType::RightMark, found) => rows.push((None, Some(right), Some(found))),
            (JoinType::RightSemi, true)
            | (JoinType::RightAnti | JoinType::Right | JoinType::Full, false) => {
                rows.push((None, Some(right), None));
            }
            _ => {}
        }
    }
    rows.sort_unstable();
    rows
}

/// Returns the row numbers of `batches`, whose columns are those of `case`'s projection.
pub(super) fn numbers(kind: JoinType, batches: &[RecordBatch]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for batch in batches {
        let column = |index: usize| batch.column(index).as_primitive::<Int32Type>().iter();
        let mark = || batch.column(1).as_boolean().iter();
        match kind {
            JoinType::LeftSemi | JoinType::LeftAnti => {
                rows.extend(column(0).map(|left| (left, None, None)));
            }
            JoinType::RightSemi | JoinType::RightAnti => {
                rows.extend(column(0).map(|right| (None, right, None)));
            }
            JoinType::LeftMark => {
                rows.extend(column(0).zip(mark()).map(|(left, mark)| (left, None, mark)));
            }
            JoinType::RightMark => {
                rows.extend(column(0).zip(mark()).map(|(right, mark)| (None, right, mark)));
            }
            _ => rows.extend(column(0).zip(column(1)).map(|(left, right)| (left, right, None))),
        }
    }
    rows.sort_unstable();
    rows
}

/// Returns every join type, with keys of each kind in turn, and both sides.
pub(super) fn cases() -> impl Iterator<Item = (Case, RecordBatch, RecordBatch)> {
    let keys = [KeyKind::Int, KeyKind::Longs, KeyKind::Text, KeyKind::Int].into_iter().cycle();
    TYPES.into_iter().zip(keys).map(|(kind, key)| {
        let (left, right) =
            (rows_of(key, LEFT_ROWS, left_key), rows_of(key, RIGHT_ROWS, right_key));
        let case = Case { key, morsel: 7001, batch_rows: 8192, builds: 3, ..Case::plain(kind) };
        (case, left, right)
    })
}

/// Returns the columns of the join's output that [`numbers`] reads.
pub(super) fn numbers_and_mark(case: &Case, left: &RecordBatch, right: &RecordBatch) -> Vec<usize> {
    let fields = case.schema(left, right);
    let wanted = |(_, field): &(usize, &Arc<arrow::datatypes::Field>)| {
        matches!(field.name().as_str(), "row" | "mark")
    };
    fields.fields().iter().enumerate().filter(wanted).map(|(index, _)| index).collect()
}

#[test]
fn many_morsels_fill_one_table() {
    for (case, left, right) in cases() {
        let kind = case.kind;
        let columns = numbers_and_mark(&case, &left, &right);
        let batches = case.run(&left, &right, Some(&columns)).unwrap();
        assert!(numbers(kind, &batches) == expected(kind), "{case:?}");
    }
}

/// 300 × 300 pairs for one key, in chunks of 7, with and without a residual filter.
#[test]
fn many_to_many_pairs_come_in_chunks() {
    let one_key = |rows: i32| rows_of(KeyKind::Int, rows, |_| Some(1));
    for (residual, pairs) in [(false, 90_000), (true, 30_000)] {
        let case = Case { residual, morsel: 100, batch_rows: 7, ..Case::plain(JoinType::Inner) };
        let batches = case.run(&one_key(300), &one_key(300), None).unwrap();
        assert!(batches.iter().all(|batch| batch.num_rows() <= 7));
        assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), pairs);
    }
}

/// 10^10 pairs, if each were tested.
#[test]
fn one_key_on_both_sides_is_matched_once() {
    let one_key = rows_of(KeyKind::Text, 100_000, |_| Some(1));
    let kinds = [JoinType::LeftSemi, JoinType::LeftAnti, JoinType::LeftMark];
    for (kind, rows) in kinds.into_iter().zip([100_000, 0, 100_000]) {
        let case = Case { key: KeyKind::Text, morsel: 8192, batch_rows: 8192, ..Case::plain(kind) };
        let batches = case.run(&one_key, &one_key, None).unwrap();
        assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), rows, "{kind}");
    }
}

#[test]
fn a_long_chain_of_matches_is_cancelled() {
    // 10^10 pairs, none of which passes the filter: only cancellation ends it soon.
    let rows = table([
        ("key", ints((0..100_000).map(|_| Some(1)))),
        ("value", ints((0..100_000).map(|_| Some(1)))),
        ("row", ints((0..100_000).map(Some))),
    ]);
    for kind in [JoinType::Inner, JoinType::LeftSemi, JoinType::RightAnti] {
        let case = Case { residual: true, batch_rows: 8192, morsel: 8192, ..Case::plain(kind) };
        let query = QueryContext::new(&EXECUTOR, QueryOptions::default());
        let mut graph = Graph::new();
        let config = case.config(&rows, &rows, None);
        let readers = case.add(&mut graph, config, scan(&rows, 8192), scan(&rows, 8192), None);
        let running = graph.start(&query).unwrap();
        let streams = RowStream::of_query(&running, readers);
        // Cancellation must end the query at any time.
        query.cancel();
        wait_idle(&query);
        let answer = streams.into_iter().next().unwrap().into_blocking_iter().next();
        assert!(matches!(answer, Some(Err(Error::Cancelled { .. }))), "{kind}");
    }
}

#[test]
fn a_dropped_result_ends_a_join_in_the_middle() {
    let rows = rows_of(KeyKind::Int, 20_000, |_| Some(1));
    let case = Case { batch_rows: 100, morsel: 1000, ..Case::plain(JoinType::Full) };
    let query = QueryContext::new(&EXECUTOR, QueryOptions::default());
    let mut graph = Graph::new();
    let config = case.config(&rows, &rows, None);
    let readers = case.add(&mut graph, config, scan(&rows, 1000), scan(&rows, 1000), None);
    let running = graph.start(&query).unwrap();
    let mut stream =
        RowStream::of_query(&running, readers).into_iter().next().unwrap().into_blocking_iter();
    // One batch was output, so the probe is running: 4 * 10^8 pairs would follow.
    assert_eq!(stream.next().unwrap().unwrap().num_rows(), 100);
    assert!(query.reserved_bytes() > 0);
    drop(stream);
    wait_idle(&query);
}

/// The build side reserves the bytes of its rows, even if they arrive in small slices, and releases
/// them.
#[test]
fn the_build_side_reserves_query_memory() {
    let left = rows_of(KeyKind::Int, 50_000, Some);
    let right = rows_of(KeyKind::Int, 10, Some);
    // Per row: 12 bytes of columns, 16 of key and hash, 4 of chains, and 12 while columns are
    // copied. In addition, 2^17 slots of 8 bytes.
    for (limit, fits) in [(1 << 20, false), (6 << 20, true)] {
        for kind in [JoinType::Inner, JoinType::Full] {
            let memory = Arc::new(GreedyPool::new(limit));
            let options = QueryOptions { memory: memory.clone(), ..QueryOptions::default() };
            let case = Case { batch_rows: 8192, morsel: 100, ..Case::plain(kind) };
            let config = case.config(&left, &right, None);
            let answer = run_with(options, |graph| {
                case.add(graph, config, scan(&left, 100), scan(&right, 1), None)
            });
            match answer {
                Ok(batches) => {
                    let rows: usize = batches[0].iter().map(RecordBatch::num_rows).sum();
                    assert!(fits && rows >= 10, "{limit}, {kind}");
                }
                Err(error) => {
                    assert!(!fits, "{limit}, {kind}: {error}");
                    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
                    assert!(error.to_string().contains("hash join build"), "{error}");
                }
            }
            assert_eq!(memory.reserved(), 0);
        }
    }
}
