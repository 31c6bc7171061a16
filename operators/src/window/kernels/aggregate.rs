//! Kernels of framed aggregates: running sums and counts, and monotone queues.

use std::{cmp::Ordering, collections::VecDeque, ops::Range, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, ArrowNativeTypeOp, AsArray, BooleanArray, Float64Array, Int64Array,
        PrimitiveArray, UInt32Array, UInt64Array, make_comparator,
    },
    buffer::NullBuffer,
    compute::{SortOptions, nullif, take},
    datatypes::{
        ArrowPrimitiveType, DataType, Decimal128Type, Decimal256Type, Float64Type, Int64Type,
        UInt64Type, i256,
    },
};
use datafusion_expr::{EmitTo, GroupsAccumulator};
use datafusion_physical_expr::window::{
    PlainAggregateWindowExpr, SlidingAggregateWindowExpr, WindowExpr,
};
use gatework_runtime::Result;

use super::{Evaluation, streaming::Carry};
use crate::ResultExt;

/// Sum and count of the values of a frame, which moves forward.
struct RunningSum<N> {
    frame: Range<usize>,
    sum: N,
    count: u64,
}

/// Adds `values`, of which all later frames have all, to what the kernel of a count, a sum or an
/// average carries.
pub(super) fn add_to_carry(values: &[ArrayRef], carry: &mut Carry) -> Result<()> {
    let [values] = values else { return Ok(()) };
    match values.data_type() {
        DataType::Int64 => add::<Int64Type>(values, carry),
        DataType::UInt64 => add::<UInt64Type>(values, carry),
        DataType::Float64 => add::<Float64Type>(values, carry),
        DataType::Decimal128(..) => add::<Decimal128Type>(values, carry),
        // Only a count supports other types.
        _ => {}
    }
    let nulls = values.logical_nulls().map_or(0, |nulls| nulls.null_count());
    carry.count += (values.len() - nulls) as u64;
    Ok(())
}

fn add<T: ArrowPrimitiveType>(values: &ArrayRef, carry: &mut Carry)
where
    T::Native: ArrowNativeTypeOp,
{
    let mut sum = carried_sum::<T>(carry);
    for value in values.as_primitive::<T>().iter().flatten() {
        sum = sum.add_wrapping(value);
    }
    carry.sum = Some(Arc::new(PrimitiveArray::<T>::from_value(sum, 1)));
}

fn carried_sum<T: ArrowPrimitiveType>(carry: &Carry) -> T::Native
where
    T::Native: ArrowNativeTypeOp,
{
    let sum = carry.sum.as_ref().and_then(|sum| sum.as_primitive_opt::<T>());
    sum.map_or(T::Native::ZERO, |sum| sum.value(0))
}

/// The sum of each frame, and the number of its values.
struct Sums<N> {
    sums: Vec<N>,
    counts: Vec<u64>,
}

/// Returns the number of values that are not NULL in each frame.
pub(super) fn count(values: &[ArrayRef], context: &Evaluation<'_>) -> Result<ArrayRef> {
    let nulls = values[0].logical_nulls().filter(|nulls| nulls.null_count() > 0);
    let carried = context.carry.count as i64;
    let mut counts = Vec::with_capacity(context.rows);
    match nulls {
        None => {
            context.for_each_frame(
                &mut counts,
                |_| {},
                |counts, frame| {
                    counts.push(carried + frame.len() as i64);
                },
            )?;
        }
        Some(nulls) => {
            let mut before = Vec::with_capacity(context.rows + 1);
            let mut total = 0_i64;
            before.push(0);
            before.extend(nulls.iter().map(|valid| {
                total += i64::from(valid);
                total
            }));
            context.for_each_frame(
                &mut counts,
                |_| {},
                |counts, frame| {
                    counts.push(carried + before[frame.end] - before[frame.start]);
                },
            )?;
        }
    }
    Ok(Arc::new(Int64Array::from(counts)))
}

/// Returns the sum of each frame; `None` for types that are summed in another type, or whose sums
/// depend on the order of additions where a frame loses rows.
pub(super) fn sum(values: &[ArrayRef], context: &Evaluation<'_>) -> Result<Option<ArrayRef>> {
    let [values] = values else { return Ok(None) };
    let result = context.expr.field().query_err()?.data_type().clone();
    Ok(Some(match (values.data_type(), &result) {
        (DataType::Int64, DataType::Int64) => sum_as::<Int64Type>(values, &result, context)?,
        (DataType::UInt64, DataType::UInt64) => sum_as::<UInt64Type>(values, &result, context)?,
        (DataType::Decimal128(..), DataType::Decimal128(..)) => {
            sum_as::<Decimal128Type>(values, &result, context)?
        }
        (DataType::Float64, DataType::Float64) if is_exact(context) => {
            let sums = float_sums(values.as_primitive(), context)?;
            sums_array::<Float64Type>(sums, &result)
        }
        _ => return Ok(None),
    }))
}

