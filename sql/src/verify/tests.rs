//! Tests of the comparator on mutated results: it must report every mutation, and nothing else.

use std::slice::from_ref;
use std::sync::Arc;

use arrow::array::types::Int32Type;
use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Decimal128Array, DictionaryArray, FixedSizeListArray,
    Float32Array, Float64Array, Int32Array, Int64Array, LargeListArray, LargeStringArray,
    ListArray, MapBuilder, RecordBatch, StringArray, StringBuilder, StringViewArray, StructArray,
    UInt32Array,
};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema};
use proptest::prelude::*;

use super::{Comparison, Difference, ResultOrder, Tolerance, compare};

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter(columns).unwrap()
}

fn ints(values: &[i64]) -> RecordBatch {
    batch(vec![("n", Arc::new(Int64Array::from(values.to_vec())))])
}

fn floats(values: &[f64]) -> RecordBatch {
    batch(vec![("x", Arc::new(Float64Array::from(values.to_vec())))])
}

/// Returns rows `(key, name)`.
fn pairs(rows: &[(i64, &str)]) -> RecordBatch {
    let keys: Int64Array = rows.iter().map(|row| Some(row.0)).collect();
    let names: StringArray = rows.iter().map(|row| Some(row.1)).collect();
    batch(vec![("key", Arc::new(keys)), ("name", Arc::new(names))])
}

fn pick(batch: &RecordBatch, rows: &[u32]) -> RecordBatch {
    take_record_batch(batch, &UInt32Array::from(rows.to_vec())).unwrap()
}

#[track_caller]
fn same(actual: &RecordBatch, expected: &RecordBatch, order: &ResultOrder) {
    if let Err(difference) = compare(from_ref(actual), from_ref(expected), order) {
        panic!("no difference expected: {difference}");
    }
}

#[track_caller]
fn differs(actual: &RecordBatch, expected: &RecordBatch, order: &ResultOrder) -> Difference {
    match compare(from_ref(actual), from_ref(expected), order) {
        Ok(()) => panic!("the difference was not seen"),
        Err(difference) => difference,
    }
}

#[test]
fn rows_in_any_order_are_equal_without_an_order_and_different_with_one() {
    let (a, b) = (ints(&[1, 2, 3]), ints(&[3, 1, 2]));
    same(&a, &b, &ResultOrder::unordered());
    let difference = differs(&a, &b, &ResultOrder::by_columns([0]));
    assert_eq!(
        difference.to_string(),
        "the order differs in key number 1: row 1 (1) stands where (3) is expected"
    );
}

#[test]
fn a_dropped_a_doubled_and_a_changed_row_are_seen() {
    let expected = ints(&[1, 2, 2, 3]);
    for order in [ResultOrder::unordered(), ResultOrder::by_columns([0])] {
        let dropped = differs(&ints(&[1, 2, 3]), &expected, &order).to_string();
        assert!(dropped.starts_with("3 rows where 4 are expected; the expected row"), "{dropped}");
        let doubled = differs(&ints(&[1, 2, 2, 3, 3]), &expected, &order).to_string();
        assert!(doubled.starts_with("5 rows where 4 are expected; row"), "{doubled}");
        differs(&ints(&[1, 1, 2, 3]), &expected, &order);
        differs(&ints(&[1, 2, 3, 3]), &expected, &order);
    }
    let changed = differs(&ints(&[1, 2, 2, 4]), &expected, &ResultOrder::unordered()).to_string();
    assert_eq!(
        changed,
        "the rows differ; row 4 (4) is not expected; the expected row 4 (3) is missing"
    );
}

#[test]
fn ties_may_be_permuted_but_not_changed() {
    let order = ResultOrder::by_columns([0]);
    let expected = pairs(&[(1, "a"), (2, "b"), (2, "c"), (3, "d")]);
    same(&pairs(&[(1, "a"), (2, "c"), (2, "b"), (3, "d")]), &expected, &order);
    let changed = differs(&pairs(&[(1, "a"), (2, "c"), (2, "c"), (3, "d")]), &expected, &order);
    assert_eq!(
        changed.to_string(),
        "rows 2 to 3, which tie on the order keys, differ; row 3 (2, c) is not expected; \
         the expected row 2 (2, b) is missing"
    );
    // The same rows, but moved between ties.
    differs(&pairs(&[(1, "b"), (2, "a"), (2, "c"), (3, "d")]), &expected, &order);
}

