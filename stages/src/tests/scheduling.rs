//! Rules C, D, E, G, H, J, K, L and M on mock tasks that record their calls.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use gatework_runtime::Error;
use gatework_shared_state::{
    Dependency, DependencyKind, PopResult,
    output::{ExchangeClient, OutputBuffers, OutputKind, OutputState},
};
use gatework_sql::WriteProgress;

use super::mock::{
    LIMITS, MockFactory, MockSplits, Query, broadcast, chain, fragmented, scan, send, together,
};
use crate::{
    BufferManager, ExecutionPolicy, ExecutionSchedule, FixedCountScheduler,
    PartitioningHandle as Handle, PartitioningScheme, QueryScheduler, ScaledWriterScheduler,
    SourcePartitionedScheduler, StageExecution, StageScheduler, StageState, StageTask, TaskEvents,
    TaskFactory, TaskState, run::policy::phases,
};

const AT_ONCE: ExecutionPolicy = ExecutionPolicy::AllAtOnce;

fn ones(count: usize) -> MockSplits {
    MockSplits::new(vec![1; count])
}

#[test]
fn c_d_e_a_query_from_its_plan_to_its_end() {
    let mut query = Query::new(&chain(2), AT_ONCE, 2, |_| ones(4));
    assert!(!query.run_until_blocked().unwrap());
    use StageState::Running;
    assert_eq!(query.states(), [Running, Running, Running]);
    // K-1, E-4: tasks of a fixed count on their nodes; one per node for splits, numbered from 0.
    let tasks_on = |stage| -> Vec<_> {
        query.factory.tasks_of(stage).iter().map(|task| (task.id().index, task.node())).collect()
    };
    assert_eq!(tasks_on(0), [(0, 0)]);
    assert_eq!(tasks_on(1), [(0, 0), (1, 1)]);
    assert_eq!(tasks_on(2).len(), 2);
    // E-1, E-7: each task knows all its inputs, and that they are complete.
    for task in query.factory.tasks_of(1) {
        let mut log = task.log();
        log.sort();
        assert_eq!(log, ["source 0 is complete", "source 0 reads 2.0", "source 0 reads 2.1"]);
    }
    for task in query.factory.tasks_of(2) {
        assert!(task.log().contains(&"no more splits of 0".to_owned()));
    }
    // C-6: the reader of the result reads the root.
    assert_eq!(query.result.locations().len(), 1);
    for stage in [2, 1, 0] {
        query.factory.tasks_of(stage).iter().for_each(|task| task.finish());
        let ended = query.run_until_blocked().unwrap();
        assert_eq!(query.states()[stage], StageState::Finished);
        assert_eq!(ended, stage == 0);
    }
}

/// C-1, C-3: a failed stage announces its tasks, but never that they are all. B-1: its first cause
/// stays.
#[test]
fn c3_a_stage_that_fails_is_never_complete() {
    // Not all splits are assigned.
    let mut query = Query::new(&chain(2), AT_ONCE, 2, |_| ones(100));
    query.run_until_blocked().unwrap();
    let tables = query.factory.tasks_of(2);
    tables[0].fail("first");
    tables[1].fail("second");
    let error = query.run_until_blocked().unwrap_err();
    assert_eq!(error.to_string(), "first");
    assert_eq!(query.scheduler.stages()[2].failure().unwrap().to_string(), "first");
    query.scheduler.abort();
    assert_eq!(query.states(), [StageState::Aborted, StageState::Aborted, StageState::Failed]);
    for task in query.factory.tasks_of(1) {
        let log = task.log();
        assert!(log.len() == 2 && log.iter().all(|what| !what.contains("complete")), "{log:?}");
        // M-2: an aborted task fails its readers.
        assert_eq!(task.output().state(), OutputState::Failed);
    }
    // The result never finishes without an error.
    assert!(matches!(query.result.take(), PopResult::Aborted));
}

/// D-5, C-4: the inputs of a stage that has ended are cancelled, down to the tables, without an
/// error.
#[test]
fn d5_the_end_of_a_reader_is_the_end_of_what_it_reads() {
    let mut query = Query::new(&chain(2), AT_ONCE, 2, |_| ones(100));
    query.run_until_blocked().unwrap();
    assert_eq!(query.states()[2], StageState::Scheduling, "it waits for capacity");
    query.factory.tasks_of(0)[0].finish();
    assert!(query.run_until_blocked().unwrap());
    use StageState::{Cancelled, Finished};
    assert_eq!(query.states(), [Finished, Cancelled, Cancelled]);
    for task in [query.factory.tasks_of(1), query.factory.tasks_of(2)].concat() {
        assert_eq!(task.state(), TaskState::Cancelled);
        assert_eq!(task.output().state(), OutputState::Finished);
    }
}

