//! Multicast: the rows of one task for several pipelines, each of which reads all rows.
//!
//! No plan is lowered to it: it serves pipelines that are built by hand. A subplan with several
//! readers becomes [shared rows](crate::shared_rows).

#[cfg(test)]
mod tests;

use arrow::array::RecordBatch;
use gatework_runtime::{
    Result,
    pipeline::{
        BufferReader, BufferedBatch, DriverContext, LocalSink, LocalSource, OperatorContext,
        PerTask, Sink, Source, SourceResult,
    },
};
use gatework_shared_state::{BufferLimit, Gate, PushResult, multicast as state};

use crate::buffer::{self, ChannelProducer, ChannelSink};

/// Sink of the rows. Its pipeline has one task.
#[derive(Debug)]
pub struct MulticastSink {
    slots: PerTask<state::MulticastProducer<BufferedBatch>>,
    budget: BufferLimit,
}

/// Source of all rows for one reader. Its pipeline has one task.
#[derive(Debug)]
pub struct MulticastSource {
    slots: PerTask<state::MulticastConsumer<BufferedBatch>>,
}

/// Creates a multicast to `readers` pipelines. The wait-for graph makes `budget` overflow where
/// waiting for the slowest reader would close a cycle.
///
/// # Panics
/// If there are no readers.
pub fn new(readers: usize, budget: BufferLimit) -> (MulticastSink, Vec<MulticastSource>) {
    let (sink, sources) = state::new("multicast", readers, budget.clone());
    let source = |source| MulticastSource { slots: PerTask::new("multicast source", [source]) };
    let sources = sources.into_iter().map(source).collect();
    (MulticastSink { slots: PerTask::new("multicast sink", [sink]), budget }, sources)
}

impl Sink for MulticastSink {
    fn name(&self) -> &str {
        "multicast sink"
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSink>> {
        let producer = self.slots.take(&context)?;
        Ok(Box::new(ChannelSink::new(LocalMulticast(producer), self.budget.clone(), context)))
    }
}

struct LocalMulticast(state::MulticastProducer<BufferedBatch>);

impl ChannelProducer for LocalMulticast {
    /// All readers.
    type Target = ();

    fn route(&self, rows: RecordBatch) -> Result<Vec<((), RecordBatch)>> {
        Ok(vec![((), rows)])
    }

    fn push(&mut self, (): (), batch: BufferedBatch) -> PushResult {
        self.0.push(batch)
    }

    /// There is capacity, or all readers are gone, which the next push reports.
    fn poll_capacity(&mut self) -> PushResult {
        PushResult::Accepted
    }

    fn finish(self) {
        self.0.finish();
    }

    fn closed(&self) -> &Gate {
        self.0.closed()
    }
}

impl Source for MulticastSource {
    fn name(&self) -> &str {
        "multicast source"
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSource>> {
        let source = self.slots.take(&context)?;
        let reader = BufferReader::new(&context);
        Ok(Box::new(LocalMulticastSource { source, reader }))
    }
}

struct LocalMulticastSource {
    source: state::MulticastConsumer<BufferedBatch>,
    reader: BufferReader,
}

impl LocalSource for LocalMulticastSource {
    fn next(&mut self, _task: &DriverContext) -> Result<SourceResult> {
        buffer::next_batch(&mut self.reader, || self.source.take())
    }
}
