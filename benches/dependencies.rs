//! Gates alone, and the four cardinalities of shared states, compared with their peers in async
//! Rust.
//!
//! `gate`: one thread. `1:1`, `1:N`, `N:1`, `N:N`: items move from producer tasks to consumer tasks
//! on two workers. At most 64 of them are buffered, so that both sides block and wake repeatedly.
//! The peer is tokio's bounded channel, one per consumer.

use std::{
    any::Any,
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Wake, Waker},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures::task::AtomicWaker;
use gatework::{
    Executor,
    runtime::scheduler::{RunResult, Runnable, TaskGroup},
    shared_state::{
        BufferLimit, Dependency, DependencyKind, Payload, PopResult, PushResult, exchange,
        multicast,
    },
};
use support::Countdown;

#[allow(dead_code, reason = "this bench uses only a part of the shared support")]
mod support;

const THREADS: usize = 2;
const FAN_OUT: usize = 4;
/// Number of items that each consumer receives.
const ITEMS: usize = 100_000;
/// Maximum number of buffered items per consumer.
const WAITING: usize = 64;

#[derive(Debug, Clone)]
struct Item(usize);

impl Payload for Item {
    fn rows(&self) -> usize {
        1
    }

    fn bytes(&self) -> usize {
        1
    }
}

/// The producer token of a shared state.
trait ProducerEnd: Send + 'static {
    fn produce(&mut self, item: Item) -> PushResult;
    fn finish(self);
}

/// The consumer token of a shared state.
trait ConsumerEnd: Send + 'static {
    fn consume(&mut self) -> PopResult<Item>;
}

impl ProducerEnd for multicast::MulticastProducer<Item> {
    fn produce(&mut self, item: Item) -> PushResult {
        self.push(item)
    }

    fn finish(self) {
        self.finish();
    }
}

impl ConsumerEnd for multicast::MulticastConsumer<Item> {
    fn consume(&mut self) -> PopResult<Item> {
        self.take()
    }
}

impl ProducerEnd for exchange::ExchangeProducer<Item> {
    fn produce(&mut self, item: Item) -> PushResult {
        self.push(item.0 % self.channels(), item)
    }

    fn finish(self) {
        self.finish();
    }
}

impl ConsumerEnd for exchange::ExchangeConsumer<Item> {
    fn consume(&mut self) -> PopResult<Item> {
        self.take()
    }
}

struct ProducerTask<S> {
    sink: Option<S>,
    remaining: usize,
    countdown: Arc<Countdown>,
}

impl<S: ProducerEnd> Runnable for ProducerTask<S> {
    fn run(&mut self, _worker: usize) -> RunResult {
        while let Some(sink) = self.sink.as_mut().filter(|_| self.remaining > 0) {
            self.remaining -= 1;
            match sink.produce(Item(self.remaining)) {
                PushResult::Accepted => {}
                PushResult::Backpressure(gate) => return RunResult::Blocked(gate.into()),
                PushResult::Closed => break,
            }
        }
        if let Some(sink) = self.sink.take() {
            sink.finish();
        }
        self.countdown.one();
        RunResult::Done
    }

    fn panicked(&mut self, _payload: Box<dyn Any + Send>) {}
}

struct ConsumerTask<S> {
    source: S,
    received: usize,
    countdown: Arc<Countdown>,
}

impl<S: ConsumerEnd> Runnable for ConsumerTask<S> {
    fn run(&mut self, _worker: usize) -> RunResult {
        loop {
            match self.source.consume() {
                PopResult::Item(item) => {
                    black_box(item.0);
                    self.received += 1;
                }
                PopResult::Blocked(gate) => return RunResult::Blocked(gate.into()),
                PopResult::Finished => break,
                PopResult::Aborted => panic!("a producer was dropped unfinished"),
            }
        }
        assert_eq!(self.received, ITEMS, "items were lost");
        self.countdown.one();
        RunResult::Done
    }

    fn panicked(&mut self, _payload: Box<dyn Any + Send>) {}
}

/// Moves `each` items from each producer to the consumers.
fn hand_over<S: ProducerEnd, T: ConsumerEnd>(
    executor: &Executor,
    sinks: Vec<S>,
    sources: Vec<T>,
    each: usize,
) {
    let (countdown, done) = Countdown::new(sinks.len() + sources.len());
    let tasks = TaskGroup::new();
    let spawn = |task: Box<dyn Runnable>| executor.spawn(&tasks, task).expect("running").wake();
    for source in sources {
        spawn(Box::new(ConsumerTask { source, received: 0, countdown: countdown.clone() }));
    }
    for sink in sinks {
        spawn(Box::new(ProducerTask {
            sink: Some(sink),
            remaining: each,
            countdown: countdown.clone(),
        }));
    }
    done.recv().expect("the last task notifies");
}