/// Returns whether running sums of floats are right: no frame loses a row.
fn is_exact(context: &Evaluation<'_>) -> bool {
    context.frame.starts_at_partition()
}

fn sum_as<T: ArrowPrimitiveType>(
    values: &ArrayRef,
    result: &DataType,
    context: &Evaluation<'_>,
) -> Result<ArrayRef>
where
    T::Native: ArrowNativeTypeOp,
{
    Ok(sums_array::<T>(sums(values.as_primitive::<T>(), context)?, result))
}

fn sums_array<T: ArrowPrimitiveType>(
    Sums { sums, counts }: Sums<T::Native>,
    result: &DataType,
) -> ArrayRef {
    let valid = NullBuffer::from_iter(counts.iter().map(|count| *count > 0));
    let sums = PrimitiveArray::<T>::new(sums.into(), Some(valid));
    Arc::new(sums.with_data_type(result.clone()))
}

/// Returns the sums of frames that lose no row. The order of additions is that of DataFusion, which
/// adds the sum of all values that enter a frame.
fn float_sums(values: &Float64Array, context: &Evaluation<'_>) -> Result<Sums<f64>> {
    let rows = context.rows;
    let mut sums = Sums { sums: Vec::with_capacity(rows), counts: Vec::with_capacity(rows) };
    let carried = (carried_sum::<Float64Type>(context.carry), context.carry.count);
    let mut state = (RunningSum::new(carried), &mut sums);
    context.for_each_frame(
        &mut state,
        |(running, _)| *running = RunningSum::new(carried),
        |(running, sums), frame| {
            let entered = running.frame.end.max(frame.start)..frame.end;
            if entered.len() == 1 && values.is_valid(entered.start) {
                running.sum += values.value(entered.start);
                running.count += 1;
            } else if !entered.is_empty() {
                let entered = values.slice(entered.start, entered.len());
                running.sum += arrow::compute::sum(&entered).unwrap_or(0.0);
                running.count += (entered.len() - entered.null_count()) as u64;
            }
            running.frame = frame;
            sums.push(running);
        },
    )?;
    Ok(sums)
}

/// Returns the average of each frame; `None` as for [`sum`]. DataFusion divides the sums by the
/// counts.
pub(super) fn avg(values: &[ArrayRef], context: &Evaluation<'_>) -> Result<Option<ArrayRef>> {
    let [values] = values else { return Ok(None) };
    let Some((mut divide, state)) = averages(context.expr)? else { return Ok(None) };
    let (sums, counts): (ArrayRef, Vec<u64>) = match (values.data_type(), &state) {
        (DataType::Float64, DataType::Float64) if is_exact(context) => {
            let Sums { sums, counts } = float_sums(values.as_primitive(), context)?;
            (Arc::new(PrimitiveArray::<Float64Type>::from(sums)), counts)
        }
        // With so few digits, no sum of 2^32 values exceeds 128 bits.
        (DataType::Decimal128(..=28, _), DataType::Decimal128(..)) => {
            let Sums { sums, counts } = sums(values.as_primitive::<Decimal128Type>(), context)?;
            let sums = PrimitiveArray::<Decimal128Type>::from(sums);
            (Arc::new(sums.with_data_type(state)), counts)
        }
        (DataType::Decimal128(..=28, _), DataType::Decimal256(..)) => {
            let Sums { sums, counts } = sums(values.as_primitive::<Decimal128Type>(), context)?;
            let sums = sums.into_iter().map(i256::from_i128);
            let sums = PrimitiveArray::<Decimal256Type>::from_iter_values(sums);
            (Arc::new(sums.with_data_type(state)), counts)
        }
        _ => return Ok(None),
    };
    let is_empty: BooleanArray = counts.iter().map(|count| Some(*count == 0)).collect();
    // Some of DataFusion's accumulators divide by a count of zero.
    let counts: Vec<u64> = counts.into_iter().map(|count| count.max(1)).collect();
    let groups: Vec<usize> = (0..context.rows).collect();
    let states: [ArrayRef; 2] = [Arc::new(UInt64Array::from(counts)), sums];
    divide.merge_batch(&states, &groups, context.rows).query_err()?;
    let averages = divide.evaluate(EmitTo::All).query_err()?;
    nullif(&averages, &is_empty).query_err().map(Some)
}

/// Returns DataFusion's accumulator of an average, and the type of its sums; `None` if its states
/// are not counts and sums.
fn averages(expr: &Arc<dyn WindowExpr>) -> Result<Option<(Box<dyn GroupsAccumulator>, DataType)>> {
    let any = expr.as_any();
    let plain = any.downcast_ref::<PlainAggregateWindowExpr>();
    let sliding = any.downcast_ref::<SlidingAggregateWindowExpr>();
    let aggregate = plain
        .map(PlainAggregateWindowExpr::get_aggregate_expr)
        .or_else(|| sliding.map(SlidingAggregateWindowExpr::get_aggregate_expr));
    let Some(aggregate) = aggregate.filter(|one| one.groups_accumulator_supported()) else {
        return Ok(None);
    };
    let state = aggregate.state_fields().query_err()?;
    let [count, sum] = state.as_slice() else { return Ok(None) };
    if count.data_type() != &DataType::UInt64 {
        return Ok(None);
    }
    let accumulator = aggregate.create_groups_accumulator().query_err()?;
    Ok(Some((accumulator, sum.data_type().clone())))
}