/// D-9: a task that was not ended by its scheduler is a failure.
#[test]
fn d9_an_abort_from_outside_is_a_failure() {
    let mut query = Query::new(&chain(1), AT_ONCE, 1, |_| ones(1));
    query.run_until_blocked().unwrap();
    query.factory.tasks_of(2)[0].abort();
    assert!(matches!(query.run_until_blocked(), Err(Error::ProducerAborted)));
    assert_eq!(query.states()[2], StageState::Failed);
}

/// D-8, G-4: all tables are closed, however the query ends; also if one of them cannot be opened.
#[test]
fn d8_g4_tables_are_closed() {
    let mut closed = Vec::new();
    let mut query = Query::new(&broadcast(2), AT_ONCE, 2, |_| {
        let splits = ones(100);
        closed.push(splits.closed.clone());
        splits
    });
    query.run_until_blocked().unwrap();
    query.factory.tasks()[0].fail("it ends");
    query.run_until_blocked().unwrap_err();
    query.scheduler.abort();
    assert!(closed.len() == 2 && closed.iter().all(|closed| closed.load(Ordering::Relaxed)));

    let first = ones(1);
    let closed = first.closed.clone();
    let mut opened = Some(first);
    let factory: Arc<dyn TaskFactory> = MockFactory::new(1);
    let result = QueryScheduler::new(
        &broadcast(2),
        AT_ONCE,
        2,
        factory,
        |stage: &StageExecution| {
            if stage.fragment().tables.is_empty() {
                return Ok(Box::new(FixedCountScheduler::new(vec![0])) as Box<dyn StageScheduler>);
            }
            match opened.take() {
                Some(splits) => {
                    Ok(Box::new(SourcePartitionedScheduler::new(Box::new(splits), LIMITS)))
                }
                None => Err(Error::InvalidConfiguration("no such table".into())),
            }
        },
        ExchangeClient::new("result"),
    );
    assert_eq!(result.err().unwrap().to_string(), "no such table");
    assert!(closed.load(Ordering::Relaxed));
}

fn stage(plan: &crate::SubPlan, id: usize, factory: &Arc<MockFactory>) -> StageExecution {
    let fragment = plan.fragments()[id].clone();
    StageExecution::new(fragment, factory.clone(), Arc::<TaskEvents>::default())
}

/// E-2: a source of several stages is complete when all of them are. E-3: a late task receives
/// everything.
#[test]
fn e2_e3_late_tasks_and_sources_of_several_stages() {
    let union = send(Handle::FixedArbitrary, 2, vec![scan(2), scan(2)]);
    let plan = fragmented(&send(Handle::Single, 1, vec![union]));
    let factory = MockFactory::new(10);
    let mut reader = stage(&plan, 1, &factory);
    reader.set_buffers(&OutputBuffers::with_partitions(1)).unwrap();
    let early = reader.schedule_task(0, 0).unwrap().unwrap();
    let mut from = [stage(&plan, 2, &factory), stage(&plan, 3, &factory)];
    let mut made = Vec::new();
    for stage in &mut from {
        stage.set_buffers(&OutputBuffers::new(OutputKind::Arbitrary)).unwrap();
        made.push(stage.schedule_splits(1, 0, Vec::new()).unwrap().unwrap());
    }
    reader.add_locations(2, &vec![made[0].clone()], true).unwrap();
    reader.add_locations(3, &Vec::new(), false).unwrap();
    let logs = |number: usize| factory.tasks_of(1)[number].log();
    assert_eq!(logs(0), ["source 0 reads 2.0"]);
    let late = reader.schedule_task(1, 1).unwrap().unwrap();
    assert_eq!(logs(1), ["source 0 reads 2.0"]);
    reader.add_locations(3, &vec![made[1].clone()], true).unwrap();
    let all = ["source 0 reads 2.0", "source 0 reads 3.0", "source 0 is complete"];
    assert_eq!((logs(0), logs(1)), (all.map(str::to_owned).into(), all.map(str::to_owned).into()));
    assert_eq!((early.id().index, late.id().index), (0, 1));
    // E-1: the stage reads no other stage.
    assert!(reader.add_locations(7, &Vec::new(), true).is_err());
}

