//! Every operator treats dictionaries, with NULL keys and NULL values, and run-end encoded columns
//! like plain columns.

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, DictionaryArray, Int8Array, Int32Array, RecordBatch, RunArray, StringArray,
    },
    compute::SortOptions,
    datatypes::{DataType, Field, Int32Type, Schema},
};
use datafusion_common::JoinType;
use datafusion_expr::WindowFrame;
use datafusion_functions_aggregate::count::count_udaf;
use datafusion_physical_expr::{
    aggregate::AggregateExprBuilder,
    window::{PlainAggregateWindowExpr, WindowExpr},
};
use gatework_runtime::pipeline::QueryOptions;

use super::graphs::{Join, MORSEL, column, grouped, keyed, sorted};
use crate::{
    set_operation::{self, SetKind},
    test_support::{random_refusals, result_of, rows, run, run_with, scan, sorted_rows, unlimited},
    window,
};

type Texts = Vec<Option<&'static str>>;

fn left() -> Texts {
    let texts = [Some("x"), None, Some("y"), None, None, Some("x"), Some("z"), Some("z")];
    texts.into_iter().cycle().take(20).collect()
}

fn right() -> Texts {
    vec![Some("x"), None, Some("y"), Some("y"), Some("w"), None, None, Some("w"), Some("w")]
}

fn plain(texts: &Texts) -> ArrayRef {
    Arc::new(StringArray::from(texts.clone()))
}

/// Encodes every second NULL as a NULL key, the others as keys of a NULL value.
fn dictionary(texts: &Texts) -> ArrayRef {
    let values = vec![None, Some("unused"), Some("w"), Some("x"), Some("y"), Some("z")];
    let mut nulls = 0;
    let key = |text: &Option<&str>| match text {
        Some(_) => values.iter().position(|value| value == text).map(|key| key as i8),
        None => {
            nulls += 1;
            (nulls % 2 == 0).then_some(0)
        }
    };
    let keys: Int8Array = texts.iter().map(key).collect();
    let array = DictionaryArray::new(keys, Arc::new(StringArray::from(values.clone())));
    assert!(array.null_count() < array.logical_null_count());
    Arc::new(array)
}

/// Encodes runs of equal values, as a slice that does not start with the first run.
fn runs(texts: &Texts) -> ArrayRef {
    let mut all = vec![Some("before"); 3];
    all.extend(texts);
    let runs: Vec<_> = all.chunk_by(|one, other| one == other).collect();
    let ends = runs.iter().scan(0, |end, run| {
        *end += run.len() as i32;
        Some(*end)
    });
    let ends = Int32Array::from_iter_values(ends);
    let values = StringArray::from_iter(runs.iter().map(|run| run[0]));
    let array = RunArray::<Int32Type>::try_new(&ends, &values).unwrap();
    Arc::new(array.slice(3, texts.len()))
}

const ENCODINGS: [fn(&Texts) -> ArrayRef; 2] = [dictionary, runs];

const TYPES: [JoinType; 10] = [
    JoinType::Inner,
    JoinType::Left,
    JoinType::Right,
    JoinType::Full,
    JoinType::LeftSemi,
    JoinType::RightSemi,
    JoinType::LeftAnti,
    JoinType::RightAnti,
    JoinType::LeftMark,
    JoinType::RightMark,
];

/// Checks that the output of `operator` over encoded columns equals its output over plain columns.
fn compare(
    operator: impl Fn(&RecordBatch, &RecordBatch) -> Vec<RecordBatch>,
    in_order: bool,
    what: &str,
) {
    let text = |batches: Vec<RecordBatch>| match in_order {
        true => rows(&batches),
        false => sorted_rows(&batches),
    };
    let both = |encode: fn(&Texts) -> ArrayRef| {
        text(operator(&keyed(encode(&left())), &keyed(encode(&right()))))
    };
    let expected = both(plain);
    assert!(!expected.is_empty() || what.contains("NOT IN"), "{what}");
    for (number, encode) in ENCODINGS.into_iter().enumerate() {
        assert_eq!(both(encode), expected, "{what}, encoding {number}");
    }
}

#[test]
fn encoded_keys_are_joined_as_plain_ones() {
    for kind in TYPES {
        for nulls_equal in [false, true] {
            let join = Join { nulls_equal, ..Join::plain(kind) };
            let what = format!("{kind}, {nulls_equal}");
            compare(|left, right| join.run(QueryOptions::default(), left, right), false, &what);
            // Keys are decoded when rows are spilled.
            for seed in 0..5 {
                compare(|left, right| join.run(random_refusals(seed).2, left, right), false, &what);
            }
            compare(|left, right| join.run(unlimited().1, left, right), false, &what);
        }
    }
}

#[test]
fn not_in_sees_encoded_nulls() {
    let join = Join { null_aware: true, ..Join::plain(JoinType::LeftAnti) };
    let run = |left: &RecordBatch, right: &RecordBatch| {
        sorted_rows(&join.run(QueryOptions::default(), left, right))
    };
    compare(|left, right| join.run(QueryOptions::default(), left, right), false, "NOT IN");
    // The only NULL is one of the values.
    let values: ArrayRef = Arc::new(StringArray::from(vec![Some("x"), None]));
    let one_null = DictionaryArray::new(Int8Array::from(vec![0, 1]), values.clone());
    let one_run = RunArray::<Int32Type>::try_new(&Int32Array::from(vec![1, 2]), &values).unwrap();
    for null in [Arc::new(one_null) as ArrayRef, Arc::new(one_run)] {
        let is_dictionary = matches!(null.data_type(), DataType::Dictionary(..));
        let encode = if is_dictionary { dictionary } else { runs };
        let (left, right) = (keyed(encode(&left())), keyed(null.clone()));
        assert_eq!(run(&left, &right), [""; 0], "a NULL may be any value");
        assert!(!run(&left, &keyed(null.slice(0, 1))).is_empty());
    }
}

