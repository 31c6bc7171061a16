//! Result: the sink that hands rows to the readers of a query.

use std::sync::Arc;

use datafusion_physical_expr::PhysicalExpr;
use gatework_runtime::{
    Result,
    pipeline::{Batch, FinishResult, LocalSink, Setup, Sink, SinkResult, Slots, TaskContext},
};
use gatework_shared_state::{
    Budget, Gate, Give,
    result::{self, ResultReader, ResultSink},
};

use crate::{compact, keys::partition_rows};

#[cfg(test)]
mod tests;

/// Hands rows to partitions: all to the first, or by the hash of keys.
#[derive(Debug)]
pub struct ResultOutput {
    slots: Slots<ResultSink<Batch>>,
    keys: Arc<[Arc<dyn PhysicalExpr>]>,
}

impl ResultOutput {
    /// A result that `instances` tasks write, with one reader per partition. With several partitions
    /// `keys` decide; without keys a task's rows go to the partition of its number.
    pub fn new(
        instances: usize,
        partitions: usize,
        keys: Vec<Arc<dyn PhysicalExpr>>,
        budget: Budget,
    ) -> (Self, Vec<ResultReader<Batch>>) {
        let (sinks, readers) = result::new("result", instances, partitions, budget);
        (Self { slots: Slots::new(sinks), keys: keys.into() }, readers)
    }
}

impl Sink for ResultOutput {
    fn name(&self) -> &str {
        "result"
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalSink>> {
        let sink = self.slots.take(setup.instance())?;
        Ok(Box::new(LocalResult {
            closed: sink.closed().clone(),
            partition: setup.instance() % sink.partitions(),
            sink: Some(sink),
            keys: self.keys.clone(),
        }))
    }
}

struct LocalResult {
    sink: Option<ResultSink<Batch>>,
    closed: Gate,
    /// Where rows go if there are no keys.
    partition: usize,
    keys: Arc<[Arc<dyn PhysicalExpr>]>,
}

impl LocalSink for LocalResult {
    fn sink(&mut self, batch: Option<Batch>, _task: &TaskContext) -> Result<SinkResult> {
        let Some(sink) = &mut self.sink else { return Ok(SinkResult::Finished) };
        let Some(batch) = batch else { return Ok(answer(sink.room())) };
        let sequence = batch.sequence();
        let data = compact(batch)?;
        if sink.partitions() == 1 || self.keys.is_empty() {
            return Ok(answer(sink.push(self.partition, Batch::new(data).at(sequence))));
        }
        let mut last = Give::Accepted;
        for (partition, part) in partition_rows(&data, &self.keys, sink.partitions())? {
            last = sink.push(partition, Batch::new(part).at(sequence));
        }
        Ok(answer(last))
    }

    fn finish(&mut self, _task: &TaskContext) -> Result<FinishResult> {
        if let Some(sink) = self.sink.take() {
            sink.finish();
        }
        Ok(FinishResult::Done)
    }

    fn closed(&self) -> Option<Gate> {
        Some(self.closed.clone())
    }
}

/// A sink's answer for what its shared state said.
pub(crate) fn answer(give: Give) -> SinkResult {
    match give {
        Give::Accepted => SinkResult::NeedInput,
        Give::Full(gate) => SinkResult::Blocked(gate.into()),
        Give::Closed => SinkResult::Finished,
    }
}
