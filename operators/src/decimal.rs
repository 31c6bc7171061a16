//! Decimal arithmetic in 64 bits where the values allow it.
//!
//! Arrow adds and multiplies decimals in 128 bits and checks each step for overflow. Typical values
//! fit 64 bits. Their product fits 128 bits, and so does a sum of two values, each scaled by a
//! power of ten below 2^60. Each operation is then one machine instruction without an overflow
//! check. All values of a batch are checked beforehand; if one does not fit, Arrow computes the
//! batch.

use std::{fmt, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, Datum, Decimal128Array, RecordBatch, new_empty_array},
    buffer::NullBuffer,
    compute::kernels::numeric,
    datatypes::{
        ArrowPrimitiveType, DataType, Decimal128Type, FieldRef, Int8Type, Int16Type, Int32Type,
        Int64Type, Schema,
    },
    error::ArrowError,
};
use datafusion_common::{
    Result, ScalarValue,
    tree_node::{Transformed, TransformedResult, TreeNode},
};
use datafusion_expr::{ColumnarValue, Operator};
use datafusion_physical_expr::{
    PhysicalExpr,
    expressions::{BinaryExpr, CastExpr},
};

/// Returns `expr`, over columns of `schema`, with decimal sums, differences and products
/// specialized to 64 bits, and casts of integers to decimals that cannot overflow without checks.
///
/// ```
/// # use std::sync::Arc;
/// # use arrow::{array::{Decimal128Array, RecordBatch}, datatypes::{DataType, Field, Schema}};
/// # use datafusion_expr::Operator;
/// # use datafusion_physical_expr::expressions::{BinaryExpr, Column};
/// use gatework_operators::specialize_decimals;
/// # fn main() -> datafusion_common::Result<()> {
/// let price = Decimal128Array::from(vec![1050, 2000]).with_precision_and_scale(15, 2)?;
/// let batch = RecordBatch::try_from_iter([("price", Arc::new(price) as _)])?;
/// let column = || Arc::new(Column::new("price", 0)) as _;
/// let square = Arc::new(BinaryExpr::new(column(), Operator::Multiply, column()));
/// let specialized = specialize_decimals(square.clone(), &batch.schema())?;
/// # use datafusion_physical_expr::PhysicalExpr;
/// let (one, other) = (square.evaluate(&batch)?, specialized.evaluate(&batch)?);
/// assert_eq!(&one.into_array(2)?, &other.into_array(2)?);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// If `expr` is not over `schema`.
pub fn specialize_decimals(
    expr: Arc<dyn PhysicalExpr>,
    schema: &Schema,
) -> Result<Arc<dyn PhysicalExpr>> {
    expr.transform_up(|node| {
        if let Some(cast) = node.downcast_ref::<CastExpr>()
            && let Some(cast) = DecimalCastExpr::new(cast, schema)?
        {
            return Ok(Transformed::yes(Arc::new(cast) as _));
        }
        let specialized =
            node.downcast_ref::<BinaryExpr>().map(|it| Decimal64Expr::new(it, schema));
        Ok(match specialized.transpose()?.flatten() {
            Some(specialized) => Transformed::yes(Arc::new(specialized) as _),
            None => Transformed::no(node),
        })
    })
    .data()
}

/// Decimal operation that is computed in 64 bits where the values fit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Decimal64Expr {
    original: BinaryExpr,
    /// Factors by which the operands are multiplied before an addition.
    scales: [i64; 2],
    /// Type of the result.
    kind: DataType,
}

impl Decimal64Expr {
    fn new(original: &BinaryExpr, schema: &Schema) -> Result<Option<Self>> {
        let kinds = [original.left().data_type(schema)?, original.right().data_type(schema)?];
        let [DataType::Decimal128(_, left), DataType::Decimal128(_, right)] = &kinds else {
            return Ok(None);
        };
        let scale = (*left).max(*right);
        let power = |side: i8| 10_i64.checked_pow(u32::try_from(scale - side).ok()?);
        let (Some(left), Some(right)) = (power(*left), power(*right)) else { return Ok(None) };
        let Some(kernel) = kernel(*original.op()) else { return Ok(None) };
        let [one, other] = kinds.map(|kind| new_empty_array(&kind));
        let Ok(empty) = kernel(&one, &other) else { return Ok(None) };
        let kind = empty.data_type().clone();
        let agreed = original.data_type(schema)? == kind;
        let specialized = Self { original: original.clone(), scales: [left, right], kind };
        Ok(agreed.then_some(specialized))
    }

