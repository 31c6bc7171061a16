//! Breaker, aggregate and sort: producers publish once, and consumers claim work once all have
//! published.

use std::sync::Arc;

use gatework_shared_state::{
    ClaimResult, Gate,
    aggregate::{self, AggregateConsumer, AggregateProducer},
    breaker::{self, BreakerConsumer, BreakerProducer},
    sort::{self, SortConsumer, SortProducer},
};
use shuttle::thread;

use crate::support::{Ending, Item, Ledger, Query, Task, below, check, check_all};

const PARTITIONS: usize = 3;

/// The producer side of a state under test.
trait PublishEnd: Send + 'static {
    /// Publishes the items of producer `sink`, one for each partition.
    fn publish(self, items: Vec<Item>);
    fn closed(&self) -> Gate;
}

/// The consumer side of a state under test.
trait ClaimEnd: Send + 'static {
    /// Claims the next partition, with the items of all producers for it.
    fn claim(&self) -> ClaimResult<(usize, Vec<Item>)>;
}

/// The next partition to claim, and the items of all partitions.
type Contents = (usize, Vec<Item>);

impl PublishEnd for BreakerProducer<Contents> {
    fn publish(self, items: Vec<Item>) {
        self.publish(|(_, all)| all.extend(items));
    }

    fn closed(&self) -> Gate {
        self.closed().clone()
    }
}

impl ClaimEnd for BreakerConsumer<Contents> {
    fn claim(&self) -> ClaimResult<(usize, Vec<Item>)> {
        self.claim(|(next, items)| {
            let partition = *next;
            *next += 1;
            let claimed = items.extract_if(.., |item| item.id().1 == partition).collect();
            (partition < PARTITIONS).then_some((partition, claimed))
        })
    }
}

impl PublishEnd for AggregateProducer<Item> {
    fn publish(self, items: Vec<Item>) {
        self.publish(items.into_iter().map(|item| vec![item]).collect());
    }

    fn closed(&self) -> Gate {
        self.closed().clone()
    }
}

impl ClaimEnd for AggregateConsumer<Item> {
    fn claim(&self) -> ClaimResult<(usize, Vec<Item>)> {
        self.claim()
    }
}

impl PublishEnd for SortProducer<Item> {
    fn publish(self, items: Vec<Item>) {
        self.publish(items);
    }

    fn closed(&self) -> Gate {
        self.closed().clone()
    }
}

