//! Compares the matching with a naive one that tries every pairing.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch};
use proptest::prelude::*;

use super::{MultisetMatch, Tolerance};
use crate::verify::ResultOrder;
use crate::verify::table::{Layout, Table};

/// A coarse tolerance: small numbers form long chains of near values in which the first pairing is
/// often wrong.
const COARSE: Tolerance = Tolerance { relative: 0.0, absolute: 1.5 };

type Row = (i64, i8, i8);

fn table(rows: &[Row]) -> Table {
    let columns: [(&str, ArrayRef); 3] = [
        ("n", Arc::new(rows.iter().map(|row| Some(row.0)).collect::<Int64Array>())),
        ("x", Arc::new(rows.iter().map(|row| Some(f64::from(row.1))).collect::<Float64Array>())),
        ("y", Arc::new(rows.iter().map(|row| Some(f64::from(row.2))).collect::<Float64Array>())),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let order = ResultOrder::unordered();
    Layout::new(&batch.schema(), &order).unwrap().table("test", &[batch]).unwrap()
}

fn near(a: &Row, b: &Row) -> bool {
    a.0 == b.0 && (a.1 - b.1).abs() <= 1 && (a.2 - b.2).abs() <= 1
}

/// Returns whether every left row finds a partner of its own, by trying all pairings.
fn naive(left: &[Row], right: &[Row]) -> bool {
    let Some((first, rest)) = left.split_first() else { return true };
    (0..right.len()).any(|partner| {
        let mut others = right.to_vec();
        let candidate = others.swap_remove(partner);
        near(first, &candidate) && naive(rest, &others)
    })
}

fn rows() -> impl Strategy<Value = Vec<Row>> {
    proptest::collection::vec((0..2i64, 0..6i8, 0..4i8), 0..8)
}

/// Returns rows, and the same rows in another order with every float moved by at most the
/// tolerance.
fn moved() -> impl Strategy<Value = (Vec<Row>, Vec<Row>)> {
    let row = ((0..2i64, 0..6i8, 0..4i8), -1..=1i8, -1..=1i8);
    proptest::collection::vec(row, 0..8).prop_flat_map(|rows| {
        let left: Vec<_> = rows.iter().map(|row| row.0).collect();
        let right: Vec<_> = rows.iter().map(|((n, x, y), dx, dy)| (*n, x + dx, y + dy)).collect();
        (Just(left), Just(right).prop_shuffle())
    })
}

fn all(rows: &[Row]) -> Vec<usize> {
    (0..rows.len()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn finds_a_complete_pairing_exactly_when_there_is_one(left in rows(), right in rows()) {
        let (left_table, right_table) = (table(&left), table(&right));
        let pair = MultisetMatch { left: &left_table, right: &right_table, tolerance: COARSE };
        prop_assert_eq!(pair.subset(all(&left), all(&right)).is_none(), naive(&left, &right));
        let equal = left.len() == right.len() && naive(&left, &right);
        prop_assert_eq!(pair.equal(all(&left), all(&right)).is_none(), equal);
    }

    #[test]
    fn finds_the_pairing_of_moved_rows((left, right) in moved()) {
        let (left_table, right_table) = (table(&left), table(&right));
        let pair = MultisetMatch { left: &left_table, right: &right_table, tolerance: COARSE };
        prop_assert_eq!(pair.equal(all(&left), all(&right)), None);
    }
}

#[test]
fn a_large_cluster_of_equal_rows_is_matched_at_once() {
    let rows = vec![(1, 2, 3); 200_000];
    let (left, right) = (table(&rows), table(&rows[1..]));
    let pair = MultisetMatch { left: &left, right: &right, tolerance: COARSE };
    assert_eq!(pair.equal(all(&rows), all(&rows[1..])).unwrap().left, Some(199_999));
    let back = MultisetMatch { left: &right, right: &left, tolerance: COARSE };
    assert_eq!(back.subset(all(&rows[1..]), all(&rows)), None);
}
