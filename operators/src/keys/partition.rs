//! Cutting rows into hash partitions.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch, UInt32Array},
    compute::take_record_batch,
};
use datafusion_common::hash_utils::{RandomState, create_hashes};
use datafusion_physical_expr::PhysicalExpr;
use gatework_runtime::Result;

use crate::OrFail;

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
    let rows = batch.num_rows();
    let columns = keys
        .iter()
        .map(|key| key.evaluate(batch)?.into_array_of_size(rows))
        .collect::<Result<Vec<ArrayRef>, _>>()
        .or_fail()?;
    let mut hashes = vec![0; rows];
    create_hashes(&columns, &RandomState::with_seed(0), &mut hashes).or_fail()?;
    partition_indices(hashes.iter().map(|hash| (hash % partitions as u64) as usize), partitions)
        .into_iter()
        .enumerate()
        .filter(|(_, indices)| !indices.is_empty())
        .map(|(partition, indices)| {
            let part = take_record_batch(batch, &UInt32Array::from(indices)).or_fail()?;
            Ok((partition, part))
        })
        .collect()
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
