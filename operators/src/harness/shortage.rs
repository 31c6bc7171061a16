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

/// A pool that refuses some of what it is asked for, by a seed.
#[derive(Debug)]
pub(crate) struct Moody {
    dice: Mutex<Dice>,
    reserved: AtomicUsize,
}

impl Moody {
    pub(crate) fn new(seed: u64) -> Self {
        Self { dice: Mutex::new(Dice::new(seed)), reserved: AtomicUsize::new(0) }
    }

    pub(crate) fn reserved(&self) -> usize {
        self.reserved.load(Ordering::Relaxed)
    }
}

impl MemoryPool for Moody {
    fn try_grow(&self, _holder: &str, bytes: usize) -> std::result::Result<(), MemoryRefused> {
        if self.dice.lock().below(3) == 0 {
            return Err(MemoryRefused { reason: "it is not in the mood".into() });
        }
        self.reserved.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn shrink(&self, bytes: usize) {
        self.reserved.fetch_sub(bytes, Ordering::Relaxed);
    }
}
