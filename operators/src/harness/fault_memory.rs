//! Memory that is refused by a seed, and a place for what is spilled.

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

/// Keeps what is spilled, and answers on another thread.
#[derive(Debug, Default)]
pub(crate) struct InMemorySpill {
    /// Times that anything was.
    pub(crate) writes: AtomicUsize,
    /// Whether whatever gets no memory is spilled, however little it is.
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

/// Requests that a [`RandomDenialPool`] pool refuses at most of any sixteen in a row.
///
/// Few enough that one hash partition is not refused at each of its levels (ten at least), after
/// which it cannot be cut any further and the query is right to fail.
const MAX_DENIED: u32 = 4;

/// A pool that refuses some of the requests, by a seed, but never all of a long row of them.
#[derive(Debug)]
pub(crate) struct RandomDenialPool {
    denials: Mutex<DenialSequence>,
    reserved: AtomicUsize,
}

#[derive(Debug)]
struct DenialSequence {
    rng: SplitMix64,
    /// A bit for each of the last requests: whether it was refused.
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