#[test]
fn e3_e4_e5_what_cannot_be_made() {
    let (plan, factory) = (chain(2), MockFactory::new(10));
    let mut table = stage(&plan, 2, &factory);
    let error = table.schedule_task(0, 0).unwrap_err().to_string();
    assert!(error.contains("before its readers are set"), "{error}");
    table.set_buffers(&OutputBuffers::with_partitions(2)).unwrap();
    assert!(table.schedule_splits(5, 0, Vec::new()).unwrap().is_some());
    assert!(table.schedule_splits(5, 0, Vec::new()).unwrap().is_none(), "one a node");
    assert_eq!(table.schedule_splits(3, 0, Vec::new()).unwrap().unwrap().id().index, 1);
    assert!(table.schedule_task(0, 2).is_err(), "tasks are made for splits");
    let mut reader = stage(&plan, 1, &factory);
    reader.set_buffers(&OutputBuffers::with_partitions(1)).unwrap();
    reader.schedule_task(0, 0).unwrap();
    assert!(reader.schedule_task(1, 0).is_err(), "made twice");
    reader.cancel();
    assert!(reader.schedule_task(1, 1).unwrap().is_none(), "it has ended");
}

/// E-6: older versions are ignored, and nothing is revoked.
#[test]
fn e6_versions_of_buffers() {
    let (plan, factory) = (broadcast(2), MockFactory::new(10));
    let mut table = stage(&plan, 2, &factory);
    let none = OutputBuffers::new(OutputKind::Broadcast);
    let one = none.with_buffer(0, 0).unwrap();
    table.set_buffers(&one).unwrap();
    let task = table.schedule_splits(0, 0, Vec::new()).unwrap().unwrap();
    table.set_buffers(&none).unwrap();
    table.set_buffers(&one.with_no_more_buffers()).unwrap();
    assert_eq!(task.output().state(), OutputState::NoMoreBuffers);
    let other = none.with_buffer(1, 0).unwrap().with_buffer(2, 0).unwrap().with_no_more_buffers();
    assert!(table.set_buffers(&other).is_err(), "buffer 0 is missing");
}

/// E-8, E-10: tasks that finish before all are created do not finish the stage; the last one does.
#[test]
fn e8_a_stage_ends_with_its_last_task() {
    let (plan, factory) = (chain(2), MockFactory::new(10));
    let mut table = stage(&plan, 2, &factory);
    table.set_buffers(&OutputBuffers::with_partitions(2)).unwrap();
    table.transition(StageState::Scheduling);
    table.schedule_splits(0, 0, Vec::new()).unwrap();
    factory.tasks()[0].finish();
    table.task_ended(0);
    assert_eq!(table.state(), StageState::Scheduling);
    table.schedule_splits(1, 0, Vec::new()).unwrap();
    table.scheduling_complete();
    assert_eq!(table.state(), StageState::Running);
    factory.tasks()[1].finish();
    table.task_ended(1);
    assert_eq!(table.state(), StageState::Finished);
    // E-7, E-10: all tasks had finished when scheduling was complete.
    let mut early = stage(&plan, 1, &factory);
    early.set_buffers(&OutputBuffers::with_partitions(1)).unwrap();
    early.schedule_task(0, 0).unwrap();
    factory.tasks_of(1)[0].finish();
    early.task_ended(0);
    early.scheduling_complete();
    assert_eq!(early.state(), StageState::Finished);
}

#[test]
fn h1_h4_h5_h6_managers_of_buffers() {
    let manager = |handle, partitions| {
        let scheme = PartitioningScheme { handle, partitions, ..PartitioningScheme::single() };
        BufferManager::new(&scheme)
    };
    // H-6: all buffers are known from the start, and readers are only checked.
    let mut partitioned = manager(Handle::FixedHash, 3);
    assert_eq!(partitioned.buffers(), &OutputBuffers::with_partitions(3));
    assert!(!partitioned.add([0, 2], true).unwrap());
    assert!(partitioned.add([3], false).is_err());
    for (handle, kind) in [
        (Handle::FixedBroadcast, OutputKind::Broadcast),
        (Handle::FixedArbitrary, OutputKind::Arbitrary),
    ] {
        let mut manager = manager(handle, 3);
        assert_eq!(manager.buffers(), &OutputBuffers::new(kind));
        assert!(manager.add([0, 1], false).unwrap());
        assert!(!manager.add([1], false).unwrap(), "nothing new");
        assert!(manager.add([], true).unwrap());
        // H-4: readers after the last are ignored.
        assert!(!manager.add([2], true).unwrap());
        assert_eq!((manager.buffers().len(), manager.buffers().no_more_buffers()), (2, true));
    }
}

