//! Tests of one task: how batches move, where it blocks, how it finishes early.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
    mpsc,
};

use gatework_shared_state::{BufferLimit, Gate, exchange, exchange::LocalExchangeKind, result};

use super::{
    checked::{Checks, Fault},
    operators::{
        Made, batch, empty_build, endless, from_exchange, gate, hoard, limit, multiples, numbers,
        repeat, source, to_exchange, to_result, values, waiting,
    },
    *,
};
use crate::{
    hang_guard::guarded,
    pipeline::{
        Batch, DriverContext, FinishResult, LocalOperator, LocalSink, OperatorResult, SinkResult,
        SourceResult, StartResult,
    },
};

fn run(operators: Vec<Arc<dyn Operator>>, expected: Vec<i64>) {
    guarded(move |guard| {
        for fault in [Fault::None, Fault::BlockEveryCall] {
            let (executor, checks) = (executor(2), Checks::new(fault));
            let query = query(guard, &executor);
            let mut streams = start_one(&query, &checks, 1, numbers(6, 2), operators.clone(), 1);
            assert_eq!(rows(streams.remove(0)).unwrap(), expected);
            assert_gone(&query, &checks);
            assert_eq!((checks.finished(), checks.aborted()), (1, 0));
            assert_eq!(checks.blocks() > 0, fault == Fault::BlockEveryCall);
        }
    });
}

fn times(times: usize) -> Vec<i64> {
    (0..6).flat_map(|row| vec![row; times]).collect()
}

#[test]
fn rows_flow_without_operators() {
    run(vec![], times(1));
}

#[test]
fn operators_that_have_more_are_called_until_they_have_not() {
    run(vec![repeat(2)], times(2));
    run(vec![repeat(2), repeat(3), repeat(1), repeat(2)], times(12));
}

#[test]
fn operators_are_flushed_through_those_behind_them() {
    run(vec![hoard(), repeat(2), hoard()], times(2));
    run(vec![hoard(), hoard(), hoard(), repeat(3)], times(3));
    run(vec![repeat(2), hoard(), repeat(2), hoard(), repeat(2)], times(8));
}

#[test]
fn empty_batches_go_nowhere() {
    run(vec![multiples(7)], vec![0]);
    run(vec![multiples(5), hoard(), multiples(100), repeat(2)], vec![0, 0]);
    guarded(|guard| {
        // From the source, as last and non-last output of an operator, and in a flush.
        struct Empties(usize);
        impl LocalOperator for Empties {
            fn execute(
                &mut self,
                input: Option<Batch>,
                _: &DriverContext,
            ) -> Result<OperatorResult> {
                self.0 = if input.is_some() { 3 } else { self.0 - 1 };
                Ok(match self.0 {
                    3 => OperatorResult::HaveMoreOutput(batch([])),
                    2 => OperatorResult::HaveMoreOutput(batch([2])),
                    _ => OperatorResult::Batch(batch([])),
                })
            }

            fn finish(&mut self, _: &DriverContext) -> Result<OperatorResult> {
                self.0 += 1;
                Ok(match self.0 {
                    2 => OperatorResult::HaveMoreOutput(batch([])),
                    3 => OperatorResult::Batch(batch([])),
                    4 => OperatorResult::Batch(batch([4])),
                    _ => OperatorResult::NeedInput,
                })
            }
        }
        let empties: Arc<dyn Operator> =
            Made::<dyn LocalOperator>::new("empties", |_| Ok(Box::new(Empties(0))));
        let gappy = source("gappy", |_| {
            let mut left = 6;
            move |_: &DriverContext| {
                left -= 1;
                Ok(match left {
                    0 => SourceResult::Finished,
                    _ => SourceResult::Batch(batch((0..left % 2).map(|_| 1))),
                })
            }
        });
        let (executor, checks) = (executor(1), no_fault());
        let query = query(guard, &executor);
        let operators = vec![empties, repeat(1)];
        let mut streams = start_one(&query, &checks, 1, gappy, operators, 1);
        assert_eq!(rows(streams.remove(0)).unwrap(), [2, 2, 2, 4]);
        assert_gone(&query, &checks);
    });
}

