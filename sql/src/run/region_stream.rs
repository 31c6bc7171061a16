//! The streams of a region's result, and the metrics that the last of them writes.

use std::{
    borrow::Cow,
    collections::HashMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use arrow::{
    array::{RecordBatch, RecordBatchOptions},
    datatypes::SchemaRef,
};
use datafusion::{
    common::exec_err,
    error::Result,
    execution::RecordBatchStream,
    physical_plan::metrics::{ExecutionPlanMetricsSet, MetricBuilder, MetricValue, Time},
};
use futures::{Stream, StreamExt};
use gatework_operators::{SharedDataFusionError, stream_scan::is_polling};
use gatework_runtime::{
    Error,
    pipeline::{GraphHandle, RowStream},
};
use parking_lot::Mutex;

use crate::run::{engine::Engine, region::QueryTimeout};

/// A stream of the result, and the metric sets of its region.
pub(crate) type PendingStream = (RowStream, Arc<NodeMetrics>);

/// The metric sets of a region's nodes, by the tags of their operators. Dropped with the region's
/// last stream, which writes the counters of the finished region there.
#[derive(Debug)]
pub(crate) struct NodeMetrics {
    pub(crate) graph_handle: GraphHandle,
    /// Metric set of the query's topmost node, for the blocked times of its tasks.
    pub(crate) root: Option<ExecutionPlanMetricsSet>,
    pub(crate) nodes: HashMap<usize, ExecutionPlanMetricsSet>,
    pub(crate) _timeout: Option<QueryTimeout>,
}

/// The unclaimed streams, by partition.
pub(crate) type UnclaimedStreams = Vec<Option<PendingStream>>;

impl Drop for NodeMetrics {
    fn drop(&mut self) {
        for operator in &self.graph_handle.operators() {
            let Some(metrics) = operator.tag.and_then(|tag| self.nodes.get(&tag)) else { continue };
            let builder = || MetricBuilder::new(metrics);
            // Sinks emit no rows: a node's output rows are those of its last operator.
            builder().output_rows(0).add(operator.rows_out as usize);
            let time = Time::new();
            time.add_duration(operator.busy);
            builder().elapsed_compute(0).add(&time);
            for (name, amount) in &operator.counters {
                builder().counter(*name, 0).add(*amount as usize);
            }
        }
        let Some(root) = &self.root else { return };
        let waited = self
            .graph_handle
            .query()
            .profile()
            .gates
            .into_iter()
            .filter(|gate| gate.blocked >= MIN_REPORTED_WAIT);
        for gate in waited.take(MAX_REPORTED_WAITS) {
            let (name, time) = (
                Cow::Owned(format!("blocked_on_{}_time", gate.name.replace(' ', "_"))),
                Time::new(),
            );
            time.add_duration(gate.blocked);
            MetricBuilder::new(root).build(MetricValue::Time { name, time });
        }
    }
}

/// Maximum number of blocked times in the metrics of a query's topmost node; the longest come
/// first.
const MAX_REPORTED_WAITS: usize = 8;
/// Minimum blocked time that is reported.
const MIN_REPORTED_WAIT: Duration = Duration::from_millis(1);

/// One partition of a region's result.
pub(crate) struct RegionStream {
    pub(crate) rows: RowStream,
    pub(crate) schema: SchemaRef,
    /// Dropped at the end of the stream, so that the counters are written before the reader sees
    /// the end.
    pub(crate) metrics: Option<Arc<NodeMetrics>>,
    /// The unclaimed partitions of the execution. A stream dropped before its end drops them too:
    /// nothing else would end them.
    pub(crate) unclaimed: Option<Arc<Mutex<UnclaimedStreams>>>,
    /// Keeps the executor's threads alive as long as the stream. Dropped last.
    pub(crate) engine: Engine,
}

impl RegionStream {
    /// Returns whether a blocking function on a worker of the same executor polls this stream.
    fn blocks_its_own_worker(&self) -> bool {
        self.engine.executor.is_worker_thread() && !is_polling()
    }
}

impl Drop for RegionStream {
    fn drop(&mut self) {
        if let Some(unclaimed) = self.unclaimed.take() {
            // Outside the lock: dropping a stream cancels the pipelines that feed it.
            let streams = std::mem::take(&mut *unclaimed.lock());
            drop(streams);
        }
    }
}

impl Stream for RegionStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.rows.poll_next_unpin(context);
        if polled.is_pending() && self.blocks_its_own_worker() {
            let reason = "its result was waited for on a worker of its own executor";
            self.rows.query().fail(Error::Cancelled { reason });
            return Poll::Ready(Some(exec_err!(
                "a query's result was awaited on one of its own workers, which can deadlock: \
                 read it on another thread, or run the query on another executor"
            )));
        }
        let batch = match ready!(polled) {
            Some(Ok(batch)) => with_schema(batch.into_parts().0, &self.schema),
            Some(Err(error)) => Err(SharedDataFusionError::to_datafusion(&error)),
            None => {
                (self.metrics, self.unclaimed) = (None, None);
                return Poll::Ready(None);
            }
        };
        Poll::Ready(Some(batch))
    }
}

impl RecordBatchStream for RegionStream {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
}

/// Returns `batch` with the schema of the plan (its metadata, nullability and names).
fn with_schema(batch: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    if batch.schema_ref() == schema {
        return Ok(batch);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let (_, columns, _) = batch.into_parts();
    Ok(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?)
}