#[test]
fn floats_are_equal_up_to_the_tolerance_and_not_beyond() {
    for order in [ResultOrder::unordered(), ResultOrder::by_columns([0])] {
        for magnitude in [1.0, -1.0, 1e-200, 1e200] {
            same(&floats(&[magnitude * (1.0 + 0.9e-9)]), &floats(&[magnitude]), &order);
            differs(&floats(&[magnitude * (1.0 + 1.1e-9)]), &floats(&[magnitude]), &order);
        }
        same(&floats(&[f64::NAN, -0.0]), &floats(&[-f64::NAN, 0.0]), &order);
        same(&floats(&[f64::INFINITY]), &floats(&[f64::INFINITY]), &order);
        differs(&floats(&[f64::INFINITY]), &floats(&[f64::MAX]), &order);
        differs(&floats(&[f64::INFINITY]), &floats(&[f64::NEG_INFINITY]), &order);
        differs(&floats(&[f64::NAN]), &floats(&[0.0]), &order);
        differs(&floats(&[1e-300]), &floats(&[0.0]), &order);
    }
    let absolute = Tolerance { relative: 0.0, absolute: 0.005 };
    let check = |a, b| {
        let order = ResultOrder::unordered();
        Comparison::new(&order).tolerance(absolute).check(&[floats(&[a])], &[floats(&[b])])
    };
    assert!(check(25.522, 25.52).is_ok());
    assert!(check(25.526, 25.52).is_err());
}

#[test]
fn float_keys_that_nearly_tie_may_stand_either_way_round() {
    let order = ResultOrder::by_columns([0, 1]);
    let rows = |x: [f64; 3], names: [&str; 3]| {
        let x: ArrayRef = Arc::new(Float64Array::from(x.to_vec()));
        batch(vec![("x", x), ("name", Arc::new(StringArray::from(names.to_vec())))])
    };
    let expected = rows([1.0, 1.0 + 1e-12, 2.0], ["b", "a", "c"]);
    same(&rows([1.0, 1.0, 2.0], ["a", "b", "c"]), &expected, &order);
    differs(&rows([1.0, 1.0, 2.0], ["a", "c", "b"]), &expected, &order);
    // A real tie on the first key does not excuse the second one.
    let expected = rows([1.0, 1.0, 2.0], ["a", "b", "c"]);
    differs(&rows([1.0, 1.0, 2.0], ["b", "a", "c"]), &expected, &order);
}

#[test]
fn null_is_itself_only() {
    let column =
        |values: Vec<Option<f64>>| batch(vec![("x", Arc::new(Float64Array::from(values)))]);
    let order = ResultOrder::unordered();
    same(&column(vec![None, Some(1.0)]), &column(vec![Some(1.0), None]), &order);
    for other in [Some(0.0), Some(f64::NAN)] {
        differs(&column(vec![None]), &column(vec![other]), &order);
        differs(&column(vec![other]), &column(vec![None]), &order);
    }
    let column = |values: Vec<Option<i64>>| batch(vec![("n", Arc::new(Int64Array::from(values)))]);
    same(&column(vec![None, None]), &column(vec![None, None]), &ResultOrder::by_columns([0]));
    differs(&column(vec![None]), &column(vec![Some(0)]), &order);
    let column =
        |values: Vec<Option<&str>>| batch(vec![("s", Arc::new(StringArray::from(values)))]);
    differs(&column(vec![None]), &column(vec![Some("")]), &order);
}

#[test]
fn layouts_of_one_logical_type_are_equal() {
    let strings = ["a", "", "longer than twelve bytes"];
    let expected = batch(vec![("s", Arc::new(StringArray::from(strings.to_vec())))]);
    let dictionary: DictionaryArray<Int32Type> = strings.into_iter().collect();
    let layouts: [ArrayRef; 3] = [
        Arc::new(LargeStringArray::from(strings.to_vec())),
        Arc::new(StringViewArray::from(strings.to_vec())),
        Arc::new(dictionary),
    ];
    for layout in layouts {
        same(&batch(vec![("s", layout)]), &expected, &ResultOrder::by_columns([0]));
    }
    let list = |values: Vec<Option<Vec<Option<i32>>>>| -> ArrayRef {
        Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(values))
    };
    let values = vec![Some(vec![Some(1), None]), Some(vec![Some(3), Some(4)]), None];
    let expected = batch(vec![("l", list(values.clone()))]);
    let item = Arc::new(Field::new_list_field(DataType::Int32, true));
    for layout in [
        DataType::LargeList(Arc::clone(&item)),
        DataType::FixedSizeList(Arc::clone(&item), 2),
        DataType::ListView(item),
    ] {
        let column = cast(&list(values.clone()), &layout).unwrap();
        same(&batch(vec![("l", column)]), &expected, &ResultOrder::unordered());
    }
}

