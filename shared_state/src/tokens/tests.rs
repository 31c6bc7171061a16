//! What the tokens report, in which order, and the gate of producers without consumers.

use std::panic::{self, AssertUnwindSafe};

use parking_lot::Mutex;

use super::{ProducerEnd, SharedState, tokens};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Report {
    Producer(ProducerEnd, usize),
    Consumer(usize),
}

#[derive(Default)]
struct Reports {
    seen: Mutex<Vec<Report>>,
    panics: bool,
}

impl SharedState for Reports {
    fn producer_ended(&self, end: ProducerEnd, left: usize) {
        self.seen.lock().push(Report::Producer(end, left));
    }

    fn consumer_ended(&self, _index: usize, left: usize) {
        if self.panics {
            panic::resume_unwind(Box::new(()));
        }
        self.seen.lock().push(Report::Consumer(left));
    }
}

#[test]
fn each_end_is_reported_once() {
    let (mut producers, mut consumers) = tokens("state", Reports::default(), 2, 2);
    assert_eq!(producers.iter().map(|token| token.index()).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(consumers.iter().map(|token| token.index()).collect::<Vec<_>>(), [0, 1]);
    let (last, closed) = (consumers.remove(1), producers[0].closed().clone());
    assert_eq!(closed.name(), "state closed");
    drop(consumers);
    assert!(!closed.is_ready());
    producers.remove(0).finish();
    producers.remove(0).finish();
    let expected = [
        Report::Consumer(1),
        Report::Producer(ProducerEnd::Finished, 1),
        Report::Producer(ProducerEnd::Finished, 0),
    ];
    assert_eq!(*last.seen.lock(), expected);
    drop(last);
    assert!(closed.is_ready());
}

#[test]
fn the_last_producer_knows_of_an_abort() {
    let (mut producers, consumers) = tokens("state", Reports::default(), 3, 1);
    producers.remove(0).finish();
    drop(producers.remove(0));
    producers.remove(0).finish();
    let expected = [
        Report::Producer(ProducerEnd::Finished, 2),
        Report::Producer(ProducerEnd::Dropped, 1),
        Report::Producer(ProducerEnd::Dropped, 0),
    ];
    assert_eq!(*consumers[0].seen.lock(), expected);
}

#[test]
fn a_state_that_panics_is_closed() {
    let state = Reports { panics: true, ..Reports::default() };
    let (producers, consumers) = tokens("state", state, 1, 1);
    let panicked = panic::catch_unwind(AssertUnwindSafe(|| drop(consumers)));
    assert!(panicked.is_err() && producers[0].closed().is_ready());
}