#[test]
fn encoded_keys_are_grouped_as_plain_ones() {
    for sinks in [1, 3] {
        let plain = |left: &RecordBatch, _: &RecordBatch| {
            grouped(QueryOptions::default(), left, column(0), sinks)
        };
        compare(plain, false, "groups");
        for seed in 0..10 {
            let limited = |left: &RecordBatch, _: &RecordBatch| {
                grouped(random_refusals(seed).2, left, column(0), sinks)
            };
            compare(limited, false, "groups in little memory");
        }
    }
}

#[test]
fn encoded_rows_are_compared_as_plain_ones_by_set_operations() {
    for kind in [SetKind::Intersect, SetKind::IntersectAll, SetKind::Except, SetKind::ExceptAll] {
        let operate = |left: &RecordBatch, right: &RecordBatch| {
            let [left, right] = [left, right].map(|rows| rows.project(&[0]).unwrap());
            run(|graph| {
                let (sinks, source) = set_operation::new(kind, 2, left.schema(), 3).unwrap();
                for (child, sink) in [&left, &right].into_iter().zip(sinks) {
                    graph
                        .add_pipeline("child", 1, scan(child, MORSEL), vec![], Arc::new(sink))
                        .unwrap();
                }
                result_of(graph, 1, 1, Arc::new(source), vec![])
            })
            .unwrap()
        };
        compare(operate, false, &format!("{kind:?}"));
    }
}

#[test]
fn encoded_keys_are_sorted_as_plain_ones() {
    for fetch in [None, Some(5), Some(19)] {
        for order in [(false, false), (false, true), (true, false), (true, true)] {
            let order = SortOptions { descending: order.0, nulls_first: order.1 };
            let keys = |options: QueryOptions, rows: &RecordBatch| {
                let sorted = sorted(options, rows, column(0), order, fetch, 2);
                sorted.iter().map(|rows| rows.project(&[0]).unwrap()).collect()
            };
            let what = format!("{fetch:?} {order:?}");
            compare(|left, _| keys(QueryOptions::default(), left), true, &what);
            for seed in 0..5 {
                compare(|left, _| keys(random_refusals(seed).2, left), true, &what);
            }
        }
    }
}

/// Counts the rows in each row's partition.
fn counted(rows: &RecordBatch) -> Vec<RecordBatch> {
    let count = AggregateExprBuilder::new(count_udaf(), vec![column(1)])
        .schema(rows.schema())
        .alias("count")
        .build()
        .unwrap();
    let frame = Arc::new(WindowFrame::new(None));
    let count = PlainAggregateWindowExpr::new(Arc::new(count), &[column(0)], &[], frame, None);
    let mut fields = rows.schema().fields().to_vec();
    fields.push(Arc::new(Field::new("count", DataType::Int64, true)));
    let schema = Arc::new(Schema::new(fields));
    let count: Arc<dyn WindowExpr> = Arc::new(count);
    let (sink, source) = window::new(vec![count], schema, 3, 1, 100).unwrap();
    run_with(QueryOptions::default(), |graph| {
        graph.add_pipeline("window", 1, scan(rows, MORSEL), vec![], Arc::new(sink)).unwrap();
        result_of(graph, 1, 1, Arc::new(source), vec![])
    })
    .unwrap()
    .remove(0)
}

#[test]
fn encoded_keys_are_window_partitions_as_plain_ones() {
    // Equal values on the right side are adjacent, except its first NULL.
    compare(|_, right| counted(right), true, "window");
}

/// Ten dictionaries with different values, more than their key type can count.
#[test]
fn groups_are_more_than_a_dictionary_can_have() {
    let piece = |piece: usize| -> ArrayRef {
        let values = StringArray::from_iter_values((0..100).map(|n| format!("{piece}-{n}")));
        Arc::new(DictionaryArray::new(Int8Array::from_iter_values(0..100), Arc::new(values)))
    };
    let pieces: Vec<RecordBatch> = (0..10).map(|number| keyed(piece(number))).collect();
    let schema = pieces[0].schema();
    let group_by = crate::hash_aggregate::GroupBy {
        keys: vec![column(0)],
        sets: vec![vec![false]],
        ..Default::default()
    };
    for sinks in [1, 2] {
        let config = crate::hash_aggregate::AggregateConfig {
            group_by: group_by.clone(),
            aggregates: vec![],
            input: crate::hash_aggregate::AggregateInput::Raw,
            output: crate::hash_aggregate::AggregateResult::Final,
            input_schema: schema.clone(),
            schema: Arc::new(schema.project(&[0]).unwrap()),
            batch_rows: 1000,
            memory_is_limited: true,
        };
        let (build, output) = crate::hash_aggregate::new(config, sinks, sinks).unwrap();
        let source = crate::memory_scan::MemoryScan::new(pieces.clone(), None, 1000);
        let batches = run(|graph| {
            graph
                .add_pipeline("aggregate", sinks, Arc::new(source), vec![], Arc::new(build))
                .unwrap();
            result_of(graph, sinks, 1, Arc::new(output), vec![])
        })
        .unwrap();
        let mut groups = sorted_rows(&batches);
        groups.dedup();
        assert_eq!(groups.len(), 1000);
    }
}
