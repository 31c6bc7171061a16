//! Result: the sink that hands rows to the readers of a query.

use std::sync::Arc;

use datafusion_physical_expr::PhysicalExpr;
use gatework_runtime::{
    Result,
    pipeline::{Batch, FinishResult, Held, LocalSink, Setup, Sink, SinkResult, Slots, TaskContext},
};
use gatework_shared_state::{
    Budget, Gate, Give,
    result::{self, ResultReader, ResultSink},
};

use crate::{compact, held::Holding, keys::partition_rows};

#[cfg(test)]
mod tests;

/// Hands rows to partitions: all to the first, or by the hash of keys.
#[derive(Debug)]
pub struct ResultOutput {
    slots: Slots<ResultSink<Held>>,
    keys: Arc<[Arc<dyn PhysicalExpr>]>,
    budget: Budget,
}

impl ResultOutput {
    /// A result that `instances` tasks write, with one reader per partition. With several partitions
    /// `keys` decide; without keys a task's rows go to the partition of its number.
    pub fn new(
        instances: usize,
        partitions: usize,
        keys: Vec<Arc<dyn PhysicalExpr>>,
        budget: Budget,
    ) -> (Self, Vec<ResultReader<Held>>) {
        let (sinks, readers) = result::new("result", instances, partitions, budget.clone());
        (Self { slots: Slots::new(sinks), keys: keys.into(), budget }, readers)
    }
}

impl Sink for ResultOutput {
    fn name(&self) -> &str {
        "result"
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalSink>> {
        let sink = self.slots.take(&setup)?;
        Ok(Box::new(LocalResult {
            closed: sink.closed().clone(),
            partition: setup.instance() % sink.partitions(),
            sink: Some(sink),
            keys: self.keys.clone(),
            holding: Holding::new(self.budget.clone(), setup),
        }))
    }
}

struct LocalResult {
    sink: Option<ResultSink<Held>>,
    closed: Gate,
    /// Where rows go if there are no keys.
    partition: usize,
    keys: Arc<[Arc<dyn PhysicalExpr>]>,
    holding: Holding<usize>,
}

impl LocalSink for LocalResult {
    fn sink(&mut self, batch: Option<Batch>, _task: &TaskContext) -> Result<SinkResult> {
        let Some(sink) = &mut self.sink else { return Ok(SinkResult::Finished) };
        let settled = match batch {
            Some(batch) => {
                let sequence = batch.sequence();
                let data = compact(batch)?;
                let parts = if sink.partitions() == 1 || self.keys.is_empty() {
                    vec![(self.partition, data)]
                } else {
                    partition_rows(&data, &self.keys, sink.partitions())?
                };
                self.holding.hold(parts, sequence)?
            }
            None => self.holding.settle()?,
        };
        Ok(settled.answer(|next| match next {
            Some((partition, held)) => sink.push(partition, held),
            None => sink.room(),
        }))
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
