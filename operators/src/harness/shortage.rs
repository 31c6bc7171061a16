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
    pipeline::{Completion, MemoryPool, MemoryRefused, SpillSpace, Spilled, ToSpill},
    scheduler::Dice,
};
use parking_lot::Mutex;

/// Keeps what is spilled, and answers on another thread.
#[derive(Debug, Default)]
pub(crate) struct KeptElsewhere {
    /// Times that anything was.
    pub(crate) writes: AtomicUsize,
    /// Whether whatever gets no memory is spilled, however little it is.
    pub(crate) eager: bool,
}

#[derive(Debug)]
struct Kept(Vec<RecordBatch>);

impl SpillSpace for KeptElsewhere {
    fn write(&self, batches: ToSpill, done: Completion<Arc<dyn Spilled>>) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        thread::spawn(move || {
            let kept = batches.collect::<Result<_>>();
            done.complete(kept.map(|batches| Arc::new(Kept(batches)) as _));
        });
    }

    fn overdraft(&self) -> usize {
        if self.eager { 0 } else { 256 << 10 }
    }
}

impl Spilled for Kept {
    fn bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(self: Arc<Self>, batch: usize, done: Completion<RecordBatch>) {
        thread::spawn(move || done.complete(Ok(self.0[batch].clone())));
    }
}

/// Requests that a [`Moody`] pool refuses at most of any sixteen in a row.
///
/// Few enough that one hash partition is not refused at each of its levels (ten at least), after
/// which it cannot be cut any further and the query is right to fail.
const MAX_REFUSED: u32 = 4;

/// A pool that refuses some of the requests, by a seed, but never all of a long row of them.
#[derive(Debug)]
pub(crate) struct Moody {
    mood: Mutex<Mood>,
    reserved: AtomicUsize,
}

#[derive(Debug)]
struct Mood {
    dice: Dice,
    /// A bit for each of the last requests: whether it was refused.
    refused: u16,
}

impl Mood {
    fn refuses(&mut self) -> bool {
        let roll = self.dice.below(3) == 0;
        let earlier = (self.refused << 1).count_ones();
        let refuses = roll && earlier < MAX_REFUSED;
        self.refused = self.refused << 1 | u16::from(refuses);
        refuses
    }
}

impl Moody {
    pub(crate) fn new(seed: u64) -> Self {
        let mood = Mood { dice: Dice::new(seed), refused: 0 };
        Self { mood: Mutex::new(mood), reserved: AtomicUsize::new(0) }
    }

    pub(crate) fn reserved(&self) -> usize {
        self.reserved.load(Ordering::Relaxed)
    }
}

impl MemoryPool for Moody {
    fn try_grow(&self, _holder: &str, bytes: usize) -> std::result::Result<(), MemoryRefused> {
        if self.mood.lock().refuses() {
            return Err(MemoryRefused { reason: "it is not in the mood".into() });
        }
        self.reserved.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn shrink(&self, bytes: usize) {
        self.reserved.fetch_sub(bytes, Ordering::Relaxed);
    }
}
