//! Exchange source: the rows that tasks of other stages wrote for this one.

use arrow::datatypes::SchemaRef;
use gatework_runtime::{
    Result,
    pipeline::{Fetch, Held, LocalSource, Setup, Source, SourceResult, TaskContext},
};
use gatework_shared_state::output::ExchangeClient;

use crate::{held, union::rename};

/// Reads a client's outputs, with as many tasks as there are.
///
/// Once its tasks have left, finished or not, the client is closed and the outputs are told.
#[derive(Debug)]
pub struct ExchangeSource {
    client: ClosesClient,
    schema: SchemaRef,
}

/// Held by who reads; when that goes, so has the last of its tasks.
#[derive(Debug)]
pub(crate) struct ClosesClient(pub(crate) ExchangeClient<Held>);

impl Drop for ClosesClient {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl ExchangeSource {
    /// Reads `client`; columns come out under the names of `schema`.
    pub fn new(client: ExchangeClient<Held>, schema: SchemaRef) -> Self {
        Self { client: ClosesClient(client), schema }
    }
}

impl Source for ExchangeSource {
    fn name(&self) -> &str {
        "exchange"
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalSource>> {
        Ok(Box::new(LocalExchange {
            client: self.client.0.clone(),
            schema: self.schema.clone(),
            fetch: Fetch::new(&setup),
        }))
    }
}

struct LocalExchange {
    client: ExchangeClient<Held>,
    schema: SchemaRef,
    fetch: Fetch,
}

impl LocalSource for LocalExchange {
    fn next(&mut self, _task: &TaskContext) -> Result<SourceResult> {
        Ok(match held::next(&mut self.fetch, || self.client.take())? {
            SourceResult::Batch(batch) => SourceResult::Batch(rename(batch, &self.schema)?),
            other => other,
        })
    }
}
