//! Local exchange: moves rows between the tasks of pipelines, by one of seven routings.

mod routing;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use gatework_runtime::{
    Error, Result,
    pipeline::{
        BufferReader, BufferedBatch, DriverContext, LocalSink, LocalSource, OperatorContext,
        PerTask, Sink, Source, SourceResult,
    },
};
use gatework_shared_state::{BufferLimit, Gate, PushResult, exchange as state};

pub use routing::Routing;
pub(crate) use routing::{Router, Target};

use crate::buffer::{self, ChannelProducer, ChannelSink, with_schema};

/// Sink of one producing pipeline.
#[derive(Debug)]
pub struct LocalExchangeSink {
    slots: PerTask<state::ExchangeProducer<BufferedBatch>>,
    router: Arc<Router>,
    budget: BufferLimit,
}

/// Source that returns to each task of the consuming pipeline the rows of its channel.
#[derive(Debug)]
pub struct LocalExchangeSource {
    slots: PerTask<state::ExchangeConsumer<BufferedBatch>>,
    schema: Option<SchemaRef>,
}

impl LocalExchangeSource {
    /// Returns the source with its columns named as in `schema`. It serves producers whose columns
    /// agree in type only, such as the children of a union.
    #[must_use]
    pub fn with_schema(mut self, schema: SchemaRef) -> Self {
        self.schema = Some(schema);
        self
    }
}

/// Creates an exchange with one sink per producing pipeline and a source of `consumers` tasks.
/// `producers` lists the pipelines' task counts. The wait-for graph makes `budget` overflow where
/// waiting for a consumer would close a cycle.
///
/// # Errors
/// If there are no producers or no consumers, or a bucket maps to a channel that does not exist.
pub fn new(
    routing: Routing,
    producers: &[usize],
    consumers: usize,
    budget: BufferLimit,
) -> Result<(Vec<LocalExchangeSink>, LocalExchangeSource)> {
    let tasks = producers.iter().sum();
    if tasks == 0 || consumers == 0 {
        return Err(Error::InvalidConfiguration(
            "a local exchange needs at least one producer and one consumer".into(),
        ));
    }
    let router = Arc::new(Router::new(routing, consumers)?);
    let (sinks, sources) =
        state::new("local exchange", router.kind(), tasks, consumers, budget.clone());
    let mut sinks = sinks.into_iter();
    let sinks = producers.iter().map(|tasks| LocalExchangeSink {
        slots: PerTask::new("local exchange sink", sinks.by_ref().take(*tasks)),
        router: router.clone(),
        budget: budget.clone(),
    });
    Ok((
        sinks.collect(),
        LocalExchangeSource { slots: PerTask::new("local exchange source", sources), schema: None },
    ))
}

impl Sink for LocalExchangeSink {
    fn name(&self) -> &str {
        self.router.name()
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSink>> {
        let producer = self.slots.take(&context)?;
        let local = LocalExchange { producer, router: self.router.clone() };
        Ok(Box::new(ChannelSink::new(local, self.budget.clone(), context)))
    }
}

struct LocalExchange {
    producer: state::ExchangeProducer<BufferedBatch>,
    router: Arc<Router>,
}

impl ChannelProducer for LocalExchange {
    type Target = Target;

    fn route(&self, rows: RecordBatch) -> Result<Vec<(Target, RecordBatch)>> {
        self.router.route(rows)
    }

    fn push(&mut self, target: Target, batch: BufferedBatch) -> PushResult {
        match target {
            Target::AnyChannel => self.producer.push_any(batch),
            Target::EveryChannel => self.producer.push_all(&batch),
            Target::Channel(channel) => self.producer.push(channel, batch),
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

impl Source for LocalExchangeSource {
    fn name(&self) -> &str {
        "local exchange source"
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSource>> {
        Ok(Box::new(LocalChannel {
            source: self.slots.take(&context)?,
            schema: self.schema.clone(),
            reader: BufferReader::new(&context),
        }))
    }
}

struct LocalChannel {
    source: state::ExchangeConsumer<BufferedBatch>,
    schema: Option<SchemaRef>,
    reader: BufferReader,
}

impl LocalSource for LocalChannel {
    fn next(&mut self, _task: &DriverContext) -> Result<SourceResult> {
        let next = buffer::next_batch(&mut self.reader, || self.source.take())?;
        Ok(match (next, &self.schema) {
            (SourceResult::Batch(batch), Some(schema)) => {
                SourceResult::Batch(with_schema(batch, schema)?)
            }
            (next, _) => next,
        })
    }
}
