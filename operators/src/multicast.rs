//! Multicast: the rows of one task for several pipelines, each of which reads all rows.
//!
//! No plan is lowered to it: it serves pipelines that are built by hand.

#[cfg(test)]
mod tests;

use gatework_runtime::{
    Result,
    pipeline::{
        Batch, BufferReader, BufferedBatch, DriverContext, FinishResult, LocalSink, LocalSource,
        OperatorContext, PerTask, Sink, SinkResult, Source, SourceResult,
    },
};
use gatework_shared_state::{BufferLimit, Gate, PushResult, multicast as state};

use crate::{
    apply_selection,
    buffer::{self, BufferWriter},
};

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
    let source = |source| MulticastSource { slots: PerTask::new([source]) };
    let sources = sources.into_iter().map(source).collect();
    (MulticastSink { slots: PerTask::new([sink]), budget }, sources)
}

impl Sink for MulticastSink {
    fn name(&self) -> &str {
        "multicast sink"
    }

    fn local(&self, setup: OperatorContext) -> Result<Box<dyn LocalSink>> {
        let sink = self.slots.take(&setup)?;
        Ok(Box::new(LocalMulticastSink {
            closed: sink.closed().clone(),
            sink: Some(sink),
            writer: BufferWriter::new(self.budget.clone(), setup),
        }))
    }
}

struct LocalMulticastSink {
    sink: Option<state::MulticastProducer<BufferedBatch>>,
    closed: Gate,
    writer: BufferWriter<()>,
}

impl LocalSink for LocalMulticastSink {
    fn sink(&mut self, batch: Option<Batch>, _task: &DriverContext) -> Result<SinkResult> {
        let Some(sink) = &mut self.sink else { return Ok(SinkResult::Finished) };
        let write = match batch {
            Some(batch) => {
                let sequence = batch.sequence();
                // Gathered once in the sink instead of once per reader.
                self.writer.write(vec![((), apply_selection(batch)?)], sequence)?
            }
            None => self.writer.poll()?,
        };
        Ok(write.into_sink_result(|next| match next {
            Some(((), batch)) => sink.push(batch),
            // Woken: there is capacity, or all readers are gone, which the next push reports.
            None => PushResult::Accepted,
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

impl Source for MulticastSource {
    fn name(&self) -> &str {
        "multicast source"
    }

    fn local(&self, setup: OperatorContext) -> Result<Box<dyn LocalSource>> {
        let source = self.slots.take(&setup)?;
        let reader = BufferReader::new(&setup);
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
