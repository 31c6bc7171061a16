//! Streams that other threads write, read by tasks that lease any ready stream.

use std::{collections::VecDeque, sync::Arc, task::Waker};

use gatework_shared_state::{PopResult, stream_set::StreamSet};
use shuttle::{sync::Mutex, thread};

use crate::support::{Query, Task, below, check, must_fail};

const STREAMS: usize = 3;
const ROWS: usize = 2;
const TASKS: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// The stream is polled before its waker is stored.
    ForgetsTheWaker,
    /// A stream with more rows is returned as pending.
    WaitsThoughThereIsMore,
}

/// The rows of a writer, whether they are complete, and the waker to call.
#[derive(Default)]
struct Pipe {
    rows: VecDeque<usize>,
    ended: bool,
    reader: Option<Waker>,
}

fn write(pipe: &Mutex<Pipe>, first: usize) {
    for row in 0..=ROWS {
        let mut pipe = pipe.lock().unwrap();
        match row {
            ROWS => pipe.ended = true,
            row => pipe.rows.push_back(first + row),
        }
        let reader = pipe.reader.take();
        drop(pipe);
        reader.into_iter().for_each(Waker::wake);
    }
}

/// Reads until all streams have ended, or leaves before.
fn read(
    streams: &StreamSet<Arc<Mutex<Pipe>>>,
    task: &mut Task,
    max_rows: usize,
    fault: Fault,
) -> Vec<usize> {
    let mut rows = Vec::new();
    while rows.len() < max_rows {
        let mut lease = match streams.take() {
            PopResult::Item(lease) => lease,
            PopResult::Blocked(gate) => {
                task.wait(&gate);
                continue;
            }
            PopResult::Finished => break,
            PopResult::Aborted => panic!("nothing fails here"),
        };
        let (waker, pipe) = (lease.waker(), lease.get_mut().unwrap().clone());
        let mut pipe = pipe.lock().unwrap();
        let next = pipe.rows.pop_front();
        let ended = next.is_none() && pipe.ended;
        if fault != Fault::ForgetsTheWaker {
            pipe.reader = Some(waker);
        }
        drop(pipe);
        match next {
            Some(row) => {
                task.progress();
                rows.push(row);
                match fault {
                    Fault::WaitsThoughThereIsMore => lease.return_pending(),
                    _ => lease.return_ready(),
                }
            }
            None if ended => drop(lease),
            None => lease.return_pending(),
        }
    }
    rows
}

fn run(leaves: bool, fault: Fault) {
    let query = Query::new();
    let pipes: Vec<Arc<Mutex<Pipe>>> = (0..STREAMS).map(|_| Arc::default()).collect();
    let streams = StreamSet::new("streams", pipes.clone());
    let writers = (0..STREAMS).zip(pipes);
    let writers = writers.map(|(number, pipe)| thread::spawn(move || write(&pipe, number * ROWS)));
    let writers: Vec<_> = writers.collect();
    let readers = (0..TASKS).map(|number| {
        let (streams, query) = (streams.clone(), query.clone());
        // One of the tasks may leave early.
        let max_rows = if leaves && number == 0 { below(STREAMS * ROWS) } else { usize::MAX };
        thread::spawn(move || read(&streams, &mut Task::new(&query), max_rows, fault))
    });
    let readers: Vec<_> = readers.collect();
    let mut rows: Vec<_> = readers.into_iter().flat_map(|reader| reader.join().unwrap()).collect();
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    rows.sort_unstable();
    assert_eq!(rows, (0..STREAMS * ROWS).collect::<Vec<_>>());
}

#[test]
fn every_row_once() {
    check(|| run(false, Fault::None));
}

#[test]
fn one_reader_leaves() {
    check(|| run(true, Fault::None));
}

#[test]
fn a_stream_without_a_waker_is_waited_for_ever() {
    must_fail("deadlock", || run(false, Fault::ForgetsTheWaker));
}

#[test]
fn a_stream_that_has_more_and_does_not_say_so() {
    must_fail("deadlock", || run(false, Fault::WaitsThoughThereIsMore));
}
