//! The model of every state through which items flow: sinks push, sources take, a limit bounds
//! bytes.

use std::{collections::BTreeSet, sync::Arc};

use gatework_shared_state::{PopResult, PushResult, exchange::ExchangeStats};
use shuttle::thread;

use crate::support::{Ending, Item, Ledger, Query, Task, below};

/// The sink side of a state under test.
pub(crate) trait SinkEnd: Send + 'static {
    fn push(&mut self, item: Item) -> PushResult;
    /// Returns whether there is capacity, for states with such a function.
    fn poll_capacity(&mut self) -> Option<PushResult> {
        None
    }
    fn finish(self);
}

/// The source side of a state under test.
pub(crate) trait SourceEnd: Send + 'static {
    fn take(&mut self) -> PopResult<Item>;
    /// Returns the statistics, for states that have them.
    fn stats(&self) -> Option<ExchangeStats> {
        None
    }
}

/// The sources that get item `number`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Source `number % sources`.
    Routed,
    /// One of the sources.
    Any,
    /// Every source; the item's bytes count once.
    All,
    /// Every source; the item's bytes count once per source.
    Copied,
    /// Source 0; the others finish at once.
    First,
}

/// A run of the model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) ending: Ending,
    pub(crate) reach: Reach,
    pub(crate) sinks: usize,
    pub(crate) sources: usize,
    pub(crate) items: usize,
    pub(crate) limit_bytes: usize,
    pub(crate) item_bytes: usize,
}

impl Plan {
    /// Creates a plan with a random limit and item size; sizes include 1 byte and more than the
    /// limit.
    pub(crate) fn new(ending: Ending, reach: Reach, sinks: usize, sources: usize) -> Self {
        let limit_bytes = [1, 10, 25][below(3)];
        let item_bytes = [1, 10, 1000][below(3)];
        Self { ending, reach, sinks, sources, items: 3, limit_bytes, item_bytes }
    }

    /// Returns the limit plus one item per sink.
    fn bound_bytes(&self) -> usize {
        let copies = if self.reach == Reach::Copied { self.sources } else { 1 };
        self.limit_bytes + self.sinks * self.item_bytes * copies
    }

    /// Returns whether `source` gets no items and may finish before its producers.
    fn is_idle(&self, source: usize) -> bool {
        self.reach == Reach::First && source > 0
    }

