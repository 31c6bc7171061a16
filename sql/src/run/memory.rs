//! A query's memory pool, backed by DataFusion's.

use std::sync::Arc;

use datafusion::execution::memory_pool::{
    MemoryConsumer, MemoryPool as DataFusionPool, MemoryReservation,
};
use gatework_runtime::pipeline::{MemoryPool, ReservationDenied};

/// One query's reservation in a session's pool; released when it is dropped.
#[derive(Debug)]
pub(crate) struct QueryMemoryPool {
    reservation: MemoryReservation,
    pool: Arc<dyn DataFusionPool>,
}

impl QueryMemoryPool {
    /// Registers the query called `name` with `pool`. `can_spill` tells whether the query reclaims
    /// memory by spilling: a pool such as `FairSpillPool` divides its memory among those consumers.
    pub(crate) fn new(name: &str, pool: &Arc<dyn DataFusionPool>, can_spill: bool) -> Arc<Self> {
        let consumer = MemoryConsumer::new(format!("gatework {name}")).with_can_spill(can_spill);
        let reservation = consumer.register(pool);
        Arc::new(Self { reservation, pool: pool.clone() })
    }
}

impl MemoryPool for QueryMemoryPool {
    fn try_grow(&self, _consumer: &str, bytes: usize) -> Result<(), ReservationDenied> {
        self.reservation
            .try_grow(bytes)
            .map_err(|error| ReservationDenied { reason: error.strip_backtrace() })
    }

    fn shrink(&self, bytes: usize) {
        self.reservation.shrink(bytes);
    }

    fn pool_id(&self) -> usize {
        Arc::as_ptr(&self.pool).cast::<()>() as usize
    }
}

#[cfg(test)]
mod tests {
    use datafusion::execution::memory_pool::FairSpillPool;

    use super::*;

    #[test]
    fn a_fair_pool_shares_its_memory_among_queries() {
        let pool: Arc<dyn DataFusionPool> = Arc::new(FairSpillPool::new(1000));
        let one = QueryMemoryPool::new("one", &pool, true);
        let other = QueryMemoryPool::new("other", &pool, true);
        assert!(one.try_grow("sort", 600).is_err(), "more than half of the pool");
        one.try_grow("sort", 500).unwrap();
        other.try_grow("sort", 500).unwrap();
    }
}
