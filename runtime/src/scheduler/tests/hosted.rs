//! Executors on the threads of a pool that has other work as well.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use super::{
    super::{Executor, RunResult, TaskGroup},
    once, pool, spawn,
};
use crate::hang_guard::guarded;

fn hosted(pool: &Arc<rayon::ThreadPool>, threads: usize) -> Executor {
    Executor::builder().threads(threads).on_rayon_pool(pool.clone()).build().unwrap()
}

/// Tasks that run until the flag is set.
fn endless(executor: &Executor, tasks: usize, stop: &Arc<AtomicBool>) -> Arc<AtomicUsize> {
    let runs = Arc::new(AtomicUsize::new(0));
    for _ in 0..tasks {
        let (stop, runs) = (stop.clone(), runs.clone());
        let handle = spawn(executor, &TaskGroup::new(), move |_| {
            runs.fetch_add(1, Ordering::SeqCst);
            if stop.load(Ordering::SeqCst) { RunResult::Done } else { RunResult::Yield }
        });
        handle.wake();
    }
    runs
}

/// A job of the pool ends the tasks, so it must have had a thread while they ran.
#[test]
fn a_hosted_executor_returns_threads_while_it_has_work() {
    guarded(|_| {
        for threads in [1, 2] {
            let pool = pool(threads);
            let executor = hosted(&pool, threads);
            let stop = Arc::new(AtomicBool::new(false));
            let runs = endless(&executor, 4 * threads, &stop);
            while runs.load(Ordering::SeqCst) < 1000 {
                thread::yield_now();
            }
            assert_eq!(pool.install(|| 7), 7, "a job from outside");
            // A job spawned by a job of the pool, and a job spawned by a task.
            let (report, reports) = mpsc::channel();
            let (from_task, inner) = (report.clone(), pool.clone());
            pool.spawn(move || rayon::spawn(move || report.send("job").unwrap()));
            once(&executor, move |_| inner.spawn(move || from_task.send("task").unwrap()));
            let mut received = [reports.recv().unwrap(), reports.recv().unwrap()];
            received.sort_unstable();
            assert_eq!(received, ["job", "task"]);
            pool.install(|| stop.store(true, Ordering::SeqCst));
            executor.shutdown();
            assert_eq!(executor.live_tasks(), 0);
            assert_eq!(pool.install(|| 8), 8);
        }
    });
}

/// Two executors on one thread, neither of which ends by itself.
#[test]
fn hosted_executors_take_turns() {
    guarded(|_| {
        let pool = pool(1);
        let executors = [hosted(&pool, 1), hosted(&pool, 1)];
        let stops = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let runs: Vec<_> = executors
            .iter()
            .zip(&stops)
            .map(|(executor, stop)| endless(executor, 1, stop))
            .collect();
        // Each executor ends the other.
        for (executor, stop) in executors.iter().zip(stops.iter().rev()) {
            while runs.iter().any(|runs| runs.load(Ordering::SeqCst) == 0) {
                thread::yield_now();
            }
            let stop = stop.clone();
            once(executor, move |_| stop.store(true, Ordering::SeqCst));
        }
        for executor in executors {
            executor.shutdown();
            assert_eq!(executor.live_tasks(), 0);
        }
    });
}

/// The last task may end, or be rejected, on a thread that does not belong to the executor.
#[test]
fn a_shutdown_sees_the_end_of_a_task_that_ends_elsewhere() {
    guarded(|_| {
        let pool = pool(1);
        for round in 0..200 {
            let executor = hosted(&pool, 1);
            executor.registry().add_live_tasks(1).unwrap();
            let caller = thread::spawn({
                let executor = executor.clone();
                move || executor.shutdown()
            });
            // From now on the caller waits for the task, or is about to.
            while executor.registry().add_live_tasks(0).is_ok() {
                thread::yield_now();
            }
            (0..round).for_each(|_| thread::yield_now());
            executor.registry().task_ended();
            caller.join().unwrap();
        }
    });
}

#[test]
fn a_worker_knows_its_executor_wherever_it_is_on_the_stack() {
    guarded(|_| {
        let pool = pool(1);
        let (outer, inner) = (hosted(&pool, 1), hosted(&pool, 1));
        assert!(!outer.is_worker_thread() && !inner.is_worker_thread());
        let (report, reports) = mpsc::channel();
        let executors = [outer.clone(), inner.clone()];
        let yields = pool.clone();
        once(&outer, move |_| {
            let [outer, inner] = executors;
            let (seen, both) = (report.clone(), outer.clone());
            let nested = inner.clone();
            once(&inner, move |_| {
                seen.send((both.is_worker_thread(), nested.is_worker_thread())).unwrap();
            });
            // Its only thread runs the other executor's worker on top of this worker.
            while yields.yield_now() == Some(rayon::Yield::Executed) {}
            report.send((outer.is_worker_thread(), true)).unwrap();
        });
        assert_eq!([reports.recv().unwrap(), reports.recv().unwrap()], [(true, true); 2]);
    });
}
