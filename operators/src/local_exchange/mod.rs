//! Local exchange: moves rows between the tasks of pipelines, by one of seven routes.

mod routing;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use gatework_runtime::{
    Error, Result,
    pipeline::{
        Batch, Fetch, FinishResult, Held, LocalSink, LocalSource, Setup, Sink, SinkResult, Slots,
        Source, SourceResult, TaskContext,
    },
};
use gatework_shared_state::{Budget, Gate, exchange as state};

pub use routing::Routing;
pub(crate) use routing::{Routed, Router};

use crate::{
    compact,
    held::{self, Holding},
    union::rename,
};

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
        let sink = self.slots.take(&setup)?;
        Ok(Box::new(LocalExchange {
            closed: sink.closed().clone(),
            sink: Some(sink),
            router: self.router.clone(),
            holding: Holding::new(self.budget.clone(), setup),
        }))
    }
}

struct LocalExchange {
    sink: Option<state::ExchangeSink<Held>>,
    closed: Gate,
    router: Arc<Router>,
    holding: Holding<To>,
}

/// The channels a batch goes to.
enum To {
    Any,
    All,
    Channel(usize),
}

impl LocalSink for LocalExchange {
    fn sink(&mut self, batch: Option<Batch>, _task: &TaskContext) -> Result<SinkResult> {
        let Some(sink) = &mut self.sink else { return Ok(SinkResult::Finished) };
        let settled = match batch {
            Some(batch) => {
                let sequence = batch.sequence();
                let parts = match self.router.route(compact(batch)?)? {
                    Routed::Any(data) => vec![(To::Any, data)],
                    Routed::All(data) => vec![(To::All, data)],
                    Routed::Parts(parts) => {
                        parts.into_iter().map(|(to, part)| (To::Channel(to), part)).collect()
                    }
                };
                self.holding.hold(parts, sequence)?
            }
            None => self.holding.settle()?,
        };
        Ok(settled.answer(|next| match next {
            Some((To::Any, held)) => sink.push_any(held),
            Some((To::All, held)) => sink.push_all(&held),
            Some((To::Channel(channel), held)) => sink.push(channel, held),
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

impl Source for LocalExchangeSource {
    fn name(&self) -> &str {
        "local exchange"
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalSource>> {
        Ok(Box::new(LocalChannel {
            source: self.slots.take(&setup)?,
            schema: self.schema.clone(),
            fetch: Fetch::new(&setup),
        }))
    }
}

struct LocalChannel {
    source: state::ExchangeSource<Held>,
    schema: Option<SchemaRef>,
    fetch: Fetch,
}

impl LocalSource for LocalChannel {
    fn next(&mut self, _task: &TaskContext) -> Result<SourceResult> {
        let next = held::next(&mut self.fetch, || self.source.take())?;
        Ok(match (next, &self.schema) {
            (SourceResult::Batch(batch), Some(schema)) => {
                SourceResult::Batch(rename(batch, schema)?)
            }
            (next, _) => next,
        })
    }
}
