//! Result: the sink that hands rows to the readers of a query.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion_physical_expr::PhysicalExpr;
use gatework_runtime::{
    Result,
    pipeline::{BufferedBatch, LocalSink, OperatorContext, PerTask, Sink},
};
use gatework_shared_state::{
    BufferLimit, Gate, PushResult,
    result::{self, ResultProducer, ResultReader},
};

use crate::{
    buffer::{ChannelProducer, ChannelSink},
    keys::partition_rows,
};

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
        let slots = PerTask::new("result sink", sinks);
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

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSink>> {
        let producer = self.slots.take(&context)?;
        let local = LocalResult {
            partition: self.by_task.then(|| context.task_index() % producer.partitions()),
            producer,
            keys: self.keys.clone(),
        };
        Ok(Box::new(ChannelSink::new(local, self.budget.clone(), context)))
    }
}

struct LocalResult {
    producer: ResultProducer<BufferedBatch>,
    /// Target partition if there are no keys; `None` for any partition.
    partition: Option<usize>,
    keys: Arc<[Arc<dyn PhysicalExpr>]>,
}

impl ChannelProducer for LocalResult {
    /// A partition; `None` for any.
    type Target = Option<usize>;

    fn route(&self, rows: RecordBatch) -> Result<Vec<(Option<usize>, RecordBatch)>> {
        if self.producer.partitions() == 1 || self.keys.is_empty() {
            return Ok(vec![(self.partition, rows)]);
        }
        let partitions = partition_rows(&rows, &self.keys, self.producer.partitions())?;
        Ok(partitions.into_iter().map(|(partition, rows)| (Some(partition), rows)).collect())
    }

    fn push(&mut self, target: Option<usize>, batch: BufferedBatch) -> PushResult {
        match target {
            Some(partition) => self.producer.push(partition, batch),
            None => self.producer.push_any(batch),
        }
    }

    fn poll_capacity(&mut self) -> PushResult {
        self.producer.poll_capacity()
    }

    fn finish(self) {
        self.producer.finish();
    }

    fn closed(&self) -> &Gate {
        self.producer.closed()
    }
}