/// A stage of a table whose tasks are placed by hand.
struct Table {
    stage: StageExecution,
    scheduler: SourcePartitionedScheduler,
    factory: Arc<MockFactory>,
    nodes: usize,
}

impl Table {
    fn new(nodes: usize, splits: MockSplits) -> Self {
        let factory = MockFactory::new(LIMITS.max_pending_splits_per_task);
        let mut stage = stage(&chain(nodes), 2, &factory);
        stage.set_buffers(&OutputBuffers::with_partitions(nodes)).unwrap();
        let scheduler = SourcePartitionedScheduler::new(Box::new(splits), LIMITS);
        Self { stage, scheduler, factory, nodes }
    }

    fn schedule(&mut self) -> crate::Scheduled {
        let mut loads = vec![gatework_shared_state::splits::SplitLoad::default(); self.nodes];
        for task in self.factory.tasks() {
            loads[task.node()] = task.load();
        }
        self.scheduler.schedule(&mut self.stage, &loads).unwrap()
    }

    fn splits_by_node(&self) -> Vec<usize> {
        let mut counts = vec![0; self.nodes];
        for task in self.factory.tasks() {
            let load = task.load();
            counts[task.node()] = load.queued + load.reading;
        }
        counts
    }
}

#[test]
fn j1_splits_are_asked_for_when_none_are_left() {
    let splits = ones(2500);
    let (requests, closed) = (splits.requests.clone(), splits.closed.clone());
    let mut table = Table::new(1, splits);
    let mut read = 0;
    loop {
        let scheduled = table.schedule();
        read +=
            table.factory.tasks().iter().map(|task| task.read_splits(usize::MAX)).sum::<usize>();
        if scheduled.finished {
            break;
        }
        assert!(!closed.load(Ordering::Relaxed), "J-5: not before the last one is placed");
    }
    assert_eq!((read, requests.lock().as_slice()), (2500, [1000, 1000, 1000].as_slice()));
    assert!(closed.load(Ordering::Relaxed));
}

#[test]
fn j2_j6_j8_splits_wait_for_room() {
    let mut table = Table::new(2, ones(20));
    let scheduled = table.schedule();
    // J-8: four splits per node regardless of queues, and no more, since more than two are queued.
    assert_eq!(table.splits_by_node(), [4, 4]);
    let (reason, gates) = scheduled.blocked.unwrap();
    assert_eq!(reason, crate::BlockedReason::SplitQueuesFull);
    assert!(!scheduled.finished && gates.len() == 2 && !gates.iter().any(|gate| gate.is_ready()));
    // A task that reads all but one of its splits may have another.
    let task = table.factory.tasks()[0].clone();
    let reading: Vec<_> = (0..3).map(|_| task.queue.take()).collect();
    assert!(reading.iter().all(|taken| matches!(taken, PopResult::Item(_))));
    assert!(gates.iter().any(|gate| gate.is_ready()));
    assert!(table.schedule().blocked.is_some());
    let queued: BTreeMap<_, _> =
        table.factory.tasks().iter().map(|task| (task.node(), task.load().queued)).collect();
    assert_eq!((queued[&task.node()], queued[&(1 - task.node())]), (2, 4));
}

/// J-3: the call that places the last split finishes the scheduler.
#[test]
fn j3_the_last_split_ends_it() {
    let scheduled = Table::new(2, ones(3)).schedule();
    assert!(scheduled.finished && scheduled.blocked.is_none() && scheduled.new.len() == 2);
}

#[test]
fn j4_an_empty_table_has_one_task() {
    let mut table = Table::new(3, ones(0));
    let scheduled = table.schedule();
    assert!(scheduled.finished && scheduled.new.len() == 1);
    assert_eq!(table.factory.tasks()[0].log(), ["1 splits of 0"]);
}

#[test]
fn j6_splits_that_are_not_known_are_waited_for() {
    let gate = Dependency::blocked("splits", DependencyKind::External);
    let mut table = Table::new(2, MockSplits { unknown: Some(gate.clone()), ..ones(1) });
    let (reason, gates) = table.schedule().blocked.unwrap();
    assert_eq!(reason, crate::BlockedReason::WaitingForSource);
    assert!(Arc::ptr_eq(&gates[0], &gate) && table.factory.tasks().is_empty());
    gate.set_ready();
    assert!(table.schedule().finished);
}

