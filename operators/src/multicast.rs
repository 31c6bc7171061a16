//! Multicast: the rows of one task for several pipelines, each of which reads them all.

#[cfg(test)]
mod tests;

use gatework_runtime::{
    Result,
    pipeline::{
        Batch, Fetch, FinishResult, Held, LocalSink, LocalSource, Setup, Sink, SinkResult, Slots,
        Source, SourceResult, TaskContext,
    },
};
use gatework_shared_state::{Budget, Gate, Give, multicast as state};

use crate::{
    compact,
    held::{self, Holding},
};

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
        let sink = self.slots.take(&setup)?;
        Ok(Box::new(LocalMulticastSink {
            closed: sink.closed().clone(),
            sink: Some(sink),
            holding: Holding::new(self.budget.clone(), setup),
        }))
    }
}

struct LocalMulticastSink {
    sink: Option<state::MulticastSink<Held>>,
    closed: Gate,
    holding: Holding<()>,
}

impl LocalSink for LocalMulticastSink {
    fn sink(&mut self, batch: Option<Batch>, _task: &TaskContext) -> Result<SinkResult> {
        let Some(sink) = &mut self.sink else { return Ok(SinkResult::Finished) };
        let settled = match batch {
            Some(batch) => {
                let sequence = batch.sequence();
                // Gathered once here instead of once a reader.
                self.holding.hold(vec![((), compact(batch)?)], sequence)?
            }
            None => self.holding.settle()?,
        };
        Ok(settled.answer(|next| match next {
            Some(((), held)) => sink.push(held),
            // Woken: there is room, or nobody reads any more, which the next push would tell.
            None => Give::Accepted,
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

impl Source for MulticastSource {
    fn name(&self) -> &str {
        "multicast"
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalSource>> {
        let source = self.slots.take(&setup)?;
        let fetch = Fetch::new(&setup);
        Ok(Box::new(LocalMulticastSource { source, fetch }))
    }
}

struct LocalMulticastSource {
    source: state::MulticastSource<Held>,
    fetch: Fetch,
}

impl LocalSource for LocalMulticastSource {
    fn next(&mut self, _task: &TaskContext) -> Result<SourceResult> {
        held::next(&mut self.fetch, || self.source.take())
    }
}