#[test]
fn an_operator_that_wants_no_more_ends_what_is_before_it() {
    guarded(|guard| {
        // Endless producers in another pipeline, an exchange, then a limit.
        let (executor, checks) = (executor(2), no_fault());
        let query = query(guard, &executor);
        let (producers, consumers) =
            exchange::new("x", LocalExchangeKind::Hash, 2, 1, BufferLimit::new(1));
        let (result_producers, readers) = result::new("result", 1, 1, BufferLimit::new(1));
        let mut graph = Graph::new();
        let sink = checks.sink(to_exchange(producers));
        graph.add_pipeline("endless", 2, checks.source(endless()), vec![], sink).unwrap();
        let operators = vec![repeat(2), limit(5), hoard(), repeat(1)];
        let operators = operators.into_iter().map(|operator| checks.operator(operator)).collect();
        let source = checks.source(from_exchange(consumers));
        graph
            .add_pipeline("limited", 1, source, operators, checks.sink(to_result(result_producers)))
            .unwrap();
        let running = graph.start(&query).unwrap();
        let stream = RowStream::of_query(&running, readers).remove(0);
        assert_eq!(rows(stream).unwrap(), [1; 5]);
        assert_gone(&query, &checks);
        assert_eq!((checks.finished(), checks.aborted()), (3, 0), "early finish is no abort");
    });
}

/// Takes `left` batches and blocks on the gate before each; then wants no more.
struct Picky {
    left: usize,
    gate: Gate,
    finishes: Arc<AtomicUsize>,
}

impl LocalSink for Picky {
    fn sink(&mut self, batch: Option<Batch>, _: &DriverContext) -> Result<SinkResult> {
        self.left -= usize::from(batch.is_some());
        Ok(match self.left {
            _ if !self.gate.is_ready() => SinkResult::Blocked(self.gate.clone().into()),
            0 => SinkResult::Finished,
            _ => SinkResult::NeedInput,
        })
    }

    fn finish(&mut self, _: &DriverContext) -> Result<FinishResult> {
        self.finishes.fetch_add(1, Ordering::SeqCst);
        Ok(FinishResult::Done)
    }
}

fn picky(left: usize, gate: &Gate) -> (Arc<dyn Sink>, Arc<AtomicUsize>) {
    let (gate, finishes) = (gate.clone(), Arc::new(AtomicUsize::new(0)));
    let counter = finishes.clone();
    let sink = Made::<dyn LocalSink>::new("picky", move |_| {
        Ok(Box::new(Picky { left, gate: gate.clone(), finishes: counter.clone() }))
    });
    (sink, finishes)
}

/// Waits for a graph that has no reader.
fn wait_idle(running: &GraphHandle) {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    while !running.finished().poll_ready(&waker) {
        std::thread::park();
    }
}

#[test]
fn a_sink_that_wants_no_more_ends_the_task() {
    guarded(|guard| {
        let executor = executor(1);
        for operators in [vec![], vec![repeat(3)], vec![hoard_nothing(), repeat(2)]] {
            let (query, checks, open) = (query(guard, &executor), no_fault(), gate("open"));
            open.set_ready();
            let (sink, finishes) = picky(4, &open);
            let operators = operators.into_iter().map(|o| checks.operator(o)).collect();
            let (source, sink) = (checks.source(endless()), checks.sink(sink));
            wait_idle(&start_into(&query, source, operators, sink));
            assert_gone(&query, &checks);
            assert_eq!(finishes.load(Ordering::SeqCst), 1);
            assert!(query.error().is_none());
        }
    });
}

