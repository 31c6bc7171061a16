//! Cutting rows into hash partitions.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch, UInt32Array},
    compute::take_record_batch,
};
use datafusion_common::hash_utils::{RandomState, create_hashes};
use datafusion_physical_expr::PhysicalExpr;
use gatework_runtime::Result;

use crate::ResultExt;

/// The rows of `batch` by partition of their keys; partitions without rows are left out.
///
/// Hash and seed are those of DataFusion's `RepartitionExec`, so that rows partitioned here meet rows
/// partitioned there.
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

/// The same by a hash that has nothing to do with DataFusion's: of rows that are one of its partitions, each of these
/// partitions gets its share.
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
    // A division takes as long as all the rest of a row.
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

/// The rows of `batch` by partition; partitions without rows are left out. The parts are slices of one
/// gathered batch, or the batch itself if all of it is one part.
///
/// # Errors
/// If Arrow cannot gather a column.
///
/// # Panics
/// If a row has no partition, or one that does not exist.
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

/// Row numbers, partition by partition, and where each partition ends.
struct PartitionOrder {
    rows: Vec<u32>,
    ends: Vec<usize>,
}

/// Rows are counted and placed in so many runs side by side, so that one need not wait until the counter
/// that another has just written can be read.
const RUNS: usize = 4;

/// The rows in the order of their partitions; `None` if there is not more than one partition.
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
    // The last run goes on with the rest. A partition's counters lie together.
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
        // From how many there are to where they begin.
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

/// Row numbers by partition, in order.
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
