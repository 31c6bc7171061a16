//! A batch that waits in a buffer between pipelines.

use std::sync::Arc;

use gatework_runtime::{
    Result,
    pipeline::{Batch, Reservation, Setup},
};
use gatework_shared_state::{Budget, OnFull, Payload};

/// A batch, and its memory if its buffer may overflow: a buffer that blocks is small by its budget,
/// one that does not is charged to the query. Clones share the charge.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    batch: Batch,
    _charge: Option<Arc<Reservation>>,
}

impl Held {
    /// Holds `batch` in a buffer with this budget, on behalf of the operator of `setup`.
    pub(crate) fn new(batch: Batch, budget: &Budget, setup: &Setup) -> Result<Self> {
        if budget.on_full() == OnFull::Block {
            return Ok(Self { batch, _charge: None });
        }
        let mut charge = setup.reservation();
        charge.grow(batch.bytes())?;
        Ok(Self { batch, _charge: Some(Arc::new(charge)) })
    }

    /// The batch, for the pipeline behind the buffer.
    pub(crate) fn release(self) -> Batch {
        self.batch
    }
}

impl Payload for Held {
    fn rows(&self) -> usize {
        self.batch.rows()
    }

    fn bytes(&self) -> usize {
        self.batch.bytes()
    }
}
