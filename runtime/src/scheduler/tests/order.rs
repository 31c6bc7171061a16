//! Which task runs next, and on which worker: urgency, stealing, sleeping, fairness.

use std::{
    collections::HashSet,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    super::{Executor, GroupLimits, ParkToken, ResourceGroup, RunResult, Sleep, TaskGroup},
    gate, occupy, once, own, spawn,
};
use crate::hang_guard::guarded;

fn burn(time: Duration) {
    let started = Instant::now();
    while started.elapsed() < time {
        std::hint::spin_loop();
    }
}

#[test]
fn an_urgent_wake_overtakes_a_long_queue() {
    guarded(|_| {
        let executor = own(1);
        let release = occupy(&executor);
        let (report, reports) = mpsc::channel();
        let handles: Vec<_> = (0..1000)
            .map(|task| {
                let report = report.clone();
                once(&executor, move |_| report.send(task).unwrap())
            })
            .collect();
        handles[999].wake_urgently();
        handles[500].wake_urgently();
        drop((release, report));
        let order: Vec<_> = reports.iter().collect();
        assert_eq!(order[..2], [999, 500]);
        assert_eq!(order[2..502], (0..500).collect::<Vec<_>>(), "the others keep their order");
        assert_eq!(order.len(), 1000, "an entry that was overtaken is not run again");
    });
}

#[test]
fn an_urgent_wake_reaches_a_blocked_task() {
    guarded(|_| {
        let executor = own(1);
        let (report, reports) = mpsc::channel();
        let never = gate();
        let mut runs = 0;
        let handle = spawn(&executor, &TaskGroup::new(), move |_| {
            runs += 1;
            report.send(runs).unwrap();
            if runs == 2 { RunResult::Done } else { RunResult::Blocked(never.clone().into()) }
        });
        handle.wake();
        assert_eq!(reports.recv().unwrap(), 1);
        drop(occupy(&executor));
        handle.wake_urgently();
        assert_eq!(reports.recv().unwrap(), 2);
    });
}

#[test]
fn tasks_of_one_worker_are_stolen_by_another() {
    guarded(|_| {
        let executor = own(2);
        let meet = Arc::new(Barrier::new(2));
        let (report, reports) = mpsc::channel();
        let task = {
            let (meet, report) = (meet.clone(), report.clone());
            spawn(&executor, &TaskGroup::new(), move |worker| {
                meet.wait();
                report.send(worker).unwrap();
                RunResult::Done
            })
        };
        // The task is in the deque of the worker that woke it, and both must run at the same time.
        once(&executor, move |worker| {
            task.wake();
            meet.wait();
            report.send(worker).unwrap();
        });
        let workers: HashSet<_> = [reports.recv().unwrap(), reports.recv().unwrap()].into();
        assert_eq!(workers.len(), 2);
        assert!(executor.steals() > 0);
    });
}

#[test]
fn a_push_wakes_every_worker_that_is_needed() {
    guarded(|_| {
        // Repeated, so that some pushes meet workers that are about to sleep.
        let executor = own(4);
        for _ in 0..300 {
            let meet = Arc::new(Barrier::new(4));
            let (report, reports) = mpsc::channel();
            for _ in 0..4 {
                let (meet, report) = (meet.clone(), report.clone());
                once(&executor, move |worker| {
                    meet.wait();
                    report.send(worker).unwrap();
                });
            }
            drop(report);
            assert_eq!(reports.iter().collect::<HashSet<_>>().len(), 4);
        }
    });
}

#[test]
fn a_sleeper_is_entered_once_and_only_while_it_sleeps() {
    let sleep = Sleep::new([]);
    // There is work: the worker does not park.
    assert!(!sleep.park_unless_work(0, || true, || panic!("parked")));
    // A notifier removes the entry before the second look: the worker consumes the unpark.
    let parked = AtomicBool::new(false);
    let taken_out = || sleep.notify_one() == Some(0);
    assert!(sleep.park_unless_work(0, taken_out, || parked.store(true, Ordering::SeqCst)));
    assert!(parked.load(Ordering::SeqCst));
    sleep.stop_searching();
    // A spurious wake-up.
    assert!(!sleep.park_unless_work(0, || false, || assert_eq!(sleep.count(), 1)));
    assert_eq!((sleep.count(), sleep.notify_one()), (0, None));
    assert_eq!(sleep.announce_sleep(0, || false), ParkToken::Park);
    assert_eq!(sleep.announce_sleep(1, || true), ParkToken::Awake);
    assert_eq!((sleep.count(), sleep.notify_one()), (1, Some(0)));
    let sleep = Sleep::new(0..3);
    assert_eq!(sleep.notify_all(), [0, 1, 2]);
    assert_eq!(sleep.count(), 0);
}

#[test]
fn while_one_searches_pushes_wake_nobody() {
    let sleep = Sleep::new(0..3);
    assert_eq!([sleep.notify_one(), sleep.notify_one()], [Some(2), None]);
    sleep.stop_searching();
    assert_eq!([sleep.notify_one(), sleep.notify_one()], [Some(1), None]);
    sleep.stop_searching();
    assert_eq!(sleep.notify_one(), Some(0));
}

/// Spawns endless tasks of `group` that yield, until the flag is set.
fn endless_in(
    executor: &Executor,
    group: &Arc<TaskGroup>,
    tasks: usize,
    stop: &Arc<AtomicBool>,
) -> Arc<AtomicUsize> {
    let runs = Arc::new(AtomicUsize::new(0));
    for _ in 0..tasks {
        let (stop, runs) = (stop.clone(), runs.clone());
        let handle = spawn(executor, group, move |_| {
            burn(Duration::from_micros(200));
            runs.fetch_add(1, Ordering::SeqCst);
            if stop.load(Ordering::SeqCst) { RunResult::Done } else { RunResult::Yield }
        });
        handle.wake();
    }
    runs
}

