//! How tasks and executors end: shutdown, dropped executors, panics.

use std::{
    any::Any,
    cell::RefCell,
    collections::HashSet,
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread,
};

use super::{
    super::{Executor, Gates, RunResult, Runnable, TaskGroup, TaskState},
    Body, gate, occupy, once, own, pool, spawn,
};
use crate::hang_guard::guarded;

#[test]
fn a_finished_task_drops_gates_that_never_become_ready() {
    guarded(|_| {
        let executor = own(1);
        let (opens, never) = (gate(), gate());
        let weak = Arc::downgrade(&never);
        let waits = Gates::single(never).or(opens.clone());
        let mut waits = Some(waits);
        let handle = spawn(&executor, &TaskGroup::new(), move |_| match waits.take() {
            Some(gates) => RunResult::Blocked(gates),
            None => RunResult::Done,
        });
        handle.wake();
        drop(occupy(&executor));
        assert_eq!(handle.state(), TaskState::Blocked);
        opens.set_ready();
        executor.shutdown();
        assert!(weak.upgrade().is_none(), "task and gate keep each other alive");
    });
}

/// Counts ended threads, by the destructor of a thread local.
struct EndOfThread(Sender<usize>, usize);

impl Drop for EndOfThread {
    fn drop(&mut self) {
        let _ = self.0.send(self.1);
    }
}

thread_local! {
    static END: RefCell<Option<EndOfThread>> = const { RefCell::new(None) };
}

fn counting_ends(threads: usize) -> (Executor, Receiver<usize>) {
    let (report, ends) = mpsc::channel();
    let report = Mutex::new(report);
    let started = Arc::new(Barrier::new(threads + 1));
    let executor = Executor::builder()
        .threads(threads)
        .on_thread_start({
            let started = started.clone();
            move |worker| {
                let end = EndOfThread(report.lock().unwrap().clone(), worker);
                END.set(Some(end));
                started.wait();
            }
        })
        .build()
        .unwrap();
    started.wait();
    (executor, ends)
}

#[test]
fn shutdown_waits_for_tasks_and_joins_threads() {
    guarded(|_| {
        let (executor, ends) = counting_ends(3);
        let release = occupy(&executor);
        let done = Arc::new(AtomicBool::new(false));
        let waits = gate();
        let handle = spawn(&executor, &TaskGroup::new(), {
            let (waits, done) = (waits.clone(), done.clone());
            move |_| {
                if !waits.is_ready() {
                    return RunResult::Blocked(waits.clone().into());
                }
                done.store(true, Ordering::SeqCst);
                RunResult::Done
            }
        });
        handle.wake();
        // Several callers: each returns when the shutdown is complete.
        let callers: Vec<_> = (0..3)
            .map(|_| {
                let (executor, done) = (executor.clone(), done.clone());
                thread::spawn(move || {
                    executor.shutdown();
                    assert!(done.load(Ordering::SeqCst));
                    assert_eq!(executor.live_tasks(), 0);
                })
            })
            .collect();
        // Rejected as soon as the shutdown has begun, which is before it ends.
        while let Ok(handle) =
            executor.spawn(&TaskGroup::new(), Box::new(Body(|_| RunResult::Done)))
        {
            handle.wake();
        }
        assert!(ends.try_recv().is_err());
        drop(release);
        waits.set_ready();
        callers.into_iter().for_each(|caller| caller.join().unwrap());
        let ended: HashSet<_> = ends.try_iter().collect();
        assert_eq!(ended.len(), 3, "threads are joined");
        executor.shutdown();
    });
}

#[test]
fn the_last_executor_may_be_dropped_by_a_task() {
    guarded(|_| {
        for in_destructor in [false, true] {
            let (executor, ends) = counting_ends(2);
            let moved = executor.clone();
            let mut moved = Some(moved);
            let (go, going) = mpsc::channel::<()>();
            let handle = spawn(&executor, &TaskGroup::new(), move |_| {
                going.recv().unwrap();
                if !in_destructor {
                    moved = None;
                }
                let _keep = &moved;
                RunResult::Done
            });
            handle.wake();
            drop(executor);
            go.send(()).unwrap();
            let ended: HashSet<_> = [ends.recv().unwrap(), ends.recv().unwrap()].into();
            assert_eq!(ended.len(), 2);
        }
    });
}

#[test]
fn shutdown_by_a_task_does_not_wait_for_itself() {
    guarded(|_| {
        let (executor, ends) = counting_ends(2);
        let (report, reports) = mpsc::channel();
        let inner = executor.clone();
        once(&executor, move |_| {
            inner.shutdown();
            report.send(inner.live_tasks()).unwrap();
        });
        assert_eq!(reports.recv().unwrap(), 1);
        // Outside the workers it still waits and joins.
        executor.shutdown();
        assert_eq!(ends.try_iter().count(), 2);
    });
}

#[test]
fn spawning_and_shutting_down_at_once_strands_no_task() {
    guarded(|_| {
        for _ in 0..200 {
            let executor = own(2);
            let start = Arc::new(Barrier::new(2));
            let (inner, begin) = (executor.clone(), start.clone());
            let ran = Arc::new(AtomicUsize::new(0));
            let counter = ran.clone();
            let spawner = thread::spawn(move || {
                begin.wait();
                let mut spawned = 0;
                loop {
                    let counter = counter.clone();
                    let body = Body(move |_| {
                        counter.fetch_add(1, Ordering::SeqCst);
                        RunResult::Done
                    });
                    let Ok(handle) = inner.spawn(&TaskGroup::new(), Box::new(body)) else {
                        return spawned;
                    };
                    handle.wake();
                    spawned += 1;
                }
            });
            start.wait();
            executor.shutdown();
            let spawned = spawner.join().unwrap();
            assert_eq!(ran.load(Ordering::SeqCst), spawned, "every task that was let in ran");
        }
    });
}

/// A runnable that panics in its run, in its `panicked`, and in its destructor.
struct Grenade(Sender<&'static str>);

impl Runnable for Grenade {
    fn run(&mut self, _worker: usize) -> RunResult {
        panic!("in run");
    }

    fn panicked(&mut self, payload: Box<dyn Any + Send>) {
        self.0.send(payload.downcast_ref::<&str>().unwrap()).unwrap();
        panic!("in panicked");
    }
}

impl Drop for Grenade {
    fn drop(&mut self) {
        self.0.send("dropped").unwrap();
        panic!("in drop");
    }
}

#[test]
fn a_panicking_runnable_costs_no_worker() {
    guarded(|_| {
        let hosted = Executor::builder().on_rayon_pool(pool(1)).build().unwrap();
        for executor in [own(1), hosted] {
            let (report, reports) = mpsc::channel();
            for _ in 0..3 {
                let grenade = Box::new(Grenade(report.clone()));
                let handle = executor.spawn(&TaskGroup::new(), grenade).unwrap();
                handle.wake();
                assert_eq!(reports.recv().unwrap(), "in run");
                assert_eq!(reports.recv().unwrap(), "dropped");
                drop(occupy(&executor));
                assert_eq!(handle.state(), TaskState::Finished);
                handle.wake();
                handle.wake_urgently();
            }
            executor.shutdown();
            assert_eq!(executor.live_tasks(), 0);
        }
    });
}
