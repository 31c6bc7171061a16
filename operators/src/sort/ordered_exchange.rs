//! Ordered exchange: the rows that tasks of other stages wrote for this one, each in order, merged.

use std::sync::Arc;

use gatework_runtime::{
    Error, Result,
    pipeline::{Held, LocalSource, Setup, Source, SourceResult, TaskContext},
};
use gatework_shared_state::{Take, output::ExchangeClient};

use super::{Shared, SortConfig, merge::Merger, run::SortedRun};
use crate::exchange_source::ClosesClient;

/// Merges a client's outputs, with one task. It begins when all outputs are known, and holds a page of each.
///
/// Whoever writes must not wait for another of them: the merge reads none further while one has nothing to read.
#[derive(Debug)]
pub struct OrderedExchange {
    client: ClosesClient,
    shared: Arc<Shared>,
}

impl OrderedExchange {
    /// Merges the outputs of `client`, which are in the order of `config`; columns come out under the names of its
    /// schema.
    ///
    /// # Errors
    /// If a sort key cannot be compared.
    pub fn new(client: ExchangeClient<Held>, config: SortConfig) -> Result<Self> {
        Ok(Self { client: ClosesClient(client), shared: Arc::new(Shared::of_sorted(config)?) })
    }
}

impl Source for OrderedExchange {
    fn name(&self) -> &str {
        "ordered exchange"
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalSource>> {
        let client = self.client.0.clone();
        Ok(Box::new(LocalExchange { client, merger: Merger::new(self.shared.clone(), setup) }))
    }
}

struct LocalExchange {
    client: ExchangeClient<Held>,
    merger: Merger,
}

impl LocalSource for LocalExchange {
    fn next(&mut self, _: &TaskContext) -> Result<SourceResult> {
        if self.merger.is_idle() {
            match self.client.apart("ordered exchange") {
                Take::Item(streams) if streams.is_empty() => return Ok(SourceResult::Finished),
                Take::Item(streams) => {
                    let runs = streams.into_iter().map(ClosesClient).map(SortedRun::Stream);
                    self.merger.begin(runs.collect());
                }
                Take::Blocked(gate) => return Ok(SourceResult::Blocked(gate.into())),
                Take::Finished => return Ok(SourceResult::Finished),
                Take::Aborted => return Err(Error::ProducerAborted),
            }
        }
        self.merger.next()
    }
}