fn sums<T: ArrowPrimitiveType>(
    values: &PrimitiveArray<T>,
    context: &Evaluation<'_>,
) -> Result<Sums<T::Native>>
where
    T::Native: ArrowNativeTypeOp,
{
    let rows = context.rows;
    let mut sums = Sums { sums: Vec::with_capacity(rows), counts: Vec::with_capacity(rows) };
    let nulls = values.nulls().filter(|nulls| nulls.null_count() > 0);
    let all = values.values();
    let carried = (carried_sum::<T>(context.carry), context.carry.count);
    let start = || RunningSum::new(carried);
    let mut state = (start(), &mut sums);
    match nulls {
        None => context.for_each_frame(
            &mut state,
            |(running, _)| *running = start(),
            |(running, sums), frame| {
                running.advance(frame, |row| Some(all[row]));
                sums.push(running);
            },
        )?,
        Some(nulls) => context.for_each_frame(
            &mut state,
            |(running, _)| *running = start(),
            |(running, sums), frame| {
                running.advance(frame, |row| nulls.is_valid(row).then(|| all[row]));
                sums.push(running);
            },
        )?,
    }
    Ok(sums)
}

impl<N: ArrowNativeTypeOp> RunningSum<N> {
    /// Creates the sum of a frame without rows, to which a sum and a count are carried.
    fn new((sum, count): (N, u64)) -> Self {
        Self { frame: 0..0, sum, count }
    }

    /// Moves to the next frame.
    #[inline]
    fn advance(&mut self, frame: Range<usize>, value: impl Fn(usize) -> Option<N>) {
        if frame.start > self.frame.end {
            // The frames have no row in common.
            for value in (self.frame.start..self.frame.end).filter_map(&value) {
                self.sum = self.sum.sub_wrapping(value);
                self.count -= 1;
            }
            self.frame = frame.start..frame.start;
        }
        for value in (self.frame.end..frame.end).filter_map(&value) {
            self.sum = self.sum.add_wrapping(value);
            self.count += 1;
        }
        for value in (self.frame.start..frame.start).filter_map(&value) {
            self.sum = self.sum.sub_wrapping(value);
            self.count -= 1;
        }
        self.frame = frame;
    }
}

impl<N: ArrowNativeTypeOp> Sums<N> {
    fn push(&mut self, running: &RunningSum<N>) {
        self.sums.push(running.sum);
        self.counts.push(running.count);
    }
}

/// Returns the least value of each frame, or with `is_max` the greatest one; `None` for floats,
/// whose order in DataFusion depends on the frame (NaN, -0), and for nested types.
pub(super) fn extreme(
    values: &[ArrayRef],
    is_max: bool,
    context: &Evaluation<'_>,
) -> Result<Option<ArrayRef>> {
    let [values] = values else { return Ok(None) };
    let kind = values.data_type();
    let is_ordered = kind.is_integer()
        || kind.is_decimal()
        || kind.is_temporal()
        || kind.is_string()
        || kind.is_binary();
    if !is_ordered || context.expr.field().query_err()?.data_type() != kind {
        return Ok(None);
    }
    let options = SortOptions { descending: is_max, nulls_first: false };
    let compare = make_comparator(values, values, options).query_err()?;
    let nulls = values.nulls().filter(|nulls| nulls.null_count() > 0);
    let is_valid = |row: usize| nulls.is_none_or(|nulls| nulls.is_valid(row));
    // Rows of the frame, each better than all behind it: the first one is the result.
    let mut queue: VecDeque<u32> = VecDeque::new();
    let mut end = 0;
    let mut indices = Vec::with_capacity(context.rows);
    let mut state = (&mut queue, &mut end, &mut indices);
    context.for_each_frame(
        &mut state,
        |(queue, _, _)| queue.clear(),
        |(queue, end, indices), frame| {
            for row in (**end).max(frame.start)..frame.end {
                if !is_valid(row) {
                    continue;
                }
                let is_worse = |last: &u32| compare(row, *last as usize) == Ordering::Less;
                while queue.back().is_some_and(is_worse) {
                    queue.pop_back();
                }
                queue.push_back(row as u32);
            }
            **end = (**end).max(frame.end);
            while queue.front().is_some_and(|first| (*first as usize) < frame.start) {
                queue.pop_front();
            }
            indices.push(queue.front().copied());
        },
    )?;
    take(values, &UInt32Array::from(indices), None).query_err().map(Some)
}