    /// Computes the result in 64 bits; returns `None` if a value does not fit.
    fn compute(&self, left: Operand<'_>, right: Operand<'_>) -> Option<Vec<i128>> {
        let [left_scale, right_scale] = self.scales.map(i128::from);
        match self.original.op() {
            Operator::Multiply => zip(left, right, |left, right| left * right),
            Operator::Plus if self.scales == [1, 1] => zip(left, right, |left, right| left + right),
            Operator::Plus => {
                zip(left, right, |left, right| left * left_scale + right * right_scale)
            }
            Operator::Minus if self.scales == [1, 1] => {
                zip(left, right, |left, right| left - right)
            }
            Operator::Minus => {
                zip(left, right, |left, right| left * left_scale - right * right_scale)
            }
            _ => None,
        }
    }
}

type Kernel = fn(&dyn Datum, &dyn Datum) -> std::result::Result<ArrayRef, ArrowError>;

/// Returns Arrow's kernel for `operator`, if the 64-bit path supports it too.
fn kernel(operator: Operator) -> Option<Kernel> {
    match operator {
        Operator::Plus => Some(numeric::add),
        Operator::Minus => Some(numeric::sub),
        Operator::Multiply => Some(numeric::mul),
        _ => None,
    }
}

/// Operand of an operation: a column, or one value for all rows.
#[derive(Clone, Copy)]
enum Operand<'a> {
    Column(&'a [i128]),
    Value(i64),
}

impl<'a> Operand<'a> {
    /// Returns the operand and its NULLs; `None` for a NULL scalar or a value that does not fit.
    fn of(operand: &'a ColumnarValue) -> Option<(Self, Option<&'a NullBuffer>)> {
        match operand {
            ColumnarValue::Array(column) => {
                let column = column.as_primitive_opt::<Decimal128Type>()?;
                Some((Self::Column(column.values()), column.nulls()))
            }
            ColumnarValue::Scalar(ScalarValue::Decimal128(Some(value), ..)) => {
                Some((Self::Value(i64::try_from(*value).ok()?), None))
            }
            ColumnarValue::Scalar(_) => None,
        }
    }
}

/// Number of rows that are checked, then computed while they are in the cache.
const CHUNK: usize = 1024;

/// Returns `combine` of each row; `None` if a value does not fit 64 bits. Both arguments of
/// `combine` fit 64 bits.
#[inline(always)]
fn zip(
    left: Operand<'_>,
    right: Operand<'_>,
    combine: impl Fn(i128, i128) -> i128,
) -> Option<Vec<i128>> {
    let truncate = |value: i128| i128::from(value as i64);
    match (left, right) {
        (Operand::Column(left), Operand::Column(right)) => {
            let mut result = Vec::with_capacity(left.len());
            for (left, right) in left.chunks(CHUNK).zip(right.chunks(CHUNK)) {
                if !(fit(left) && fit(right)) {
                    return None;
                }
                for (left, right) in append(&mut result, left).iter_mut().zip(right) {
                    *left = combine(truncate(*left), truncate(*right));
                }
            }
            Some(result)
        }
        (Operand::Column(left), Operand::Value(right)) => {
            map(left, |left| combine(truncate(left), right.into()))
        }
        (Operand::Value(left), Operand::Column(right)) => {
            map(right, |right| combine(left.into(), truncate(right)))
        }
        (Operand::Value(_), Operand::Value(_)) => None,
    }
}

/// Returns `each` of all `values`; `None` if a value does not fit 64 bits.
#[inline(always)]
fn map(values: &[i128], each: impl Fn(i128) -> i128) -> Option<Vec<i128>> {
    let mut result = Vec::with_capacity(values.len());
    for values in values.chunks(CHUNK) {
        if !fit(values) {
            return None;
        }
        for value in append(&mut result, values) {
            *value = each(*value);
        }
    }
    Some(result)
}

/// Appends `values` to `result` and returns the appended slice, which the caller then changes in
/// place. An iterator that changed the values while appending is vectorized only sometimes,
/// depending on the code compiled beside it.
#[inline(always)]
fn append<'a>(result: &'a mut Vec<i128>, values: &[i128]) -> &'a mut [i128] {
    let first = result.len();
    result.extend_from_slice(values);
    &mut result[first..]
}

/// Returns true if all `values` fit 64 bits.
fn fit(values: &[i128]) -> bool {
    let excess = |value: &i128| (value >> 64) as u64 ^ ((*value as i64) >> 63) as u64;
    values.iter().fold(0, |all, value| all | excess(value)) == 0
}