fn endless(executor: &Executor, tasks: usize, stop: &Arc<AtomicBool>) -> Arc<AtomicUsize> {
    let runs = endless_in(executor, &TaskGroup::new(), tasks, stop);
    // Beyond the end of the first level: 400 runs are at least 80 ms.
    while runs.load(Ordering::SeqCst) < 400 {
        thread::yield_now();
    }
    runs
}

#[test]
fn a_short_group_overtakes_endless_ones() {
    guarded(|_| {
        let executor = own(1);
        let stop = Arc::new(AtomicBool::new(false));
        let runs = endless(&executor, 8, &stop);
        let (report, reports) = mpsc::channel();
        let mut left = 20;
        let before = runs.load(Ordering::SeqCst);
        let handle = spawn(&executor, &TaskGroup::new(), move |_| {
            burn(Duration::from_micros(100));
            left -= 1;
            if left > 0 {
                return RunResult::Yield;
            }
            report.send(()).unwrap();
            RunResult::Done
        });
        handle.wake();
        reports.recv().unwrap();
        let meanwhile = runs.load(Ordering::SeqCst) - before;
        stop.store(true, Ordering::SeqCst);
        // In one queue, each of its 20 runs would come behind 8 others.
        assert!(meanwhile < 100, "{meanwhile} runs of others before 20 runs of a short query");
    });
}

#[test]
fn an_old_group_gets_its_share_beside_ever_new_ones() {
    guarded(|_| {
        let executor = own(1);
        let stop = Arc::new(AtomicBool::new(false));
        let runs = endless(&executor, 1, &stop);
        let young = Arc::new(AtomicUsize::new(0));
        for _ in 0..4 {
            next_young(executor.clone(), stop.clone(), young.clone());
        }
        let before = runs.load(Ordering::SeqCst);
        while runs.load(Ordering::SeqCst) < before + 50 {
            thread::yield_now();
        }
        assert!(young.load(Ordering::SeqCst) > 0);
        stop.store(true, Ordering::SeqCst);
        executor.shutdown();
    });
}

/// Spawns a task in a group of its own, with a successor in another one.
fn next_young(executor: Executor, stop: Arc<AtomicBool>, count: Arc<AtomicUsize>) {
    let outer = executor.clone();
    once(&outer, move |_| {
        burn(Duration::from_micros(200));
        count.fetch_add(1, Ordering::SeqCst);
        if !stop.load(Ordering::SeqCst) {
            next_young(executor, stop, count);
        }
    });
}

#[test]
fn tasks_that_wake_each_other_do_not_lock_out_those_from_outside() {
    guarded(|_| {
        let executor = own(1);
        let stop = Arc::new(AtomicBool::new(false));
        let (left, right) = (gate(), gate());
        for (mine, other) in [(left.clone(), right.clone()), (right, left.clone())] {
            let stop = stop.clone();
            let handle = spawn(&executor, &TaskGroup::new(), move |_| {
                if stop.load(Ordering::SeqCst) {
                    other.set_always_ready();
                    return RunResult::Done;
                }
                mine.block();
                other.set_ready();
                RunResult::Blocked(mine.clone().into())
            });
            handle.wake();
        }
        left.set_ready();
        let (report, reports) = mpsc::channel();
        once(&executor, move |_| report.send(()).unwrap());
        reports.recv().unwrap();
        stop.store(true, Ordering::SeqCst);
        executor.shutdown();
    });
}

/// By weight, however many tasks each group has.
#[test]
fn groups_share_the_workers_by_weight() {
    guarded(|_| {
        let executor = own(1);
        let stop = Arc::new(AtomicBool::new(false));
        let limits = |weight: u32| GroupLimits {
            weight: weight.try_into().unwrap(),
            ..GroupLimits::default()
        };
        let (much, little) = (executor.group("much"), executor.group("little"));
        much.set_limits(limits(300));
        let tasks = |group: &Arc<ResourceGroup>| TaskGroup::in_resource_group(group.clone());
        let little_runs = endless_in(&executor, &tasks(&little), 6, &stop);
        let much_runs = endless_in(&executor, &tasks(&much), 1, &stop);
        // A late group does not catch up, except for a small lag that is over by then.
        let all = |runs: [usize; 2]| {
            while little_runs.load(Ordering::SeqCst) < runs[0]
                || much_runs.load(Ordering::SeqCst) < runs[1]
            {
                thread::yield_now();
            }
            [little_runs.load(Ordering::SeqCst), much_runs.load(Ordering::SeqCst)]
        };
        let [little_before, much_before] = all([700, 700]);
        let [little_after, much_after] = all([little_before + 200, much_before + 200]);
        let times = (much_after - much_before) as f64 / (little_after - little_before) as f64;
        assert!((2.0..4.5).contains(&times), "{times} times as much");
        // The weights change while the tasks run.
        much.set_limits(limits(100));
        let [little_before, much_before] = all([0, 0]);
        let [little_after, much_after] = all([little_before + 300, much_before + 300]);
        let times = (much_after - much_before) as f64 / (little_after - little_before) as f64;
        assert!((0.6..1.7).contains(&times), "{times} times as much");
        stop.store(true, Ordering::SeqCst);
        executor.shutdown();
    });
}
