//! The shared states through which items flow: exchange in all kinds, result, multicast, union,
//! analytic.

use gatework_shared_state::{
    Budget, Give, Take,
    analytic::{self, AnalyticSink, AnalyticSource},
    exchange::{self, ExchangeKind, ExchangeSink, ExchangeSource, Flow},
    multicast::{self, MulticastSink, MulticastSource},
    result::{self, ResultReader, ResultSink},
    union::{self, UnionSink, UnionSource},
};
use shuttle::thread;

use crate::{
    stream::{Plan, Reach, SinkEnd, SourceEnd, run},
    support::{Item, Ledger, Query, Task, check, check_all},
};

impl SinkEnd for ExchangeSink<Item> {
    fn push(&mut self, item: Item) -> Give {
        let (_, number) = item.id();
        let channel = number % self.channels();
        match self.kind() {
            ExchangeKind::Hash | ExchangeKind::BucketHash => self.push(channel, item),
            ExchangeKind::PassThrough | ExchangeKind::PassToOne => self.push_any(item),
            ExchangeKind::Broadcast => self.push_all(&item),
            // The first item is split, here into one part; later ones are passed whole.
            ExchangeKind::AdaptivePassThrough if number == 0 => self.push(channel, item),
            ExchangeKind::AdaptivePassThrough => self.push_any(item),
        }
    }

    fn room(&mut self) -> Option<Give> {
        Some(self.room())
    }

    fn finish(self) {
        self.finish();
    }
}

impl SourceEnd for ExchangeSource<Item> {
    fn take(&mut self) -> Take<Item> {
        self.take()
    }

    fn flow(&self) -> Option<Flow> {
        Some(self.flow())
    }
}

impl SinkEnd for ResultSink<Item> {
    fn push(&mut self, item: Item) -> Give {
        let partition = item.id().1 % self.partitions();
        self.push(partition, item)
    }

    fn room(&mut self) -> Option<Give> {
        Some(self.room())
    }

    fn finish(self) {
        self.finish();
    }
}

impl SourceEnd for ResultReader<Item> {
    fn take(&mut self) -> Take<Item> {
        self.take()
    }

    fn flow(&self) -> Option<Flow> {
        Some(self.flow())
    }
}

macro_rules! plain_ends {
    ($($sink:ty, $source:ty;)*) => {$(
        impl SinkEnd for $sink {
            fn push(&mut self, item: Item) -> Give {
                self.push(item)
            }

            fn finish(self) {
                self.finish();
            }
        }

        impl SourceEnd for $source {
            fn take(&mut self) -> Take<Item> {
                self.take()
            }
        }
    )*};
}

plain_ends! {
    MulticastSink<Item>, MulticastSource<Item>;
    UnionSink<Item>, UnionSource<Item>;
    AnalyticSink<Item>, AnalyticSource<Item>;
}

fn exchange(kind: ExchangeKind, reach: Reach) {
    check_all(move |ending| {
        let plan = Plan::new(ending, reach, 2, 2);
        let budget = Budget::new(plan.limit_bytes);
        let (sinks, sources) = exchange::new("exchange", kind, plan.sinks, plan.sources, budget);
        run(plan, sinks, sources);
    });
}

#[test]
fn hash_exchange() {
    exchange(ExchangeKind::Hash, Reach::Routed);
}

#[test]
fn bucket_hash_exchange() {
    exchange(ExchangeKind::BucketHash, Reach::Routed);
}

#[test]
fn pass_through_exchange() {
    exchange(ExchangeKind::PassThrough, Reach::Any);
}

#[test]
fn broadcast_exchange() {
    exchange(ExchangeKind::Broadcast, Reach::Copied);
}

#[test]
fn pass_to_one_exchange() {
    exchange(ExchangeKind::PassToOne, Reach::First);
}

#[test]
fn adaptive_pass_through_exchange() {
    exchange(ExchangeKind::AdaptivePassThrough, Reach::Any);
}

#[test]
fn result() {
    check_all(|ending| {
        let plan = Plan::new(ending, Reach::Routed, 2, 2);
        let budget = Budget::new(plan.limit_bytes);
        let (sinks, readers) = result::new("result", plan.sinks, plan.sources, budget);
        run(plan, sinks, readers);
    });
}

