//! Join: collect, finalize, build, probe, unmatched scan, with every way to leave in every phase.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use gatework_shared_state::{
    Gate,
    join_bridge::{self, BuildProducer, BuildStep, ProbeConsumer, UnmatchedScan},
};
use shuttle::thread;

use crate::support::{Ending, Item, Ledger, Query, Task, below, check, check_all};

const BUILD_MORSELS: usize = 2;
const SCAN_MORSELS: usize = 3;

/// A table: the parts, and how often each build morsel was done.
struct Table {
    parts: Vec<Item>,
    built: [AtomicUsize; BUILD_MORSELS],
    probing: AtomicUsize,
    scanned: [AtomicUsize; SCAN_MORSELS],
}

type Producer = BuildProducer<Item, Table>;
type Consumer = ProbeConsumer<Item, Table>;

/// The step at which a consumer leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    Never,
    /// Before its first build step.
    First,
    /// With an outstanding build step.
    WithOutstandingStep,
    /// During `Finalize`, which it hands over to another consumer.
    HandingOverFinalize,
    /// When the table is ready, before its probe ends.
    WhileProbing,
    /// After its probe, before the unmatched scan.
    BeforeUnmatchedScan,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Finished,
    SawAbort,
    /// It left with an outstanding build step, so the join cannot go on.
    LeftOutstandingStep,
    /// It left before its probe ended, so its matches are unknown.
    LeftEarly,
    LeftAfterProbe,
}

/// Counters of the consumers, outside of the state.
#[derive(Default)]
struct Seen {
    finalized: AtomicUsize,
}

/// `false`: the producer was dropped without publishing.
fn publish(
    sink: Producer,
    number: usize,
    aborts: bool,
    query: &Arc<Query>,
    ledger: &Arc<Ledger>,
) -> bool {
    if aborts || query.is_cancelled() {
        return false;
    }
    sink.publish(Item::new(ledger, number, 0, 1));
    true
}

/// Builds until the table is ready.
fn build(
    source: &mut Consumer,
    leave: Leave,
    morsels: usize,
    seen: &Seen,
    task: &mut Task,
) -> Result<Arc<Table>, End> {
    loop {
        if task.is_cancelled() {
            return Err(End::LeftEarly);
        }
        match source.next_build_step() {
            BuildStep::Finalize(_) | BuildStep::Morsel(..)
                if leave == Leave::WithOutstandingStep =>
            {
                return Err(End::LeftOutstandingStep);
            }
            BuildStep::Finalize(parts) if leave == Leave::HandingOverFinalize => {
                source.hand_over_finalize(parts);
                return Err(End::LeftEarly);
            }
            BuildStep::Finalize(mut parts) => {
                parts.sort_by_key(Item::id);
                seen.finalized.fetch_add(1, Ordering::SeqCst);
                let table = Table {
                    parts,
                    built: Default::default(),
                    probing: AtomicUsize::new(0),
                    scanned: Default::default(),
                };
                source.finish_finalize(table, morsels);
                task.progress();
            }
            BuildStep::Morsel(table, morsel) => {
                table.built[morsel].fetch_add(1, Ordering::SeqCst);
                if source.finish_build_morsel() {
                    assert!(!source.built_gate().is_ready(), "published before it was built");
                    source.publish_table();
                }
                task.progress();
            }
            BuildStep::Blocked(gate) => task.wait(&gate),
            BuildStep::Ready(table) => {
                let built = table.built.iter().map(|times| times.load(Ordering::SeqCst));
                assert!(built.take(morsels).all(|times| times == 1), "a morsel was not built once");
                return Ok(table);
            }
            BuildStep::Aborted => return Err(End::SawAbort),
        }
    }
}

fn probe(
    mut source: Consumer,
    leave: Leave,
    morsels: usize,
    seen: &Seen,
    query: &Arc<Query>,
) -> (End, Option<Arc<Table>>) {
    let mut task = Task::new(query);
    if leave == Leave::First {
        return (End::LeftEarly, None);
    }
    let table = match build(&mut source, leave, morsels, seen, &mut task) {
        Ok(table) => table,
        Err(end) => return (end, None),
    };
    task.progress();
    table.probing.fetch_add(1, Ordering::SeqCst);
    if leave == Leave::WhileProbing || task.is_cancelled() {
        // Dropped before it learns of the cancel, as during an unwind.
        table.probing.fetch_sub(1, Ordering::SeqCst);
        return (End::LeftEarly, Some(table));
    }
    thread::yield_now();
    table.probing.fetch_sub(1, Ordering::SeqCst);
    source.finish_probe(SCAN_MORSELS);
    if leave == Leave::BeforeUnmatchedScan {
        return (End::LeftAfterProbe, Some(table));
    }
    loop {
        if task.is_cancelled() {
            return (End::LeftAfterProbe, Some(table));
        }
        match source.next_unmatched_scan() {
            UnmatchedScan::Morsel(table, morsel) => {
                assert_eq!(table.probing.load(Ordering::SeqCst), 0, "scanned while others probe");
                table.scanned[morsel].fetch_add(1, Ordering::SeqCst);
                task.progress();
            }
            UnmatchedScan::Blocked(gate) => task.wait(&gate),
            UnmatchedScan::Finished => return (End::Finished, Some(table)),
            UnmatchedScan::Aborted => return (End::SawAbort, Some(table)),
        }
    }
}

