//! The shared states through which items flow: exchange in all kinds, result, multicast,
//! window.

use gatework_shared_state::{
    BufferLimit, PopResult, PushResult,
    exchange::{self, ExchangeConsumer, ExchangeProducer, ExchangeStats, LocalExchangeKind},
    multicast::{self, MulticastConsumer, MulticastProducer},
    result::{self, ResultProducer, ResultReader},
    window::{self, WindowConsumer, WindowProducer},
};
use shuttle::thread;

use crate::{
    stream::{Plan, Reach, SinkEnd, SourceEnd, run},
    support::{Item, Ledger, Query, Task, check, check_all},
};

impl SinkEnd for ExchangeProducer<Item> {
    fn push(&mut self, item: Item) -> PushResult {
        let (_, number) = item.id();
        let channel = number % self.channels();
        match self.kind() {
            LocalExchangeKind::Hash | LocalExchangeKind::BucketHash => self.push(channel, item),
            LocalExchangeKind::PassThrough | LocalExchangeKind::PassToOne => self.push_any(item),
            LocalExchangeKind::Broadcast => self.push_all(&item),
            // The first item is partitioned, here into one part; later ones are passed whole.
            LocalExchangeKind::AdaptivePassThrough if number == 0 => self.push(channel, item),
            LocalExchangeKind::AdaptivePassThrough => self.push_any(item),
        }
    }

    fn poll_capacity(&mut self) -> Option<PushResult> {
        Some(self.poll_capacity())
    }

    fn finish(self) {
        self.finish();
    }
}

impl SourceEnd for ExchangeConsumer<Item> {
    fn take(&mut self) -> PopResult<Item> {
        self.take()
    }

    fn stats(&self) -> Option<ExchangeStats> {
        Some(self.stats())
    }
}

impl SinkEnd for ResultProducer<Item> {
    fn push(&mut self, item: Item) -> PushResult {
        let partition = item.id().1 % self.partitions();
        self.push(partition, item)
    }

    fn poll_capacity(&mut self) -> Option<PushResult> {
        Some(self.poll_capacity())
    }

    fn finish(self) {
        self.finish();
    }
}

impl SourceEnd for ResultReader<Item> {
    fn take(&mut self) -> PopResult<Item> {
        self.take()
    }

    fn stats(&self) -> Option<ExchangeStats> {
        Some(self.stats())
    }
}

macro_rules! plain_ends {
    ($($sink:ty, $source:ty;)*) => {$(
        impl SinkEnd for $sink {
            fn push(&mut self, item: Item) -> PushResult {
                self.push(item)
            }

            fn finish(self) {
                self.finish();
            }
        }

        impl SourceEnd for $source {
            fn take(&mut self) -> PopResult<Item> {
                self.take()
            }
        }
    )*};
}

plain_ends! {
    MulticastProducer<Item>, MulticastConsumer<Item>;
    WindowProducer<Item>, WindowConsumer<Item>;
}

fn exchange(kind: LocalExchangeKind, reach: Reach) {
    check_all(move |ending| {
        let plan = Plan::new(ending, reach, 2, 2);
        let limit = BufferLimit::new(plan.limit_bytes);
        let (sinks, sources) = exchange::new("exchange", kind, plan.sinks, plan.sources, limit);
        run(plan, sinks, sources);
    });
}

#[test]
fn hash_exchange() {
    exchange(LocalExchangeKind::Hash, Reach::Routed);
}

#[test]
fn bucket_hash_exchange() {
    exchange(LocalExchangeKind::BucketHash, Reach::Routed);
}

#[test]
fn pass_through_exchange() {
    exchange(LocalExchangeKind::PassThrough, Reach::Any);
}

#[test]
fn broadcast_exchange() {
    exchange(LocalExchangeKind::Broadcast, Reach::Copied);
}

#[test]
fn pass_to_one_exchange() {
    exchange(LocalExchangeKind::PassToOne, Reach::First);
}

#[test]
fn adaptive_pass_through_exchange() {
    exchange(LocalExchangeKind::AdaptivePassThrough, Reach::Any);
}

#[test]
fn result() {
    check_all(|ending| {
        let plan = Plan::new(ending, Reach::Routed, 2, 2);
        let limit = BufferLimit::new(plan.limit_bytes);
        let (sinks, readers) = result::new("result", plan.sinks, plan.sources, limit);
        run(plan, sinks, readers);
    });
}

