//! No row among the first of its partition is dropped, and most of the others are.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Int64Array, RecordBatch, StringArray},
    compute::SortOptions,
};
use datafusion_physical_expr::expressions::Column;
use gatework_runtime::pipeline::{GreedyPool, QueryOptions};
use proptest::prelude::*;

use super::*;
use crate::{
    filter::Filter,
    test_support::{ints, result_of, rows, run, run_with, scan, table},
};

/// Texts that share more than the 16 bytes of a key that are compared.
const TEXTS: [&str; 5] =
    ["", "a", "a rather long text, 1", "a rather long text, 2", "a rather long text, 11"];

/// Codes of a partition, and of an integer and a text as order keys.
type Row = (Option<u8>, Option<u8>, Option<u8>);

fn input(rows: &[Row]) -> RecordBatch {
    let text = |code: Option<u8>| code.map(|code| TEXTS[usize::from(code)]);
    table([
        ("partition", ints(rows.iter().map(|row| row.0.map(i32::from)))),
        ("number", ints(rows.iter().map(|row| row.1.map(i32::from)))),
        ("text", Arc::new(rows.iter().map(|row| text(row.2)).collect::<StringArray>()) as ArrayRef),
        ("row", ints((0..rows.len() as i32).map(Some))),
    ])
}

fn column(index: usize) -> Arc<dyn PhysicalExpr> {
    Arc::new(Column::new("column", index))
}

fn ranking(
    partition_by: &[usize],
    options: [SortOptions; 2],
    rows: usize,
    by: RankedBy,
) -> Ranking {
    let order_key = |(index, options)| PhysicalSortExpr { expr: column(index), options };
    Ranking {
        partition_by: partition_by.iter().map(|index| column(*index)).collect(),
        order_by: [1, 2].into_iter().zip(options).map(order_key).collect(),
        rows,
        by,
    }
}

fn filtered(table: &RecordBatch, ranking: Ranking, morsel: usize, tasks: usize) -> Vec<usize> {
    let filter = Arc::new(RankingFilter::new(ranking).unwrap());
    let batches = run(|graph| result_of(graph, tasks, 1, scan(table, morsel), vec![filter]));
    row_numbers(&batches.unwrap())
}

fn row_numbers(batches: &[RecordBatch]) -> Vec<usize> {
    let numbers = rows(batches).into_iter().map(|row| row.rsplit('|').next().unwrap().parse());
    let mut numbers: Vec<usize> = numbers.map(Result::unwrap).collect();
    numbers.sort_unstable();
    numbers
}

/// Returns a number of the same order as a key.
fn place(key: Option<u8>, is_text: bool, options: SortOptions) -> i64 {
    let value = key.map(|code| match is_text {
        true => {
            let mut sorted = TEXTS;
            sorted.sort_unstable();
            sorted.iter().position(|text| *text == TEXTS[usize::from(code)]).unwrap() as i64
        }
        false => i64::from(code),
    });
    match (value, options) {
        (None, options) if options.nulls_first => -100,
        (None, _) => 100,
        (Some(value), options) if options.descending => -value,
        (Some(value), _) => value,
    }
}

/// Returns the numbers of the rows whose rank is at most `n`.
fn first_rows(rows: &[Row], options: [SortOptions; 2], n: usize, by: RankedBy) -> Vec<usize> {
    let key = |row: &Row| [place(row.1, false, options[0]), place(row.2, true, options[1])];
    let is_first = |row: &&usize| {
        let row = &rows[**row];
        let partition = rows.iter().filter(|other| other.0 == row.0);
        let mut before: Vec<_> = partition.map(key).filter(|other| *other < key(row)).collect();
        if by == RankedBy::Keys {
            before.sort_unstable();
            before.dedup();
        }
        before.len() < n
    };
    let numbers: Vec<usize> = (0..rows.len()).collect();
    numbers.iter().filter(is_first).copied().collect()
}

fn options() -> impl Strategy<Value = SortOptions> {
    (any::<bool>(), any::<bool>())
        .prop_map(|(descending, nulls_first)| SortOptions { descending, nulls_first })
}