#[test]
fn multicast() {
    check_all(|ending| {
        let plan = Plan::new(ending, Reach::All, 1, 3);
        let (sink, sources) = multicast::new("cte", plan.sources, Budget::new(plan.limit_bytes));
        run(plan, vec![sink], sources);
    });
}

#[test]
fn union() {
    check_all(|ending| {
        let mut plan = Plan::new(ending, Reach::First, 3, 1);
        let (sinks, source) = union::new("union", plan.sinks, plan.limit_bytes);
        // Shares are rounded up to whole bytes.
        plan.limit_bytes += plan.sinks;
        run(plan, sinks, vec![source]);
    });
}

#[test]
fn analytic() {
    check_all(|ending| {
        let plan = Plan::new(ending, Reach::First, 1, 1);
        let (sink, source) = analytic::new("window", plan.limit_bytes);
        run(plan, vec![sink], vec![source]);
    });
}

/// A reader that reads one channel to its end before it looks at the other, while a sink writes to both in
/// turn: a cycle, if a full channel blocks the sink.
pub(crate) fn one_channel_after_the_other(budget: Budget) {
    let query = Query::new();
    let ledger = std::sync::Arc::<Ledger>::default();
    let (mut sinks, mut sources) = exchange::new("exchange", ExchangeKind::Hash, 1, 2, budget);
    let mut sink = sinks.remove(0);
    let producer = thread::spawn({
        let query = query.clone();
        move || {
            let mut task = Task::new(&query);
            for number in 0..4 {
                let item = Item::new(&ledger, 0, number, 5);
                if let Give::Full(gate) = SinkEnd::push(&mut sink, item) {
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
                Take::Item(item) => {
                    taken.push(item.id().1);
                    task.progress();
                }
                Take::Blocked(gate) => task.wait(&gate),
                Take::Finished => break,
                Take::Aborted => panic!("nobody aborted"),
            }
        }
    }
    producer.join().unwrap();
    assert_eq!(taken, [0, 2, 1, 3]);
}

/// A budget that overflows breaks the cycle.
#[test]
fn overflow_breaks_a_cycle() {
    check(|| {
        let budget = Budget::new(1);
        budget.overflow();
        one_channel_after_the_other(budget);
    });
}

/// So does one that lets sinks go on while a reader has nothing to take.
#[test]
fn a_starved_reader_breaks_a_cycle() {
    check(|| one_channel_after_the_other(Budget::new(1).unless_starved()));
}

/// A sink that may go on while a reader is starved waits as soon as none is, and is woken by the reader
/// that empties its channel.
#[test]
fn a_sink_waits_while_no_reader_is_starved() {
    check(|| {
        let query = Query::new();
        let ledger = std::sync::Arc::<Ledger>::default();
        let budget = Budget::new(1).unless_starved();
        let (mut sinks, mut sources) = exchange::new("exchange", ExchangeKind::Hash, 1, 2, budget);
        let mut push = |number| SinkEnd::push(&mut sinks[0], Item::new(&ledger, 0, number, 5));
        assert!(matches!(push(0), Give::Accepted));
        let Give::Full(gate) = push(1) else { panic!("both readers have something to take") };
        let reader = thread::spawn(move || {
            assert!(matches!(sources[0].take(), Take::Item(_)));
            sources
        });
        Task::new(&query).wait(&gate);
        assert!(matches!(sinks[0].room(), Give::Accepted));
        let _sources = reader.join().unwrap();
    });
}

/// When the last source has left, `closed` opens, and only then.
#[test]
fn closed_opens_when_nobody_reads() {
    check(|| {
        let query = Query::new();
        let (sinks, sources) =
            exchange::new::<Item>("exchange", ExchangeKind::Hash, 1, 2, Budget::new(1));
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
            exchange::new::<Item>("exchange", ExchangeKind::Hash, 1, 2, Budget::new(1));
        let kept = sources.pop();
        let leaver = thread::spawn(move || drop(sources));
        assert!(!sinks[0].closed().is_ready());
        leaver.join().unwrap();
        assert!(!sinks[0].closed().is_ready());
        drop(kept);
        assert!(sinks[0].closed().is_ready());
    });
}
