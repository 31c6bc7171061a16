//! Partitioning of rows by the hash of their keys.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch, UInt32Array},
    compute::take_record_batch,
};
use datafusion_common::hash_utils::{RandomState, create_hashes};
use datafusion_physical_expr::PhysicalExpr;
use gatework_runtime::Result;

use crate::ResultExt;

/// Returns the rows of `batch` by partition of their keys; partitions without rows are left out.
///
/// Hash and seed are those of DataFusion's `RepartitionExec`: equal keys get the same partition
/// number from both.
///
/// # Errors
/// If a key expression fails.
pub fn partition_rows(
    batch: &RecordBatch,
    keys: &[Arc<dyn PhysicalExpr>],
    partitions: usize,
) -> Result<Vec<(usize, RecordBatch)>> {
    partition_by_seed(batch, keys, partitions, 0)
}

/// Partitions as [`partition_rows`] does, by a hash independent of DataFusion's. The rows of one
/// DataFusion partition spread evenly over all these partitions.
///
/// # Errors
/// If a key expression fails.
pub(crate) fn partition_rows_reseeded(
    batch: &RecordBatch,
    keys: &[Arc<dyn PhysicalExpr>],
    partitions: usize,
) -> Result<Vec<(usize, RecordBatch)>> {
    partition_by_seed(batch, keys, partitions, 1)
}

fn partition_by_seed(
    batch: &RecordBatch,
    keys: &[Arc<dyn PhysicalExpr>],
    partitions: usize,
    seed: u64,
) -> Result<Vec<(usize, RecordBatch)>> {
    let rows = batch.num_rows();
    let columns = keys
        .iter()
        .map(|key| key.evaluate(batch)?.into_array_of_size(rows))
        .collect::<Result<Vec<ArrayRef>, _>>()
        .query_err()?;
    let mut hashes = vec![0; rows];
    create_hashes(&columns, &RandomState::with_seed(seed), &mut hashes).query_err()?;
    let count = partitions as u64;
    // A division takes as long as the rest of a row's work.
    if count.is_power_of_two() {
        split_by_partition(
            batch,
            hashes.iter().map(|hash| (hash & (count - 1)) as usize),
            partitions,
        )
    } else {
        split_by_partition(batch, hashes.iter().map(|hash| (hash % count) as usize), partitions)
    }
}

/// Returns the rows of `batch` by partition; partitions without rows are left out. The results are
/// slices of one gathered batch, or the batch itself if all its rows are in one partition.
/// `partition_of_row` yields one number per row.
///
/// # Errors
/// If Arrow cannot gather a column.
///
/// # Panics
/// If a partition number is not below `partitions`.
pub fn split_by_partition(
    batch: &RecordBatch,
    partition_of_row: impl Iterator<Item = usize>,
    partitions: usize,
) -> Result<Vec<(usize, RecordBatch)>> {
    let partition_of_row: Vec<u32> = partition_of_row.map(|partition| partition as u32).collect();
    let Some(order) = order(&partition_of_row, partitions) else {
        let only = partition_of_row.first().map(|partition| *partition as usize);
        return Ok(only.map(|only| (only, batch.clone())).into_iter().collect());
    };
    let gathered = take_record_batch(batch, &UInt32Array::from(order.rows)).query_err()?;
    let mut start = 0;
    let batches = order.ends.into_iter().enumerate().map(|(partition, end)| {
        let slice = gathered.slice(start, end - start);
        start = end;
        (partition, slice)
    });
    Ok(batches.filter(|(_, batch)| batch.num_rows() > 0).collect())
}

/// Row indices in partition order, and the end offset of each partition.
struct PartitionOrder {
    rows: Vec<u32>,
    ends: Vec<usize>,
}

/// Number of runs of rows that are counted and placed in an interleaved loop. No run waits until
/// the counter that another run has just written can be read.
const RUNS: usize = 4;

/// Returns the rows in the order of their partitions; `None` if at most one partition has rows.
fn order(partition_of_row: &[u32], partitions: usize) -> Option<PartitionOrder> {
    let rows = partition_of_row.len();
    let run = rows / RUNS;
    let (runs, rest) = partition_of_row.split_at(run * RUNS);
    let [first, second, third, fourth] = std::array::from_fn(|n| &runs[n * run..(n + 1) * run]);
    let side_by_side = || {
        let numbers =
            (0..run).map(|row| -> [u32; RUNS] { std::array::from_fn(|n| (n * run + row) as u32) });
        let partitions = first.iter().zip(second).zip(third.iter().zip(fourth));
        numbers.zip(partitions.map(|((a, b), (c, d))| [*a, *b, *c, *d]))
    };
    // The last run includes `rest`. The counters of one partition are adjacent.
    let mut offsets = vec![[0_u32; RUNS]; partitions];
    for (_, of_runs) in side_by_side() {
        for (run_index, partition) in of_runs.into_iter().enumerate() {
            offsets[partition as usize][run_index] += 1;
        }
    }
    for partition in rest {
        offsets[*partition as usize][RUNS - 1] += 1;
    }
    if offsets.iter().any(|counts| counts.iter().sum::<u32>() as usize == rows) {
        return None;
    }
    let mut end = 0;
    let mut ends = Vec::with_capacity(partitions);
    for counts in &mut offsets {
        // Turns counts into start offsets.
        for count in counts {
            end += std::mem::replace(count, end);
        }
        ends.push(end as usize);
    }
    let mut ordered = vec![0; rows];
    for (numbers, of_runs) in side_by_side() {
        for (run_index, (row, partition)) in numbers.into_iter().zip(of_runs).enumerate() {
            let next = &mut offsets[partition as usize][run_index];
            ordered[*next as usize] = row;
            *next += 1;
        }
    }
    for (row, partition) in (RUNS * run..).zip(rest) {
        let next = &mut offsets[*partition as usize][RUNS - 1];
        ordered[*next as usize] = row as u32;
        *next += 1;
    }
    Some(PartitionOrder { rows: ordered, ends })
}

/// Returns the row indices of each partition, in row order.
pub fn partition_indices(
    partition_of_row: impl Iterator<Item = usize>,
    partitions: usize,
) -> Vec<Vec<u32>> {
    let mut indices = vec![Vec::new(); partitions];
    for (row, partition) in (0_u32..).zip(partition_of_row) {
        indices[partition].push(row);
    }
    indices
}

#[cfg(test)]
mod tests {
    use gatework_runtime::scheduler::SplitMix64;

    use super::*;

    #[test]
    fn rows_stay_in_order_within_their_partition() {
        let mut rng = SplitMix64::new(9);
        for rows in [0, 1, 2, 3, 4, 5, 7, 8, 9, 100, 1001] {
            for partitions in [1, 2, 3, 5, 300] {
                let of_rows: Vec<u32> =
                    (0..rows).map(|_| rng.next_below(partitions) as u32).collect();
                let expected = partition_indices(of_rows.iter().map(|p| *p as usize), partitions);
                let filled = expected.iter().filter(|rows| !rows.is_empty()).count();
                match order(&of_rows, partitions) {
                    None => assert!(filled <= 1),
                    Some(order) => {
                        assert!(filled > 1);
                        assert_eq!(order.rows, expected.concat());
                        let ends = expected.iter().scan(0, |end, rows| {
                            *end += rows.len();
                            Some(*end)
                        });
                        assert!(order.ends.into_iter().eq(ends));
                    }
                }
            }
        }
    }
}
