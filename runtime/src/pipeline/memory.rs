//! Memory reservations of breakers, and the pool trait that the embedder implements.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{OutOfMemory, QueryContext};

/// The answer of a [`MemoryPool`] that denies a reservation.
#[derive(Debug, Clone)]
pub struct ReservationDenied {
    /// The pool's reason, with its largest consumers if it knows them.
    pub reason: String,
}

/// A pool in which breakers reserve memory.
///
/// A denied reservation is not used, with one exception. In a query that can spill, each task of
/// each breaker may use up to [`SpillSpace::min_spill_bytes`](super::SpillSpace::min_spill_bytes)
/// (256 KiB) without a reservation. A smaller spill is not worth a file. A pool's limit can thus be
/// exceeded by 256 KiB times the number of such tasks.
pub trait MemoryPool: Send + Sync + fmt::Debug {
    /// Reserves `bytes` more for `consumer`.
    ///
    /// # Errors
    /// If the bytes do not fit.
    fn try_grow(&self, consumer: &str, bytes: usize) -> Result<(), ReservationDenied>;

    /// Releases `bytes`.
    fn shrink(&self, bytes: usize);

    /// Returns an id that pools backed by the same bytes share. Consumers of such pools can reclaim
    /// memory for each other. Default: the pool's address, which no other pool shares.
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

/// A pool with one limit; reservations are granted first come, first served.
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
    /// Creates a pool of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { limit, reserved: AtomicUsize::new(0) }
    }

    /// Returns the number of bytes reserved now.
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

/// Bytes reserved by one operator of one task. Dropping it releases them.
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

    /// Returns the number of bytes reserved.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Reserves `bytes` more.
    ///
    /// # Errors
    /// If the bytes are denied; the reservation is unchanged.
    pub fn grow(&mut self, bytes: usize) -> Result<(), OutOfMemory> {
        if bytes == 0 {
            return Ok(());
        }
        self.query.grow_memory(&self.consumer, bytes).map_err(|denied| OutOfMemory {
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
    /// If the bytes are denied; the reservation is unchanged.
    pub fn resize(&mut self, bytes: usize) -> Result<(), OutOfMemory> {
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.grow(more),
            None => {
                self.query.shrink_memory(&self.consumer, self.bytes - bytes);
                self.bytes = bytes;
                Ok(())
            }
        }
    }

    /// Takes over the bytes of `other`, a reservation of the same query.
    pub fn merge(&mut self, mut other: Self) {
        let bytes = std::mem::take(&mut other.bytes);
        self.query.transfer_memory(&other.consumer, &self.consumer, bytes);
        self.bytes += bytes;
    }

    /// Moves all bytes into a new reservation that travels with the data.
    #[must_use]
    pub fn take(&mut self) -> Self {
        self.split(self.bytes)
    }

    /// Moves up to `bytes` into a new reservation that travels with the data.
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
