//! The scheduler under adversarial loads, compared with tokio and rayon where they have an
//! equivalent.
//!
//! `empty-tasks`: tasks that do nothing, each spawned, run and dropped. `ping-pong`: two tasks that
//! wake each other through gates, so only the wake-up counts.

use std::{any::Any, hint::black_box, sync::Arc};

use criterion::{Criterion, criterion_group, criterion_main};
use gatework::{
    Executor,
    runtime::scheduler::{RunResult, Runnable, TaskGroup},
    shared_state::{Dependency, DependencyKind, Gate},
};
use support::Countdown;

#[allow(dead_code, reason = "this bench uses only a part of the shared support")]
mod support;

const THREADS: usize = 2;
const TASKS: usize = 1_000_000;
const ROUNDS: usize = 10_000;

struct Empty(Arc<Countdown>);

impl Runnable for Empty {
    fn run(&mut self, _worker: usize) -> RunResult {
        self.0.one();
        RunResult::Done
    }

    fn panicked(&mut self, _payload: Box<dyn Any + Send>) {}
}

fn empty_tasks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("empty-tasks");
    group.sample_size(10);
    let executor = Executor::builder().threads(THREADS).build().expect("threads");
    group.bench_function("gatework", |bencher| {
        bencher.iter(|| {
            let (countdown, done) = Countdown::new(TASKS);
            let tasks = TaskGroup::new();
            for _ in 0..TASKS {
                let task = Box::new(Empty(countdown.clone()));
                executor.spawn(&tasks, task).expect("a running executor").wake();
            }
            done.recv().expect("the last task notifies");
        });
    });
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .build()
        .expect("threads");
    group.bench_function("tokio", |bencher| {
        bencher.iter(|| {
            tokio.block_on(async {
                let tasks: Vec<_> = (0..TASKS).map(|n| tokio::spawn(async move { n })).collect();
                for task in tasks {
                    black_box(task.await.expect("no panic"));
                }
            });
        });
    });
    let rayon = rayon::ThreadPoolBuilder::new().num_threads(THREADS).build().expect("threads");
    group.bench_function("rayon", |bencher| {
        bencher.iter(|| {
            rayon.scope(|scope| {
                for n in 0..TASKS {
                    scope.spawn(move |_| {
                        black_box(n);
                    });
                }
            });
        });
    });
    group.finish();
}

/// Waits for its own gate and then sets the other's ready, repeatedly.
struct Player {
    mine: Gate,
    other: Gate,
    remaining: usize,
    countdown: Arc<Countdown>,
}

impl Runnable for Player {
    fn run(&mut self, _worker: usize) -> RunResult {
        while self.remaining > 0 {
            if !self.mine.is_ready() {
                return RunResult::Blocked(self.mine.clone().into());
            }
            self.mine.block();
            self.remaining -= 1;
            self.other.set_ready();
        }
        self.countdown.one();
        RunResult::Done
    }

    fn panicked(&mut self, _payload: Box<dyn Any + Send>) {}
}

fn ping_pong(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ping-pong");
    group.sample_size(10);
    for threads in [1, THREADS] {
        let executor = Executor::builder().threads(threads).build().expect("threads");
        group.bench_function(format!("gatework, {threads} workers"), |bencher| {
            bencher.iter(|| {
                let (countdown, done) = Countdown::new(2);
                let ping = Dependency::ready("ping", DependencyKind::External);
                let pong = Dependency::blocked("pong", DependencyKind::External);
                let tasks = TaskGroup::new();
                for (mine, other) in [(&ping, &pong), (&pong, &ping)] {
                    let (mine, other, countdown) = (mine.clone(), other.clone(), countdown.clone());
                    let player = Player { mine, other, remaining: ROUNDS, countdown };
                    executor.spawn(&tasks, Box::new(player)).expect("running").wake();
                }
                done.recv().expect("the last task notifies");
            });
        });
        let tokio = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .build()
            .expect("threads");
        group.bench_function(format!("tokio Notify, {threads} workers"), |bencher| {
            bencher.iter(|| {
                let ping = Arc::new(tokio::sync::Notify::new());
                let pong = Arc::new(tokio::sync::Notify::new());
                ping.notify_one();
                let play = |mine: Arc<tokio::sync::Notify>,
                            other: Arc<tokio::sync::Notify>| async move {
                    for _ in 0..ROUNDS {
                        mine.notified().await;
                        other.notify_one();
                    }
                };
                tokio.block_on(async {
                    let first = tokio::spawn(play(ping.clone(), pong.clone()));
                    let second = tokio::spawn(play(pong, ping));
                    first.await.expect("no panic");
                    second.await.expect("no panic");
                });
            });
        });
    }
    group.finish();
}

criterion_group!(benches, empty_tasks, ping_pong);
criterion_main!(benches);
