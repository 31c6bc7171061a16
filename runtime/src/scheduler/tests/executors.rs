//! Configuration of executors, several at a time and on hosted threads.

use std::{
    collections::HashSet,
    io,
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver},
    },
    thread,
};

use super::{
    super::{Executor, Gates, RunResult, SplitMix64, TaskGroup, TaskHandle},
    Body, gate, once, own, pool, spawn,
};
use crate::{Error, hang_guard::guarded};

fn configuration_error(result: crate::Result<Executor>) -> String {
    match result {
        Err(Error::InvalidConfiguration(message)) => message,
        other => panic!("expected a configuration error, got {other:?}"),
    }
}

#[test]
fn builder_refuses_what_cannot_work() {
    guarded(|_| {
        let message = configuration_error(Executor::builder().threads(0).build());
        assert!(message.contains("at least 1 thread"), "{message}");
        let message =
            configuration_error(Executor::builder().threads(0).on_rayon_pool(pool(1)).build());
        assert!(message.contains("at least 1 thread"), "{message}");
        let hosted = || Executor::builder().on_rayon_pool(pool(1));
        for builder in [
            hosted().thread_name(|_| String::new()),
            hosted().on_thread_start(|_| {}),
            hosted().pin_to_cores(true),
        ] {
            let message = configuration_error(builder.build());
            assert!(message.contains("in the pool"), "{message}");
        }
    });
}

#[test]
fn defaults_follow_the_machine_and_the_pool() {
    guarded(|_| {
        let cores = thread::available_parallelism().unwrap().get();
        assert_eq!(Executor::builder().build().unwrap().threads(), cores);
        let hosted = Executor::builder().on_rayon_pool(pool(3)).build().unwrap();
        assert_eq!(hosted.threads(), 3);
    });
}

#[test]
fn threads_have_names_and_hooks() {
    guarded(|_| {
        let (hooked, hooks) = mpsc::channel();
        let hooked = Mutex::new(hooked);
        let executor = Executor::builder()
            .threads(2)
            .thread_name(|worker| format!("lane {worker}"))
            .on_thread_start(move |worker| {
                let name = thread::current().name().unwrap().to_owned();
                hooked.lock().unwrap().send((worker, name)).unwrap();
            })
            .pin_to_cores(true)
            .build()
            .unwrap();
        let mut started = [hooks.recv().unwrap(), hooks.recv().unwrap()];
        started.sort();
        assert_eq!(started, [(0, "lane 0".to_owned()), (1, "lane 1".to_owned())]);
        let (report, reports) = mpsc::channel();
        once(&executor, move |worker| {
            report.send((worker, thread::current().name().unwrap().to_owned())).unwrap();
        });
        let (worker, name) = reports.recv().unwrap();
        assert_eq!(name, format!("lane {worker}"));
        drop(executor);
        assert!(hooks.recv().is_err(), "each hook ran once, and went with the executor");
    });
}

#[test]
fn a_hook_that_panics_costs_no_worker() {
    guarded(|_| {
        let executor =
            Executor::builder().threads(1).on_thread_start(|_| panic!("hook")).build().unwrap();
        let (report, reports) = mpsc::channel();
        once(&executor, move |_| report.send(()).unwrap());
        reports.recv().unwrap();
    });
}

#[test]
fn several_executors_wake_each_other() {
    guarded(|_| {
        const ROUNDS: usize = 200;
        let executors: Vec<_> = (0..3).map(|_| own(2)).collect();
        let gates: Vec<_> = (0..=3 * ROUNDS).map(|_| gate()).collect();
        let (report, reports) = mpsc::channel();
        for (index, executor) in executors.iter().enumerate() {
            let (gates, report) = (gates.clone(), report.clone());
            let mut next = index;
            let handle = spawn(executor, &TaskGroup::new(), move |_| {
                while next < 3 * ROUNDS {
                    if !gates[next].is_ready() {
                        return RunResult::Blocked(gates[next].clone().into());
                    }
                    gates[next + 1].set_ready();
                    next += 3;
                }
                report.send(index).unwrap();
                RunResult::Done
            });
            handle.wake();
        }
        gates[0].set_ready();
        let ended: HashSet<_> = (0..3).map(|_| reports.recv().unwrap()).collect();
        assert_eq!(ended.len(), 3);
        assert!(gates[3 * ROUNDS].is_ready());
    });
}

