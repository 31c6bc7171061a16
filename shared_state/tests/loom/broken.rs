//! Gates with one fault each. The first test shows that the re-implementation without a fault
//! passes, so each failure is caused by the fault.

use std::{sync::Arc, task::Waker};

use gatework_shared_state::{Dependency, DependencyKind, StateLock, sync::Mutex};
use loom::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use crate::support::{Parker, check, must_fail};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Tests without the lock, then registers without testing again.
    RegisterWithoutTest,
    /// Takes the waiters first and changes the state after the lock is released.
    FlipOutsideTheLock,
    /// Changes the state but does not take the waiters.
    WaitersNotTaken,
    /// Changes the state without Release.
    RelaxedFlip,
}

/// The gate's protocol in its shortest form.
struct MiniGate {
    open: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
    fault: Fault,
}

impl MiniGate {
    fn poll_ready(&self, waker: &Waker) -> bool {
        if self.open.load(Ordering::Acquire) {
            return true;
        }
        let mut waiting = self.waiting.lock();
        if self.fault != Fault::RegisterWithoutTest && self.open.load(Ordering::Relaxed) {
            return true;
        }
        waiting.push(waker.clone());
        false
    }

    fn set_ready(&self) {
        let flip = || {
            let relaxed = self.fault == Fault::RelaxedFlip;
            self.open.store(true, if relaxed { Ordering::Relaxed } else { Ordering::Release });
        };
        let late = self.fault == Fault::FlipOutsideTheLock;
        let taken = {
            let mut waiting = self.waiting.lock();
            if !late {
                flip();
            }
            if self.fault == Fault::WaitersNotTaken {
                Vec::new()
            } else {
                std::mem::take(&mut *waiting)
            }
        };
        if late {
            flip();
        }
        taken.into_iter().for_each(Waker::wake);
    }
}

/// One thread makes the gate ready; another waits and then reads what was written before.
fn open_and_wait(fault: Fault) {
    let gate =
        Arc::new(MiniGate { open: AtomicBool::new(false), waiting: Mutex::new(Vec::new()), fault });
    let data = Arc::new(AtomicUsize::new(0));
    let opener = thread::spawn({
        let (gate, data) = (gate.clone(), data.clone());
        move || {
            data.store(1, Ordering::Relaxed);
            gate.set_ready();
        }
    });
    let (parker, waker) = Parker::new();
    while !gate.poll_ready(&waker) {
        parker.park();
    }
    assert_eq!(data.load(Ordering::Relaxed), 1);
    opener.join().unwrap();
}

#[test]
fn without_a_fault_it_passes() {
    check(|| open_and_wait(Fault::None));
}

#[test]
fn register_without_test_loses_the_wake_up() {
    must_fail(&["deadlock"], || open_and_wait(Fault::RegisterWithoutTest));
}

#[test]
fn flip_outside_the_lock_loses_the_wake_up() {
    must_fail(&["deadlock"], || open_and_wait(Fault::FlipOutsideTheLock));
}

#[test]
fn waiters_not_taken_are_not_woken() {
    must_fail(&["deadlock"], || open_and_wait(Fault::WaitersNotTaken));
}

#[test]
fn relaxed_flip_hides_the_data() {
    must_fail(&["assertion"], || open_and_wait(Fault::RelaxedFlip));
}

/// The real gate, in a state that blocks it after releasing its lock.
#[test]
fn block_outside_the_states_lock_loses_the_item() {
    must_fail(&["deadlock"], || {
        let gate = Dependency::blocked("gate", DependencyKind::Source);
        let items = Arc::new(StateLock::new(0));
        let producer = thread::spawn({
            let (gate, items) = (gate.clone(), items.clone());
            move || {
                let mut items = items.lock();
                *items += 1;
                items.set_ready(&gate);
            }
        });
        let (parker, waker) = Parker::new();
        loop {
            let found = *items.lock() > 0;
            if found {
                break;
            }
            gate.block();
            while !gate.poll_ready(&waker) {
                parker.park();
            }
        }
        producer.join().unwrap();
    });
}
