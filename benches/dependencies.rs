//! Gates by themselves, and the four ways in which tasks meet, beside what async Rust has for them.
//!
//! `gate`: one thread, nobody else. `1:1`, `1:N`, `N:1`, `N:N`: items move from sink tasks to source tasks on two
//! workers, 64 of them at a time, so that both sides block and are woken again and again. The peer is tokio's bounded
//! channel, one for each reader.

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
    runtime::scheduler::{Outcome, Runnable, TaskGroup},
    shared_state::{
        Budget, Dependency, DependencyKind, Give, Payload, Take, exchange, multicast, union,
    },
};
use support::Countdown;

#[allow(dead_code, reason = "of what benches share, only some is needed here")]
mod support;

const THREADS: usize = 2;
const SEVERAL: usize = 4;
/// Items that each reader gets in all.
const ITEMS: usize = 100_000;
/// Items that wait for a reader at a time.
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

/// The two ends of a shared state.
trait Giving: Send + 'static {
    fn give(&mut self, item: Item) -> Give;
    fn finish(self);
}

trait Taking: Send + 'static {
    fn take(&mut self) -> Take<Item>;
}

impl Giving for union::UnionSink<Item> {
    fn give(&mut self, item: Item) -> Give {
        self.push(item)
    }

    fn finish(self) {
        self.finish();
    }
}

impl Taking for union::UnionSource<Item> {
    fn take(&mut self) -> Take<Item> {
        self.take()
    }
}

impl Giving for multicast::MulticastSink<Item> {
    fn give(&mut self, item: Item) -> Give {
        self.push(item)
    }

    fn finish(self) {
        self.finish();
    }
}

impl Taking for multicast::MulticastSource<Item> {
    fn take(&mut self) -> Take<Item> {
        self.take()
    }
}

impl Giving for exchange::ExchangeSink<Item> {
    fn give(&mut self, item: Item) -> Give {
        self.push(item.0 % SEVERAL, item)
    }

    fn finish(self) {
        self.finish();
    }
}

impl Taking for exchange::ExchangeSource<Item> {
    fn take(&mut self) -> Take<Item> {
        self.take()
    }
}

struct Giver<S> {
    sink: Option<S>,
    left: usize,
    countdown: Arc<Countdown>,
}

impl<S: Giving> Runnable for Giver<S> {
    fn run(&mut self, _worker: usize) -> Outcome {
        while let Some(sink) = self.sink.as_mut().filter(|_| self.left > 0) {
            self.left -= 1;
            match sink.give(Item(self.left)) {
                Give::Accepted => {}
                Give::Full(gate) => return Outcome::Blocked(gate.into()),
                Give::Closed => break,
            }
        }
        if let Some(sink) = self.sink.take() {
            sink.finish();
        }
        self.countdown.one();
        Outcome::Done
    }

    fn panicked(&mut self, _payload: Box<dyn Any + Send>) {}
}

struct Taker<S> {
    source: S,
    taken: usize,
    countdown: Arc<Countdown>,
}

impl<S: Taking> Runnable for Taker<S> {
    fn run(&mut self, _worker: usize) -> Outcome {
        loop {
            match self.source.take() {
                Take::Item(item) => {
                    black_box(item.0);
                    self.taken += 1;
                }
                Take::Blocked(gate) => return Outcome::Blocked(gate.into()),
                Take::Finished => break,
                Take::Aborted => panic!("a giver left"),
            }
        }
        assert_eq!(self.taken, ITEMS, "items are lost");
        self.countdown.one();
        Outcome::Done
    }

    fn panicked(&mut self, _payload: Box<dyn Any + Send>) {}
}

/// Moves so many items from each sink to the sources.
fn meet<S: Giving, T: Taking>(executor: &Executor, sinks: Vec<S>, sources: Vec<T>, each: usize) {
    let (countdown, done) = Countdown::new(sinks.len() + sources.len());
    let tasks = TaskGroup::new();
    let spawn = |task: Box<dyn Runnable>| executor.spawn(&tasks, task).expect("running").wake();
    for source in sources {
        spawn(Box::new(Taker { source, taken: 0, countdown: countdown.clone() }));
    }
    for sink in sinks {
        spawn(Box::new(Giver { sink: Some(sink), left: each, countdown: countdown.clone() }));
    }
    done.recv().expect("the last task tells");
}

