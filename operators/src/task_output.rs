//! Task output: the sink that writes a stage task's rows for the tasks of other stages.

use std::sync::Arc;

use gatework_runtime::{
    Result,
    pipeline::{
        Batch, BufferedBatch, DriverContext, FinishResult, LocalSink, OperatorContext, PerTask,
        Sink, SinkResult,
    },
};
use gatework_shared_state::{
    Gate, PushResult,
    output::{OutputKind, OutputWriter},
};

use crate::{
    apply_selection,
    local_exchange::{Routed, Router, Routing},
    result::to_sink_result,
};

#[cfg(test)]
mod tests;

/// Sink that writes rows into an [output buffer](gatework_shared_state::output::OutputBuffer). Rows
/// go to one client buffer by the hash of their keys. Whole batches go to all client buffers or to
/// any of them.
#[derive(Debug)]
pub struct TaskOutputSink {
    slots: PerTask<OutputWriter<BufferedBatch>>,
    router: Arc<Router>,
    kind: OutputKind,
}

impl TaskOutputSink {
    /// Creates a sink of `writers.len()` tasks for an output of `partitions` partitions.
    ///
    /// # Errors
    /// If the routing maps a bucket to a partition that does not exist.
    pub fn new(
        writers: Vec<OutputWriter<BufferedBatch>>,
        kind: OutputKind,
        routing: Routing,
        partitions: usize,
    ) -> Result<Self> {
        let router = Arc::new(Router::new(routing, partitions)?);
        Ok(Self { slots: PerTask::new(writers), router, kind })
    }
}

impl Sink for TaskOutputSink {
    fn name(&self) -> &str {
        match self.kind {
            OutputKind::Partitioned => "partitioned output sink",
            OutputKind::Broadcast => "broadcast output sink",
            OutputKind::Arbitrary => "arbitrary output sink",
        }
    }

    fn local(&self, setup: OperatorContext) -> Result<Box<dyn LocalSink>> {
        let writer = self.slots.take(&setup)?;
        let closed = writer.closed().clone();
        Ok(Box::new(LocalTaskOutputSink {
            writer: Some(writer),
            closed,
            router: self.router.clone(),
        }))
    }
}

struct LocalTaskOutputSink {
    writer: Option<OutputWriter<BufferedBatch>>,
    closed: Gate,
    router: Arc<Router>,
}

impl LocalSink for LocalTaskOutputSink {
    fn sink(&mut self, batch: Option<Batch>, _task: &DriverContext) -> Result<SinkResult> {
        let Some(writer) = &mut self.writer else { return Ok(SinkResult::Finished) };
        let Some(batch) = batch else { return Ok(to_sink_result(writer.poll_capacity())) };
        let sequence = batch.sequence();
        let page = |rows| BufferedBatch::from(Batch::new(rows).with_sequence(sequence));
        let mut result = PushResult::Accepted;
        match self.router.route(apply_selection(batch)?)? {
            Routed::AnyChannel(rows) | Routed::EveryChannel(rows) => {
                result = writer.push(0, page(rows))
            }
            Routed::Partitions(partitions) => {
                for (partition, rows) in partitions {
                    result = writer.push(partition, page(rows));
                }
            }
        }
        Ok(to_sink_result(result))
    }

    fn finish(&mut self, _task: &DriverContext) -> Result<FinishResult> {
        if let Some(writer) = self.writer.take() {
            writer.finish();
        }
        Ok(FinishResult::Done)
    }

    fn closed(&self) -> Option<Gate> {
        Some(self.closed.clone())
    }
}
