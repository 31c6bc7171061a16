//! Memory pool that denies reservations by a seed, and in-memory spill space.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use arrow::array::RecordBatch;
use gatework_runtime::{
    Result,
    pipeline::{Completion, MemoryPool, ReservationDenied, SpillInput, SpillSpace, SpilledBatches},
    scheduler::SplitMix64,
};
use parking_lot::Mutex;

/// Spill space that keeps batches in memory, and completes requests on another thread.
#[derive(Debug, Default)]
pub(crate) struct InMemorySpill {
    /// Number of writes.
    pub(crate) writes: AtomicUsize,
    /// True if every denied reservation leads to a spill, however small.
    pub(crate) eager: bool,
}

#[derive(Debug)]
struct InMemoryBatches(Vec<RecordBatch>);

impl SpillSpace for InMemorySpill {
    fn write(&self, batches: SpillInput, done: Completion<Arc<dyn SpilledBatches>>) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        thread::spawn(move || {
            let batches = batches.collect::<Result<_>>();
            done.complete(batches.map(|batches| Arc::new(InMemoryBatches(batches)) as _));
        });
    }

    fn min_spill_bytes(&self) -> usize {
        if self.eager { 0 } else { 256 << 10 }
    }
}

impl SpilledBatches for InMemoryBatches {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(self: Arc<Self>, batch: usize, done: Completion<RecordBatch>) {
        thread::spawn(move || done.complete(Ok(self.0[batch].clone())));
    }
}

/// Maximum number of denials by a [`RandomDenialPool`] in any 16 consecutive requests.
///
/// It is low enough that no hash partition is denied at each of its levels (at least ten). Such a
/// partition could not be repartitioned further, and its query would rightly fail.
const MAX_DENIED: u32 = 4;

/// Pool that denies some requests, by a seed, but never all of a long sequence.
#[derive(Debug)]
pub(crate) struct RandomDenialPool {
    denials: Mutex<DenialSequence>,
    reserved: AtomicUsize,
}

#[derive(Debug)]
struct DenialSequence {
    rng: SplitMix64,
    /// One bit for each of the last 16 requests: set if it was denied.
    recent_denials: u16,
}

impl DenialSequence {
    fn next_is_denied(&mut self) -> bool {
        let candidate = self.rng.next_below(3) == 0;
        let earlier = (self.recent_denials << 1).count_ones();
        let denied = candidate && earlier < MAX_DENIED;
        self.recent_denials = self.recent_denials << 1 | u16::from(denied);
        denied
    }
}

impl RandomDenialPool {
    pub(crate) fn new(seed: u64) -> Self {
        let denials = DenialSequence { rng: SplitMix64::new(seed), recent_denials: 0 };
        Self { denials: Mutex::new(denials), reserved: AtomicUsize::new(0) }
    }

    pub(crate) fn reserved(&self) -> usize {
        self.reserved.load(Ordering::Relaxed)
    }
}

impl MemoryPool for RandomDenialPool {
    fn try_grow(
        &self,
        _consumer: &str,
        bytes: usize,
    ) -> std::result::Result<(), ReservationDenied> {
        if self.denials.lock().next_is_denied() {
            return Err(ReservationDenied { reason: "denied by test pool".into() });
        }
        self.reserved.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn shrink(&self, bytes: usize) {
        self.reserved.fetch_sub(bytes, Ordering::Relaxed);
    }
}
