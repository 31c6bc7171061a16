//! Tests of reclaim between tasks, and of spill writes in a query's life.

use std::{
    collections::VecDeque,
    sync::mpsc::{self, Receiver, Sender},
    task::Waker,
};

use gatework_shared_state::Gate;
use parking_lot::Mutex;

use super::{
    operators::{Made, batch, gate, source},
    *,
};
use crate::{
    hang_guard::guarded,
    pipeline::{
        Batch, Completion, DriverContext, FinishResult, GreedyPool, LocalSink, OperatorContext,
        PendingIo, ReclaimResult, Reservation, SinkResult, SourceResult, SpillInput, SpillSpace,
        SpilledBatches,
    },
};

const LIMIT: usize = 1000;

/// Passes spill writes to the test, which completes them.
#[derive(Debug)]
struct ByHand(Sender<Completion<Arc<dyn SpilledBatches>>>);

#[derive(Debug)]
struct Nothing;

impl SpilledBatches for Nothing {
    fn size_bytes(&self) -> u64 {
        1
    }

    fn read(self: Arc<Self>, _: usize, done: Completion<arrow_array::RecordBatch>) {
        done.complete(Ok(batch([]).into_parts().0));
    }
}

impl SpillSpace for ByHand {
    fn write(&self, batches: SpillInput, done: Completion<Arc<dyn SpilledBatches>>) {
        assert!(batches.map(Result::unwrap).count() > 0);
        self.0.send(done).unwrap();
    }

    fn min_spill_bytes(&self) -> usize {
        0
    }
}

fn by_hand() -> (Arc<ByHand>, Receiver<Completion<Arc<dyn SpilledBatches>>>) {
    let (sender, receiver) = mpsc::channel();
    (Arc::new(ByHand(sender)), receiver)
}

fn one_batch() -> SpillInput {
    Box::new(std::iter::once(Ok(batch([1]).into_parts().0)))
}

/// Completes spill writes as they arrive.
fn complete(writes: Receiver<Completion<Arc<dyn SpilledBatches>>>) {
    std::thread::spawn(move || {
        writes.into_iter().for_each(|done| done.complete(Ok(Arc::new(Nothing))));
    });
}

/// A sink that reserves 100 bytes per row and spills everything on a request to reclaim.
struct Hoarder {
    context: OperatorContext,
    reservation: Reservation,
    writing: Option<PendingIo<Arc<dyn SpilledBatches>>>,
    reclaimed_bytes: Arc<Mutex<usize>>,
}

impl LocalSink for Hoarder {
    fn sink(&mut self, batch: Option<Batch>, _: &DriverContext) -> Result<SinkResult> {
        self.reservation.grow(100 * batch.map_or(0, |batch| batch.num_rows()))?;
        self.context.set_reclaimable_bytes(self.reservation.bytes());
        Ok(SinkResult::NeedInput)
    }

    fn reclaim(&mut self, _: &DriverContext) -> Result<ReclaimResult> {
        *self.reclaimed_bytes.lock() += self.reservation.bytes();
        let reservations = vec![self.reservation.take()];
        self.writing = Some(self.context.spill(one_batch(), reservations)?);
        self.context.set_reclaimable_bytes(0);
        Ok(ReclaimResult::Started)
    }

    fn finish(&mut self, _: &DriverContext) -> Result<FinishResult> {
        Ok(FinishResult::Done)
    }
}

/// A sink that reserves 100 bytes per row and requests reclaim when a reservation is denied.
struct Needy {
    context: OperatorContext,
    reservation: Reservation,
    pending_bytes: usize,
    done: Gate,
}

impl LocalSink for Needy {
    fn sink(&mut self, batch: Option<Batch>, _: &DriverContext) -> Result<SinkResult> {
        self.pending_bytes += 100 * batch.map_or(0, |batch| batch.num_rows());
        match self.reservation.grow(self.pending_bytes) {
            Ok(()) => self.pending_bytes = 0,
            Err(error) => {
                let memory_gate = self.context.request_reclaim(self.pending_bytes).ok_or(error)?;
                return Ok(SinkResult::Blocked(memory_gate.into()));
            }
        }
        Ok(SinkResult::NeedInput)
    }

    fn finish(&mut self, _: &DriverContext) -> Result<FinishResult> {
        self.done.set_always_ready();
        Ok(FinishResult::Done)
    }
}