    /// Returns whether item `number` must reach `source`, if both sides finish.
    fn reaches(&self, number: usize, source: usize) -> bool {
        match self.reach {
            Reach::Routed => number % self.sources == source,
            Reach::All | Reach::Copied => true,
            Reach::First => source == 0,
            Reach::Any => false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sunk {
    Finished,
    /// No source was left, so it finished early.
    Early,
    Aborted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    Finished,
    SawAbort,
    Left,
}

fn produce(
    plan: Plan,
    sink: usize,
    mut end: impl SinkEnd,
    abort_at: Option<usize>,
    query: &Arc<Query>,
    ledger: &Arc<Ledger>,
) -> Sunk {
    let mut task = Task::new(query);
    for number in 0..plan.items {
        if task.is_cancelled() || abort_at == Some(number) {
            return Sunk::Aborted;
        }
        let mut answer = end.push(Item::new(ledger, sink, number, plan.item_bytes));
        task.progress();
        // A sink may ask for capacity or not: both must work.
        let asks = below(2) == 0;
        // A sink that finishes need not wait for capacity.
        let last = number + 1 == plan.items && asks;
        while let PushResult::Backpressure(gate) = &answer {
            if last {
                break;
            }
            task.wait(gate);
            if task.is_cancelled() {
                return Sunk::Aborted;
            }
            answer = if asks {
                end.poll_capacity().unwrap_or(PushResult::Accepted)
            } else {
                PushResult::Accepted
            };
        }
        if let PushResult::Closed = answer {
            end.finish();
            return Sunk::Early;
        }
    }
    if abort_at == Some(plan.items) {
        return Sunk::Aborted;
    }
    end.finish();
    Sunk::Finished
}

fn consume<S: SourceEnd>(
    mut end: S,
    leave_at: Option<usize>,
    query: &Arc<Query>,
) -> (Read, Vec<(usize, usize)>, Option<S>) {
    let mut task = Task::new(query);
    let mut taken = Vec::new();
    loop {
        if task.is_cancelled() || leave_at == Some(taken.len()) {
            return (Read::Left, taken, None);
        }
        match end.take() {
            PopResult::Item(item) => {
                taken.push(item.id());
                task.progress();
            }
            PopResult::Blocked(gate) => task.wait(&gate),
            PopResult::Finished => return (Read::Finished, taken, Some(end)),
            PopResult::Aborted => return (Read::SawAbort, taken, Some(end)),
        }
    }
}

/// Runs `plan` over the two sides of a state and checks what came out.
pub(crate) fn run<K: SinkEnd, S: SourceEnd>(plan: Plan, sinks: Vec<K>, sources: Vec<S>) {
    run_beside(plan, sinks, sources, || {});
}

/// Does what [`run`] does, then `beside` joins further threads of the model.
pub(crate) fn run_beside<K: SinkEnd, S: SourceEnd>(
    plan: Plan,
    sinks: Vec<K>,
    sources: Vec<S>,
    beside: impl FnOnce(),
) {
    let query = Query::new();
    let ledger = Arc::<Ledger>::default();
    let aborting = (plan.ending == Ending::Abort).then(|| below(plan.sinks));
    let leaver = (plan.ending == Ending::Leave).then(|| below(plan.sources));
    let sinks: Vec<_> = (0..)
        .zip(sinks)
        .map(|(sink, end)| {
            let (query, ledger) = (query.clone(), ledger.clone());
            let abort_at = (aborting == Some(sink)).then(|| below(plan.items + 1));
            thread::spawn(move || produce(plan, sink, end, abort_at, &query, &ledger))
        })
        .collect();
    let sources: Vec<_> = (0..)
        .zip(sources)
        .map(|(source, end)| {
            let query = query.clone();
            let leaves = leaver == Some(source) || plan.ending.all_leave();
            let leave_at = leaves.then(|| below(plan.items));
            thread::spawn(move || consume(end, leave_at, &query))
        })
        .collect();
    if plan.ending.cancels() {
        query.cancel();
    }
    let sunk: Vec<_> = sinks.into_iter().map(|sink| sink.join().unwrap()).collect();
    let read: Vec<_> = sources.into_iter().map(|source| source.join().unwrap()).collect();
    check_ends(&plan, &sunk, &read);
    check_items(&plan, &sunk, &read);
    check_bytes(&plan, &read, &ledger);
    drop(read);
    beside();
    assert_eq!(ledger.live_bytes(), 0, "items were left over");
}

type Reads<S> = [(Read, Vec<(usize, usize)>, Option<S>)];

fn check_ends<S>(plan: &Plan, sunk: &[Sunk], read: &Reads<S>) {
    let aborted = sunk.contains(&Sunk::Aborted);
    for (source, (end, ..)) in read.iter().enumerate() {
        match end {
            Read::Finished if !plan.is_idle(source) => {
                assert!(!aborted, "an aborted producer looks finished");
            }
            Read::SawAbort => assert!(aborted, "a finished producer looks aborted"),
            _ => {}
        }
    }
    if plan.ending == Ending::Finish {
        assert!(sunk.iter().all(|end| *end == Sunk::Finished), "{sunk:?}");
        assert!(read.iter().all(|(end, ..)| *end == Read::Finished));
    }
}

fn check_items<S>(plan: &Plan, sunk: &[Sunk], read: &Reads<S>) {
    for (_, taken, _) in read {
        for sink in 0..plan.sinks {
            let numbers = taken.iter().filter(|id| id.0 == sink).map(|id| id.1);
            assert!(numbers.is_sorted_by(|a, b| a < b), "a sink's items came out of order");
        }
    }
    let all = || (0..plan.sinks).flat_map(|sink| (0..plan.items).map(move |number| (sink, number)));
    let whole = sunk.iter().all(|end| *end == Sunk::Finished);
    for (source, (end, taken, _)) in read.iter().enumerate() {
        if whole && *end == Read::Finished {
            let expected = all().filter(|(_, number)| plan.reaches(*number, source));
            for id in expected {
                assert!(taken.contains(&id), "an item was lost");
            }
        }
    }
    if !matches!(plan.reach, Reach::All | Reach::Copied) {
        let taken: Vec<_> = read.iter().flat_map(|(_, taken, _)| taken.iter().copied()).collect();
        let distinct: BTreeSet<_> = taken.iter().copied().collect();
        assert_eq!(taken.len(), distinct.len(), "an item came twice");
        if whole && read.iter().all(|(end, ..)| *end == Read::Finished) {
            assert_eq!(distinct, all().collect(), "an item was lost");
        }
    }
}

fn check_bytes<S: SourceEnd>(plan: &Plan, read: &Reads<S>, ledger: &Ledger) {
    // Beside the items in the state, every task may have one item in hand.
    let in_hand = (plan.sinks + plan.sources) * plan.item_bytes;
    assert!(ledger.peak_bytes() <= plan.bound_bytes() + in_hand, "more bytes than the limit");
    for (end, _, source) in read {
        let Some(stats) = source.as_ref().and_then(SourceEnd::stats) else { continue };
        assert!(stats.peak_bytes <= plan.bound_bytes(), "more bytes than the limit");
        if read.iter().all(|(end, ..)| *end != Read::SawAbort) && *end == Read::Finished {
            let out = stats.rows_out + stats.rows_dropped;
            assert_eq!(stats.rows_in, out, "rows in are not rows out and rows dropped");
        }
    }
}
