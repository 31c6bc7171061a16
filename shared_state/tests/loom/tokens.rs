//! The real tokens: what the report of the last end sees, and that no abort is missed. Data is
//! Relaxed, so only the tokens' own ordering makes it visible.

use gatework_shared_state::{
    Dependency, DependencyKind, Gate, Producer, ProducerEnd, SharedState, StateLock, tokens,
};
use loom::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use crate::support::{check, join_all, wait};

/// One slot for each token that writes it before it ends.
struct Slots {
    produced: Vec<AtomicUsize>,
    consumed: Vec<AtomicUsize>,
    end: StateLock<Option<ProducerEnd>>,
    complete: Gate,
}

fn all_set(slots: &[AtomicUsize]) -> bool {
    slots.iter().all(|slot| slot.load(Ordering::Relaxed) == 1)
}

impl Slots {
    fn new(producers: usize, consumers: usize) -> Self {
        Self {
            produced: (0..producers).map(|_| AtomicUsize::new(0)).collect(),
            consumed: (0..consumers).map(|_| AtomicUsize::new(0)).collect(),
            end: StateLock::new(None),
            complete: Dependency::blocked("complete", DependencyKind::Source),
        }
    }
}

impl SharedState for Slots {
    fn producer_ended(&self, end: ProducerEnd, left: usize) {
        assert!(left > 0 || all_set(&self.produced), "data of an ended producer is not visible");
        if left == 0 || end == ProducerEnd::Dropped {
            let mut guard = self.end.lock();
            *guard = Some(end);
            guard.set_always_ready(&self.complete);
        }
    }

    fn consumer_ended(&self, _index: usize, left: usize) {
        assert!(left > 0 || all_set(&self.consumed), "an ended consumer is not visible");
    }
}

/// Ends each producer on its own thread, by `end`.
fn end_producers(
    producers: Vec<Producer<Slots>>,
    end: fn(Producer<Slots>),
) -> Vec<thread::JoinHandle<()>> {
    let spawn = |producer: Producer<Slots>| {
        thread::spawn(move || {
            producer.produced[producer.index()].store(1, Ordering::Relaxed);
            end(producer);
        })
    };
    producers.into_iter().map(spawn).collect()
}

#[test]
fn the_last_end_sees_all_data() {
    check(|| {
        let (producers, consumers) = tokens("slots", Slots::new(2, 0), 2, 1);
        let threads = end_producers(producers, Producer::finish);
        wait(&consumers[0].complete);
        assert_eq!(*consumers[0].end.lock(), Some(ProducerEnd::Finished));
        assert!(all_set(&consumers[0].produced));
        join_all(threads);
    });
}

/// The report of the producer that finished may come before the report of the one that was dropped.
#[test]
fn an_abort_is_never_missed() {
    check(|| {
        let (producers, consumers) = tokens("slots", Slots::new(2, 0), 2, 1);
        let threads = end_producers(producers, |producer| match producer.index() {
            0 => drop(producer),
            _ => producer.finish(),
        });
        wait(&consumers[0].complete);
        assert_eq!(*consumers[0].end.lock(), Some(ProducerEnd::Dropped));
        join_all(threads);
        assert_eq!(*consumers[0].end.lock(), Some(ProducerEnd::Dropped));
    });
}

#[test]
fn producers_learn_that_no_consumer_is_left() {
    check(|| {
        let (producers, consumers) = tokens("slots", Slots::new(0, 2), 1, 2);
        let threads = consumers.into_iter().map(|consumer| {
            thread::spawn(move || consumer.consumed[consumer.index()].store(1, Ordering::Relaxed))
        });
        let threads: Vec<_> = threads.collect();
        wait(producers[0].closed());
        assert!(all_set(&producers[0].consumed));
        join_all(threads);
    });
}