/// The gates and counters of a test with both kinds of tasks.
struct Scene {
    full: Gate,
    done: Gate,
    reclaimed_bytes: Arc<Mutex<usize>>,
}

impl Scene {
    fn new() -> Self {
        Self { full: gate("full"), done: gate("done"), reclaimed_bytes: Arc::default() }
    }

    /// Adds a task that hoards `rows` rows and then waits for `until`.
    fn hoard(&self, graph: &mut Graph, rows: i64, until: &Gate) {
        let (full, until, reclaimed_bytes) =
            (self.full.clone(), until.clone(), self.reclaimed_bytes.clone());
        let from = source("rows, then a wait", move |_| {
            let (full, until) = (full.clone(), until.clone());
            let mut first = Some(batch(0..rows));
            move |_: &DriverContext| {
                if let Some(first) = first.take() {
                    return Ok(SourceResult::Batch(first));
                }
                full.set_always_ready();
                Ok(match until.is_ready() {
                    true => SourceResult::Finished,
                    false => SourceResult::Blocked(until.clone().into()),
                })
            }
        });
        let sink = Made::<dyn LocalSink>::new("hoarder", move |context| {
            let (reservation, reclaimed_bytes) = (context.reservation(), reclaimed_bytes.clone());
            Ok(Box::new(Hoarder { context, reservation, writing: None, reclaimed_bytes }))
        });
        graph.add_pipeline("hoards", 1, from, vec![], sink).unwrap();
    }

    /// Adds a task that reserves memory for `rows` rows, once the hoarder is full.
    fn need(&self, graph: &mut Graph, rows: i64) {
        let (full, done) = (self.full.clone(), self.done.clone());
        let from = source("rows after a wait", move |_| {
            let full = full.clone();
            let mut batches: VecDeque<_> = (0..rows).map(|row| batch([row])).collect();
            move |_: &DriverContext| {
                if !full.is_ready() {
                    return Ok(SourceResult::Blocked(full.clone().into()));
                }
                Ok(batches.pop_front().map_or(SourceResult::Finished, SourceResult::Batch))
            }
        });
        let sink = Made::<dyn LocalSink>::new("needy", move |context| {
            let reservation = context.reservation();
            Ok(Box::new(Needy { context, reservation, pending_bytes: 0, done: done.clone() }))
        });
        graph.add_pipeline("needs", 1, from, vec![], sink).unwrap();
    }
}

fn options(pool: &Arc<GreedyPool>, space: Arc<ByHand>) -> QueryOptions {
    QueryOptions { memory: pool.clone(), spill: Some(space), ..QueryOptions::default() }
}

#[test]
fn a_task_that_waits_for_others_gives_back_what_they_need() {
    guarded(|guard| {
        let executor = executor(2);
        for in_one_query in [true, false] {
            let pool = Arc::new(GreedyPool::new(LIMIT));
            let (space, writes) = by_hand();
            complete(writes);
            let scene = Scene::new();
            let first = query_with(guard, &executor, options(&pool, space.clone()));
            let second = query_with(guard, &executor, options(&pool, space));
            let (mut graph, mut other) = (Graph::new(), Graph::new());
            // The hoarder ends when the other task has got its memory.
            scene.hoard(&mut graph, 9, &scene.done.clone());
            scene.need(if in_one_query { &mut graph } else { &mut other }, 8);
            graph.start(&first).unwrap();
            other.start(&second).unwrap();
            for query in [&first, &second] {
                streams::wait(query.idle());
                assert_eq!(query.error().map(|error| error.to_string()), None);
            }
            assert_eq!((*scene.reclaimed_bytes.lock(), pool.reserved()), (900, 0));
        }
    });
}

