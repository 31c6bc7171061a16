//! The scheduler alone, with closures as runnables. Gates, channels and barriers control every
//! step; no test depends on elapsed time. This file tests the states of one task; the folder has
//! the rest.

mod ending;
mod executors;
mod groups;
mod hosted;
mod order;

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Sender},
    },
    thread,
};

use gatework_shared_state::{Dependency, DependencyKind, Gate};

use super::{Executor, Gates, RunResult, Runnable, TaskGroup, TaskHandle, TaskState};
use crate::hang_guard::guarded;

/// A runnable made of a closure.
struct Body<F>(F);

impl<F: FnMut(usize) -> RunResult + Send> Runnable for Body<F> {
    fn run(&mut self, worker: usize) -> RunResult {
        (self.0)(worker)
    }

    fn panicked(&mut self, _payload: Box<dyn Any + Send>) {}
}

fn gate() -> Gate {
    Dependency::blocked("test", DependencyKind::External)
}

fn own(threads: usize) -> Executor {
    Executor::builder().threads(threads).build().unwrap()
}

fn pool(threads: usize) -> Arc<rayon::ThreadPool> {
    Arc::new(rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap())
}

fn spawn(
    executor: &Executor,
    group: &Arc<TaskGroup>,
    body: impl FnMut(usize) -> RunResult + Send + 'static,
) -> TaskHandle {
    executor.spawn(group, Box::new(Body(body))).unwrap()
}

/// Spawns and wakes a task that runs `body` once.
fn once(executor: &Executor, body: impl FnOnce(usize) + Send + 'static) -> TaskHandle {
    let mut body = Some(body);
    let handle = spawn(executor, &TaskGroup::new(), move |worker| {
        if let Some(body) = body.take() {
            body(worker);
        }
        RunResult::Done
    });
    handle.wake();
    handle
}

/// Occupies a worker until the sender is dropped or used.
fn occupy(executor: &Executor) -> Sender<()> {
    let (release, released) = mpsc::channel::<()>();
    let (report, running) = mpsc::channel();
    once(executor, move |_| {
        report.send(()).unwrap();
        let _released = released.recv();
    });
    running.recv().unwrap();
    release
}

#[test]
fn states_are_those_of_the_protocol() {
    guarded(|_| {
        let executor = own(1);
        let (go, going) = mpsc::channel::<()>();
        let (report, reports) = mpsc::channel();
        let waits = gate();
        let handle = spawn(&executor, &TaskGroup::new(), {
            let waits = waits.clone();
            move |_| {
                report.send(()).unwrap();
                going.recv().unwrap();
                if waits.is_ready() {
                    RunResult::Done
                } else {
                    RunResult::Blocked(waits.clone().into())
                }
            }
        });
        assert_eq!(handle.state(), TaskState::Blocked);
        assert_eq!(executor.live_tasks(), 1);
        assert!(handle.waits_for().is_none());

        let release = occupy(&executor);
        handle.wake();
        assert_eq!(handle.state(), TaskState::Runnable);
        drop(release);
        reports.recv().unwrap();
        assert_eq!(handle.state(), TaskState::Running);
        go.send(()).unwrap();
        // The worker runs the next task after it has left this one.
        drop(occupy(&executor));
        assert_eq!(handle.state(), TaskState::Blocked);
        let gates = handle.waits_for().unwrap();
        assert!(gates.iter().any(|gate| Arc::ptr_eq(gate, &waits)));

        waits.set_ready();
        reports.recv().unwrap();
        go.send(()).unwrap();
        drop(occupy(&executor));
        assert_eq!(handle.state(), TaskState::Finished);
        assert!(handle.waits_for().is_none());
        executor.shutdown();
        assert_eq!(executor.live_tasks(), 0);
    });
}

#[test]
fn a_task_woken_while_it_runs_is_run_once_more() {
    guarded(|_| {
        let executor = own(2);
        let (go, going) = mpsc::channel::<()>();
        let (report, reports) = mpsc::channel();
        let blocked_gate = gate();
        let handle = spawn(&executor, &TaskGroup::new(), {
            let blocked_gate = blocked_gate.clone();
            move |_| {
                report.send(()).unwrap();
                match going.recv() {
                    Ok(()) => RunResult::Blocked(blocked_gate.clone().into()),
                    Err(_) => RunResult::Done,
                }
            }
        });
        handle.wake();
        reports.recv().unwrap();
        for _ in 0..3 {
            handle.wake();
            handle.wake_urgently();
        }
        go.send(()).unwrap();
        reports.recv().unwrap();
        go.send(()).unwrap();
        // Two more tasks at the same time: neither worker has other work left.
        let (one, other) = (occupy(&executor), occupy(&executor));
        assert!(reports.try_recv().is_err(), "six wake-ups made one run");
        assert_eq!(handle.state(), TaskState::Blocked);
        drop((one, other, go));
        blocked_gate.set_ready();
        reports.recv().unwrap();
    });
}

#[test]
fn a_hundred_thousand_tasks_are_each_woken_by_a_gate() {
    guarded(|_| {
        const TASKS: usize = 100_000;
        let executor = own(2);
        let (group, runs) = (TaskGroup::new(), Arc::new(AtomicUsize::new(0)));
        let all_done = gate();
        let gates: Vec<_> = (0..TASKS)
            .map(|_| {
                let (mine, runs, all_done) = (gate(), runs.clone(), all_done.clone());
                let waits = mine.clone();
                let handle = spawn(&executor, &group, move |_| {
                    if !waits.is_ready() {
                        return RunResult::Blocked(waits.clone().into());
                    }
                    if runs.fetch_add(1, Ordering::SeqCst) + 1 == TASKS {
                        all_done.set_ready();
                    }
                    RunResult::Done
                });
                handle.wake();
                mine
            })
            .collect();
        // Some tasks have not registered at their gates yet.
        let opener = thread::spawn(move || gates.iter().for_each(|gate| gate.set_ready()));
        opener.join().unwrap();
        let (report, reports) = mpsc::channel();
        let handle = spawn(&executor, &group, move |_| {
            if !all_done.is_ready() {
                return RunResult::Blocked(all_done.clone().into());
            }
            report.send(()).unwrap();
            RunResult::Done
        });
        handle.wake();
        reports.recv().unwrap();
        executor.shutdown();
        assert_eq!((runs.load(Ordering::SeqCst), executor.live_tasks()), (TASKS, 0));
    });
}

#[test]
fn any_of_a_few_gates_wakes() {
    guarded(|_| {
        let executor = own(2);
        for opened in 0..3 {
            let gates = [gate(), gate(), gate()];
            let waits = Gates::single(gates[0].clone())
                .union(Gates::from(gates[1].clone()).or(gates[2].clone()));
            assert_eq!(waits.iter().count(), 3);
            let (report, reports) = mpsc::channel();
            let seen = gates.clone();
            let handle = spawn(&executor, &TaskGroup::new(), move |_| {
                match seen.iter().position(|gate| gate.is_ready()) {
                    None => RunResult::Blocked(waits.clone()),
                    Some(index) => {
                        report.send(index).unwrap();
                        RunResult::Done
                    }
                }
            });
            handle.wake();
            gates[opened].set_ready();
            assert_eq!(reports.recv().unwrap(), opened);
        }
    });
}
