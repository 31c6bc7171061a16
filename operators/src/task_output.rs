//! Task output: the sink that writes a stage task's rows for the tasks of other stages.

use std::sync::Arc;

use arrow::array::RecordBatch;
use gatework_runtime::{
    Result,
    pipeline::{BufferedBatch, LocalSink, OperatorContext, PerTask, Sink},
};
use gatework_shared_state::{
    BufferLimit, Gate, PushResult,
    output::{OutputKind, OutputWriter},
};

use crate::{
    buffer::{ChannelProducer, ChannelSink},
    local_exchange::{Router, Routing, Target},
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
        Ok(Self { slots: PerTask::new("task output", writers), router, kind })
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

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSink>> {
        let writer = self.slots.take(&context)?;
        let local = LocalTaskOutput { writer, router: self.router.clone() };
        // The output has a limit of its own, and always blocks its writers.
        Ok(Box::new(ChannelSink::new(local, BufferLimit::new(0), context)))
    }
}

struct LocalTaskOutput {
    writer: OutputWriter<BufferedBatch>,
    router: Arc<Router>,
}

impl ChannelProducer for LocalTaskOutput {
    /// A partition. An output of another kind selects the partitions by itself.
    type Target = Target;

    fn route(&self, rows: RecordBatch) -> Result<Vec<(Target, RecordBatch)>> {
        self.router.route(rows)
    }

    fn push(&mut self, target: Target, batch: BufferedBatch) -> PushResult {
        match target {
            Target::Channel(partition) => self.writer.push(partition, batch),
            Target::AnyChannel | Target::EveryChannel => self.writer.push(0, batch),
        }
    }

    fn poll_capacity(&mut self) -> PushResult {
        self.writer.poll_capacity()
    }

    fn finish(self) {
        self.writer.finish();
    }

    fn closed(&self) -> &Gate {
        self.writer.closed()
    }
}
