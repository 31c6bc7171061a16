//! Join: collect, prepare, build, probe, drain, with every way to leave in every phase.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use gatework_shared_state::{
    Gate,
    join::{self, Build, BuildSink, Drain, ProbeSource},
};
use shuttle::thread;

use crate::support::{Ending, Item, Ledger, Query, Task, below, check, check_all};

const BUILD_UNITS: usize = 2;
const DRAIN_UNITS: usize = 3;

/// A table: the parts, and how often each build unit was done.
struct Table {
    parts: Vec<Item>,
    built: [AtomicUsize; BUILD_UNITS],
    probing: AtomicUsize,
    drained: [AtomicUsize; DRAIN_UNITS],
}

type Sink = BuildSink<Item, Table>;
type Source = ProbeSource<Item, Table>;

/// At which step a source leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    Never,
    /// Before it asks what to do.
    First,
    /// With a step of the build in hand.
    OwingAStep,
    /// While it prepares the table, which it leaves to others.
    PassingOn,
    /// When the table is ready, before its probe ends.
    WhileProbing,
    /// After its probe, before it drains.
    BeforeDrain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Finished,
    SawAbort,
    /// It left with a step of the build in hand, so the join cannot go on.
    LeftOwing,
    /// It left before its probe ended, so nobody knows what it would have matched.
    LeftEarly,
    LeftAfterProbe,
}

/// What the sources count outside of the state.
#[derive(Default)]
struct Seen {
    prepared: AtomicUsize,
}

/// `false`: it left without publishing.
fn publish(
    sink: Sink,
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
    source: &mut Source,
    leave: Leave,
    units: usize,
    seen: &Seen,
    task: &mut Task,
) -> Result<Arc<Table>, End> {
    loop {
        if task.is_cancelled() {
            return Err(End::LeftEarly);
        }
        match source.build() {
            Build::Prepare(_) | Build::Unit(..) if leave == Leave::OwingAStep => {
                return Err(End::LeftOwing);
            }
            Build::Prepare(parts) if leave == Leave::PassingOn => {
                source.pass_on(parts);
                return Err(End::LeftEarly);
            }
            Build::Prepare(mut parts) => {
                parts.sort_by_key(Item::id);
                seen.prepared.fetch_add(1, Ordering::SeqCst);
                let table = Table {
                    parts,
                    built: Default::default(),
                    probing: AtomicUsize::new(0),
                    drained: Default::default(),
                };
                source.prepared(table, units);
                task.progress();
            }
            Build::Unit(table, unit) => {
                table.built[unit].fetch_add(1, Ordering::SeqCst);
                if source.built() {
                    assert!(!source.built_gate().is_ready(), "published before it was built");
                    source.publish();
                }
                task.progress();
            }
            Build::Blocked(gate) => task.wait(&gate),
            Build::Ready(table) => {
                let built = table.built.iter().map(|times| times.load(Ordering::SeqCst));
                assert!(built.take(units).all(|times| times == 1), "a unit was not built once");
                return Ok(table);
            }
            Build::Aborted => return Err(End::SawAbort),
        }
    }
}

fn probe(
    mut source: Source,
    leave: Leave,
    units: usize,
    seen: &Seen,
    query: &Arc<Query>,
) -> (End, Option<Arc<Table>>) {
    let mut task = Task::new(query);
    if leave == Leave::First {
        return (End::LeftEarly, None);
    }
    let table = match build(&mut source, leave, units, seen, &mut task) {
        Ok(table) => table,
        Err(end) => return (end, None),
    };
    task.progress();
    table.probing.fetch_add(1, Ordering::SeqCst);
    if leave == Leave::WhileProbing || task.is_cancelled() {
        // Gone before it is told, as it would be while it unwinds.
        table.probing.fetch_sub(1, Ordering::SeqCst);
        return (End::LeftEarly, Some(table));
    }
    thread::yield_now();
    table.probing.fetch_sub(1, Ordering::SeqCst);
    source.end_probe(DRAIN_UNITS);
    if leave == Leave::BeforeDrain {
        return (End::LeftAfterProbe, Some(table));
    }
    loop {
        if task.is_cancelled() {
            return (End::LeftAfterProbe, Some(table));
        }
        match source.drain() {
            Drain::Unit(table, unit) => {
                assert_eq!(table.probing.load(Ordering::SeqCst), 0, "drained while others probe");
                table.drained[unit].fetch_add(1, Ordering::SeqCst);
                task.progress();
            }
            Drain::Blocked(gate) => task.wait(&gate),
            Drain::Finished => return (End::Finished, Some(table)),
            Drain::Aborted => return (End::SawAbort, Some(table)),
        }
    }
}

/// How each of the sources leaves.
fn leaves(ending: Ending, sources: usize) -> Vec<Leave> {
    let any = || {
        [Leave::First, Leave::OwingAStep, Leave::PassingOn, Leave::WhileProbing, Leave::BeforeDrain]
            [below(5)]
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
    let units = below(BUILD_UNITS + 1);
    let (sinks, sources) = join::new::<Item, Table>("join", 2, 2);
    // Whoever waits for what is known of the build side is told on every way out.
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
            thread::spawn(move || probe(source, leave, units, &seen, &query))
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
    assert!(seen.prepared.load(Ordering::SeqCst) <= 1, "prepared twice");
    drop(read);
    assert_eq!(ledger.live_bytes(), 0, "items were left over");
}

fn check_ends(ending: Ending, published: &[bool], read: &[(End, Option<Arc<Table>>)]) {
    let whole = published.iter().all(|published| *published);
    let owed = read.iter().any(|(end, _)| *end == End::LeftOwing);
    let finished = read.iter().filter(|(end, _)| *end == End::Finished).count();
    if finished > 0 {
        assert!(whole && !owed, "an aborted producer looks finished");
    }
    if whole && !owed && !ending.cancels() {
        let aborts = read.iter().filter(|(end, _)| *end == End::SawAbort).count();
        assert_eq!(aborts, 0, "a finished producer looks aborted");
    }
    for table in read.iter().filter_map(|(_, table)| table.as_ref()) {
        let parts: Vec<_> = table.parts.iter().map(|item| item.id().0).collect();
        assert_eq!(parts, [0, 1], "rows of the build side were lost");
        let drained = table.drained.each_ref().map(|times| times.load(Ordering::SeqCst));
        assert!(drained.iter().all(|times| *times <= 1), "a unit was drained twice");
        if read.iter().any(|(end, _)| *end == End::LeftEarly) {
            assert_eq!(drained, [0; DRAIN_UNITS], "drained what a prober may have matched");
        } else if finished > 0 {
            assert_eq!(drained, [1; DRAIN_UNITS], "unmatched rows were lost");
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

/// A prober that leaves while the build side is collected must not send the others round in circles.
#[test]
fn leaving_early_does_not_make_others_spin() {
    check(|| {
        let query = Query::new();
        let ledger = Arc::<Ledger>::default();
        let (mut sinks, mut sources) = join::new::<Item, Table>("join", 1, 2);
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