#[test]
fn names_and_logical_types_are_compared() {
    let order = ResultOrder::unordered();
    let named = |name: &str, column: ArrayRef| batch(vec![(name, column)]);
    let int: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let difference = differs(&named("a", Arc::clone(&int)), &named("b", Arc::clone(&int)), &order);
    assert_eq!(
        difference.to_string(),
        "column 1 of the actual result is a Int64 where b Int64 is expected"
    );
    differs(
        &named("a", Arc::new(Int32Array::from(vec![1]))),
        &named("a", Arc::clone(&int)),
        &order,
    );
    differs(
        &named("a", Arc::new(Float32Array::from(vec![1.0]))),
        &named("a", Arc::clone(&int)),
        &order,
    );
    let decimal = |scale| -> ArrayRef {
        Arc::new(Decimal128Array::from(vec![100]).with_precision_and_scale(10, scale).unwrap())
    };
    differs(&named("a", decimal(2)), &named("a", decimal(3)), &order);
    let two = batch(vec![("a", Arc::clone(&int)), ("b", int)]);
    let difference = differs(&two, &ints(&[1]), &order);
    assert_eq!(difference.to_string(), "the actual result has 2 columns where 1 are expected");
}

#[test]
fn nested_values_are_compared_exactly() {
    let order = ResultOrder::unordered();
    let list = |values: Vec<Option<i32>>| {
        let list = LargeListArray::from_iter_primitive::<Int32Type, _, _>([Some(values)]);
        batch(vec![("l", Arc::new(list))])
    };
    same(&list(vec![Some(1), None]), &list(vec![Some(1), None]), &order);
    differs(&list(vec![Some(1), None]), &list(vec![None, Some(1)]), &order);
    differs(&list(vec![Some(1)]), &list(vec![Some(1), None]), &order);
    let structs = |n: i64, s: &str| {
        let parts: Vec<(Arc<Field>, ArrayRef)> = vec![
            (Arc::new(Field::new("n", DataType::Int64, true)), Arc::new(Int64Array::from(vec![n]))),
            (Arc::new(Field::new("s", DataType::Utf8, true)), Arc::new(StringArray::from(vec![s]))),
        ];
        batch(vec![("t", Arc::new(StructArray::from(parts)))])
    };
    same(&structs(1, "a"), &structs(1, "a"), &order);
    differs(&structs(1, "a"), &structs(1, "b"), &order);
    let map = |value: &str| {
        let mut builder = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
        builder.keys().append_value("k");
        builder.values().append_value(value);
        builder.append(true).unwrap();
        batch(vec![("m", Arc::new(builder.finish()))])
    };
    same(&map("v"), &map("v"), &order);
    differs(&map("v"), &map("w"), &order);
    let fixed = |value| {
        let item = Arc::new(Field::new_list_field(DataType::Int32, true));
        let values = Arc::new(Int32Array::from(vec![1, value]));
        batch(vec![("f", Arc::new(FixedSizeListArray::try_new(item, 2, values, None).unwrap()))])
    };
    same(&fixed(2), &fixed(2), &order);
    differs(&fixed(2), &fixed(3), &order);
}

#[test]
fn the_last_tie_under_a_limit_is_a_choice_from_the_unlimited_result() {
    let order = ResultOrder::by_columns([0]).with_limit();
    let unlimited = [pairs(&[(1, "a"), (2, "b"), (2, "c"), (2, "d"), (3, "e")])];
    let expected = [pairs(&[(1, "a"), (2, "b"), (2, "c")])];
    let check = |actual: &[(i64, &str)], order: &ResultOrder| {
        let actual = [pairs(actual)];
        match Comparison::new(order).check(&actual, &expected) {
            Err(difference) if difference.needs_unlimited() => {
                Comparison::new(order).unlimited(&unlimited).check(&actual, &expected)
            }
            other => other,
        }
    };
    assert!(check(&[(1, "a"), (2, "c"), (2, "b")], &order).is_ok());
    assert!(check(&[(1, "a"), (2, "d"), (2, "b")], &order).is_ok());
    let doubled = check(&[(1, "a"), (2, "d"), (2, "d")], &order).unwrap_err();
    assert_eq!(doubled.to_string(), "row 3 (2, d) is not among the rows that LIMIT chooses from");
    assert!(check(&[(1, "a"), (2, "x"), (2, "b")], &order).is_err());
    assert!(check(&[(1, "x"), (2, "c"), (2, "b")], &order).is_err(), "not at the boundary");
    assert!(
        check(&[(1, "a"), (2, "d"), (2, "b")], &ResultOrder::by_columns([0])).is_err(),
        "no limit"
    );
    assert!(check(&[(1, "a"), (2, "d"), (3, "e")], &order).is_err(), "another key");
}

