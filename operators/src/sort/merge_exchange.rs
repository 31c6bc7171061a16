//! Merge exchange: merges the sorted rows that tasks of other stages wrote for this task.

use std::sync::Arc;

use gatework_runtime::{
    Error, Result,
    pipeline::{BufferedBatch, DriverContext, LocalSource, OperatorContext, Source, SourceResult},
};
use gatework_shared_state::{PopResult, output::ExchangeClient};

use super::{SortConfig, SortPlan, run::SortedRun, source::RunMerger};
use crate::exchange_source::CloseOnDrop;

/// Source that merges a client's outputs, with one task. It starts when all outputs are known, and
/// buffers one page of each.
///
/// The producers must not wait for one another: the merge reads no output further while one of them
/// has no page to read.
#[derive(Debug)]
pub struct MergeExchangeSource {
    client: CloseOnDrop,
    plan: Arc<SortPlan>,
}

impl MergeExchangeSource {
    /// Creates a source that merges the outputs of `client`, which are sorted as `config` says.
    /// Columns take the names of its schema.
    ///
    /// # Errors
    /// If a sort key cannot be compared.
    pub fn new(client: ExchangeClient<BufferedBatch>, config: SortConfig) -> Result<Self> {
        Ok(Self { client: CloseOnDrop(client), plan: Arc::new(SortPlan::for_presorted(config)?) })
    }
}

impl Source for MergeExchangeSource {
    fn name(&self) -> &str {
        "merge exchange source"
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSource>> {
        let client = self.client.0.clone();
        Ok(Box::new(LocalMergeExchangeSource {
            client,
            merger: RunMerger::new(self.plan.clone(), context),
        }))
    }
}

struct LocalMergeExchangeSource {
    client: ExchangeClient<BufferedBatch>,
    merger: RunMerger,
}

impl LocalSource for LocalMergeExchangeSource {
    fn next(&mut self, _: &DriverContext) -> Result<SourceResult> {
        if self.merger.is_idle() {
            match self.client.split_by_location("merge exchange") {
                PopResult::Item(streams) if streams.is_empty() => {
                    return Ok(SourceResult::Finished);
                }
                PopResult::Item(streams) => {
                    let runs = streams.into_iter().map(CloseOnDrop).map(SortedRun::Remote);
                    self.merger.start(runs.collect());
                }
                PopResult::Blocked(gate) => return Ok(SourceResult::Blocked(gate.into())),
                PopResult::Finished => return Ok(SourceResult::Finished),
                PopResult::Aborted => return Err(Error::ProducerAborted),
            }
        }
        self.merger.next()
    }
}
