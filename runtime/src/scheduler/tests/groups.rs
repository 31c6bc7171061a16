//! Very many resource groups: unreferenced groups are dropped, and groups without tasks cost
//! nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use super::{
    super::{Executor, GroupLimits, ResourceGroup, RunResult, TaskGroup},
    gate, occupy, own, spawn,
};
use crate::hang_guard::guarded;

const MANY: usize = 20_000;

fn known(executor: &Executor) -> (usize, usize) {
    executor.registry().queue.groups.count()
}

/// Runs a task in a group, once.
fn run_in(executor: &Executor, group: &Arc<ResourceGroup>, body: impl FnOnce() + Send + 'static) {
    let mut body = Some(body);
    let handle = spawn(executor, &TaskGroup::in_resource_group(group.clone()), move |_| {
        if let Some(body) = body.take() {
            body();
        }
        RunResult::Done
    });
    handle.wake();
}

#[test]
fn unreferenced_groups_are_forgotten() {
    guarded(|_| {
        let executor = own(1);
        let handles: Vec<_> =
            (0..100).map(|number| executor.group(&format!("held {number}"))).collect();
        let few = GroupLimits { max_running: 2.try_into().ok(), ..GroupLimits::default() };
        executor.group("limited").set_limits(few);
        for number in 0..MANY {
            let group = executor.group(&format!("tenant {number}"));
            if number % 100 == 0 {
                let (report, reports) = mpsc::channel();
                run_in(&executor, &group, move || report.send(()).unwrap());
                reports.recv().unwrap();
            }
        }
        let (groups, limits) = known(&executor);
        assert!(groups <= 400 && limits <= 1, "{groups} groups, limits of {limits}");
        assert_eq!(executor.group("limited").limits(), few, "its limits are kept");
        for (number, group) in handles.iter().enumerate() {
            assert!(Arc::ptr_eq(group, &executor.group(&format!("held {number}"))));
        }
    });
}

#[test]
fn a_group_with_tasks_is_not_forgotten() {
    guarded(|_| {
        let executor = own(1);
        let opens = gate();
        let (report, reports) = mpsc::channel();
        let waits = opens.clone();
        let tasks = TaskGroup::in_resource_group(executor.group("waits"));
        let handle = spawn(&executor, &tasks, move |_| {
            if !waits.is_ready() {
                return RunResult::Blocked(waits.clone().into());
            }
            report.send(()).unwrap();
            RunResult::Done
        });
        handle.wake();
        drop(occupy(&executor));
        for number in 0..1000 {
            executor.group(&format!("other {number}"));
        }
        let group = tasks.resource_group().unwrap();
        assert!(Arc::ptr_eq(group, &executor.group("waits")));
        opens.set_ready();
        reports.recv().unwrap();
    });
}

/// Groups without tasks are not looked at, however many they are.
#[test]
fn a_task_that_is_taken_costs_the_same_beside_many_groups() {
    guarded(|_| {
        const TASKS: usize = 1000;
        let executor = own(1);
        let groups: Vec<_> =
            (0..MANY).map(|number| executor.group(&format!("tenant {number}"))).collect();
        let work = || executor.registry().queue.active.work();
        let release = occupy(&executor);
        let (report, reports) = mpsc::channel();
        for task in 0..TASKS {
            let report = report.clone();
            // Ten groups with a hundred tasks each.
            run_in(&executor, &groups[task % 10 * 1000], move || report.send(task).unwrap());
        }
        assert_eq!(work().0, 10, "groups with tasks");
        drop((release, report));
        assert_eq!(reports.iter().count(), TASKS);
        drop(occupy(&executor));
        let (listed, looked_at) = work();
        assert_eq!(listed, 0, "groups without tasks are taken out");
        assert!(looked_at <= 10 * TASKS, "{looked_at} groups looked at for {TASKS} tasks");
    });
}

/// Pushes from several threads meet workers that find a group empty and take it out.
#[test]
fn no_task_is_lost_while_groups_come_and_go() {
    guarded(|_| {
        const ROUNDS: usize = 300;
        let executor = Executor::builder().threads(2).build().unwrap();
        let ran = Arc::new(AtomicUsize::new(0));
        let pushers: Vec<_> = (0..3)
            .map(|pusher| {
                let (executor, ran) = (executor.clone(), ran.clone());
                thread::spawn(move || {
                    for round in 0..ROUNDS {
                        let group = executor.group(&format!("shared {}", (round + pusher) % 3));
                        let (report, reports) = mpsc::channel();
                        for _ in 0..3 {
                            let (ran, report) = (ran.clone(), report.clone());
                            run_in(&executor, &group, move || {
                                ran.fetch_add(1, Ordering::SeqCst);
                                report.send(()).unwrap();
                            });
                        }
                        drop(report);
                        assert_eq!(reports.iter().count(), 3);
                    }
                })
            })
            .collect();
        pushers.into_iter().for_each(|pusher| pusher.join().unwrap());
        assert_eq!(ran.load(Ordering::SeqCst), 9 * ROUNDS);
    });
}

/// Groups alternate under the executor's limit: a group whose queries end at once is not always
/// first.
#[test]
fn groups_with_as_many_queries_take_turns() {
    let executor = own(1);
    executor.set_max_queries(1.try_into().ok());
    let groups = ["one", "two", "three"].map(|name| executor.group(name));
    let (report, order) = mpsc::channel();
    let mut id = 0;
    for (index, group) in groups.iter().enumerate() {
        for _ in 0..3 {
            let report = report.clone();
            let query = id;
            id += 1;
            group
                .admit_or_queue(query, Box::new(move || report.send((index, query)).unwrap()))
                .unwrap();
        }
    }
    drop(report);
    let mut indices = Vec::new();
    for (index, query) in order {
        indices.push(index);
        groups[index].release_admission(query);
    }
    assert_eq!(indices, [0, 1, 2, 0, 1, 2, 0, 1, 2]);
    assert!(groups.iter().all(|group| group.queries() == (0, 0)));
}

#[test]
fn a_cancelled_queued_query_is_removed_at_once_and_a_group_index_is_reused() {
    let executor = own(1);
    let group = executor.group("waits");
    group.set_limits(GroupLimits { max_running: 1.try_into().ok(), ..GroupLimits::default() });
    let started = Arc::new(AtomicUsize::new(0));
    for id in 0..MANY as u64 {
        let started = started.clone();
        let start = Box::new(move || _ = started.fetch_add(1, Ordering::SeqCst));
        group.admit_or_queue(id, start).unwrap();
    }
    assert_eq!(group.queries(), (1, MANY - 1));
    // The order that would be slowest in a list.
    (1..MANY as u64).rev().for_each(|id| group.release_admission(id));
    assert_eq!((group.queries(), started.load(Ordering::SeqCst)), ((1, 0), 1));
    group.release_admission(0);
    assert_eq!(group.queries(), (0, 0));
}
