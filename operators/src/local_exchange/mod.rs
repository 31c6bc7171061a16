//! Local exchange: moves rows between the tasks of pipelines, by one of six routes.

mod routing;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use gatework_runtime::{
    Error, Result,
    pipeline::{
        Batch, FinishResult, LocalSink, LocalSource, Setup, Sink, SinkResult, Slots, Source,
        SourceResult, TaskContext,
    },
};
use gatework_shared_state::{Budget, Gate, Take, exchange as state};

pub use routing::Routing;

use crate::{compact, held::Held, result::answer, union::rename};
use routing::{Routed, Router};

/// Takes the rows of one producing pipeline.
#[derive(Debug)]
pub struct LocalExchangeSink {
    slots: Slots<state::ExchangeSink<Held>>,
    router: Arc<Router>,
    budget: Budget,
}

/// Gives each task of the consuming pipeline the rows of its channel.
#[derive(Debug)]
pub struct LocalExchangeSource {
    slots: Slots<state::ExchangeSource<Held>>,
    schema: Option<SchemaRef>,
}

impl LocalExchangeSource {
    /// The same source, whose columns come out under the names of `schema`: for producers that
    /// agree in the types of their columns only, such as the children of a union.
    #[must_use]
    pub fn with_schema(mut self, schema: SchemaRef) -> Self {
        self.schema = Some(schema);
        self
    }
}

/// An exchange from pipelines of as many tasks as `producers` says, one sink each, to a pipeline of
/// `consumers` tasks. `budget` is for the wait-for graph to overflow where waiting for a consumer
/// would close a cycle.
///
/// # Errors
/// If there are no producers or no consumers, or a bucket goes to a channel that does not exist.
pub fn new(
    routing: Routing,
    producers: &[usize],
    consumers: usize,
    budget: Budget,
) -> Result<(Vec<LocalExchangeSink>, LocalExchangeSource)> {
    let tasks = producers.iter().sum();
    if tasks == 0 || consumers == 0 {
        return Err(Error::Setup("a local exchange needs producers and consumers".into()));
    }
    let router = Arc::new(Router::new(routing, consumers)?);
    let (sinks, sources) =
        state::new("local exchange", router.kind(), tasks, consumers, budget.clone());
    let mut sinks = sinks.into_iter();
    let sinks = producers.iter().map(|tasks| LocalExchangeSink {
        slots: Slots::new(sinks.by_ref().take(*tasks)),
        router: router.clone(),
        budget: budget.clone(),
    });
    Ok((sinks.collect(), LocalExchangeSource { slots: Slots::new(sources), schema: None }))
}

impl Sink for LocalExchangeSink {
    fn name(&self) -> &str {
        self.router.name()
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalSink>> {
        let sink = self.slots.take(setup.instance())?;
        Ok(Box::new(LocalExchange {
            closed: sink.closed().clone(),
            sink: Some(sink),
            router: self.router.clone(),
            budget: self.budget.clone(),
            setup,
        }))
    }
}

struct LocalExchange {
    sink: Option<state::ExchangeSink<Held>>,
    closed: Gate,
    router: Arc<Router>,
    budget: Budget,
    setup: Setup,
}

impl LocalSink for LocalExchange {
    fn sink(&mut self, batch: Option<Batch>, _task: &TaskContext) -> Result<SinkResult> {
        let Some(sink) = &mut self.sink else { return Ok(SinkResult::Finished) };
        let Some(batch) = batch else { return Ok(answer(sink.room())) };
        let sequence = batch.sequence();
        let hold = |data| Held::new(Batch::new(data).at(sequence), &self.budget, &self.setup);
        let give = match self.router.route(compact(batch)?)? {
            Routed::Any(data) => sink.push_any(hold(data)?),
            Routed::All(data) => sink.push_all(&hold(data)?),
            Routed::Parts(parts) => {
                for (channel, part) in parts {
                    sink.push(channel, hold(part)?);
                }
                sink.room()
            }
        };
        Ok(answer(give))
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

impl Source for LocalExchangeSource {
    fn name(&self) -> &str {
        "local exchange"
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalSource>> {
        Ok(Box::new(LocalChannel {
            source: self.slots.take(setup.instance())?,
            schema: self.schema.clone(),
        }))
    }
}

struct LocalChannel {
    source: state::ExchangeSource<Held>,
    schema: Option<SchemaRef>,
}

impl LocalSource for LocalChannel {
    fn next(&mut self, _task: &TaskContext) -> Result<SourceResult> {
        Ok(match self.source.take() {
            Take::Item(held) => SourceResult::Batch(match &self.schema {
                Some(schema) => rename(held.release(), schema)?,
                None => held.release(),
            }),
            Take::Blocked(gate) => SourceResult::Blocked(gate.into()),
            Take::Finished => SourceResult::Finished,
            Take::Aborted => return Err(Error::ProducerAborted),
        })
    }
}
