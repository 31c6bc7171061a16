//! The shipped answers as an oracle: accepted and rejected results.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Decimal128Array, Int64Array, RecordBatch, StringArray, StringViewArray,
};
use gatework::verify::ResultOrder;

use super::check;

/// The result of query 12, whose answer is `MAIL 6202 9324` and `SHIP 6200 9262`.
fn q12(modes: [&str; 2], high: [i64; 2]) -> RecordBatch {
    let columns: [(&str, ArrayRef); 3] = [
        ("l_shipmode", Arc::new(StringViewArray::from(modes.to_vec()))),
        ("high_line_count", Arc::new(Int64Array::from(high.to_vec()))),
        ("low_line_count", Arc::new(Int64Array::from(vec![9324, 9262]))),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

#[test]
fn right_and_wrong_results() {
    let order = ResultOrder::by_columns([0]);
    check(12, &[q12(["MAIL", "SHIP"], [6202, 6200])], &order).unwrap();
    let wrong = check(12, &[q12(["MAIL", "SHIP"], [6202, 6201])], &order).unwrap_err();
    assert!(wrong.contains("row 2 (SHIP, 6201, 9262) is not expected"), "{wrong}");
    assert!(check(12, &[q12(["SHIP", "MAIL"], [6200, 6202])], &order).is_err());
    assert!(check(12, &[q12(["MAIL", "SHIP"], [6202, 6200]).slice(0, 1)], &order).is_err());
    assert!(check(12, &[], &order).is_err());
    assert!(check(13, &[q12(["MAIL", "SHIP"], [6202, 6200])], &order).is_err());
    assert!(check(23, &[], &order).is_err());
}

#[test]
fn decimals_are_right_if_they_round_to_the_answer() {
    // The answer to query 6 is 123141078.23.
    let q6 = |unscaled| {
        let revenue =
            Decimal128Array::from(vec![unscaled]).with_precision_and_scale(25, 4).unwrap();
        let batch =
            RecordBatch::try_from_iter([("revenue", Arc::new(revenue) as ArrayRef)]).unwrap();
        check(6, &[batch], &ResultOrder::unordered())
    };
    q6(1_231_410_782_283).unwrap();
    q6(1_231_410_782_349).unwrap();
    assert!(q6(1_231_410_782_360).is_err());
    assert!(q6(1_231_410_782_240).is_err());
}

#[test]
fn a_ratio_is_right_to_a_millionth() {
    let q17 = |ratio| {
        let ratio = arrow::array::Float64Array::from(vec![ratio]);
        let batch =
            RecordBatch::try_from_iter([("avg_yearly", Arc::new(ratio) as ArrayRef)]).unwrap();
        check(17, &[batch], &ResultOrder::unordered())
    };
    q17(2_438_842.38 / 7.0).unwrap();
    assert!(q17(348_405.0).is_err());
}

#[test]
fn keys_are_cut_as_in_the_answer() {
    let keys: ArrayRef = Arc::new(StringArray::from(vec!["129760", "34452", "51"]));
    let expected: ArrayRef = Arc::new(StringArray::from(vec!["1297", " 344", "    "]));
    assert_eq!(&super::truncate_keys(&keys), &expected);
}