#[test]
fn multicast() {
    check_all(|ending| {
        let plan = Plan::new(ending, Reach::All, 1, 3);
        let (sink, sources) =
            multicast::new("cte", plan.sources, BufferLimit::new(plan.limit_bytes));
        run(plan, vec![sink], sources);
    });
}

#[test]
fn window() {
    check_all(|ending| {
        let plan = Plan::new(ending, Reach::First, 1, 1);
        let (sink, source) = window::new("window", plan.limit_bytes);
        run(plan, vec![sink], vec![source]);
    });
}

/// A reader reads one channel to its end before the other, while a sink alternates between both: a
/// cycle, if a full channel blocks the sink.
pub(crate) fn one_channel_after_the_other(limit: BufferLimit) {
    let query = Query::new();
    let ledger = std::sync::Arc::<Ledger>::default();
    let (mut sinks, mut sources) = exchange::new("exchange", LocalExchangeKind::Hash, 1, 2, limit);
    let mut sink = sinks.remove(0);
    let producer = thread::spawn({
        let query = query.clone();
        move || {
            let mut task = Task::new(&query);
            for number in 0..4 {
                let item = Item::new(&ledger, 0, number, 5);
                if let PushResult::Backpressure(gate) = SinkEnd::push(&mut sink, item) {
                    task.wait(&gate);
                }
                task.progress();
            }
            sink.finish();
        }
    });
    let mut task = Task::new(&query);
    let mut taken = Vec::new();
    for source in &mut sources {
        loop {
            match source.take() {
                PopResult::Item(item) => {
                    taken.push(item.id().1);
                    task.progress();
                }
                PopResult::Blocked(gate) => task.wait(&gate),
                PopResult::Finished => break,
                PopResult::Aborted => panic!("nobody aborted"),
            }
        }
    }
    producer.join().unwrap();
    assert_eq!(taken, [0, 2, 1, 3]);
}

/// A limit that overflows breaks the cycle.
#[test]
fn overflow_breaks_a_cycle() {
    check(|| {
        let limit = BufferLimit::new(1);
        limit.allow_overflow();
        one_channel_after_the_other(limit);
    });
}

/// A limit that lets sinks go on while a reader is starved breaks it as well.
#[test]
fn a_starved_reader_breaks_a_cycle() {
    check(|| one_channel_after_the_other(BufferLimit::new(1).unless_starved()));
}

/// A sink that may go on while a reader is starved waits as soon as none is. The reader that
/// empties its channel wakes it.
#[test]
fn a_sink_waits_while_no_reader_is_starved() {
    check(|| {
        let query = Query::new();
        let ledger = std::sync::Arc::<Ledger>::default();
        let limit = BufferLimit::new(1).unless_starved();
        let (mut sinks, mut sources) =
            exchange::new("exchange", LocalExchangeKind::Hash, 1, 2, limit);
        let mut push = |number| SinkEnd::push(&mut sinks[0], Item::new(&ledger, 0, number, 5));
        assert!(matches!(push(0), PushResult::Accepted));
        let PushResult::Backpressure(gate) = push(1) else {
            panic!("both readers have something to take")
        };
        let reader = thread::spawn(move || {
            assert!(matches!(sources[0].take(), PopResult::Item(_)));
            sources
        });
        Task::new(&query).wait(&gate);
        assert!(matches!(sinks[0].poll_capacity(), PushResult::Accepted));
        let _sources = reader.join().unwrap();
    });
}

/// `closed` is ready once the last source was dropped, and not before.
#[test]
fn closed_opens_when_nobody_reads() {
    check(|| {
        let query = Query::new();
        let (sinks, sources) =
            exchange::new::<Item>("exchange", LocalExchangeKind::Hash, 1, 2, BufferLimit::new(1));
        let watcher = thread::spawn({
            let query = query.clone();
            move || {
                Task::new(&query).wait(sinks[0].closed());
                sinks
            }
        });
        let others = sources.into_iter().map(|source| thread::spawn(move || drop(source)));
        let others: Vec<_> = others.collect();
        others.into_iter().for_each(|other| other.join().unwrap());
        let sinks = watcher.join().unwrap();
        assert!(sinks[0].closed().is_ready());
    });
    check(|| {
        let (sinks, mut sources) =
            exchange::new::<Item>("exchange", LocalExchangeKind::Hash, 1, 2, BufferLimit::new(1));
        let kept = sources.pop();
        let leaver = thread::spawn(move || drop(sources));
        assert!(!sinks[0].closed().is_ready());
        leaver.join().unwrap();
        assert!(!sinks[0].closed().is_ready());
        drop(kept);
        assert!(sinks[0].closed().is_ready());
    });
}
