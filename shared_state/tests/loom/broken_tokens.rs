//! Counted tokens with one fault each. The first test shows that the re-implementation without a
//! fault passes, so each failure is caused by the fault.

use std::sync::Arc;

use loom::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use crate::support::{check, must_fail};

const PRODUCERS: usize = 2;
const ONE: usize = 2;
const DROPPED: usize = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// A producer's token ends before its data is added.
    EndsBeforeTheData,
    /// The count decreases without Release.
    WithoutRelease,
    /// The count decreases without Acquire.
    WithoutAcquire,
    /// A token that is dropped unfinished sets the flag after its decrement.
    FlagAfterTheCount,
    /// A token reports only how its own producer ended.
    OwnEndOnly,
}

/// The tokens' protocol in its shortest form, and a state that trusts the last report.
struct MiniTokens {
    count: AtomicUsize,
    data: [AtomicUsize; PRODUCERS],
    fault: Fault,
}

/// What the last report says: whether all finished, and the sum of the data.
type Total = Option<(bool, usize)>;

impl MiniTokens {
    fn add(&self, producer: usize) {
        self.data[producer].store(1, Ordering::Relaxed);
    }

    /// Ends one producer. Returns the state's total if it is the last one.
    fn end(&self, dropped: bool) -> Total {
        let late = self.fault == Fault::FlagAfterTheCount;
        if dropped && !late {
            self.count.fetch_or(DROPPED, Ordering::Relaxed);
        }
        let ordering = match self.fault {
            Fault::WithoutRelease => Ordering::Acquire,
            Fault::WithoutAcquire => Ordering::Release,
            _ => Ordering::AcqRel,
        };
        let count = self.count.fetch_sub(ONE, ordering) - ONE;
        if dropped && late {
            self.count.fetch_or(DROPPED, Ordering::Relaxed);
        }
        let flagged = count & DROPPED != 0 && self.fault != Fault::OwnEndOnly;
        let finished = !dropped && !flagged;
        let sum = || self.data.iter().map(|data| data.load(Ordering::Relaxed)).sum();
        (count / ONE == 0).then(|| (finished, sum()))
    }

    fn run(&self, producer: usize, dropped: bool) -> Total {
        if self.fault == Fault::EndsBeforeTheData {
            let total = self.end(dropped);
            self.add(producer);
            return total;
        }
        self.add(producer);
        self.end(dropped)
    }
}

/// Two producers add to the state and end; the first one unfinished, if it `aborts`.
fn produce(fault: Fault, aborts: bool) {
    let count = AtomicUsize::new(PRODUCERS * ONE);
    let state = Arc::new(MiniTokens { count, data: Default::default(), fault });
    let other = thread::spawn({
        let state = state.clone();
        move || state.run(1, false)
    });
    let own = state.run(0, aborts);
    let other = other.join().unwrap();
    assert!(own.is_none() || other.is_none(), "two tokens are the last");
    let Some((finished, sum)) = own.or(other) else { panic!("no token is the last") };
    assert!(finished != aborts, "an aborted producer looks finished");
    assert!(aborts || sum == PRODUCERS, "data was lost");
}

#[test]
fn without_a_fault_it_passes() {
    for aborts in [false, true] {
        check(move || produce(Fault::None, aborts));
    }
}

fn loses_data(fault: Fault) {
    must_fail(&["data was lost"], move || produce(fault, false));
}

#[test]
fn data_added_after_the_end_is_lost() {
    loses_data(Fault::EndsBeforeTheData);
}

#[test]
fn a_count_without_release_hides_data() {
    loses_data(Fault::WithoutRelease);
}

#[test]
fn a_count_without_acquire_hides_data() {
    loses_data(Fault::WithoutAcquire);
}

fn misses_the_abort(fault: Fault) {
    must_fail(&["an aborted producer looks finished"], move || produce(fault, true));
}

#[test]
fn a_flag_after_the_count_comes_too_late() {
    misses_the_abort(Fault::FlagAfterTheCount);
}

#[test]
fn a_report_of_the_own_end_misses_an_abort() {
    misses_the_abort(Fault::OwnEndOnly);
}