/// J-7: a stage that is blocked and reads others gets a task on every node, and no more.
#[test]
fn j7_who_waits_and_reads_others_has_all_its_tasks() {
    let gate = Dependency::blocked("splits", DependencyKind::External);
    let mut query = Query::new(&broadcast(3), AT_ONCE, 3, |stage| match stage {
        1 => MockSplits { unknown: Some(gate.clone()), ..ones(1) },
        _ => ones(1),
    });
    query.run_until_blocked().unwrap();
    assert_eq!(query.factory.tasks_of(1).len(), 3);
    assert_eq!(query.states()[1], StageState::SchedulingSplits);
    // Its inputs therefore know all their readers, and can drop pages that these have read.
    for task in query.factory.tasks_of(2) {
        assert_eq!(task.output().state(), OutputState::NoMoreBuffers);
    }
    gate.set_ready();
    query.run_until_blocked().unwrap();
    assert_eq!(query.states()[1], StageState::Running);
}

/// Splits of very different sizes.
#[test]
fn j8_the_node_with_least_to_read_gets_the_next() {
    let mut table = Table::new(2, MockSplits::new([90, 10, 10, 10, 10]));
    table.schedule();
    let mut weights: Vec<_> = table.factory.tasks().iter().map(|task| task.load().weight).collect();
    weights.sort_unstable();
    assert_eq!(weights, [40, 90]);
}

#[test]
fn a_table_that_cannot_be_cut_fails_the_query() {
    let mut query = Query::new(&chain(2), AT_ONCE, 2, |_| MockSplits { fails: true, ..ones(1) });
    let error = query.run_until_blocked().unwrap_err().to_string();
    assert!(error.contains("the table was dropped"), "{error}");
}

/// L-2: inputs before their readers, build sides before probe sides.
#[test]
fn l2_all_at_once_is_one_pass_from_below() {
    let mut schedule = ExecutionSchedule::new(AT_ONCE, &broadcast(2));
    assert_eq!(schedule.stages(|_| StageState::Planned), [2, 1, 0]);
    // L-1: a scheduled stage leaves the schedule, running or not.
    let state = |stage| if stage == 1 { StageState::Scheduling } else { StageState::Scheduled };
    assert_eq!(schedule.stages(state), [1]);
    assert!(!schedule.is_finished());
    assert!(schedule.stages(|_| StageState::Running).is_empty() && schedule.is_finished());
}

/// L-3, L-4, L-5 and the plans of Presto's own test.
#[test]
fn l3_l4_phases() {
    // A chain: a reader before its input.
    assert_eq!(phases(&chain(2)), [[0], [1], [2]]);
    // A table that probes a broadcast starts with it.
    assert_eq!(phases(&broadcast(2)), [vec![0], vec![2, 1]]);
    // The sources of a union start one after the other.
    let union = send(Handle::Single, 1, vec![scan(2), scan(2), scan(2)]);
    assert_eq!(phases(&fragmented(&union)), [[0], [1], [2], [3]]);
    // A partitioned join: the left side with all its inputs before the right one.
    let side = || send(Handle::FixedHash, 2, vec![scan(2)]);
    let joined = together(vec![side(), side()]);
    assert_eq!(phases(&fragmented(&send(Handle::Single, 1, vec![joined]))), [[0], [1], [2], [3]]);
    // A broadcast that is itself a join of two: all start together.
    let small = send(Handle::FixedBroadcast, 2, vec![together(vec![side(), side()])]);
    let probe = together(vec![small, scan(2)]);
    let all = phases(&fragmented(&send(Handle::Single, 1, vec![probe])));
    assert_eq!(all, [vec![0], vec![4, 3, 2, 1]]);
}

/// L-5: the next phase starts when all tables of the last are fully assigned.
#[test]
fn l5_one_table_after_the_other() {
    let union = send(Handle::Single, 1, vec![scan(1), scan(1)]);
    let mut query = Query::new(&fragmented(&union), ExecutionPolicy::Phased, 1, |_| ones(10));
    query.run_until_blocked().unwrap();
    assert!(query.factory.tasks_of(2).is_empty() && !query.factory.tasks_of(1).is_empty());
    while query.factory.tasks_of(2).is_empty() {
        query.factory.tasks().iter().for_each(|task| _ = task.read_splits(1));
        query.run_until_blocked().unwrap();
    }
    assert_eq!(query.states()[1], StageState::Running, "it runs on, but has all its splits");
}

