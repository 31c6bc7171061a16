//! Intersect and except: one table, passed along a chain of producers to one consumer.

use std::sync::Arc;

use gatework_shared_state::{
    PopResult,
    set::{self, SetConsumer, SetProducer},
};
use shuttle::thread;

use crate::support::{Ending, Item, Ledger, Query, Task, below, check, check_all};

const CHILDREN: usize = 3;

/// The table: the items that each child added, in the order of the children.
type Table = Vec<Item>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Finished,
    SawAbort,
    /// It dropped its token: an abort, a cancel, or an early end.
    Left,
}

fn work(
    mut sink: SetProducer<Table>,
    child: usize,
    aborts: bool,
    query: &Arc<Query>,
    ledger: &Arc<Ledger>,
) -> End {
    let mut task = Task::new(query);
    loop {
        if task.is_cancelled() {
            return End::Left;
        }
        match sink.take() {
            PopResult::Item(mut table) => {
                if aborts {
                    return End::Left;
                }
                assert_eq!(table.len(), child, "the table skipped a child");
                table.push(Item::new(ledger, child, child, 1));
                sink.pass_to_next(table);
                return End::Finished;
            }
            PopResult::Blocked(gate) => task.wait(&gate),
            // The consumer was dropped.
            PopResult::Finished => return End::Left,
            PopResult::Aborted => return End::SawAbort,
        }
    }
}

fn read(mut source: SetConsumer<Table>, leaves: bool, query: &Arc<Query>) -> (End, usize) {
    let mut task = Task::new(query);
    let mut rows = 0;
    let max_attempts = below(3);
    for attempt in 0.. {
        if task.is_cancelled() || (leaves && attempt >= max_attempts) {
            return (End::Left, rows);
        }
        match source.take() {
            PopResult::Item(table) => {
                rows += table.len();
                task.progress();
            }
            PopResult::Blocked(_) if leaves => {}
            PopResult::Blocked(gate) => task.wait(&gate),
            PopResult::Finished => return (End::Finished, rows),
            PopResult::Aborted => return (End::SawAbort, rows),
        }
    }
    unreachable!("the loop above has no end of its own")
}

#[test]
fn set() {
    check_all(|ending| {
        let query = Query::new();
        let ledger = Arc::<Ledger>::default();
        let (sinks, source) = set::new("except", CHILDREN, Table::new());
        let aborting = (ending == Ending::Abort).then(|| below(CHILDREN));
        let leaves = ending == Ending::Leave || ending.all_leave();
        let children: Vec<_> = (0..)
            .zip(sinks)
            .map(|(child, sink)| {
                let (query, ledger) = (query.clone(), ledger.clone());
                let aborts = aborting == Some(child);
                thread::spawn(move || work(sink, child, aborts, &query, &ledger))
            })
            .collect();
        let reader = thread::spawn({
            let query = query.clone();
            move || read(source, leaves, &query)
        });
        if ending.cancels() {
            query.cancel();
        }
        let ends: Vec<_> = children.into_iter().map(|child| child.join().unwrap()).collect();
        let (end, rows) = reader.join().unwrap();
        let whole = ends.iter().all(|end| *end == End::Finished);
        if end == End::Finished {
            assert!(whole, "an aborted producer looks finished");
            assert_eq!(rows, CHILDREN, "rows were lost");
        }
        assert!(!whole || end != End::SawAbort, "a finished producer looks aborted");
        match ending {
            Ending::Finish => assert!(whole && end == End::Finished, "{ends:?}, {end:?}"),
            Ending::Abort => assert_eq!(end, End::SawAbort),
            _ => {}
        }
        assert_eq!(ledger.live_bytes(), 0, "items were left over");
    });
}

/// A child that waits for the table must not spin after the consumer was dropped.
#[test]
fn leaving_early_does_not_make_others_spin() {
    check(|| {
        let query = Query::new();
        let ledger = Arc::<Ledger>::default();
        let (mut sinks, source) = set::new("except", 2, Table::new());
        drop(source);
        let last = sinks.pop();
        let child = thread::spawn({
            let (query, ledger) = (query.clone(), ledger.clone());
            move || last.map(|last| work(last, 1, false, &query, &ledger))
        });
        for _ in 0..200 {
            thread::yield_now();
        }
        drop(sinks);
        assert_ne!(child.join().unwrap(), Some(End::Finished));
    });
}
