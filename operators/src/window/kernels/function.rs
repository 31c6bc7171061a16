//! Kernels of window functions: ranks, and functions that return a value of another row.

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, Float64Array, PrimitiveArray, Scalar, UInt32Array, UInt64Array},
    compute::{kernels::zip::zip, take},
    datatypes::UInt32Type,
};
use datafusion_common::ScalarValue;
use gatework_runtime::Result;

use super::{Evaluation, Frame, WindowFunction, aggregate};
use crate::ResultExt;

impl WindowFunction {
    pub(super) fn is_aggregate(&self) -> bool {
        matches!(self, Self::Count | Self::Sum | Self::Avg | Self::Min | Self::Max)
    }

    /// Returns whether the results do not depend on the frame.
    pub(super) fn ignores_frame(&self) -> bool {
        use WindowFunction as F;
        match self {
            F::RowNumber | F::Rank | F::DenseRank | F::PercentRank | F::CumeDist => true,
            F::Ntile(_) | F::Lag { .. } => true,
            F::First | F::Last | F::Nth(_) => false,
            F::Count | F::Sum | F::Avg | F::Min | F::Max => false,
        }
    }

    pub(super) fn needs_peers(&self, frame: &Frame) -> bool {
        match self {
            Self::Rank | Self::DenseRank | Self::PercentRank | Self::CumeDist => true,
            Self::RowNumber | Self::Ntile(_) | Self::Lag { .. } => false,
            _ => frame.needs_peers(),
        }
    }

    /// Returns the results from the `values` of the arguments; `None` if a kernel does not support
    /// their types.
    pub(super) fn evaluate(
        &self,
        values: &[ArrayRef],
        context: &Evaluation<'_>,
    ) -> Result<Option<ArrayRef>> {
        let results = match self {
            Self::RowNumber => numbers(context, |partition, _, results| {
                let first = context.carry.rows + 1;
                results.extend(first..first + partition.len() as u64);
            }),
            Self::Rank => numbers(context, |partition, peers, results| {
                let mut rank = context.carry.rank;
                for peer in peers {
                    results.extend(std::iter::repeat_n(rank, peer.len()));
                    rank = context.carry.rows + (peer.end - partition.start + 1) as u64;
                }
            }),
            Self::DenseRank => numbers(context, |_, peers, results| {
                for (peer, rank) in peers.iter().zip(context.carry.rank..) {
                    results.extend(std::iter::repeat_n(rank, peer.len()));
                }
            }),
            Self::Ntile(buckets) => numbers(context, |partition, _, results| {
                ntile(*buckets, partition.len() as u64, results);
            }),
            Self::PercentRank => fractions(context, |partition, peer| {
                let others = (partition.len() as f64 - 1.0).max(1.0);
                (peer.start - partition.start) as f64 / others
            }),
            Self::CumeDist => fractions(context, |partition, peer| {
                (peer.end - partition.start) as f64 / partition.len() as f64
            }),
            Self::Lag { offset, default } => lag(values, *offset, default, context),
            Self::First => values_at(values, context, |frame| frame.start),
            Self::Last => values_at(values, context, |frame| frame.end.wrapping_sub(1)),
            Self::Nth(place) => values_at(values, context, |frame| match *place {
                place @ 1.. => frame.start.saturating_add_signed(place - 1),
                place => frame.end.checked_add_signed(place).unwrap_or(usize::MAX),
            }),
            Self::Count => aggregate::count(values, context),
            Self::Sum => return aggregate::sum(values, context),
            Self::Avg => return aggregate::avg(values, context),
            Self::Min => return aggregate::extreme(values, false, context),
            Self::Max => return aggregate::extreme(values, true, context),
        };
        results.map(Some)
    }
}

fn numbers(
    context: &Evaluation<'_>,
    mut f: impl FnMut(&Range<usize>, &[Range<usize>], &mut Vec<u64>),
) -> Result<ArrayRef> {
    let mut results = Vec::with_capacity(context.rows);
    context.for_each_partition(|partition, peers| f(partition, peers, &mut results))?;
    Ok(Arc::new(UInt64Array::from(results)))
}

fn fractions(
    context: &Evaluation<'_>,
    f: impl Fn(&Range<usize>, &Range<usize>) -> f64,
) -> Result<ArrayRef> {
    let mut results = Vec::with_capacity(context.rows);
    context.for_each_partition(|partition, peers| {
        for peer in peers {
            results.extend(std::iter::repeat_n(f(partition, peer), peer.len()));
        }
    })?;
    Ok(Arc::new(Float64Array::from(results)))
}

/// Appends the buckets of `rows` rows: the first ones have one row more if the rows do not divide
/// evenly.
fn ntile(buckets: u64, rows: u64, results: &mut Vec<u64>) {
    let (base, larger) = (rows / buckets, rows % buckets);
    for bucket in 0..buckets.min(rows) {
        let count = base + u64::from(bucket < larger);
        results.extend(std::iter::repeat_n(bucket + 1, count as usize));
    }
}

fn lag(
    values: &[ArrayRef],
    offset: isize,
    default: &ScalarValue,
    context: &Evaluation<'_>,
) -> Result<ArrayRef> {
    let mut sources = Vec::with_capacity(context.rows);
    for partition in context.partitions {
        context.task.check_cancelled()?;
        sources.extend(partition.clone().map(|row| {
            let source = isize::try_from(row).ok()?.checked_sub(offset)?;
            let source = usize::try_from(source).ok()?;
            partition.contains(&source).then_some(source as u32)
        }));
    }
    let indices = UInt32Array::from(sources);
    let taken = take(&values[0], &indices, None).query_err()?;
    if default.is_null() || indices.null_count() == 0 {
        return Ok(taken);
    }
    let inside = arrow::compute::is_not_null(&indices).query_err()?;
    let default = Scalar::new(default.to_array().query_err()?);
    zip(&inside, &taken, &default).query_err()
}

/// Returns for each row the value at the index that `at` computes from its frame; NULL if that lies
/// outside the frame.
fn values_at(
    values: &[ArrayRef],
    context: &Evaluation<'_>,
    at: impl Fn(&Range<usize>) -> usize,
) -> Result<ArrayRef> {
    let mut indices = PrimitiveArray::<UInt32Type>::builder(context.rows);
    context.for_each_frame(
        &mut indices,
        |_| {},
        |indices, frame| {
            let index = at(&frame);
            indices.append_option(frame.contains(&index).then_some(index as u32));
        },
    )?;
    take(&values[0], &indices.finish(), None).query_err()
}