impl fmt::Display for Decimal64Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.original.fmt(f)
    }
}

impl PhysicalExpr for Decimal64Expr {
    fn data_type(&self, _input: &Schema) -> Result<DataType> {
        Ok(self.kind.clone())
    }

    fn nullable(&self, input: &Schema) -> Result<bool> {
        self.original.nullable(input)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        let left = self.original.left().evaluate(batch)?;
        let right = self.original.right().evaluate(batch)?;
        if let (Some((one, nulls)), Some((other, more))) = (Operand::of(&left), Operand::of(&right))
            && let Some(values) = self.compute(one, other)
        {
            let nulls = NullBuffer::union(nulls, more);
            let result = Decimal128Array::new(values.into(), nulls);
            let result: ArrayRef = Arc::new(result.with_data_type(self.kind.clone()));
            return Ok(ColumnarValue::Array(result));
        }
        let Some(kernel) = kernel(*self.original.op()) else {
            return self.original.evaluate(batch);
        };
        datafusion_physical_expr_common::datum::apply(&left, &right, kernel)
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        self.original.children()
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn PhysicalExpr>>,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        let original = Arc::new(self.original.clone()).with_new_children(children)?;
        Ok(match original.downcast_ref::<BinaryExpr>() {
            Some(original) => Arc::new(Self { original: original.clone(), ..Self::clone(&self) }),
            None => original,
        })
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.original.fmt_sql(f)
    }
}

/// Cast of an integer to a decimal with enough digits for every value of the integer's type. Arrow
/// checks each value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct DecimalCastExpr {
    original: CastExpr,
    /// Type of the integers.
    source: DataType,
    /// Factor of each value.
    factor: i128,
}

impl DecimalCastExpr {
    fn new(original: &CastExpr, schema: &Schema) -> Result<Option<Self>> {
        let source = original.expr().data_type(schema)?;
        let digits = match source {
            DataType::Int8 => 3,
            DataType::Int16 => 5,
            DataType::Int32 => 10,
            DataType::Int64 => 19,
            _ => return Ok(None),
        };
        let DataType::Decimal128(precision, scale) = *original.cast_type() else {
            return Ok(None);
        };
        let Ok(power) = u32::try_from(scale) else { return Ok(None) };
        let fits = digits + power <= u32::from(precision);
        Ok(fits.then(|| Self { original: original.clone(), source, factor: 10_i128.pow(power) }))
    }

    fn cast<T: ArrowPrimitiveType<Native: Into<i128>>>(
        &self,
        values: &ArrayRef,
    ) -> Option<ArrayRef> {
        let values = values.as_primitive_opt::<T>()?;
        let decimals = values.unary::<_, Decimal128Type>(|value| value.into() * self.factor);
        Some(Arc::new(decimals.with_data_type(self.original.cast_type().clone())))
    }
}

impl fmt::Display for DecimalCastExpr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.original.fmt(f)
    }
}

impl PhysicalExpr for DecimalCastExpr {
    fn data_type(&self, input: &Schema) -> Result<DataType> {
        self.original.data_type(input)
    }

    fn nullable(&self, input: &Schema) -> Result<bool> {
        self.original.nullable(input)
    }

    fn return_field(&self, input: &Schema) -> Result<FieldRef> {
        self.original.return_field(input)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        let ColumnarValue::Array(values) = self.original.expr().evaluate(batch)? else {
            return self.original.evaluate(batch);
        };
        if values.data_type() != &self.source {
            return self.original.evaluate(batch);
        }
        let decimals = match self.source {
            DataType::Int8 => self.cast::<Int8Type>(&values),
            DataType::Int16 => self.cast::<Int16Type>(&values),
            DataType::Int32 => self.cast::<Int32Type>(&values),
            _ => self.cast::<Int64Type>(&values),
        };
        match decimals {
            Some(decimals) => Ok(ColumnarValue::Array(decimals)),
            None => self.original.evaluate(batch),
        }
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        self.original.children()
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn PhysicalExpr>>,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        let original = Arc::new(self.original.clone()).with_new_children(children)?;
        Ok(match original.downcast_ref::<CastExpr>() {
            Some(original) => Arc::new(Self { original: original.clone(), ..Self::clone(&self) }),
            None => original,
        })
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.original.fmt_sql(f)
    }
}

#[cfg(test)]
mod tests;