/// Tasks that block, wake each other, and use rayon themselves.
fn ring(executor: &Executor, tasks: usize, nested: bool) -> Receiver<usize> {
    let gates: Vec<_> = (0..=tasks).map(|_| gate()).collect();
    let (report, reports) = mpsc::channel();
    for task in 0..tasks {
        let (mine, next) = (gates[task].clone(), gates[task + 1].clone());
        let report = report.clone();
        let handle = spawn(executor, &TaskGroup::new(), move |_| {
            if !mine.is_ready() {
                return RunResult::Blocked(mine.clone().into());
            }
            if nested {
                let (left, right) = rayon::join(|| fibonacci(12), || fibonacci(12));
                assert_eq!(left, right);
            }
            next.set_ready();
            report.send(task).unwrap();
            RunResult::Done
        });
        handle.wake();
    }
    gates[0].set_ready();
    reports
}

fn fibonacci(n: u32) -> u32 {
    if n < 2 {
        return n;
    }
    let (one, two) = rayon::join(|| fibonacci(n - 1), || fibonacci(n - 2));
    one + two
}

#[test]
fn hosted_executors_share_a_pool_that_nests_rayon() {
    guarded(|_| {
        for threads in [1, 2, 3] {
            let pool = pool(threads);
            let build = |workers| {
                Executor::builder().threads(workers).on_rayon_pool(pool.clone()).build().unwrap()
            };
            let executors = [build(threads), build(1), build(4)];
            let reports: Vec<_> =
                executors.iter().map(|executor| ring(executor, 300, true)).collect();
            for reports in reports {
                let ended: HashSet<_> = reports.iter().collect();
                assert_eq!(ended.len(), 300);
            }
            assert_eq!(pool.install(|| fibonacci(10)), 55, "the pool goes on");
            for executor in executors {
                executor.shutdown();
                assert_eq!(executor.live_tasks(), 0);
                let refused =
                    executor.spawn(&TaskGroup::new(), Box::new(Body(|_| RunResult::Done)));
                assert!(refused.is_err());
            }
            assert_eq!(pool.install(|| fibonacci(10)), 55);
        }
    });
}

#[test]
fn a_hosted_executor_returns_the_thread_when_it_is_idle() {
    guarded(|_| {
        let pool = pool(1);
        let executor = Executor::builder().on_rayon_pool(pool.clone()).build().unwrap();
        let waits = gate();
        let (report, reports) = mpsc::channel();
        let handle = spawn(&executor, &TaskGroup::new(), {
            let waits = waits.clone();
            move |_| {
                report.send(()).unwrap();
                if waits.is_ready() {
                    RunResult::Done
                } else {
                    RunResult::Blocked(waits.clone().into())
                }
            }
        });
        handle.wake();
        reports.recv().unwrap();
        // The only thread is free for other jobs although a task lives.
        assert_eq!(pool.install(|| 7), 7);
        assert_eq!(executor.live_tasks(), 1);
        pool.install(|| waits.set_ready());
        reports.recv().unwrap();
        drop(executor);
        assert_eq!(pool.install(|| 8), 8);
    });
}

/// `set_threads` while tasks run and wake each other: all tasks end, and no thread is left.
#[test]
fn threads_come_and_go_while_tasks_run() {
    guarded(|_| {
        for seed in 0..20 {
            let executor = Executor::builder().threads(2).max_threads(4).build().unwrap();
            let seen = Arc::new(Mutex::new(HashSet::new()));
            let handles: Vec<_> = (0..8)
                .map(|_| {
                    let (seen, mut left) = (seen.clone(), 300);
                    let (mine, opens) = (gate(), gate());
                    spawn(&executor, &TaskGroup::new(), move |worker| {
                        seen.lock().unwrap().insert(worker);
                        left -= 1;
                        match left {
                            0 => RunResult::Done,
                            left if left % 3 == 0 => {
                                opens.set_always_ready();
                                RunResult::Blocked(Gates::single(mine.clone()).or(opens.clone()))
                            }
                            _ => RunResult::Yield,
                        }
                    })
                })
                .collect();
            handles.iter().for_each(TaskHandle::wake);
            let mut rng = SplitMix64::new(seed);
            for _ in 0..30 {
                let threads = 1 + rng.next_below(4);
                executor.set_threads(threads).unwrap();
                assert_eq!(executor.threads(), threads);
                for _ in 0..rng.next_below(2000) {
                    std::hint::spin_loop();
                }
            }
            if seed % 2 == 0 {
                while executor.live_tasks() > 0 {
                    thread::yield_now();
                }
            }
            executor.shutdown();
            assert_eq!(executor.live_tasks(), 0);
            assert!(seen.lock().unwrap().iter().all(|worker| *worker < 4));
        }
    });
}