/// Passes batches on; panics when flushed, because after an early finish no flush is expected.
fn hoard_nothing() -> Arc<dyn Operator> {
    struct Pass;
    impl LocalOperator for Pass {
        fn execute(&mut self, input: Option<Batch>, _: &DriverContext) -> Result<OperatorResult> {
            Ok(input.map_or(OperatorResult::NeedInput, OperatorResult::Batch))
        }

        fn finish(&mut self, _: &DriverContext) -> Result<OperatorResult> {
            panic!("flushed although the sink wants no more");
        }
    }
    Made::<dyn LocalOperator>::new("pass", |_| Ok(Box::new(Pass)))
}

#[test]
fn a_limit_that_another_task_used_up_ends_a_blocked_task_and_its_producers() {
    guarded(|guard| {
        let (executor, checks, never) = (executor(2), no_fault(), gate("never"));
        let query = query(guard, &executor);
        // Task 0 gets rows; task 1 waits for rows that never arrive; both share the limit.
        let mixed = source("mixed", {
            let never = never.clone();
            move |context| {
                let (task_index, never) = (context.task_index(), never.clone());
                move |_: &DriverContext| {
                    Ok(match task_index {
                        0 => SourceResult::Batch(batch([1, 1])),
                        _ => SourceResult::Blocked(never.clone().into()),
                    })
                }
            }
        });
        let mut streams = start_one(&query, &checks, 2, mixed, vec![repeat(1), limit(7)], 1);
        assert_eq!(rows(streams.remove(0)).unwrap(), [1; 7]);
        assert_gone(&query, &checks);
        assert_eq!((checks.finished(), checks.aborted()), (2, 0));
    });
}

#[test]
fn a_task_blocked_behind_a_closed_operator_drops_what_is_before_it_and_sleeps() {
    guarded(|guard| {
        let (executor, checks, room) = (executor(1), no_fault(), gate("room"));
        let query = query(guard, &executor);
        struct Noted(mpsc::Sender<()>);
        impl Drop for Noted {
            fn drop(&mut self) {
                self.0.send(()).unwrap();
            }
        }
        let (report, dropped) = mpsc::channel();
        let report = Mutex::new(report);
        let noted = source("noted", move |_| {
            let noted = Noted(report.lock().unwrap().clone());
            move |_: &DriverContext| {
                let _kept = &noted;
                Ok(SourceResult::Batch(batch([1])))
            }
        });
        // The first row reaches the limit; then the sink blocks on capacity.
        let (sink, finishes) = picky(9, &room);
        let operators = vec![checks.operator(limit(1)), checks.operator(repeat(1))];
        let running = start_into(&query, checks.source(noted), operators, checks.sink(sink));
        dropped.recv().unwrap();
        // Another query on the only worker: the first task must have left the worker.
        for _ in 0..50 {
            let other = super::query(guard, &executor);
            let mut streams = start_one(&other, &no_fault(), 1, numbers(4, 1), vec![], 1);
            rows(streams.remove(0)).unwrap();
        }
        let task = &query.profile().tasks[0];
        assert!(task.runs <= 3, "the task spins: {} runs", task.runs);
        room.set_ready();
        wait_idle(&running);
        assert_eq!(finishes.load(Ordering::SeqCst), 1);
        assert_gone(&query, &checks);
    });
}

#[test]
fn an_empty_build_side_ends_its_pipeline_before_it_begins() {
    guarded(|guard| {
        for waits in [false, true] {
            let (executor, checks) = (executor(2), no_fault());
            let query = query(guard, &executor);
            let (never, built) = (gate("never"), gate("built"));
            let (producers, consumers) =
                exchange::new("x", LocalExchangeKind::Hash, 1, 1, BufferLimit::new(1));
            let (result_producers, readers) = result::new("result", 1, 1, BufferLimit::new(1));
            let mut graph = Graph::new();
            let sink = checks.sink(to_exchange(producers));
            graph.add_pipeline("probe side", 1, checks.source(endless()), vec![], sink).unwrap();
            let operators = vec![
                checks.operator(waits_at_start(&never)),
                checks.operator(empty_build(waits.then(|| built.clone()))),
                checks.operator(gives_in_finish()),
            ];
            let source = checks.source(from_exchange(consumers));
            let sink = checks.sink(to_result(result_producers));
            graph.add_pipeline("probe", 1, source, operators, sink).unwrap();
            let running = graph.start(&query).unwrap();
            built.set_ready();
            // Operators downstream of the probe still emit their output.
            let stream = RowStream::of_query(&running, readers).remove(0);
            assert_eq!(rows(stream).unwrap(), [77]);
            assert_gone(&query, &checks);
            assert_eq!((checks.finished(), checks.aborted()), (2, 0));
        }
    });
}

