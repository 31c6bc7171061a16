//! The order in which a guard unlocks and wakes, and the checks for test harnesses.

use std::{
    cell::{Cell, RefCell},
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    task::{Wake, Waker},
};

use super::StateLock;
use crate::{
    Dependency, DependencyKind, Gate,
    sync::{set_unlock_hook, wakes_under_lock},
};

thread_local! {
    /// The lock under test, and what happened on this thread.
    static LOCK: Arc<StateLock<usize>> = Arc::default();
    static LOG: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
    /// Whether the hook records on this thread: other tests run at the same time.
    static HOOKED: Cell<bool> = const { Cell::new(false) };
}

/// Records `event`, and whether the lock under test is held.
fn record(event: &'static str) {
    let held = LOCK.with(|lock| lock.0.try_lock().is_none());
    LOG.with_borrow_mut(|log| log.extend(held.then_some("locked").into_iter().chain([event])));
}

fn log() -> Vec<&'static str> {
    LOG.take()
}

struct Recorder;

impl Wake for Recorder {
    fn wake(self: Arc<Self>) {
        record("wake");
    }
}

/// A value that records when it is dropped.
struct Item;

impl Drop for Item {
    fn drop(&mut self) {
        record("item");
    }
}

/// A blocked gate at which `waiters` tasks wait.
fn gate(waiters: usize) -> Gate {
    let gate = Dependency::blocked("rows", DependencyKind::Source);
    (0..waiters).for_each(|_| assert!(!gate.poll_ready(&Waker::from(Arc::new(Recorder)))));
    gate
}

#[test]
fn a_guard_unlocks_and_then_wakes() {
    let lock = LOCK.with(Arc::clone);
    let gates = [gate(1), gate(2)];
    let mut guard = lock.lock();
    *guard = 1;
    guard.set_ready(&gates[0]);
    guard.set_always_ready(&gates[1]);
    assert!(log().is_empty() && gates.iter().all(|gate| gate.is_ready()));
    drop(guard);
    assert_eq!(log(), ["wake"; 3]);
    gates.iter().for_each(|gate| gate.block());
    assert!(!gates[0].is_ready() && gates[1].is_ready());

    let gate = gate(1);
    let panicked = panic::catch_unwind(AssertUnwindSafe(|| {
        let mut guard = lock.lock();
        guard.set_ready(&gate);
        panic::resume_unwind(Box::new(()));
    }));
    assert!(panicked.is_err());
    assert_eq!(log(), ["wake"]);
    assert_eq!(*lock.lock(), 1);
}

#[test]
fn items_are_dropped_between_unlock_and_wake() {
    let lock = LOCK.with(Arc::clone);
    let gate = gate(1);
    let mut guard = lock.lock();
    let (count, wakeups) = guard.parts();
    *count = 0;
    gate.set_ready_deferred(wakeups);
    guard.unlock_and_drop(Item);
    assert_eq!(log(), ["item", "wake"]);
}

/// Both checks are process-wide, so one test covers both.
#[test]
fn checks_of_a_test_harness() {
    let lock = LOCK.with(Arc::clone);
    let counted = || wakes_under_lock().get("rows").copied().unwrap_or(0);

    // Without a waiter there is no wake-up; a deferred one comes after the lock.
    let guard = lock.lock();
    gate(0).set_ready();
    drop(guard);
    gate(1).set_ready();
    let mut guard = lock.lock();
    guard.set_ready(&gate(2));
    drop(guard);
    assert_eq!(counted(), 0);
    assert_eq!(log(), ["wake"; 3]);

    let guard = lock.lock();
    gate(1).set_ready();
    assert_eq!(counted(), 1);
    gate(2).set_always_ready();
    assert_eq!(counted(), 2);
    let other = StateLock::new(());
    other.lock().set_ready(&gate(1));
    assert_eq!(counted(), 3);
    drop(guard);
    assert_eq!(log(), ["locked", "wake"].repeat(4));

    HOOKED.set(true);
    set_unlock_hook(|| {
        if HOOKED.get() {
            record("hook");
        }
    });
    let mut guard = lock.lock();
    guard.set_ready(&gate(1));
    drop(guard);
    drop(lock.lock());
    lock.lock().unlock_and_drop(Item);
    HOOKED.set(false);
    drop(lock.lock());
    assert_eq!(log(), ["hook", "wake", "hook", "hook", "item"]);
    assert_eq!(counted(), 3);
}
