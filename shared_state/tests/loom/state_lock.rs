//! The real lock of a state: no wake-up is lost that a guard collects, and wakers run after it.

use std::{
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    task::{Wake, Waker},
};

use gatework_shared_state::{Dependency, DependencyKind, Gate, StateLock};
use loom::thread;

use crate::support::{check, join_all, wait};

fn shut() -> Gate {
    Dependency::blocked("gate", DependencyKind::Source)
}

/// A state whose data and gate change under one lock hands over every item, in order.
#[test]
fn data_and_gate_under_one_lock() {
    check(|| {
        let gate = shut();
        let items = Arc::new(StateLock::new(Vec::new()));
        let producer = thread::spawn({
            let (gate, items) = (gate.clone(), items.clone());
            move || {
                for item in 0..2 {
                    let mut items = items.lock();
                    items.push(item);
                    items.set_ready(&gate);
                }
            }
        });
        let mut taken = Vec::new();
        while taken.len() < 2 {
            let mut items = items.lock();
            if items.is_empty() {
                gate.block();
                drop(items);
                wait(&gate);
            } else {
                taken.push(items.remove(0));
            }
        }
        assert_eq!(taken, [0, 1]);
        producer.join().unwrap();
    });
}

/// A guard that makes two gates ready wakes the waiters of both, in a panic as well.
#[test]
fn a_guard_wakes_the_waiters_of_all_its_gates() {
    for panics in [false, true] {
        check(move || {
            let gates = [shut(), shut()];
            let state = StateLock::new(0);
            let waiters = gates.clone().map(|gate| thread::spawn(move || wait(&gate)));
            let change = || {
                let mut guard = state.lock();
                guard.set_ready(&gates[0]);
                guard.set_always_ready(&gates[1]);
                if panics {
                    panic::resume_unwind(Box::new(()));
                }
            };
            assert_eq!(panic::catch_unwind(AssertUnwindSafe(change)).is_err(), panics);
            join_all(waiters);
        });
    }
}

/// Locks the state, as a waker may that runs a task at once.
struct Locks(Arc<StateLock<usize>>);

impl Wake for Locks {
    fn wake(self: Arc<Self>) {
        *self.0.lock() += 1;
    }
}

/// Wakers run after the lock is released, so a waker that locks the state cannot deadlock.
#[test]
fn wakers_may_lock_the_state() {
    check(|| {
        let (gate, state) = (shut(), Arc::new(StateLock::new(0)));
        let registered = thread::spawn({
            let (gate, waker) = (gate.clone(), Waker::from(Arc::new(Locks(state.clone()))));
            move || !gate.poll_ready(&waker)
        });
        state.lock().set_ready(&gate);
        let registered = registered.join().unwrap();
        if registered {
            let mut guard = state.lock();
            guard.set_always_ready(&gate);
            guard.unlock_and_drop(state.clone());
        }
        assert_eq!(*state.lock(), usize::from(registered));
    });
}