#[test]
fn what_a_retired_worker_had_queued_is_run_by_others() {
    guarded(|_| {
        let executor = Executor::builder().threads(2).build().unwrap();
        let max_threads = thread::available_parallelism().map_or(1, usize::from).max(2);
        assert!(executor.set_threads(max_threads + 1).is_err() && executor.set_threads(0).is_err());
        for round in 0..50 {
            executor.set_threads(2).unwrap();
            // Both workers are busy, and each has a task in its queue.
            let both = Arc::new(Barrier::new(3));
            let (report, reports) = mpsc::channel();
            for _ in 0..2 {
                let (both, report) = (both.clone(), report.clone());
                let inner = executor.clone();
                once(&executor, move |_| {
                    both.wait();
                    for _ in 0..3 {
                        let report = report.clone();
                        once(&inner, move |_| report.send(()).unwrap());
                    }
                });
            }
            both.wait();
            executor.set_threads(1).unwrap();
            for _ in 0..6 {
                reports.recv().unwrap();
            }
            assert_eq!(executor.threads(), 1, "{round}");
        }
        let hosted = Executor::builder().on_rayon_pool(pool(1)).build().unwrap();
        assert!(
            hosted.set_threads(1).unwrap_err().to_string().starts_with("a hosted or deterministic")
        );
    });
}

/// A process at its limit of threads: the first threads have ended when the error is returned.
#[test]
fn threads_that_have_started_end_when_a_later_one_is_refused() {
    guarded(|_| {
        for refused in 0..4 {
            let (ended, started) = (Arc::new(AtomicUsize::new(0)), AtomicUsize::new(0));
            let ends = ended.clone();
            let built = Executor::builder()
                .threads(4)
                .spawn_with(move |builder, body| {
                    if started.fetch_add(1, Ordering::SeqCst) == refused {
                        return Err(io::Error::from(io::ErrorKind::WouldBlock));
                    }
                    let ends = ends.clone();
                    builder.spawn(move || {
                        body();
                        ends.fetch_add(1, Ordering::SeqCst);
                    })
                })
                .build();
            let message = configuration_error(built);
            assert!(message.contains(&format!("start worker thread {refused}")), "{message}");
            assert_eq!(ended.load(Ordering::SeqCst), refused, "those that had started");
        }
    });
}

/// The executor goes on with its threads; additional threads that were started are joined as well.
#[test]
fn an_executor_that_cannot_get_more_threads_keeps_those_it_has() {
    guarded(|_| {
        let (ended, started) = (Arc::new(AtomicUsize::new(0)), AtomicUsize::new(0));
        let ends = ended.clone();
        let executor = Executor::builder()
            .threads(1)
            .max_threads(4)
            .spawn_with(move |builder, body| {
                if started.fetch_add(1, Ordering::SeqCst) == 2 {
                    return Err(io::Error::from(io::ErrorKind::WouldBlock));
                }
                let ends = ends.clone();
                builder.spawn(move || {
                    body();
                    ends.fetch_add(1, Ordering::SeqCst);
                })
            })
            .build()
            .unwrap();
        assert!(executor.set_threads(4).is_err());
        assert_eq!(executor.threads(), 1);
        let (report, reports) = mpsc::channel();
        once(&executor, move |_| report.send(()).unwrap());
        reports.recv().unwrap();
        executor.shutdown();
        assert_eq!(ended.load(Ordering::SeqCst), 2);
    });
}
