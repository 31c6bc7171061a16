//! Memory that breakers reserve, as a trait that the embedder's pool implements.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::QueryContext;
use crate::{Error, Result};

/// A reservation that did not fit, and why.
#[derive(Debug, Clone)]
pub struct ReservationDenied {
    /// The pool's own words, with its largest holders if it knows them.
    pub reason: String,
}

/// Where memory is reserved.
///
/// What the pool refuses is not held, with one exception: of a query that can spill, each task of
/// each breaker may hold up to 256 KiB ([`SpillSpace::min_spill_bytes`](super::SpillSpace::min_spill_bytes))
/// without a reservation, since spilling less would not help. A limit below that times the number
/// of such tasks is exceeded by as much.
pub trait MemoryPool: Send + Sync + fmt::Debug {
    /// Reserves `bytes` more for `consumer`.
    ///
    /// # Errors
    /// If they do not fit.
    fn try_grow(&self, consumer: &str, bytes: usize) -> Result<(), ReservationDenied>;

    /// Gives `bytes` back.
    fn shrink(&self, bytes: usize);

    /// What it shares its bytes with: of pools that answer the same, one's holders can make room for
    /// another's. By default it is alone.
    fn pool_id(&self) -> usize {
        std::ptr::from_ref(self).cast::<()>() as usize
    }
}

/// A pool without a limit.
#[derive(Debug, Default)]
pub struct UnboundedPool;

impl MemoryPool for UnboundedPool {
    fn try_grow(&self, _consumer: &str, _bytes: usize) -> Result<(), ReservationDenied> {
        Ok(())
    }

    fn shrink(&self, _bytes: usize) {}
}

/// A pool with one limit, first come, first served.
///
/// ```
/// use gatework_runtime::pipeline::{GreedyPool, MemoryPool};
/// let pool = GreedyPool::new(100);
/// assert!(pool.try_grow("sort", 60).is_ok());
/// assert!(pool.try_grow("join", 60).is_err());
/// pool.shrink(60);
/// assert_eq!(pool.reserved(), 0);
/// ```
#[derive(Debug)]
pub struct GreedyPool {
    limit: usize,
    reserved: AtomicUsize,
}

impl GreedyPool {
    /// A pool of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { limit, reserved: AtomicUsize::new(0) }
    }

    /// Bytes reserved at the moment.
    pub fn reserved(&self) -> usize {
        self.reserved.load(Ordering::Acquire)
    }
}

impl MemoryPool for GreedyPool {
    fn try_grow(&self, _consumer: &str, bytes: usize) -> Result<(), ReservationDenied> {
        let fits = |reserved: usize| reserved.checked_add(bytes).filter(|sum| *sum <= self.limit);
        match self.reserved.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits) {
            Ok(_) => Ok(()),
            Err(reserved) => Err(ReservationDenied {
                reason: format!("{reserved} of {} bytes are reserved", self.limit),
            }),
        }
    }

    fn shrink(&self, bytes: usize) {
        self.reserved.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// Bytes reserved by one operator of one task. Dropping it gives them back.
#[derive(Debug)]
pub struct Reservation {
    query: Arc<QueryContext>,
    consumer: Arc<str>,
    bytes: usize,
}

impl Reservation {
    pub(crate) fn new(query: Arc<QueryContext>, consumer: Arc<str>) -> Self {
        Self { query, consumer, bytes: 0 }
    }

    /// Bytes reserved.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Reserves `bytes` more.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], and nothing is reserved.
    pub fn grow(&mut self, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.query.grow_memory(&self.consumer, bytes).map_err(|denied| Error::OutOfMemory {
            operator: self.consumer.to_string(),
            requested: bytes,
            reason: denied.reason,
        })?;
        self.bytes += bytes;
        Ok(())
    }

    /// Grows or shrinks to `bytes`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], and the reservation stays as it was.
    pub fn resize(&mut self, bytes: usize) -> Result<()> {
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.grow(more),
            None => {
                self.query.shrink_memory(&self.consumer, self.bytes - bytes);
                self.bytes = bytes;
                Ok(())
            }
        }
    }

    /// Takes over what `other`, of the same query, holds.
    pub fn merge(&mut self, mut other: Self) {
        let bytes = std::mem::take(&mut other.bytes);
        self.query.transfer_memory(&other.consumer, &self.consumer, bytes);
        self.bytes += bytes;
    }

    /// Moves all bytes out into a reservation that travels with the data.
    #[must_use]
    pub fn take(&mut self) -> Self {
        self.split(self.bytes)
    }

    /// Moves up to `bytes` out into a reservation that travels with the data.
    #[must_use]
    pub fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { query: self.query.clone(), consumer: self.consumer.clone(), bytes }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.query.shrink_memory(&self.consumer, self.bytes);
        }
    }
}
