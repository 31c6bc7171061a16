//! Multicast: the rows of one task for several pipelines, each of which reads them all.

#[cfg(test)]
mod tests;

use gatework_runtime::{
    Error, Result,
    pipeline::{
        Batch, FinishResult, LocalSink, LocalSource, Setup, Sink, SinkResult, Slots, Source,
        SourceResult, TaskContext,
    },
};
use gatework_shared_state::{Budget, Gate, Take, multicast as state};

use crate::{compact, held::Held, result::answer};

/// Takes the rows. Its pipeline has one task.
#[derive(Debug)]
pub struct MulticastSink {
    slots: Slots<state::MulticastSink<Held>>,
    budget: Budget,
}

/// Gives all rows to one of the readers. Its pipeline has one task.
#[derive(Debug)]
pub struct MulticastSource {
    slots: Slots<state::MulticastSource<Held>>,
}

/// A multicast to `readers` pipelines. `budget` is for the wait-for graph to overflow where waiting
/// for the slowest reader would close a cycle.
///
/// # Panics
/// If there are no readers.
pub fn new(readers: usize, budget: Budget) -> (MulticastSink, Vec<MulticastSource>) {
    let (sink, sources) = state::new("multicast", readers, budget.clone());
    let source = |source| MulticastSource { slots: Slots::new([source]) };
    let sources = sources.into_iter().map(source).collect();
    (MulticastSink { slots: Slots::new([sink]), budget }, sources)
}

impl Sink for MulticastSink {
    fn name(&self) -> &str {
        "multicast sink"
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalSink>> {
        let sink = self.slots.take(setup.instance())?;
        Ok(Box::new(LocalMulticastSink {
            closed: sink.closed().clone(),
            sink: Some(sink),
            budget: self.budget.clone(),
            setup,
        }))
    }
}

struct LocalMulticastSink {
    sink: Option<state::MulticastSink<Held>>,
    closed: Gate,
    budget: Budget,
    setup: Setup,
}

impl LocalSink for LocalMulticastSink {
    fn sink(&mut self, batch: Option<Batch>, _task: &TaskContext) -> Result<SinkResult> {
        let Some(sink) = &mut self.sink else { return Ok(SinkResult::Finished) };
        // Woken: there is room, or nobody reads any more, which the next push would tell.
        let Some(batch) = batch else { return Ok(SinkResult::NeedInput) };
        let sequence = batch.sequence();
        // Gathered once here instead of once a reader.
        let batch = Batch::new(compact(batch)?).at(sequence);
        Ok(answer(sink.push(Held::new(batch, &self.budget, &self.setup)?)))
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

impl Source for MulticastSource {
    fn name(&self) -> &str {
        "multicast"
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalSource>> {
        Ok(Box::new(LocalMulticastSource { source: self.slots.take(setup.instance())? }))
    }
}

struct LocalMulticastSource {
    source: state::MulticastSource<Held>,
}

impl LocalSource for LocalMulticastSource {
    fn next(&mut self, _task: &TaskContext) -> Result<SourceResult> {
        Ok(match self.source.take() {
            Take::Item(held) => SourceResult::Batch(held.release()),
            Take::Blocked(gate) => SourceResult::Blocked(gate.into()),
            Take::Finished => SourceResult::Finished,
            Take::Aborted => return Err(Error::ProducerAborted),
        })
    }
}