impl ClaimEnd for SortConsumer<Item> {
    fn claim(&self) -> ClaimResult<(usize, Vec<Item>)> {
        match self.claim() {
            ClaimResult::Work((range, runs)) => {
                let within = runs.iter().filter(|item| item.id().1 == range).cloned();
                ClaimResult::Work((range, within.collect()))
            }
            ClaimResult::Blocked(gate) => ClaimResult::Blocked(gate),
            ClaimResult::Finished => ClaimResult::Finished,
            ClaimResult::Aborted => ClaimResult::Aborted,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    Finished,
    SawAbort,
    Left,
}

/// `false`: the producer was dropped without publishing.
fn publish(
    end: impl PublishEnd,
    sink: usize,
    aborts: bool,
    until_closed: bool,
    query: &Arc<Query>,
    ledger: &Arc<Ledger>,
) -> bool {
    let mut task = Task::new(query);
    if until_closed {
        // A producer with an endless input learns from this gate that no consumer is left.
        task.wait(&end.closed());
    }
    if aborts || task.is_cancelled() {
        return false;
    }
    end.publish((0..PARTITIONS).map(|partition| Item::new(ledger, sink, partition, 1)).collect());
    true
}

fn claim<C: ClaimEnd>(
    end: C,
    leave_at: Option<usize>,
    query: &Arc<Query>,
) -> (Read, Vec<(usize, Vec<usize>)>) {
    let mut task = Task::new(query);
    let mut partitions = Vec::new();
    loop {
        if task.is_cancelled() || leave_at == Some(partitions.len()) {
            return (Read::Left, partitions);
        }
        match end.claim() {
            ClaimResult::Work((partition, items)) => {
                assert!(
                    items.iter().all(|item| item.id().1 == partition),
                    "an item of another partition"
                );
                let mut sinks: Vec<_> = items.iter().map(|item| item.id().0).collect();
                sinks.sort_unstable();
                partitions.push((partition, sinks));
                task.progress();
            }
            ClaimResult::Blocked(gate) => task.wait(&gate),
            ClaimResult::Finished => return (Read::Finished, partitions),
            ClaimResult::Aborted => return (Read::SawAbort, partitions),
        }
    }
}

fn run<P: PublishEnd, C: ClaimEnd>(ending: Ending, sinks: Vec<P>, sources: Vec<C>) {
    let query = Query::new();
    let ledger = Arc::<Ledger>::default();
    let count = sinks.len();
    let aborting = (ending == Ending::Abort).then(|| below(count));
    let leaver = (ending == Ending::Leave).then(|| below(sources.len()));
    let sinks: Vec<_> = (0..)
        .zip(sinks)
        .map(|(sink, end)| {
            let (query, ledger) = (query.clone(), ledger.clone());
            let aborts = aborting == Some(sink);
            let until_closed = ending.all_leave() && below(2) == 0;
            thread::spawn(move || publish(end, sink, aborts, until_closed, &query, &ledger))
        })
        .collect();
    let sources: Vec<_> = (0..)
        .zip(sources)
        .map(|(source, end)| {
            let query = query.clone();
            // If all consumers leave, they do so before the first claim: some producers wait for
            // just that.
            let leave_at = match ending.all_leave() {
                true => Some(0),
                false => (leaver == Some(source)).then(|| below(2)),
            };
            thread::spawn(move || claim(end, leave_at, &query))
        })
        .collect();
    if ending.cancels() {
        query.cancel();
    }
    let published: Vec<_> = sinks.into_iter().map(|sink| sink.join().unwrap()).collect();
    let read: Vec<_> = sources.into_iter().map(|source| source.join().unwrap()).collect();
    let whole = published.iter().all(|published| *published);
    let mut partitions: Vec<_> =
        read.iter().flat_map(|(_, partitions)| partitions.clone()).collect();
    partitions.sort_unstable();
    assert!(
        partitions.windows(2).all(|pair| pair[0].0 < pair[1].0),
        "a partition was claimed twice"
    );
    for (_, sinks) in &partitions {
        assert_eq!(*sinks, (0..count).collect::<Vec<_>>(), "a partition without all sinks' chunks");
    }
    for (end, _) in &read {
        assert!(whole || *end != Read::Finished, "an aborted producer looks finished");
        assert!(!whole || *end != Read::SawAbort, "a finished producer looks aborted");
    }
    if read.iter().any(|(end, _)| *end == Read::Finished) {
        assert_eq!(partitions.len(), PARTITIONS, "a partition was lost");
    }
    if ending == Ending::Finish {
        assert!(read.iter().all(|(end, _)| *end == Read::Finished), "{read:?}");
    }
    assert_eq!(ledger.live_bytes(), 0, "items were left over");
}

#[test]
fn breaker() {
    check_all(|ending| {
        let (sinks, sources) = breaker::new("breaker", 2, 2, Contents::default());
        run(ending, sinks, sources);
    });
}

#[test]
fn aggregate() {
    check_all(|ending| {
        let (sinks, sources) = aggregate::new("aggregate", 2, 2, PARTITIONS);
        run(ending, sinks, sources);
    });
}

#[test]
fn sort() {
    check_all(|ending| {
        let (sinks, sources) = sort::new("sort", 2, 2, PARTITIONS);
        run(ending, sinks, sources);
    });
}

/// The memory of a claimed partition belongs to the consumer: none of it stays in the state.
#[test]
fn aggregate_releases_partition_by_partition() {
    check(|| {
        let ledger = Arc::<Ledger>::default();
        let (sinks, sources) = aggregate::new("aggregate", 2, 1, PARTITIONS);
        let publishers: Vec<_> = (0..)
            .zip(sinks)
            .map(|(sink, end)| {
                let (query, ledger) = (Query::new(), ledger.clone());
                thread::spawn(move || publish(end, sink, false, false, &query, &ledger))
            })
            .collect();
        assert!(publishers.into_iter().all(|publisher| publisher.join().unwrap()));
        for left in (0..PARTITIONS).rev() {
            let ClaimResult::Work((_, chunks)) = sources[0].claim() else {
                panic!("a partition is missing")
            };
            drop(chunks);
            assert_eq!(ledger.live_bytes(), 2 * left);
        }
        assert!(matches!(sources[0].claim(), ClaimResult::Finished));
    });
}

/// The runs are dropped with the last claimed range, not with the last consumer.
#[test]
fn sort_releases_with_the_last_range() {
    check(|| {
        let ledger = Arc::<Ledger>::default();
        let (sinks, sources) = sort::new("sort", 2, 1, PARTITIONS);
        let publishers: Vec<_> = (0..)
            .zip(sinks)
            .map(|(sink, end)| {
                let (query, ledger) = (Query::new(), ledger.clone());
                thread::spawn(move || publish(end, sink, false, false, &query, &ledger))
            })
            .collect();
        assert!(publishers.into_iter().all(|publisher| publisher.join().unwrap()));
        for _ in 0..PARTITIONS {
            assert_eq!(ledger.live_bytes(), 2 * PARTITIONS);
            assert!(matches!(sources[0].claim(), ClaimResult::Work(_)));
        }
        assert_eq!(ledger.live_bytes(), 0);
    });
}
