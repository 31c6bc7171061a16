//! A shared state of one's own under shuttle, written as by an author outside this crate: against
//! its public interface, with nothing of the other models. `operators/README.md` refers to it.

use std::{
    sync::Arc,
    task::{Wake, Waker},
};

use gatework_shared_state::{
    Dependency, DependencyKind, Gate, ProducerEnd, SharedState, StateLock, tokens,
};
use shuttle::thread::{self, Thread};

/// A sum that is complete when all producers have finished.
struct Sum {
    complete: Gate,
    inner: StateLock<(u64, Option<ProducerEnd>)>,
}

impl SharedState for Sum {
    fn producer_ended(&self, end: ProducerEnd, left: usize) {
        if left == 0 || end == ProducerEnd::Dropped {
            let mut inner = self.inner.lock();
            inner.1 = Some(end);
            inner.set_always_ready(&self.complete);
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits as a task does: tests the condition, and parks until the gate wakes it.
fn wait(gate: &Gate) {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    while !gate.poll_ready(&waker) {
        thread::park();
    }
}

/// Two producers and a consumer. `unlocks_between` is a fault: the sum is read and written under
/// two locks.
fn model(unlocks_between: bool) {
    let complete = Dependency::blocked("sum", DependencyKind::Source);
    let sum = Sum { complete, inner: StateLock::default() };
    let (producers, mut consumers) = tokens("sum", sum, 2, 1);
    let add = |(number, producer): (u64, gatework_shared_state::Producer<Sum>)| {
        thread::spawn(move || {
            let before = unlocks_between.then(|| producer.inner.lock().0);
            let mut inner = producer.inner.lock();
            inner.0 = before.unwrap_or(inner.0) + number;
            drop(inner);
            producer.finish();
        })
    };
    let threads: Vec<_> = (1..).zip(producers).map(add).collect();
    let consumer = consumers.remove(0);
    wait(&consumer.complete);
    assert_eq!(*consumer.inner.lock(), (3, Some(ProducerEnd::Finished)));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn a_sum() {
    shuttle::check_random(|| model(false), 1000);
}

#[test]
fn a_sum_that_is_unlocked_between_read_and_write() {
    crate::support::must_fail("assertion `left == right` failed", || model(true));
}
