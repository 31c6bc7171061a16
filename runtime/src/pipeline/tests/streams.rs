//! Tests of result readers: async stream, blocking iterator, partitions, dropped readers.

use std::{
    collections::HashSet,
    pin::Pin,
    sync::{Arc, Mutex, mpsc},
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

use futures_core::Stream;
use gatework_shared_state::Gate;

use super::{
    checked::{Checks, Fault},
    operators::{batch, endless, gate, limit, numbers, repeat, source, values, waiting},
    *,
};
use crate::{
    hang_guard::guarded,
    pipeline::{DriverContext, SourceResult},
};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Blocks this thread until a gate is ready.
pub(super) fn wait(gate: &Gate) {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    while !gate.poll_ready(&waker) {
        thread::park();
    }
}

pub(super) fn poll(stream: &mut RowStream, waker: &Waker) -> Poll<Option<Result<Vec<i64>>>> {
    let polled = Pin::new(stream).poll_next(&mut Context::from_waker(waker));
    polled.map(|item| item.map(|item| item.map(|batch| values(&batch))))
}

/// Sends a token for each wake-up.
struct WakeSender(Mutex<mpsc::Sender<()>>);

impl Wake for WakeSender {
    fn wake(self: Arc<Self>) {
        let _ended = self.0.lock().unwrap().send(());
    }
}

#[test]
fn a_stream_wakes_its_reader() {
    guarded(|guard| {
        let (executor, checks) = (executor(2), Checks::new(Fault::BlockEveryCall));
        let query = query(guard, &executor);
        let mut stream = start_three(&query, &checks).unwrap();
        let (sender, wakeups) = mpsc::channel();
        let waker = Waker::from(Arc::new(WakeSender(Mutex::new(sender))));
        let mut all = Vec::new();
        loop {
            match poll(&mut stream, &waker) {
                Poll::Ready(Some(rows)) => all.extend(rows.unwrap()),
                Poll::Ready(None) => break,
                Poll::Pending => wakeups.recv().unwrap(),
            }
        }
        assert_gone(&query, &checks);
        all.sort_unstable();
        assert_eq!(all, OF_THREE);
        assert!(matches!(poll(&mut stream, &waker), Poll::Ready(None)), "the stream stays ended");
        assert!(query.error().is_none());
        drop(stream);
        assert!(query.error().is_none(), "dropping the stream after its end is no cancel");
    });
}

#[test]
fn a_stream_ends_with_its_error_once() {
    guarded(|guard| {
        let (executor, checks) = (executor(2), Checks::new(Fault::Error(40)));
        let query = query(guard, &executor);
        let mut iterator = start_three(&query, &checks).unwrap().into_blocking_iter();
        let error = iterator.find_map(Result::err).unwrap();
        assert_eq!(error.to_string(), "fault at 40");
        assert_gone(&query, &checks);
        assert!(iterator.next().is_none());
        assert_eq!(iterator.query().id(), query.id());
    });
}

#[test]
fn a_blocking_reader_waits_for_rows_that_come_from_outside() {
    guarded(|guard| {
        let (executor, checks) = (executor(1), no_fault());
        let query = query(guard, &executor);
        let gates: Vec<Gate> = (0..20).map(|_| gate("row")).collect();
        let slow = source("slow", {
            let gates = gates.clone();
            move |_| {
                let (gates, mut next) = (gates.clone(), 0);
                move |_: &DriverContext| {
                    let Some(gate) = gates.get(next) else { return Ok(SourceResult::Finished) };
                    if !gate.is_ready() {
                        return Ok(SourceResult::Blocked(gate.clone().into()));
                    }
                    next += 1;
                    Ok(SourceResult::Batch(batch([next as i64])))
                }
            }
        });
        let stream = start_one(&query, &checks, 1, slow, vec![], 1).remove(0);
        let (ask, asked) = mpsc::channel();
        let opener = thread::spawn(move || {
            for gate in gates {
                asked.recv().unwrap();
                gate.set_ready();
            }
        });
        let mut iterator = stream.into_blocking_iter();
        for expected in 1..=20 {
            // The row is produced only after the reader has asked for it.
            ask.send(()).unwrap();
            assert_eq!(values(&iterator.next().unwrap().unwrap()), [expected]);
        }
        assert!(iterator.next().is_none());
        opener.join().unwrap();
        assert_gone(&query, &checks);
    });
}

#[test]
fn dropping_the_stream_cancels_the_query() {
    guarded(|guard| {
        let executor = executor(2);
        for read in 0..4 {
            let (query, checks) = (query(guard, &executor), no_fault());
            let stream = start_one(&query, &checks, 2, endless(), vec![repeat(3)], 1).remove(0);
            let mut iterator = stream.into_blocking_iter();
            for _ in 0..read {
                iterator.next().unwrap().unwrap();
            }
            drop(iterator);
            wait(query.idle());
            assert_gone(&query, &checks);
            assert!(is_cancelled(&query.error().unwrap()));
        }
    });
}

#[test]
fn dropping_the_stream_wakes_tasks_that_wait_elsewhere() {
    guarded(|guard| {
        let (executor, checks, never) = (executor(2), no_fault(), gate("never"));
        let query = query(guard, &executor);
        let streams = start_one(&query, &checks, 3, waiting(&never), vec![], 2);
        drop(streams);
        wait(query.idle());
        assert_gone(&query, &checks);
    });
}

#[test]
fn each_partition_gets_its_rows() {
    guarded(|guard| {
        for fault in [Fault::None, Fault::BlockEveryCall] {
            let (executor, checks) = (executor(2), Checks::new(fault));
            let query = query(guard, &executor);
            let streams = start_one(&query, &checks, 2, numbers(30, 4), vec![], 3);
            let readers: Vec<_> = streams
                .into_iter()
                .map(|stream| thread::spawn(move || rows(stream).unwrap()))
                .collect();
            for (partition, reader) in readers.into_iter().enumerate() {
                let all = reader.join().unwrap();
                assert_eq!(all.len(), 20);
                assert!(all.iter().all(|row| *row % 3 == partition as i64));
            }
            assert_gone(&query, &checks);
            assert!(query.error().is_none());
        }
    });
}

#[test]
fn dropping_one_partition_ends_only_that_one() {
    guarded(|guard| {
        let executor = executor(2);
        for dropped in 0..3 {
            let (query, checks) = (query(guard, &executor), no_fault());
            let mut streams = start_one(&query, &checks, 2, numbers(60, 7), vec![], 3);
            drop(streams.remove(dropped));
            let readers: Vec<_> = streams
                .into_iter()
                .map(|stream| thread::spawn(move || rows(stream).unwrap()))
                .collect();
            let all: Vec<_> =
                readers.into_iter().flat_map(|reader| reader.join().unwrap()).collect();
            assert_eq!(all.len(), 80);
            let remainders: HashSet<_> = all.iter().map(|row| row % 3).collect();
            assert!(!remainders.contains(&(dropped as i64)) && remainders.len() == 2);
            assert_gone(&query, &checks);
            assert!(query.error().is_none());
        }
    });
}

#[test]
fn a_partition_that_has_ended_finds_no_task_although_others_have_rows_left() {
    guarded(|guard| {
        let (executor, checks) = (executor(2), no_fault());
        let query = query(guard, &executor);
        let (producers, readers) =
            gatework_shared_state::result::new("r", 2, 2, BufferLimit::new(1 << 20));
        let sink = checks.sink(operators::to_result(producers));
        let mut graph = Graph::new();
        graph.add_pipeline("only", 2, checks.source(numbers(9, 2)), vec![], sink).unwrap();
        let running = graph.start(&query).unwrap();
        let mut streams = RowStream::of_query(&running, readers);
        let (second, first) = (streams.remove(1), streams.remove(0));
        assert_eq!(rows(second).unwrap(), [1, 1, 3, 3, 5, 5, 7, 7]);
        assert_gone(&query, &checks);
        assert_eq!(rows(first).unwrap().len(), 10);
        assert!(query.error().is_none());
    });
}

#[test]
fn an_error_reaches_every_partition() {
    guarded(|guard| {
        let executor = executor(2);
        for step in 0..25 {
            let (query, checks) = (query(guard, &executor), Checks::new(Fault::Error(step)));
            let operators = vec![repeat(2), limit(1000)];
            let streams = start_one(&query, &checks, 2, numbers(30, 4), operators, 3);
            let read = |stream| {
                let (query, checks) = (query.clone(), checks.clone());
                thread::spawn(move || {
                    assert_eq!(rows(stream).unwrap_err().to_string(), format!("fault at {step}"));
                    // After the error, nothing of the query is left, even if other partitions are
                    // still read.
                    assert_gone(&query, &checks);
                })
            };
            let readers: Vec<_> = streams.into_iter().map(read).collect();
            readers.into_iter().for_each(|reader| reader.join().unwrap());
        }
    });
}

#[test]
fn partitions_may_be_read_one_after_the_other_with_a_budget_of_a_byte() {
    guarded(|guard| {
        let (executor, checks) = (executor(2), no_fault());
        let query = query(guard, &executor);
        let budget = BufferLimit::new(1);
        let (producers, readers) =
            gatework_shared_state::result::new("result", 2, 4, budget.clone());
        let mut graph = Graph::new();
        let sink = checks.sink(operators::to_result(producers));
        let only =
            graph.add_pipeline("only", 2, checks.source(numbers(40, 3)), vec![], sink).unwrap();
        graph.add_edge(WaitEdge::Partitions { producer: only, partitions: 4, budget });
        let running = graph.start(&query).unwrap();
        for (partition, stream) in (0..).zip(RowStream::of_query(&running, readers)) {
            let all = rows(stream).unwrap();
            assert!(all.len() == 20 && all.iter().all(|row| row % 4 == partition));
        }
        assert_gone(&query, &checks);
    });
}

/// A task that reads another query of the same executor blocks a worker which that query may need.
#[test]
fn a_query_that_is_waited_for_on_its_own_worker_says_so() {
    guarded(|guard| {
        let pool = || Arc::new(rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap());
        let hosted = || Executor::builder().on_rayon_pool(pool()).build().unwrap();
        for executor in [executor(1), executor(2), hosted()] {
            let (inner, other) = (executor.clone(), super::executor(1));
            assert!(!inner.is_worker_thread());
            let (report, reports) = mpsc::channel();
            let reads = source("reads", move |_| {
                let (inner, other, report) = (inner.clone(), other.clone(), report.clone());
                move |_: &DriverContext| {
                    assert!(inner.is_worker_thread() && !other.is_worker_thread());
                    let run = |executor: &Executor| {
                        let query = QueryContext::new(executor, QueryOptions::default());
                        let stream = start_one(&query, &no_fault(), 1, numbers(2, 1), vec![], 1);
                        let mut rows = stream.into_iter().next().unwrap().into_blocking_iter();
                        let first = rows.next().unwrap();
                        if first.is_err() {
                            assert!(rows.next().is_none(), "the error is yielded once");
                        }
                        first.map(|batch| values(&batch))
                    };
                    report.send((run(&inner), run(&other))).unwrap();
                    Ok(SourceResult::Finished)
                }
            });
            let query = query(guard, &executor);
            rows(start_one(&query, &no_fault(), 1, reads, vec![], 1).remove(0)).unwrap();
            let (own, others) = reports.recv().unwrap();
            let message = own.unwrap_err().to_string();
            assert!(message.contains("on one of its own workers"), "{message}");
            assert_eq!(others.unwrap(), [0], "a worker of another executor may wait");
        }
    });
}

/// A job of the host pool is no worker, but may occupy the pool's only thread.
#[test]
fn the_only_thread_of_a_pool_does_not_wait_for_what_the_pool_hosts() {
    guarded(|guard| {
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let pool = Arc::new(pool);
            let executor = Executor::builder().on_rayon_pool(pool.clone()).build().unwrap();
            let query = query(guard, &executor);
            let stream = start_one(&query, &no_fault(), 1, numbers(2, 1), vec![], 1).remove(0);
            let answer = pool.install(|| rows(stream));
            assert_eq!(answer.is_err(), threads == 1, "{answer:?}");
        }
    });
}
