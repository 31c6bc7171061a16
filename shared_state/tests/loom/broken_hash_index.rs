//! The hash index with one fault each. The first test shows that the re-implementation without a
//! fault passes, so each failure is caused by the fault.

use std::sync::Arc;

use loom::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use crate::support::{check, must_fail};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// The swap does not release the key.
    WithoutRelease,
    /// The row that came first is compared without Acquire.
    WithoutAcquire,
    /// A slot that was empty is written without a swap.
    StoreIntoEmpty,
    /// After a failed swap the row goes to the next slot, without a look at what came first.
    NextSlotAfterLostSwap,
    /// A row is added before its key is written.
    KeyAfterTheRow,
}

const ROWS: usize = 2;

/// Two slots; every row starts at the first. A slot has its row plus one. Links as in the index.
struct MiniIndex {
    slots: [AtomicU64; 2],
    next: [AtomicU64; ROWS],
    keys: [AtomicU64; ROWS],
    fault: Fault,
}

impl MiniIndex {
    fn equal(&self, entry: u64, key: u64) -> bool {
        self.keys[entry as usize - 1].load(Ordering::Relaxed) == key
    }

    fn add(&self, row: usize, key: u64) {
        let late = self.fault == Fault::KeyAfterTheRow;
        if !late {
            self.keys[row].store(key, Ordering::Relaxed);
        }
        self.insert(row, key);
        if late {
            self.keys[row].store(key, Ordering::Relaxed);
        }
    }

    fn insert(&self, row: usize, key: u64) {
        let (success, failure) = match self.fault {
            Fault::WithoutRelease => (Ordering::Acquire, Ordering::Acquire),
            Fault::WithoutAcquire => (Ordering::Release, Ordering::Relaxed),
            _ => (Ordering::AcqRel, Ordering::Acquire),
        };
        let entry = row as u64 + 1;
        let mut slot = 0;
        let mut old = self.slots[slot].load(failure);
        loop {
            if old != 0 && !self.equal(old, key) {
                slot += 1;
                old = self.slots[slot].load(failure);
                continue;
            }
            self.next[row].store(old, Ordering::Relaxed);
            if old == 0 && self.fault == Fault::StoreIntoEmpty {
                return self.slots[slot].store(entry, Ordering::Release);
            }
            match self.slots[slot].compare_exchange(old, entry, success, failure) {
                Ok(_) => return,
                Err(_) if self.fault == Fault::NextSlotAfterLostSwap => {
                    slot += 1;
                    old = self.slots[slot].load(failure);
                }
                Err(other) => old = other,
            }
        }
    }

    /// Returns the number of rows of `key` that a search finds: those of the key's first slot.
    fn count(&self, key: u64) -> usize {
        for slot in &self.slots {
            let mut entry = slot.load(Ordering::Acquire);
            if entry != 0 && self.equal(entry, key) {
                let mut count = 0;
                while entry != 0 {
                    count += 1;
                    entry = self.next[entry as usize - 1].load(Ordering::Relaxed);
                }
                return count;
            }
        }
        0
    }
}

/// Two tasks add a row each, both of one key.
fn add(fault: Fault) {
    let index = Arc::new(MiniIndex {
        slots: Default::default(),
        next: Default::default(),
        keys: Default::default(),
        fault,
    });
    let other = thread::spawn({
        let index = index.clone();
        move || index.add(1, 5)
    });
    index.add(0, 5);
    other.join().unwrap();
    assert!(index.count(5) == ROWS, "a row was lost");
}

#[test]
fn without_a_fault_it_passes() {
    check(|| add(Fault::None));
}

fn loses_a_row(fault: Fault) {
    must_fail(&["a row was lost"], move || add(fault));
}

#[test]
fn a_swap_without_release_hides_the_key() {
    loses_a_row(Fault::WithoutRelease);
}

#[test]
fn a_comparison_without_acquire_misses_the_key() {
    loses_a_row(Fault::WithoutAcquire);
}

#[test]
fn a_store_without_swap_loses_a_row() {
    loses_a_row(Fault::StoreIntoEmpty);
}

#[test]
fn a_lost_swap_must_look_at_the_slot_again() {
    loses_a_row(Fault::NextSlotAfterLostSwap);
}

#[test]
fn a_key_after_its_row_is_missed() {
    loses_a_row(Fault::KeyAfterTheRow);
}