/// The same by tokio: giver `n` sends each item to the readers that `to` names.
async fn meet_in_tokio(
    givers: usize,
    readers: usize,
    each: usize,
    to: impl Fn(usize) -> Vec<usize> + Send + Copy + 'static,
) {
    let (senders, receivers): (Vec<_>, Vec<_>) =
        (0..readers).map(|_| tokio::sync::mpsc::channel::<usize>(WAITING)).unzip();
    let takers: Vec<_> = receivers
        .into_iter()
        .map(|mut receiver| {
            tokio::spawn(async move {
                let mut taken = 0;
                while let Some(item) = receiver.recv().await {
                    black_box(item);
                    taken += 1;
                }
                assert_eq!(taken, ITEMS, "items are lost");
            })
        })
        .collect();
    for _ in 0..givers {
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
    for taker in takers {
        taker.await.expect("no panic");
    }
}

fn beside_tokio<S: Giving, T: Taking>(
    criterion: &mut Criterion,
    name: &str,
    each: usize,
    state: impl Fn() -> (Vec<S>, Vec<T>),
    to: impl Fn(usize) -> Vec<usize> + Send + Copy + 'static,
) {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10);
    let (givers, readers) = state();
    let (givers, readers) = (givers.len(), readers.len());
    group.throughput(Throughput::Elements((ITEMS * readers) as u64));
    let executor = Executor::builder().threads(THREADS).build().expect("threads");
    group.bench_function("gatework", |bencher| {
        bencher.iter(|| {
            let (sinks, sources) = state();
            meet(&executor, sinks, sources, each);
        });
    });
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).build();
    let tokio = tokio.expect("threads");
    group.bench_function("tokio", |bencher| {
        bencher.iter(|| {
            // On a worker, as ours are.
            let all = tokio.spawn(meet_in_tokio(givers, readers, each, to));
            tokio.block_on(all).expect("no panic");
        });
    });
    group.finish();
}

fn meetings(criterion: &mut Criterion) {
    let one = |count: usize| {
        move || {
            let (sinks, source) = union::new("bench", count, WAITING);
            (sinks, vec![source])
        }
    };
    beside_tokio(criterion, "1:1", ITEMS, one(1), |_| vec![0]);
    let many = || {
        let (sink, sources) = multicast::new("bench", SEVERAL, Budget::new(WAITING));
        (vec![sink], sources)
    };
    beside_tokio(criterion, "1:N", ITEMS, many, |_| (0..SEVERAL).collect());
    beside_tokio(criterion, "N:1", ITEMS / SEVERAL, one(SEVERAL), |_| vec![0]);
    let all = || {
        let budget = Budget::new(WAITING * SEVERAL);
        exchange::new("bench", exchange::ExchangeKind::Hash, SEVERAL, SEVERAL, budget)
    };
    beside_tokio(criterion, "N:N", ITEMS, all, |item| vec![item % SEVERAL]);
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
    group.bench_function("open?", |bencher| bencher.iter(|| black_box(&gate).is_ready()));
    group.bench_function("shut, opened", |bencher| {
        bencher.iter(|| {
            gate.block();
            gate.set_ready();
        });
    });
    let count = Arc::new(Count(AtomicUsize::new(0)));
    let waker = Waker::from(count.clone());
    group.bench_function("shut, waited for, opened", |bencher| {
        bencher.iter(|| {
            gate.block();
            assert!(!gate.poll_ready(&waker), "it was shut");
            gate.set_ready();
        });
    });
    let cell = AtomicWaker::new();
    group.bench_function("futures' AtomicWaker, waited for, opened", |bencher| {
        bencher.iter(|| {
            cell.register(&waker);
            cell.wake();
        });
    });
    group.finish();
    assert!(count.0.load(Ordering::Relaxed) > 0, "nobody was woken");
}

criterion_group!(benches, gates, meetings);
criterion_main!(benches);
