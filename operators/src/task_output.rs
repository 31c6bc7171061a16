//! Task output: the sink that writes what a task of a stage gives to tasks of other stages.

use std::sync::Arc;

use gatework_runtime::{
    Result,
    pipeline::{Batch, FinishResult, Held, LocalSink, Setup, Sink, SinkResult, Slots, TaskContext},
};
use gatework_shared_state::{
    Gate, Give,
    output::{OutputKind, OutputWriter},
};

use crate::{
    compact,
    local_exchange::{Routed, Router, Routing},
    result::answer,
};

#[cfg(test)]
mod tests;

/// Writes rows into an [output](gatework_shared_state::output::Output): by the hash of their keys to the buffer of
/// one task, or whole batches to all buffers or to any.
#[derive(Debug)]
pub struct TaskOutput {
    slots: Slots<OutputWriter<Held>>,
    router: Arc<Router>,
    kind: OutputKind,
}

impl TaskOutput {
    /// A sink of as many tasks as there are writers, for an output of `partitions` partitions.
    ///
    /// # Errors
    /// If the routing has buckets of partitions that do not exist.
    pub fn new(
        writers: Vec<OutputWriter<Held>>,
        kind: OutputKind,
        routing: Routing,
        partitions: usize,
    ) -> Result<Self> {
        let router = Arc::new(Router::new(routing, partitions)?);
        Ok(Self { slots: Slots::new(writers), router, kind })
    }
}

impl Sink for TaskOutput {
    fn name(&self) -> &str {
        match self.kind {
            OutputKind::Partitioned => "partitioned output",
            OutputKind::Broadcast => "broadcast output",
            OutputKind::Arbitrary => "arbitrary output",
        }
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalSink>> {
        let writer = self.slots.take(&setup)?;
        let closed = writer.closed().clone();
        Ok(Box::new(LocalOutput { writer: Some(writer), closed, router: self.router.clone() }))
    }
}

struct LocalOutput {
    writer: Option<OutputWriter<Held>>,
    closed: Gate,
    router: Arc<Router>,
}

impl LocalSink for LocalOutput {
    fn sink(&mut self, batch: Option<Batch>, _task: &TaskContext) -> Result<SinkResult> {
        let Some(writer) = &mut self.writer else { return Ok(SinkResult::Finished) };
        let Some(batch) = batch else { return Ok(answer(writer.room())) };
        let sequence = batch.sequence();
        let page = |rows| Held::from(Batch::new(rows).at(sequence));
        let mut said = Give::Accepted;
        match self.router.route(compact(batch)?)? {
            Routed::Any(rows) | Routed::All(rows) => said = writer.push(0, page(rows)),
            Routed::Parts(parts) => {
                for (partition, rows) in parts {
                    said = writer.push(partition, page(rows));
                }
            }
        }
        Ok(answer(said))
    }

    fn finish(&mut self, _task: &TaskContext) -> Result<FinishResult> {
        if let Some(writer) = self.writer.take() {
            writer.finish();
        }
        Ok(FinishResult::Done)
    }

    fn closed(&self) -> Option<Gate> {
        Some(self.closed.clone())
    }
}