#[test]
fn the_first_tie_under_an_offset_is_a_choice_too() {
    let order = ResultOrder::by_columns([0]).with_offset();
    let unlimited = [pairs(&[(1, "a"), (1, "b"), (2, "c")])];
    let (actual, expected) = ([pairs(&[(1, "a"), (2, "c")])], [pairs(&[(1, "b"), (2, "c")])]);
    let difference = compare(&actual, &expected, &order).unwrap_err();
    assert!(difference.needs_unlimited());
    assert!(
        difference.to_string().starts_with("rows 1 to 1 are a choice among equals"),
        "{difference}"
    );
    assert!(Comparison::new(&order).unlimited(&unlimited).check(&actual, &expected).is_ok());
}

#[test]
fn empty_results_and_results_without_columns() {
    let order = ResultOrder::by_columns([0]);
    assert!(compare(&[], &[], &order).is_ok());
    assert!(compare(&[], &[ints(&[])], &order).is_ok());
    assert!(compare(&[ints(&[]), ints(&[])], &[], &order).is_ok());
    assert!(compare(&[], &[ints(&[1])], &order).is_err());
    let rows = |count| {
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(count));
        RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &options).unwrap()
    };
    same(&rows(3), &rows(3), &ResultOrder::unordered());
    differs(&rows(2), &rows(3), &ResultOrder::unordered());
    differs(&ints(&[1]), &ints(&[1]), &ResultOrder::by_columns([7]));
}

/// One generated row: a narrow key that makes ties, and one column of every kind of comparison.
type Row = (i64, Option<i64>, Option<bool>, Option<String>, Option<f64>, Option<f64>);

fn row() -> impl Strategy<Value = Row> {
    let float =
        || proptest::option::of(prop_oneof![Just(0.0), Just(f64::NAN), -3.0..3.0, -1e12..1e12]);
    let text = proptest::option::of("[ab]{0,2}");
    (
        0..4i64,
        proptest::option::of(0..3i64),
        proptest::option::of(any::<bool>()),
        text,
        float(),
        float(),
    )
}

fn table(rows: &[Row]) -> RecordBatch {
    batch(vec![
        ("key", Arc::new(rows.iter().map(|row| Some(row.0)).collect::<Int64Array>())),
        (
            "date",
            Arc::new(rows.iter().map(|row| row.1.map(|day| day as i32)).collect::<Date32Array>()),
        ),
        ("flag", Arc::new(rows.iter().map(|row| row.2).collect::<BooleanArray>())),
        ("text", Arc::new(rows.iter().map(|row| row.3.clone()).collect::<StringArray>())),
        ("x", Arc::new(rows.iter().map(|row| row.4).collect::<Float64Array>())),
        ("y", Arc::new(rows.iter().map(|row| row.5).collect::<Float64Array>())),
    ])
}