/// M-2: a cancelled task ends its readers without an error, an aborted one with an error.
#[test]
fn m2_cancelled_is_finished_and_aborted_is_not() {
    let mut query = Query::new(&chain(1), AT_ONCE, 1, |_| ones(1));
    query.run_until_blocked().unwrap();
    let (cancelled, aborted) =
        (query.factory.tasks_of(1)[0].clone(), query.factory.tasks_of(2)[0].clone());
    aborted.write(0, 1);
    cancelled.cancel();
    aborted.abort();
    assert_eq!(cancelled.output().state(), OutputState::Finished);
    assert_eq!(aborted.output().state(), OutputState::Failed);
    // M-1: a final state never changes.
    cancelled.fail("too late");
    assert_eq!(cancelled.state(), TaskState::Cancelled);
}

/// A stage of writers with two input tasks that read a table.
struct Writers {
    stage: StageExecution,
    sources: Vec<Arc<super::mock::MockTask>>,
    progress: Arc<WriteProgress>,
    scheduler: ScaledWriterScheduler,
}

impl Writers {
    fn new(nodes: usize) -> Self {
        let plan = fragmented(&send(
            Handle::Single,
            1,
            vec![send(Handle::ScaledWriter, 3, vec![scan(2)])],
        ));
        let factory = MockFactory::new(10);
        let mut source = stage(&plan, 2, &factory);
        source.set_buffers(&OutputBuffers::new(OutputKind::Arbitrary)).unwrap();
        let made = (0..2).map(|node| source.schedule_splits(node, 0, Vec::new()).unwrap().unwrap());
        let made: Vec<_> = made.collect();
        let mut stage = stage(&plan, 1, &factory);
        stage.set_buffers(&OutputBuffers::with_partitions(1)).unwrap();
        stage.add_locations(2, &made, true).unwrap();
        let progress = Arc::<WriteProgress>::default();
        let nodes = (0..nodes).collect();
        let scheduler = ScaledWriterScheduler::new(nodes, progress.clone(), 100);
        Self { stage, sources: factory.tasks_of(2), progress, scheduler }
    }

    fn schedule(&mut self) -> crate::Scheduled {
        self.scheduler.schedule(&mut self.stage, &[]).unwrap()
    }

    /// The gates of a blocked step.
    fn expect_blocked(&mut self) -> Vec<gatework_shared_state::Gate> {
        let scheduled = self.schedule();
        assert!(!scheduled.finished && scheduled.new.is_empty());
        let (reason, gates) = scheduled.blocked.unwrap();
        assert_eq!(reason, crate::BlockedReason::WriterScaling);
        assert!(gates.iter().all(|gate| !gate.is_ready()));
        gates
    }
}

#[test]
fn k3_writers_are_added_when_there_is_more_to_write() {
    let mut writers = Writers::new(3);
    assert_eq!(writers.schedule().new.len(), 1, "the first, regardless of written bytes");
    // Enough is written, but no input is blocked.
    writers.progress.add(250);
    let gates = writers.expect_blocked();
    assert_eq!(gates.len(), 2);
    // One of two inputs is blocked, which is half.
    writers.sources[0].write(0, 100);
    assert!(gates.iter().any(|gate| gate.is_ready()));
    let second = writers.schedule().new;
    assert_eq!((second.len(), second[0].id().index, second[0].node()), (1, 1, 1));
    let third = writers.schedule().new;
    assert_eq!((third.len(), third[0].id().index, third[0].node()), (1, 2, 2));
    // No node is left for another writer, which is no error.
    writers.progress.add(1000);
    assert!(writers.expect_blocked().is_empty());
    writers.sources.iter().for_each(|source| source.finish());
    assert!(writers.schedule().finished);
}

#[test]
fn k3_a_writer_is_worth_its_while() {
    let mut writers = Writers::new(3);
    writers.schedule();
    writers.sources.iter().for_each(|source| source.write(0, 100));
    let gates = writers.expect_blocked();
    writers.progress.add(99);
    assert!(!gates[0].is_ready());
    writers.progress.add(1);
    assert!(gates[0].is_ready());
    assert_eq!(writers.schedule().new.len(), 1);
    assert_eq!(writers.expect_blocked().len(), 1);
}
