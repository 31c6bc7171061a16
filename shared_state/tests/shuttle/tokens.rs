//! Counted tokens: producers add items to a state that is complete with the last of them.
//!
//! The state is the smallest one over tokens. It shows how a state uses the reports of its tokens,
//! and, with a [`Fault`], how it must not.

use std::sync::Arc;

use gatework_shared_state::{
    ClaimResult, Consumer, Gate, ManyToMany, Payload, Producer, ProducerEnd, SharedState,
    StateLock, tokens,
};
use shuttle::thread;

use crate::support::{Ending, Item, Ledger, Query, Task, below, check_all, must_fail};

const PRODUCERS: usize = 3;
const CONSUMERS: usize = 2;
const ITEMS: usize = 2;

/// A fault of the state or of its producers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// A producer adds its last item after its token has ended.
    AddsAfterTheEnd,
    /// The state is complete with the first producer that finishes.
    FirstEndCompletes,
    /// A producer that is dropped unfinished counts as finished.
    AbortLooksFinished,
    /// The gates become ready before the state is complete.
    OpensBeforeTheEnd,
    /// An abort makes no gate ready.
    AbortOpensNothing,
}

#[derive(Default)]
struct Inner {
    items: Vec<Item>,
    end: Option<ProducerEnd>,
    closed: bool,
}

struct Items {
    gates: ManyToMany,
    inner: StateLock<Inner>,
    fault: Fault,
}

/// A handle of the state, so that a fault can use it without a token.
struct Handle(Arc<Items>);

impl SharedState for Handle {
    fn producer_ended(&self, end: ProducerEnd, left: usize) {
        let Items { gates, inner, fault } = self.0.as_ref();
        let end = match fault {
            Fault::AbortLooksFinished => ProducerEnd::Finished,
            _ => end,
        };
        let aborted = end == ProducerEnd::Dropped;
        if left > 0 && !aborted && *fault != Fault::FirstEndCompletes {
            return;
        }
        if *fault == Fault::OpensBeforeTheEnd {
            gates.sources().iter().for_each(|gate| gate.set_always_ready());
        }
        let mut guard = inner.lock();
        let (inner, wakeups) = guard.parts();
        inner.end = Some(end);
        if !(aborted && *fault == Fault::AbortOpensNothing) {
            gates.set_always_ready_all(wakeups);
        }
    }

    fn consumer_ended(&self, _index: usize, left: usize) {
        if left == 0 {
            let mut inner = self.0.inner.lock();
            inner.closed = true;
            let unread = std::mem::take(&mut inner.items);
            inner.unlock_and_drop(unread);
        }
    }
}

impl Items {
    fn add(&self, item: Item) {
        let mut inner = self.inner.lock();
        // Without a reader, the item is dropped after the lock is released.
        if !inner.closed {
            inner.items.push(item);
        }
    }

    fn rows(&self, gate: &Gate) -> ClaimResult<usize> {
        let inner = self.inner.lock();
        match inner.end {
            None => ClaimResult::Blocked(gate.clone()),
            Some(ProducerEnd::Finished) => {
                ClaimResult::Work(inner.items.iter().map(Payload::rows).sum())
            }
            Some(ProducerEnd::Dropped) => ClaimResult::Aborted,
        }
    }
}

/// `false`: the producer was dropped unfinished.
fn produce(
    token: Producer<Handle>,
    abort_at: Option<usize>,
    until_closed: bool,
    query: &Arc<Query>,
    ledger: &Arc<Ledger>,
) -> bool {
    let mut task = Task::new(query);
    let (sink, state) = (token.index(), token.0.clone());
    let item = |number| Item::new(ledger, sink, number, 1);
    for number in 0..ITEMS {
        if task.is_cancelled() || abort_at == Some(number) {
            return false;
        }
        if number + 1 == ITEMS && state.fault == Fault::AddsAfterTheEnd {
            token.finish();
            state.add(item(number));
            return true;
        }
        state.add(item(number));
    }
    if until_closed {
        // A producer with an endless input learns from this gate that no consumer is left.
        task.wait(token.closed());
    }
    if task.is_cancelled() || abort_at == Some(ITEMS) {
        return false;
    }
    token.finish();
    true
}