/// Returns the rows sorted by key, and a permutation of them that keeps the keys sorted and adds a
/// small error to every float.
fn variants() -> impl Strategy<Value = (Vec<Row>, Vec<Row>, usize)> {
    let rows = proptest::collection::vec(row(), 1..40);
    (rows, any::<u64>(), -0.3e-9..0.3e-9f64, 1..9usize).prop_map(|(mut rows, seed, error, size)| {
        rows.sort_by_key(|row| row.0);
        let mut other: Vec<_> = rows.iter().cloned().enumerate().collect();
        other.sort_by_key(|(position, row)| {
            let hash =
                (*position as u64 + 1).wrapping_mul(seed | 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            (row.0, hash)
        });
        let shift = |row: Row| {
            let shift = |x: Option<f64>| x.map(|x| x * (1.0 + error));
            (row.0, row.1, row.2, row.3, shift(row.4), shift(row.5))
        };
        (rows, other.into_iter().map(|(_, row)| shift(row)).collect(), size)
    })
}

fn in_batches(rows: &[Row], size: usize) -> Vec<RecordBatch> {
    rows.chunks(size).map(table).collect()
}

proptest! {
    #[test]
    fn permuted_ties_other_batches_and_rounding_are_no_difference(
        (rows, other, size) in variants(),
    ) {
        for order in [ResultOrder::unordered(), ResultOrder::by_columns([0])] {
            let result = compare(&in_batches(&other, size), &[table(&rows)], &order);
            prop_assert!(result.is_ok(), "{}", result.unwrap_err());
        }
    }

    #[test]
    fn every_mutation_is_seen(
        (rows, other, size) in variants(),
        at in any::<prop::sample::Index>(),
        kind in 0..6,
    ) {
        let at = at.index(other.len());
        let mut mutated = other.clone();
        match kind {
            0 => { mutated.remove(at); }
            1 => mutated.insert(at, other[at].clone()),
            2 => mutated[at].1 = Some(99),
            3 => mutated[at].3 = Some("changed".to_owned()),
            4 => mutated[at].4 = mutated[at]
                .4
                .map_or(Some(0.5), |x| if x.is_nan() { None } else { Some(x + 1e6) }),
            _ => mutated[at].2 = match mutated[at].2 { None => Some(true), Some(_) => None },
        }
        for order in [ResultOrder::unordered(), ResultOrder::by_columns([0])] {
            prop_assert!(compare(&in_batches(&mutated, size), &[table(&rows)], &order).is_err());
        }
    }

    #[test]
    fn two_rows_with_other_keys_cannot_be_swapped((rows, _, _) in variants()) {
        let Some(at) = rows.windows(2).position(|pair| pair[0].0 != pair[1].0) else {
            return Ok(())
        };
        let mut order: Vec<u32> = (0..rows.len() as u32).collect();
        order.swap(at, at + 1);
        let (expected, swapped) = (table(&rows), pick(&table(&rows), &order));
        prop_assert!(
            compare(from_ref(&swapped), from_ref(&expected), &ResultOrder::unordered()).is_ok()
        );
        prop_assert!(
            compare(from_ref(&swapped), from_ref(&expected), &ResultOrder::by_columns([0])).is_err()
        );
    }

    #[test]
    fn any_choice_at_the_limit_is_accepted_and_a_foreign_row_is_not(
        (rows, other, _) in variants(),
        cut in 1..40usize,
    ) {
        let cut = cut.min(rows.len());
        let order = ResultOrder::by_columns([0]).with_limit();
        let (expected, unlimited) = ([table(&rows[..cut])], [table(&rows)]);
        let decide = |actual: &[RecordBatch]|
            Comparison::new(&order).unlimited(&unlimited).check(actual, &expected);
        let chosen = decide(&[table(&other[..cut])]);
        prop_assert!(chosen.is_ok(), "{}", chosen.unwrap_err());
        let mut foreign = other[..cut].to_vec();
        foreign[cut - 1].3 = Some("foreign".to_owned());
        prop_assert!(decide(&[table(&foreign)]).is_err());
    }
}

/// Hidden keys order a result as visible ones do; rows that tie on them come in any order.
#[tokio::test]
async fn hidden_keys_are_compared() {
    let session = datafusion::prelude::SessionContext::new();
    let made = session.sql("CREATE TABLE t AS VALUES (3, 'c'), (1, 'a'), (2, 'b'), (2, 'z')").await;
    made.unwrap().collect().await.unwrap();
    for sql in [
        "SELECT column2 FROM t ORDER BY column1",
        "SELECT x FROM (SELECT column2 AS x, column1 AS k FROM t) AS s ORDER BY s.k LIMIT 10",
    ] {
        let frame = session.sql(sql).await.unwrap();
        let (plan, keys) = super::with_hidden_keys(frame.logical_plan()).unwrap();
        let keyed = datafusion::prelude::DataFrame::new(session.state(), plan);
        let expected = keyed.collect().await.unwrap();
        let order = ResultOrder::of(frame.logical_plan());
        let schema = frame.collect().await.unwrap()[0].schema();
        let comparison = Comparison::new(&order).hidden_keys(keys);
        let check = |names: [&str; 4]| {
            let names: ArrayRef = Arc::new(StringArray::from(names.to_vec()));
            let column = cast(&names, schema.field(0).data_type()).unwrap();
            let actual = RecordBatch::try_new(schema.clone(), vec![column]).unwrap();
            comparison.check(&[actual], &expected)
        };
        check(["a", "b", "z", "c"]).unwrap();
        check(["a", "z", "b", "c"]).unwrap();
        check(["b", "a", "z", "c"]).unwrap_err();
    }
    let shown = session.sql("SELECT * FROM t ORDER BY column1").await.unwrap();
    assert!(super::with_hidden_keys(shown.logical_plan()).is_none());
}