/// How each of the consumers leaves.
fn leaves(ending: Ending, sources: usize) -> Vec<Leave> {
    let any = || {
        [
            Leave::First,
            Leave::WithOutstandingStep,
            Leave::HandingOverFinalize,
            Leave::WhileProbing,
            Leave::BeforeUnmatchedScan,
        ][below(5)]
    };
    let leaver = below(sources);
    (0..sources)
        .map(|source| match ending {
            Ending::Leave if source == leaver => any(),
            Ending::AllLeave | Ending::LeaveAndCancel => any(),
            _ => Leave::Never,
        })
        .collect()
}

fn watch(gate: Gate, query: &Arc<Query>) -> thread::JoinHandle<()> {
    let query = query.clone();
    thread::spawn(move || Task::new(&query).wait(&gate))
}

fn run(ending: Ending) {
    let query = Query::new();
    let ledger = Arc::<Ledger>::default();
    let seen = Arc::<Seen>::default();
    let morsels = below(BUILD_MORSELS + 1);
    let (sinks, sources) = join_bridge::new::<Item, Table>("join", 2, 2);
    // Observers of the build gate are woken on every way out.
    let filter = watch(sources[0].built_gate().clone(), &query);
    let closed = watch(sinks[0].closed().clone(), &query);
    let aborting = (ending == Ending::Abort).then(|| below(2));
    let sinks: Vec<_> = (0..)
        .zip(sinks)
        .map(|(number, sink)| {
            let (query, ledger) = (query.clone(), ledger.clone());
            let aborts = aborting == Some(number);
            thread::spawn(move || publish(sink, number, aborts, &query, &ledger))
        })
        .collect();
    let sources: Vec<_> = leaves(ending, 2)
        .into_iter()
        .zip(sources)
        .map(|(leave, source)| {
            let (query, seen) = (query.clone(), seen.clone());
            thread::spawn(move || probe(source, leave, morsels, &seen, &query))
        })
        .collect();
    if ending.cancels() {
        query.cancel();
    }
    let published: Vec<_> = sinks.into_iter().map(|sink| sink.join().unwrap()).collect();
    let read: Vec<_> = sources.into_iter().map(|source| source.join().unwrap()).collect();
    filter.join().unwrap();
    closed.join().unwrap();
    check_ends(ending, &published, &read);
    assert!(seen.finalized.load(Ordering::SeqCst) <= 1, "finalized twice");
    drop(read);
    assert_eq!(ledger.live_bytes(), 0, "items were left over");
}

fn check_ends(ending: Ending, published: &[bool], read: &[(End, Option<Arc<Table>>)]) {
    let whole = published.iter().all(|published| *published);
    let outstanding = read.iter().any(|(end, _)| *end == End::LeftOutstandingStep);
    let finished = read.iter().filter(|(end, _)| *end == End::Finished).count();
    if finished > 0 {
        assert!(whole && !outstanding, "an aborted producer looks finished");
    }
    if whole && !outstanding && !ending.cancels() {
        let aborts = read.iter().filter(|(end, _)| *end == End::SawAbort).count();
        assert_eq!(aborts, 0, "a finished producer looks aborted");
    }
    for table in read.iter().filter_map(|(_, table)| table.as_ref()) {
        let parts: Vec<_> = table.parts.iter().map(|item| item.id().0).collect();
        assert_eq!(parts, [0, 1], "rows of the build side were lost");
        let scanned = table.scanned.each_ref().map(|times| times.load(Ordering::SeqCst));
        assert!(scanned.iter().all(|times| *times <= 1), "a morsel was scanned twice");
        if read.iter().any(|(end, _)| *end == End::LeftEarly) {
            assert_eq!(scanned, [0; SCAN_MORSELS], "scanned what a prober may have matched");
        } else if finished > 0 {
            assert_eq!(scanned, [1; SCAN_MORSELS], "unmatched rows were lost");
        }
    }
    if ending == Ending::Finish {
        assert_eq!(finished, read.len());
    }
}

#[test]
fn join() {
    check_all(run);
}

/// A consumer that leaves while the build side is collected must not make the others spin.
#[test]
fn leaving_early_does_not_make_others_spin() {
    check(|| {
        let query = Query::new();
        let ledger = Arc::<Ledger>::default();
        let (mut sinks, mut sources) = join_bridge::new::<Item, Table>("join", 1, 2);
        drop(sources.pop());
        let mut source = sources.remove(0);
        let prober = thread::spawn({
            let query = query.clone();
            move || {
                let mut task = Task::new(&query);
                build(&mut source, Leave::Never, 0, &Seen::default(), &mut task).is_ok()
            }
        });
        for _ in 0..200 {
            thread::yield_now();
        }
        assert!(publish(sinks.remove(0), 0, false, &query, &ledger));
        assert!(prober.join().unwrap());
    });
}