fn row() -> impl Strategy<Value = Row> {
    let code = |codes| prop::option::weighted(0.9, 0..codes);
    (code(3_u8), code(6_u8), code(5_u8))
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn the_first_rows_of_each_partition_pass(
        rows in prop::collection::vec(row(), 0..60),
        options in [options(), options()],
        n in 1..5_usize,
        by in prop::sample::select(vec![RankedBy::Rows, RankedBy::Keys]),
        morsel in 1..20_usize,
        tasks in 1..3_usize,
    ) {
        let passed = filtered(&input(&rows), ranking(&[0], options, n, by), morsel, tasks);
        let first = first_rows(&rows, options, n, by);
        let missing: Vec<_> = first.iter().filter(|row| !passed.contains(row)).collect();
        prop_assert!(missing.is_empty(), "{missing:?} of {first:?} are missing");
    }
}

const ASCENDING: SortOptions = SortOptions { descending: false, nulls_first: false };

/// Rows in `partitions` partitions, whose numbers get greater.
fn ascending(rows: usize, partitions: usize) -> RecordBatch {
    let text: StringArray = std::iter::repeat_n(Some("text"), rows).collect();
    table([
        ("partition", ints((0..rows).map(|row| Some((row % partitions) as i32)))),
        ("number", ints((0..rows as i32).map(Some))),
        ("text", Arc::new(text)),
        ("row", ints((0..rows as i32).map(Some))),
    ])
}

#[test]
fn rows_behind_the_first_are_dropped() {
    for by in [RankedBy::Rows, RankedBy::Keys] {
        for (partition_by, partitions) in [(&[0][..], 7), (&[], 1)] {
            let ranking = ranking(partition_by, [ASCENDING; 2], 3, by);
            let passed = filtered(&ascending(1000, 7), ranking, 50, 1);
            assert_eq!(passed, (0..3 * partitions).collect::<Vec<_>>());
        }
    }
}

#[test]
fn rows_that_an_earlier_filter_dropped_do_not_count() {
    let odd = Int64Array::from_iter_values((0..1000).map(|row| row % 2));
    let mut columns = ascending(1000, 7).columns().to_vec();
    columns[3] = Arc::new(odd);
    let [partition, number, text, odd] = columns.try_into().unwrap();
    let table = table([
        ("partition", partition),
        ("number", number.clone()),
        ("text", text),
        ("odd", odd),
        ("row", number),
    ]);
    let is_odd = datafusion_physical_expr::expressions::binary(
        column(3),
        datafusion_expr::Operator::Eq,
        datafusion_physical_expr::expressions::lit(1_i64),
        &table.schema(),
    );
    let filters: Vec<Arc<dyn Operator>> = vec![
        Arc::new(Filter::new(is_odd.unwrap(), None)),
        Arc::new(RankingFilter::new(ranking(&[], [ASCENDING; 2], 2, RankedBy::Rows)).unwrap()),
    ];
    let batches = run(|graph| result_of(graph, 1, 1, scan(&table, 50), filters)).unwrap();
    assert_eq!(row_numbers(&batches), [1, 3]);
}

#[test]
fn a_filter_that_drops_little_or_needs_too_much_memory_lets_all_rows_pass() {
    let all: Vec<usize> = (0..3000).collect();
    // Each row is the first of its partition, or before all rows so far.
    let distinct = ranking(&[3], [ASCENDING; 2], 1, RankedBy::Rows);
    assert_eq!(filtered(&ascending(3000, 7), distinct, 50, 1), all);
    let descending = SortOptions { descending: true, nulls_first: true };
    let better = ranking(&[0], [descending; 2], 3, RankedBy::Rows);
    assert_eq!(filtered(&ascending(3000, 7), better, 50, 1), all);
    // 100 keys for each of seven partitions are more than a task keeps.
    let large = ranking(&[0], [ASCENDING; 2], 100, RankedBy::Rows);
    assert_eq!(filtered(&ascending(3000, 7), large, 50, 1), all);
    let options = QueryOptions { memory: Arc::new(GreedyPool::new(16)), ..QueryOptions::default() };
    let filter = RankingFilter::new(ranking(&[0], [ASCENDING; 2], 3, RankedBy::Rows)).unwrap();
    let source = scan(&ascending(3000, 7), 50);
    let answer =
        run_with(options, |graph| result_of(graph, 1, 1, source, vec![Arc::new(filter)])).unwrap();
    assert!(row_numbers(&answer.into_iter().flatten().collect::<Vec<_>>()).len() > 2900);
}
