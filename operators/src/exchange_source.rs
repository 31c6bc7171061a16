//! Exchange source: the rows that tasks of other stages wrote for this task.

use arrow::datatypes::SchemaRef;
use gatework_runtime::{
    Result,
    pipeline::{
        BufferReader, BufferedBatch, DriverContext, LocalSource, OperatorContext, Source,
        SourceResult,
    },
};
use gatework_shared_state::output::ExchangeClient;

use crate::buffer::{self, with_schema};

/// Source that reads a client's outputs, with any number of tasks.
///
/// When its last task is dropped, finished or not, the client is closed and notifies the outputs.
#[derive(Debug)]
pub struct RemoteExchangeSource {
    client: CloseOnDrop,
    schema: SchemaRef,
}

/// Guard that closes the client when its owner, and with it the last task, is dropped.
#[derive(Debug)]
pub(crate) struct CloseOnDrop(pub(crate) ExchangeClient<BufferedBatch>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl RemoteExchangeSource {
    /// Creates a source that reads `client`; columns take the names of `schema`.
    pub fn new(client: ExchangeClient<BufferedBatch>, schema: SchemaRef) -> Self {
        Self { client: CloseOnDrop(client), schema }
    }
}

impl Source for RemoteExchangeSource {
    fn name(&self) -> &str {
        "remote exchange source"
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSource>> {
        Ok(Box::new(LocalRemoteExchangeSource {
            client: self.client.0.clone(),
            schema: self.schema.clone(),
            reader: BufferReader::new(&context),
        }))
    }
}

struct LocalRemoteExchangeSource {
    client: ExchangeClient<BufferedBatch>,
    schema: SchemaRef,
    reader: BufferReader,
}

impl LocalSource for LocalRemoteExchangeSource {
    fn next(&mut self, _task: &DriverContext) -> Result<SourceResult> {
        Ok(match buffer::next_batch(&mut self.reader, || self.client.take())? {
            SourceResult::Batch(batch) => SourceResult::Batch(with_schema(batch, &self.schema)?),
            other => other,
        })
    }
}