fn waits_at_start(never: &Gate) -> Arc<dyn Operator> {
    struct Waits(Gate);
    impl LocalOperator for Waits {
        fn start(&mut self, _: &DriverContext) -> Result<StartResult> {
            Ok(StartResult::Blocked(self.0.clone().into()))
        }

        fn execute(&mut self, _: Option<Batch>, _: &DriverContext) -> Result<OperatorResult> {
            panic!("the operator never starts");
        }
    }
    let never = never.clone();
    Made::<dyn LocalOperator>::new("waits", move |_| Ok(Box::new(Waits(never.clone()))))
}

/// Emits a row even without input, like a global aggregate.
fn gives_in_finish() -> Arc<dyn Operator> {
    struct Gives(bool);
    impl LocalOperator for Gives {
        fn execute(&mut self, _: Option<Batch>, _: &DriverContext) -> Result<OperatorResult> {
            Ok(OperatorResult::NeedInput)
        }

        fn finish(&mut self, _: &DriverContext) -> Result<OperatorResult> {
            Ok(match std::mem::replace(&mut self.0, true) {
                false => OperatorResult::Batch(batch([77])),
                true => OperatorResult::Finished,
            })
        }
    }
    Made::<dyn LocalOperator>::new("gives", |_| Ok(Box::new(Gives(false))))
}

/// A sink that starts when `gate` is ready. It records whether it had started when it was finished.
struct SlowStart {
    gate: Gate,
    ready: bool,
    in_order: Arc<AtomicBool>,
}

impl LocalSink for SlowStart {
    fn start(&mut self, _: &DriverContext) -> Result<StartResult> {
        self.ready = self.gate.is_ready();
        Ok(if self.ready {
            StartResult::Ready
        } else {
            StartResult::Blocked(self.gate.clone().into())
        })
    }

    fn sink(&mut self, _: Option<Batch>, _: &DriverContext) -> Result<SinkResult> {
        Ok(SinkResult::NeedInput)
    }

    fn finish(&mut self, _: &DriverContext) -> Result<FinishResult> {
        self.in_order.store(self.ready, Ordering::SeqCst);
        Ok(FinishResult::Done)
    }
}

#[test]
fn a_sink_starts_before_it_finishes_although_its_pipeline_ends_at_once() {
    guarded(|guard| {
        let (executor, checks, turn) = (executor(1), no_fault(), gate("turn"));
        let closed = limit(0);
        for operator in [empty_build(None), closed] {
            let query = query(guard, &executor);
            let in_order = Arc::new(AtomicBool::new(false));
            let (gate, noted) = (turn.clone(), in_order.clone());
            let sink = Made::<dyn LocalSink>::new("slow start", move |_| {
                let in_order = noted.clone();
                Ok(Box::new(SlowStart { gate: gate.clone(), ready: false, in_order }))
            });
            let operators = vec![checks.operator(operator)];
            let source = checks.source(endless());
            let running = start_into(&query, source, operators, checks.sink(sink));
            // The worker must have run the task before the sink can start.
            let other = super::query(guard, &executor);
            let mut streams = start_one(&other, &no_fault(), 1, numbers(1, 1), vec![], 1);
            rows(streams.remove(0)).unwrap();
            assert_eq!(query.live_tasks(), 1);
            turn.set_ready();
            wait_idle(&running);
            assert!(in_order.load(Ordering::SeqCst));
            assert_gone(&query, &checks);
            turn.block();
        }
    });
}

