//! Routing of a batch's rows to the channels of a local exchange.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use arrow::{
    array::{Array, RecordBatch},
    compute::cast,
    datatypes::DataType,
};
use datafusion_common::{cast::as_int64_array, exec_err};
use datafusion_physical_expr::PhysicalExpr;
use gatework_runtime::{Error, Result};
use gatework_shared_state::exchange::LocalExchangeKind;

use crate::{
    ResultExt,
    keys::{partition_rows, partition_rows_reseeded, split_by_partition},
};

/// Routing strategy of a local exchange.
#[derive(Debug, Clone)]
pub enum Routing {
    /// Routes rows by the hash of these keys, as DataFusion's repartitioning hashes them.
    Hash(Vec<Arc<dyn PhysicalExpr>>),
    /// Routes rows by a hash of these keys with another seed. It is used for rows that a bucket or
    /// a node may have selected by the first hash.
    HashReseeded(Vec<Arc<dyn PhysicalExpr>>),
    /// Routes rows by the bucket their storage assigned.
    ///
    /// Not used by lowering; for pipelines that are built by hand.
    BucketHash {
        /// Bucket number of a row: an integer that is not NULL.
        bucket: Arc<dyn PhysicalExpr>,
        /// Channel of each bucket.
        channels: Arc<[usize]>,
    },
    /// Routes whole batches to the channel with the fewest buffered bytes.
    PassThrough,
    /// Routes every batch to every channel.
    Broadcast,
    /// Routes all batches to channel 0.
    PassToOne,
    /// Splits the first batches, one per channel, over all channels, so that every consumer has
    /// work soon. Later batches are passed whole.
    ///
    /// Not used by lowering; for pipelines that are built by hand.
    AdaptivePassThrough,
}

#[derive(Debug)]
pub(crate) struct Router {
    routing: Routing,
    channels: usize,
    /// Batches routed by all producers; counting stops at `channels`.
    routed_batches: AtomicUsize,
}

/// Channels that receive a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// One channel, whichever has the fewest bytes.
    AnyChannel,
    EveryChannel,
    Channel(usize),
}

impl Router {
    pub(crate) fn new(routing: Routing, channels: usize) -> Result<Self> {
        if let Routing::BucketHash { channels: map, .. } = &routing
            && let Some(wrong) = map.iter().find(|channel| **channel >= channels)
        {
            return Err(Error::InvalidConfiguration(format!(
                "a bucket maps to channel {wrong}, but the exchange has {channels} channels"
            )));
        }
        Ok(Self { routing, channels, routed_batches: AtomicUsize::new(0) })
    }

    pub(super) fn kind(&self) -> LocalExchangeKind {
        match self.routing {
            Routing::Hash(_) | Routing::HashReseeded(_) => LocalExchangeKind::Hash,
            Routing::BucketHash { .. } => LocalExchangeKind::BucketHash,
            Routing::PassThrough => LocalExchangeKind::PassThrough,
            Routing::Broadcast => LocalExchangeKind::Broadcast,
            Routing::PassToOne => LocalExchangeKind::PassToOne,
            Routing::AdaptivePassThrough => LocalExchangeKind::AdaptivePassThrough,
        }
    }

    pub(super) fn name(&self) -> &'static str {
        match self.routing {
            Routing::Hash(_) | Routing::HashReseeded(_) => "local exchange sink (hash)",
            Routing::BucketHash { .. } => "local exchange sink (bucket hash)",
            Routing::PassThrough => "local exchange sink (pass-through)",
            Routing::Broadcast => "local exchange sink (broadcast)",
            Routing::PassToOne => "local exchange sink (pass to one)",
            Routing::AdaptivePassThrough => "local exchange sink (adaptive pass-through)",
        }
    }

    /// Divides the rows of `batch` among the channels.
    pub(crate) fn route(&self, batch: RecordBatch) -> Result<Vec<(Target, RecordBatch)>> {
        let partitions = match &self.routing {
            Routing::PassThrough | Routing::PassToOne => None,
            Routing::Broadcast => return Ok(vec![(Target::EveryChannel, batch)]),
            _ if self.channels == 1 => None,
            Routing::Hash(keys) => Some(partition_rows(&batch, keys, self.channels)?),
            Routing::HashReseeded(keys) => {
                Some(partition_rows_reseeded(&batch, keys, self.channels)?)
            }
            Routing::BucketHash { bucket, channels } => {
                Some(self.by_bucket(&batch, bucket, channels)?)
            }
            Routing::AdaptivePassThrough => {
                // Relaxed: the counter only limits the number of split batches; no other data
                // depends on it.
                let batch_index = match self.routed_batches.load(Ordering::Relaxed) {
                    batch_index if batch_index < self.channels => {
                        self.routed_batches.fetch_add(1, Ordering::Relaxed)
                    }
                    batch_index => batch_index,
                };
                (batch_index < self.channels).then(|| self.split(&batch, batch_index))
            }
        };
        let Some(partitions) = partitions else { return Ok(vec![(Target::AnyChannel, batch)]) };
        let to_channel = |(channel, rows)| (Target::Channel(channel), rows);
        Ok(partitions.into_iter().map(to_channel).collect())
    }

    fn by_bucket(
        &self,
        batch: &RecordBatch,
        bucket: &Arc<dyn PhysicalExpr>,
        channels: &[usize],
    ) -> Result<Vec<(usize, RecordBatch)>> {
        let buckets = bucket.evaluate(batch).query_err()?;
        let buckets = buckets.into_array_of_size(batch.num_rows()).query_err()?;
        let buckets = cast(&buckets, &DataType::Int64).query_err()?;
        let buckets = as_int64_array(&buckets).query_err()?;
        let channel = |row: usize| {
            let bucket = buckets.is_valid(row).then(|| buckets.value(row));
            let known = bucket.and_then(|bucket| channels.get(usize::try_from(bucket).ok()?));
            match known {
                Some(channel) => Ok(*channel),
                None => exec_err!(
                    "a row of a local exchange is in bucket {bucket:?}, but buckets are 0 to {}",
                    channels.len().saturating_sub(1)
                ),
            }
        };
        let row_channels =
            (0..buckets.len()).map(channel).collect::<Result<Vec<_>, _>>().query_err()?;
        split_by_partition(batch, row_channels.iter().copied(), self.channels)
    }

    /// Splits batch `batch_index` into slices of about equal size, one per channel. Batches with
    /// fewer rows than channels start at different channels.
    fn split(&self, batch: &RecordBatch, batch_index: usize) -> Vec<(usize, RecordBatch)> {
        let rows = batch.num_rows();
        let edge = |slice: usize| slice * rows / self.channels;
        (0..self.channels)
            .map(|slice| ((slice + batch_index) % self.channels, edge(slice), edge(slice + 1)))
            .filter(|(_, start, end)| start < end)
            .map(|(channel, start, end)| (channel, batch.slice(start, end - start)))
            .collect()
    }
}