/// The result of a consumer that did not leave; `None` for an abort.
fn consume(token: &Consumer<Handle>, leaves: bool, query: &Arc<Query>) -> Option<Option<usize>> {
    let mut task = Task::new(query);
    let gate = token.0.gates.source(token.index());
    loop {
        if leaves || task.is_cancelled() {
            return None;
        }
        match token.0.rows(gate) {
            ClaimResult::Work(rows) => return Some(Some(rows)),
            ClaimResult::Blocked(gate) => task.wait(&gate),
            ClaimResult::Aborted => return Some(None),
            ClaimResult::Finished => unreachable!("the state answers with rows"),
        }
    }
}

fn run(ending: Ending, fault: Fault) {
    let query = Query::new();
    let ledger = Arc::<Ledger>::default();
    let gates = ManyToMany::new("items", PRODUCERS, CONSUMERS);
    let state = Handle(Arc::new(Items { gates, inner: StateLock::default(), fault }));
    let (producers, consumers) = tokens("items", state, PRODUCERS, CONSUMERS);
    let aborting = (ending == Ending::Abort).then(|| below(PRODUCERS));
    let leaver = (ending == Ending::Leave).then(|| below(CONSUMERS));
    let producers = producers.into_iter().map(|token| {
        let (query, ledger) = (query.clone(), ledger.clone());
        let abort_at = (aborting == Some(token.index())).then(|| below(ITEMS + 1));
        let until_closed = ending.all_leave() && below(2) == 0;
        thread::spawn(move || produce(token, abort_at, until_closed, &query, &ledger))
    });
    let producers: Vec<_> = producers.collect();
    let consumers = consumers.into_iter().map(|token| {
        let query = query.clone();
        let leaves = ending.all_leave() || leaver == Some(token.index());
        thread::spawn(move || consume(&token, leaves, &query))
    });
    let consumers: Vec<_> = consumers.collect();
    if ending.cancels() {
        query.cancel();
    }
    let ends: Vec<_> = producers.into_iter().map(|end| end.join().unwrap()).collect();
    let read: Vec<_> = consumers.into_iter().map(|end| end.join().unwrap()).collect();
    let whole = ends.iter().all(|finished| *finished);
    for result in read.iter().flatten() {
        match result {
            Some(rows) => {
                assert!(whole, "an aborted producer looks finished");
                // Item `number` has `number + 1` rows.
                assert_eq!(*rows, PRODUCERS * (1..=ITEMS).sum::<usize>(), "rows were lost");
            }
            None => assert!(!whole, "a finished producer looks aborted"),
        }
    }
    if ending == Ending::Finish {
        assert!(whole && read.iter().all(Option::is_some));
    }
    assert_eq!(ledger.live_bytes(), 0, "items were left over");
}

#[test]
fn a_state_over_tokens() {
    check_all(|ending| run(ending, Fault::None));
}

fn caught(fault: Fault, ending: Ending, why: &str) {
    must_fail(why, move || run(ending, fault));
}

#[test]
fn an_item_after_the_end_is_lost() {
    caught(Fault::AddsAfterTheEnd, Ending::Finish, "rows were lost");
}

#[test]
fn a_state_that_is_complete_too_early_loses_rows() {
    caught(Fault::FirstEndCompletes, Ending::Finish, "rows were lost");
}

#[test]
fn an_abort_that_looks_finished_is_seen() {
    let seen = "an aborted producer looks finished";
    caught(Fault::AbortLooksFinished, Ending::Abort, seen);
    caught(Fault::AbortLooksFinished, Ending::Cancel, seen);
}

#[test]
fn gates_that_open_too_early_make_tasks_spin() {
    caught(Fault::OpensBeforeTheEnd, Ending::Finish, "spins on a ready gate");
}

#[test]
fn a_silent_abort_blocks_consumers() {
    caught(Fault::AbortOpensNothing, Ending::Abort, "deadlock");
}