#[test]
fn who_could_give_back_little_is_not_asked() {
    guarded(|guard| {
        let executor = executor(2);
        let pool = Arc::new(GreedyPool::new(LIMIT));
        let (space, writes) = by_hand();
        complete(writes);
        let query = query_with(guard, &executor, options(&pool, space));
        let scene = Scene::new();
        let mut graph = Graph::new();
        // 100 bytes are reclaimable, but 1000 are missing at once.
        scene.hoard(&mut graph, 1, &gate("never"));
        let full = scene.full.clone();
        let all_at_once = source("all at once", move |_| {
            let (full, mut rows) = (full.clone(), Some(batch(0..10)));
            move |_: &DriverContext| {
                if !full.is_ready() {
                    return Ok(SourceResult::Blocked(full.clone().into()));
                }
                Ok(rows.take().map_or(SourceResult::Finished, SourceResult::Batch))
            }
        });
        let done = scene.done.clone();
        let sink = Made::<dyn LocalSink>::new("needy", move |context| {
            let reservation = context.reservation();
            Ok(Box::new(Needy { context, reservation, pending_bytes: 0, done: done.clone() }))
        });
        graph.add_pipeline("needs", 1, all_at_once, vec![], sink).unwrap();
        graph.start(&query).unwrap();
        streams::wait(query.idle());
        let error = query.error().unwrap();
        assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
        assert!(
            error.to_string().contains("largest reservations of this query: hoarder 100"),
            "{error}"
        );
        assert_eq!((*scene.reclaimed_bytes.lock(), pool.reserved()), (0, 0));
    });
}

/// Presto and Doris have this bug: a query resumes although its reservation would fail again, and
/// is cancelled after a while.
#[test]
fn who_waits_for_memory_is_woken_by_no_clock_and_gives_up_when_nobody_is_left() {
    guarded(|guard| {
        let executor = executor(2);
        let pool = Arc::new(GreedyPool::new(LIMIT));
        let (space, writes) = by_hand();
        let scene = Scene::new();
        let leave = gate("leave");
        let hoards = query_with(guard, &executor, options(&pool, space.clone()));
        let needs = query_with(guard, &executor, options(&pool, space));
        let (mut graph, mut other) = (Graph::new(), Graph::new());
        scene.hoard(&mut graph, 9, &leave);
        scene.need(&mut other, 11);
        graph.start(&hoards).unwrap();
        other.start(&needs).unwrap();
        let done = writes.recv().unwrap();
        let runs = || needs.profile().tasks[0].runs;
        while !needs.dump().contains("waits for memory") {
            std::thread::yield_now();
        }
        let before = runs();
        // Other queries come and go; that is no reason to run.
        for _ in 0..10 {
            let (other, checks) = (query(guard, &executor), no_fault());
            let stream = start_one(&other, &checks, 1, numbers(3, 1), vec![], 1).remove(0);
            assert_eq!(rows(stream).unwrap().len(), 3);
        }
        assert_eq!(runs(), before);
        done.complete(Ok(Arc::new(Nothing)));
        // The task gets the memory of 10 of 11 rows; no task can release memory for the last one.
        streams::wait(needs.idle());
        assert!(matches!(needs.error(), Some(Error::OutOfMemory { .. })), "{:?}", needs.error());
        assert!(runs() <= before + 12, "{before} runs before, {} after", runs());
        leave.set_always_ready();
        streams::wait(hoards.idle());
        assert_eq!((hoards.error().is_none(), pool.reserved()), (true, 0));
    });
}

#[test]
fn a_cancelled_query_ends_after_what_is_written_for_it() {
    guarded(|guard| {
        let executor = executor(2);
        let checks = no_fault();
        let pool = Arc::new(GreedyPool::new(LIMIT));
        let (space, writes) = by_hand();
        let query = query_with(guard, &executor, options(&pool, space));
        let spills = source("spills", |context: OperatorContext| {
            let mut pending: Option<PendingIo<_>> = None;
            move |_: &DriverContext| {
                if pending.is_none() {
                    let mut reservation = context.reservation();
                    reservation.grow(100)?;
                    pending = Some(context.spill(one_batch(), vec![reservation])?);
                }
                let gate = pending.as_ref().expect("the spill has started").gate().clone();
                Ok(match gate.is_ready() {
                    true => SourceResult::Finished,
                    false => SourceResult::Blocked(gate.into()),
                })
            }
        });
        let mut stream = start_one(&query, &checks, 1, spills, vec![], 1).remove(0);
        let done = writes.recv().unwrap();
        query.cancel();
        // The query's tasks have ended, its spill write has not.
        while query.live_tasks() > 1 {
            std::thread::yield_now();
        }
        let polled = streams::poll(&mut stream, Waker::noop());
        assert!(polled.is_pending(), "the query ended before its spill write");
        assert_eq!(pool.reserved(), 100);
        done.complete(Ok(Arc::new(Nothing)));
        assert!(is_cancelled(&rows(stream).unwrap_err()));
        assert_gone(&query, &checks);
        assert_eq!(pool.reserved(), 0);
    });
}
