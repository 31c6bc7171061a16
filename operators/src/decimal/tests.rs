//! Results equal Arrow's: values that fit 64 bits and values that do not, NULLs, literals on either
//! side.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Decimal128Array, RecordBatch},
    datatypes::{DataType, Field},
};
use datafusion_common::ScalarValue;
use datafusion_expr::Operator;
use datafusion_physical_expr::{
    PhysicalExpr,
    expressions::{BinaryExpr, Column, Literal},
};
use gatework_runtime::scheduler::SplitMix64;

use super::{Decimal64Expr, specialize_decimals};

const ROWS: usize = 3000;

/// Creates a decimal column of values up to `limit`, of which one in seven is NULL.
fn decimals(rng: &mut SplitMix64, limit: i128, precision: u8, scale: i8) -> ArrayRef {
    let mut draw = || {
        let value = (rng.next_below(usize::MAX) as i128) * (rng.next_below(usize::MAX) as i128 + 1);
        let value = value % (limit + 1) * if rng.next_below(2) == 0 { 1 } else { -1 };
        (rng.next_below(7) > 0).then_some(value)
    };
    let column: Decimal128Array = (0..ROWS).map(|_| draw()).collect();
    Arc::new(column.with_precision_and_scale(precision, scale).unwrap())
}

fn column(index: usize) -> Arc<dyn PhysicalExpr> {
    Arc::new(Column::new("column", index))
}

fn literal(value: Option<i128>, precision: u8, scale: i8) -> Arc<dyn PhysicalExpr> {
    Arc::new(Literal::new(ScalarValue::Decimal128(value, precision, scale)))
}

fn check(expr: BinaryExpr, batch: &RecordBatch) {
    let expr: Arc<dyn PhysicalExpr> = Arc::new(expr);
    let specialized = specialize_decimals(expr.clone(), &batch.schema()).unwrap();
    assert!(specialized.is::<Decimal64Expr>(), "{expr}");
    let evaluate = |expr: &Arc<dyn PhysicalExpr>| {
        let answer = expr.evaluate(batch)?;
        answer.into_array(batch.num_rows())
    };
    match (evaluate(&expr), evaluate(&specialized)) {
        (Ok(expected), Ok(answer)) => assert_eq!(&expected, &answer, "{expr}"),
        (Err(expected), Err(error)) => assert_eq!(expected.to_string(), error.to_string()),
        (expected, answer) => panic!("{expr}: {answer:?} instead of {expected:?}"),
    }
}

#[test]
fn results_are_those_of_arrow() {
    let mut rng = SplitMix64::new(5);
    let (small, large) = (i128::from(i64::MAX), 10_i128.pow(37));
    for limits in [[1000, 1000], [small, small], [large, 9], [9, large], [large, large]] {
        for scales in [[2, 2], [0, 4], [6, 1]] {
            let columns = [0, 1].map(|n| decimals(&mut rng, limits[n], 38, scales[n]));
            let [one, other] = columns;
            let batch = RecordBatch::try_from_iter([("one", one), ("other", other)]).unwrap();
            for operator in [Operator::Plus, Operator::Minus, Operator::Multiply] {
                check(BinaryExpr::new(column(0), operator, column(1)), &batch);
                for value in [Some(1), Some(-small), Some(large), None] {
                    let value = || literal(value, 38, 3);
                    check(BinaryExpr::new(column(0), operator, value()), &batch);
                    check(BinaryExpr::new(value(), operator, column(1)), &batch);
                    check(BinaryExpr::new(value(), operator, value()), &batch);
                }
            }
        }
    }
}

#[test]
fn the_edges_of_64_bits() {
    let edges = [i64::MIN, i64::MIN + 1, -1, 0, 1, i64::MAX];
    let beyond = [i128::from(i64::MAX) + 1, i128::from(i64::MIN) - 1];
    let values: Vec<i128> = edges.into_iter().map(i128::from).chain(beyond).collect();
    for one in &values {
        for other in &values {
            let column = |value: &i128| -> ArrayRef {
                let column = Decimal128Array::from(vec![*value]);
                Arc::new(column.with_precision_and_scale(38, 0).unwrap())
            };
            let columns = [("one", column(one)), ("other", column(other))];
            let batch = RecordBatch::try_from_iter(columns).unwrap();
            for operator in [Operator::Plus, Operator::Minus, Operator::Multiply] {
                let [left, right] = [0, 1].map(self::column);
                check(BinaryExpr::new(left, operator, right), &batch);
            }
        }
    }
}

#[test]
fn other_operations_stay() {
    let number = |kind| Field::new("number", kind, true);
    let fields = [number(DataType::Int64), number(DataType::Decimal128(38, 30))];
    let schema = arrow::datatypes::Schema::new(fields.to_vec());
    for (operator, index) in [
        (Operator::Plus, 0),
        (Operator::Divide, 1),
        (Operator::Lt, 1),
        // The result would have more than 38 digits after the decimal point.
        (Operator::Multiply, 1),
    ] {
        let expr = Arc::new(BinaryExpr::new(column(index), operator, column(index)));
        let same = specialize_decimals(expr, &schema).unwrap();
        assert!(same.is::<BinaryExpr>(), "{same}");
    }
}

#[test]
fn integers_become_decimals_without_checks() {
    use arrow::array::{Int8Array, Int32Array, Int64Array};
    use datafusion_physical_expr::expressions::CastExpr;

    use super::DecimalCastExpr;

    let integers: [ArrayRef; 3] = [
        Arc::new(Int8Array::from(vec![Some(i8::MIN), None, Some(i8::MAX)])),
        Arc::new(Int32Array::from(vec![Some(i32::MIN), None, Some(i32::MAX)])),
        Arc::new(Int64Array::from(vec![Some(i64::MIN), None, Some(i64::MAX)])),
    ];
    for (values, digits) in integers.into_iter().zip([3, 10, 19]) {
        let batch = RecordBatch::try_from_iter([("column", values)]).unwrap();
        for (precision, scale) in [(digits, 0), (digits + 2, 2), (38, 38 - digits as i8)] {
            let kind = DataType::Decimal128(precision, scale);
            let cast: Arc<dyn PhysicalExpr> = Arc::new(CastExpr::new(column(0), kind, None));
            let fast = specialize_decimals(cast.clone(), &batch.schema()).unwrap();
            assert!(fast.is::<DecimalCastExpr>(), "{cast}");
            let evaluate = |cast: &Arc<dyn PhysicalExpr>| {
                cast.evaluate(&batch).unwrap().into_array(3).unwrap()
            };
            assert_eq!(&evaluate(&fast), &evaluate(&cast), "{cast}");
        }
        let narrow = Arc::new(CastExpr::new(column(0), DataType::Decimal128(digits, 1), None));
        let kept = specialize_decimals(narrow, &batch.schema()).unwrap();
        assert!(kept.is::<CastExpr>(), "it may overflow");
    }
}
