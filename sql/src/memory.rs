//! A query's memory in DataFusion's pool.

use std::sync::Arc;

use datafusion::execution::memory_pool::{
    MemoryConsumer, MemoryPool as DataFusionPool, MemoryReservation,
};
use gatework_runtime::pipeline::{MemoryPool, MemoryRefused};

/// One query's share of a session's pool. What it holds is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct PoolShare {
    reservation: MemoryReservation,
    pool: Arc<dyn DataFusionPool>,
}

impl PoolShare {
    pub(crate) fn new(name: &str, pool: &Arc<dyn DataFusionPool>) -> Arc<Self> {
        let reservation = MemoryConsumer::new(format!("gatework {name}")).register(pool);
        Arc::new(Self { reservation, pool: pool.clone() })
    }
}

impl MemoryPool for PoolShare {
    fn try_grow(&self, _holder: &str, bytes: usize) -> Result<(), MemoryRefused> {
        self.reservation
            .try_grow(bytes)
            .map_err(|error| MemoryRefused { reason: error.strip_backtrace() })
    }

    fn shrink(&self, bytes: usize) {
        self.reservation.shrink(bytes);
    }

    fn shares_with(&self) -> usize {
        Arc::as_ptr(&self.pool).cast::<()>() as usize
    }
}