#[test]
fn all_parts_start_at_the_same_time() {
    guarded(|guard| {
        // Each operator is woken by the other's start, so a sequential start would block both.
        struct Opens {
            mine: Gate,
            others: Gate,
        }
        impl LocalOperator for Opens {
            fn start(&mut self, _: &DriverContext) -> Result<StartResult> {
                self.others.set_ready();
                Ok(match self.mine.is_ready() {
                    true => StartResult::Ready,
                    false => StartResult::Blocked(self.mine.clone().into()),
                })
            }

            fn execute(
                &mut self,
                input: Option<Batch>,
                _: &DriverContext,
            ) -> Result<OperatorResult> {
                Ok(input.map_or(OperatorResult::NeedInput, OperatorResult::Batch))
            }
        }
        let (one, other) = (gate("one"), gate("other"));
        let make = |mine: &Gate, others: &Gate| -> Arc<dyn Operator> {
            let (mine, others) = (mine.clone(), others.clone());
            Made::<dyn LocalOperator>::new("opens", move |_| {
                Ok(Box::new(Opens { mine: mine.clone(), others: others.clone() }))
            })
        };
        let (executor, checks) = (executor(1), no_fault());
        let query = query(guard, &executor);
        let operators = vec![make(&one, &other), make(&other, &one)];
        let mut streams = start_one(&query, &checks, 1, numbers(3, 1), operators, 1);
        assert_eq!(rows(streams.remove(0)).unwrap(), [0, 1, 2]);
        assert_gone(&query, &checks);
    });
}

#[test]
fn a_task_yields_between_two_batches() {
    guarded(|guard| {
        let (executor, checks) = (executor(1), no_fault());
        let options =
            QueryOptions { time_slice: std::time::Duration::ZERO, ..QueryOptions::default() };
        let query = query_with(guard, &executor, options);
        let mut streams = start_one(&query, &checks, 1, numbers(50, 1), vec![hoard()], 1);
        assert_eq!(rows(streams.remove(0)).unwrap().len(), 50);
        assert!(query.profile().tasks[0].yields >= 50);
        assert_gone(&query, &checks);
    });
}

#[test]
fn waiting_ends_with_its_gate() {
    guarded(|guard| {
        let (executor, checks, opens) = (executor(1), no_fault(), gate("opens"));
        let query = query(guard, &executor);
        let mut streams = start_one(&query, &checks, 3, waiting(&opens), vec![hoard()], 1);
        opens.set_ready();
        assert_eq!(rows(streams.remove(0)).unwrap(), Vec::<i64>::new());
        assert_gone(&query, &checks);
        assert_eq!(values(&batch([1, 2])), [1, 2]);
    });
}

/// A scan whose rows are all filtered out yields like any other.
#[test]
fn a_task_whose_rows_are_all_dropped_yields() {
    guarded(|guard| {
        let (executor, checks) = (executor(1), no_fault());
        let options =
            QueryOptions { time_slice: std::time::Duration::ZERO, ..QueryOptions::default() };
        let query = query_with(guard, &executor, options);
        // Multiples of 1000 among the numbers from 1 to 50: batches without rows.
        let from_one = source("from one", |_| {
            let mut next = 1;
            move |_: &DriverContext| {
                next += 1;
                Ok(if next > 51 {
                    SourceResult::Finished
                } else {
                    SourceResult::Batch(batch([next - 1]))
                })
            }
        });
        let stream = start_one(&query, &checks, 1, from_one, vec![multiples(1000)], 1).remove(0);
        assert_eq!(rows(stream).unwrap(), [0_i64; 0]);
        assert!(query.profile().tasks[0].yields >= 50, "{:?}", query.profile().tasks);
    });
}