/// The same with tokio: each producer sends each item to the consumers that `to` returns.
async fn hand_over_in_tokio(
    producers: usize,
    readers: usize,
    each: usize,
    to: impl Fn(usize) -> Vec<usize> + Send + Copy + 'static,
) {
    let (senders, receivers): (Vec<_>, Vec<_>) =
        (0..readers).map(|_| tokio::sync::mpsc::channel::<usize>(WAITING)).unzip();
    let consumers: Vec<_> = receivers
        .into_iter()
        .map(|mut receiver| {
            tokio::spawn(async move {
                let mut received = 0;
                while let Some(item) = receiver.recv().await {
                    black_box(item);
                    received += 1;
                }
                assert_eq!(received, ITEMS, "items were lost");
            })
        })
        .collect();
    for _ in 0..producers {
        let senders = senders.clone();
        tokio::spawn(async move {
            for item in 0..each {
                for reader in to(item) {
                    senders[reader].send(item).await.expect("a reader");
                }
            }
        });
    }
    drop(senders);
    for consumer in consumers {
        consumer.await.expect("no panic");
    }
}

fn compare_with_tokio<S: ProducerEnd, T: ConsumerEnd>(
    criterion: &mut Criterion,
    name: &str,
    each: usize,
    state: impl Fn() -> (Vec<S>, Vec<T>),
    to: impl Fn(usize) -> Vec<usize> + Send + Copy + 'static,
) {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10);
    let (producers, readers) = state();
    let (producers, readers) = (producers.len(), readers.len());
    group.throughput(Throughput::Elements((ITEMS * readers) as u64));
    let executor = Executor::builder().threads(THREADS).build().expect("threads");
    group.bench_function("gatework", |bencher| {
        bencher.iter(|| {
            let (sinks, sources) = state();
            hand_over(&executor, sinks, sources, each);
        });
    });
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).build();
    let tokio = tokio.expect("threads");
    group.bench_function("tokio", |bencher| {
        bencher.iter(|| {
            // On a worker, like gatework's tasks.
            let all = tokio.spawn(hand_over_in_tokio(producers, readers, each, to));
            tokio.block_on(all).expect("no panic");
        });
    });
    group.finish();
}

fn handovers(criterion: &mut Criterion) {
    let one = |count: usize| {
        move || {
            let limit = BufferLimit::new(WAITING);
            exchange::new("bench", exchange::LocalExchangeKind::PassToOne, count, 1, limit)
        }
    };
    compare_with_tokio(criterion, "1:1", ITEMS, one(1), |_| vec![0]);
    let many = || {
        let (sink, sources) = multicast::new("bench", FAN_OUT, BufferLimit::new(WAITING));
        (vec![sink], sources)
    };
    compare_with_tokio(criterion, "1:N", ITEMS, many, |_| (0..FAN_OUT).collect());
    compare_with_tokio(criterion, "N:1", ITEMS / FAN_OUT, one(FAN_OUT), |_| vec![0]);
    let all = || {
        let budget = BufferLimit::new(WAITING * FAN_OUT);
        exchange::new("bench", exchange::LocalExchangeKind::Hash, FAN_OUT, FAN_OUT, budget)
    };
    compare_with_tokio(criterion, "N:N", ITEMS, all, |item| vec![item % FAN_OUT]);
}

struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn gates(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("gate");
    let gate = Dependency::ready("bench", DependencyKind::Source);
    group.bench_function("is ready", |bencher| bencher.iter(|| black_box(&gate).is_ready()));
    group.bench_function("block, set ready", |bencher| {
        bencher.iter(|| {
            gate.block();
            gate.set_ready();
        });
    });
    let count = Arc::new(Count(AtomicUsize::new(0)));
    let waker = Waker::from(count.clone());
    group.bench_function("block, wait, set ready", |bencher| {
        bencher.iter(|| {
            gate.block();
            assert!(!gate.poll_ready(&waker), "the gate must be blocked");
            gate.set_ready();
        });
    });
    let cell = AtomicWaker::new();
    group.bench_function("futures' AtomicWaker, wait, wake", |bencher| {
        bencher.iter(|| {
            cell.register(&waker);
            cell.wake();
        });
    });
    group.finish();
    assert!(count.0.load(Ordering::Relaxed) > 0, "no waker was called");
}

criterion_group!(benches, gates, handovers);
criterion_main!(benches);
