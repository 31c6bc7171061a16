//! The real gate: `poll_ready` against `set_ready`, `block` and `set_always_ready`.

use std::{
    sync::Arc,
    task::{Wake, Waker},
};

use gatework_shared_state::{Dependency, DependencyKind, Gate};
use loom::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use crate::support::{Parker, check, join_all, wait};

fn shut() -> Gate {
    Dependency::blocked("gate", DependencyKind::Source)
}

/// A thread that passes the gate was woken or saw it ready, and sees what was written before.
#[test]
fn opening_is_seen_or_wakes() {
    check(|| {
        let gate = shut();
        let data = Arc::new(AtomicUsize::new(0));
        let opener = thread::spawn({
            let (gate, data) = (gate.clone(), data.clone());
            move || {
                data.store(1, Ordering::Relaxed);
                gate.set_ready();
            }
        });
        wait(&gate);
        assert_eq!(data.load(Ordering::Relaxed), 1);
        opener.join().unwrap();
    });
}

/// Every waiter is woken, not only the first.
#[test]
fn opening_wakes_all_waiters() {
    check(|| {
        let gate = shut();
        let waiters = [(); 2].map(|()| {
            let gate = gate.clone();
            thread::spawn(move || wait(&gate))
        });
        gate.set_ready();
        join_all(waiters);
    });
}

/// `set_always_ready` releases the waiter, whatever `block` and `set_ready` do meanwhile.
#[test]
fn always_ready_ends_every_wait() {
    check(|| {
        let gate = shut();
        let others = [
            thread::spawn({
                let gate = gate.clone();
                move || {
                    gate.set_ready();
                    gate.block();
                }
            }),
            thread::spawn({
                let gate = gate.clone();
                move || gate.set_always_ready()
            }),
        ];
        wait(&gate);
        join_all(others);
        assert!(gate.is_ready());
    });
}

/// Neither `block` nor `set_ready` revokes `AlwaysReady`.
#[test]
fn always_ready_is_sticky() {
    check(|| {
        let gate = Dependency::ready("gate", DependencyKind::Sink);
        let others: [fn(&Gate); 2] = [
            |gate| gate.block(),
            |gate| {
                gate.set_ready();
                gate.block();
            },
        ];
        let others = others.map(|other| {
            let gate = gate.clone();
            thread::spawn(move || other(&gate))
        });
        gate.set_always_ready();
        assert!(gate.is_ready());
        join_all(others);
        assert!(gate.is_ready());
    });
}

/// A task that waits for any of two gates is woken by either.
#[test]
fn any_of_two_gates_wakes() {
    check(|| {
        let gates = [shut(), shut()];
        let opener = thread::spawn({
            let gate = gates[1].clone();
            move || gate.set_ready()
        });
        let (parker, waker) = Parker::new();
        while !gates.iter().any(|gate| gate.poll_ready(&waker)) {
            parker.park();
        }
        assert!(gates[1].is_ready());
        opener.join().unwrap();
    });
}

struct Reenter {
    gate: Gate,
    calls: AtomicUsize,
}

impl Wake for Reenter {
    fn wake(self: Arc<Self>) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.gate.block();
        assert!(!self.gate.poll_ready(Waker::noop()));
    }
}

/// Wakers run when no lock is taken, so a waker that uses the gate itself cannot deadlock.
#[test]
fn wakers_may_use_the_gate() {
    check(|| {
        let gate = shut();
        let reenter = Arc::new(Reenter { gate: gate.clone(), calls: AtomicUsize::new(0) });
        let registered = thread::spawn({
            let waker = Waker::from(reenter.clone());
            let gate = gate.clone();
            move || !gate.poll_ready(&waker)
        });
        gate.set_ready();
        let registered = registered.join().unwrap();
        if registered {
            gate.set_ready();
        }
        // A registration is woken once, whichever thread makes the gate ready.
        assert_eq!(reenter.calls.load(Ordering::Relaxed), usize::from(registered));
    });
}
