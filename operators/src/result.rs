//! Result: the sink that hands rows to the readers of a query.

use std::sync::Arc;

use datafusion_physical_expr::PhysicalExpr;
use gatework_runtime::{
    Result,
    pipeline::{
        Batch, BufferedBatch, DriverContext, FinishResult, LocalSink, OperatorContext, PerTask,
        Sink, SinkResult,
    },
};
use gatework_shared_state::{
    BufferLimit, Gate, PushResult,
    result::{self, ResultProducer, ResultReader},
};

use crate::{apply_selection, buffer::BufferWriter, keys::partition_rows};

#[cfg(test)]
mod tests;

/// Sink that hands rows to partitions: by key hash, to the partition with the fewest buffered
/// bytes, or by task.
#[derive(Debug)]
pub struct ResultSink {
    slots: PerTask<ResultProducer<BufferedBatch>>,
    keys: Arc<[Arc<dyn PhysicalExpr>]>,
    by_task: bool,
    budget: BufferLimit,
}

impl ResultSink {
    /// Creates a result that `num_tasks` tasks write, with one reader per partition. With several
    /// partitions, `keys` select the partition. Without keys a batch goes to the partition with the
    /// fewest buffered bytes.
    pub fn new(
        num_tasks: usize,
        partitions: usize,
        keys: Vec<Arc<dyn PhysicalExpr>>,
        budget: BufferLimit,
    ) -> (Self, Vec<ResultReader<BufferedBatch>>) {
        let (sinks, readers) = result::new("result", num_tasks, partitions, budget.clone());
        let slots = PerTask::new(sinks);
        (Self { slots, keys: keys.into(), by_task: false, budget }, readers)
    }

    /// Sends the rows of each task, if there are no keys, to partition `task_index % partitions`.
    #[must_use]
    pub fn by_task(self) -> Self {
        Self { by_task: true, ..self }
    }
}

impl Sink for ResultSink {
    fn name(&self) -> &str {
        "result sink"
    }

    fn local(&self, setup: OperatorContext) -> Result<Box<dyn LocalSink>> {
        let sink = self.slots.take(&setup)?;
        Ok(Box::new(LocalResultSink {
            closed: sink.closed().clone(),
            partition: self.by_task.then(|| setup.task_index() % sink.partitions()),
            sink: Some(sink),
            keys: self.keys.clone(),
            writer: BufferWriter::new(self.budget.clone(), setup),
        }))
    }
}

struct LocalResultSink {
    sink: Option<ResultProducer<BufferedBatch>>,
    closed: Gate,
    /// Target partition if there are no keys; `None` for any partition.
    partition: Option<usize>,
    keys: Arc<[Arc<dyn PhysicalExpr>]>,
    /// Writer tagged with the target partition of each batch; `None` for any.
    writer: BufferWriter<Option<usize>>,
}

impl LocalSink for LocalResultSink {
    fn sink(&mut self, batch: Option<Batch>, _task: &DriverContext) -> Result<SinkResult> {
        let Some(sink) = &mut self.sink else { return Ok(SinkResult::Finished) };
        let write = match batch {
            Some(batch) => {
                let sequence = batch.sequence();
                let data = apply_selection(batch)?;
                let batches = if sink.partitions() == 1 || self.keys.is_empty() {
                    vec![(self.partition, data)]
                } else {
                    let partitions = partition_rows(&data, &self.keys, sink.partitions())?;
                    partitions
                        .into_iter()
                        .map(|(partition, rows)| (Some(partition), rows))
                        .collect()
                };
                self.writer.write(batches, sequence)?
            }
            None => self.writer.poll()?,
        };
        Ok(write.into_sink_result(|next| match next {
            Some((Some(partition), batch)) => sink.push(partition, batch),
            Some((None, batch)) => sink.push_any(batch),
            None => sink.poll_capacity(),
        }))
    }

    fn finish(&mut self, _task: &DriverContext) -> Result<FinishResult> {
        if let Some(sink) = self.sink.take() {
            sink.finish();
        }
        Ok(FinishResult::Done)
    }

    fn closed(&self) -> Option<Gate> {
        Some(self.closed.clone())
    }
}

/// Converts the result of a push into a sink's result.
pub(crate) fn to_sink_result(push: PushResult) -> SinkResult {
    match push {
        PushResult::Accepted => SinkResult::NeedInput,
        PushResult::Backpressure(gate) => SinkResult::Blocked(gate.into()),
        PushResult::Closed => SinkResult::Finished,
    }
}
