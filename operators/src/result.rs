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

/// Hands rows to partitions: by the hash of keys, to whichever has least to read, or by task.
#[derive(Debug)]
pub struct ResultOutput {
    slots: Slots<ResultSink<Held>>,
    keys: Arc<[Arc<dyn PhysicalExpr>]>,
    by_task: bool,
    budget: Budget,
}

impl ResultOutput {
    /// A result that `instances` tasks write, with one reader per partition. With several partitions
    /// `keys` decide; without keys a batch goes to the partition that has least to read.
    pub fn new(
        instances: usize,
        partitions: usize,
        keys: Vec<Arc<dyn PhysicalExpr>>,
        budget: Budget,
    ) -> (Self, Vec<ResultReader<Held>>) {
        let (sinks, readers) = result::new("result", instances, partitions, budget.clone());
        let slots = Slots::new(sinks);
        (Self { slots, keys: keys.into(), by_task: false, budget }, readers)
    }

    /// Without keys, the rows of each task go to the partition of its number.
    #[must_use]
    pub fn by_task(self) -> Self {
        Self { by_task: true, ..self }
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
            partition: self.by_task.then(|| setup.instance() % sink.partitions()),
            sink: Some(sink),
            keys: self.keys.clone(),
            holding: Holding::new(self.budget.clone(), setup),
        }))
    }
}

struct LocalResult {
    sink: Option<ResultSink<Held>>,
    closed: Gate,
    /// Where rows go if there are no keys; `None`: to any partition.
    partition: Option<usize>,
    keys: Arc<[Arc<dyn PhysicalExpr>]>,
    /// With the partition that a batch goes to; `None`: to any.
    holding: Holding<Option<usize>>,
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
                    let parts = partition_rows(&data, &self.keys, sink.partitions())?;
                    parts.into_iter().map(|(partition, rows)| (Some(partition), rows)).collect()
                };
                self.holding.hold(parts, sequence)?
            }
            None => self.holding.settle()?,
        };
        Ok(settled.answer(|next| match next {
            Some((Some(partition), held)) => sink.push(partition, held),
            Some((None, held)) => sink.push_any(held),
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
