//! Helpers of the models: checks, tasks that wait on gates, a query that can be cancelled, and
//! items whose bytes count as long as they live.

use std::{
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc, Once,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Wake, Waker},
};

use gatework_shared_state::{Gate, Payload};
use shuttle::{
    Config, FailurePersistence, Runner,
    rand::{Rng, thread_rng},
    scheduler::{PctScheduler, RandomScheduler},
    sync::{Condvar, Mutex},
};

const RANDOM_SCHEDULES: usize = 2000;
const PCT_SCHEDULES: usize = 1000;
const PCT_DEPTH: usize = 3;
/// Number of schedules in which the faults are found. The seed below is fixed, so all runs are
/// equal.
const SCHEDULES_TO_FAIL: usize = 2000;
/// Upper bound for a task's successive waits that find a ready gate right after it was reported
/// blocked. Each time, another task must have made it ready meanwhile.
const MAX_SPINS: usize = 20;
const SEED: u64 = 0x6761_7465;

/// How a model ends. The schedule's random numbers choose which task ends it, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Every task works to its end.
    Finish,
    /// One sink is dropped unfinished.
    Abort,
    /// One source leaves early.
    Leave,
    /// All sources leave early.
    AllLeave,
    /// Another thread cancels the query: every task drops its token.
    Cancel,
    /// All sources leave early, and meanwhile the query is cancelled.
    LeaveAndCancel,
}

impl Ending {
    pub(crate) const ALL: [Self; 6] = [
        Self::Finish,
        Self::Abort,
        Self::Leave,
        Self::AllLeave,
        Self::Cancel,
        Self::LeaveAndCancel,
    ];

    pub(crate) fn all_leave(self) -> bool {
        matches!(self, Self::AllLeave | Self::LeaveAndCancel)
    }

    pub(crate) fn cancels(self) -> bool {
        matches!(self, Self::Cancel | Self::LeaveAndCancel)
    }
}

/// Checks `model` over random schedules. A failure prints the schedule, for `shuttle::replay`.
pub(crate) fn check(model: impl Fn() + Send + Sync + 'static) {
    let model = Arc::new(model);
    let again = model.clone();
    shuttle::check_random(move || model(), RANDOM_SCHEDULES);
    shuttle::check_pct(move || again(), PCT_SCHEDULES, PCT_DEPTH);
}

thread_local! {
    /// Number of waits that parked a task; a model runs on the thread that checks it.
    static PARKS: Cell<usize> = const { Cell::new(0) };
}

/// Checks `model` once for every [`Ending`], and that its tasks did wait in each.
pub(crate) fn check_all(model: impl Fn(Ending) + Copy + Send + Sync + 'static) {
    for ending in Ending::ALL {
        PARKS.set(0);
        check(move || model(ending));
        assert!(PARKS.get() > 0, "{ending:?}: no task ever waited, so the model says nothing");
    }
}

/// Checks that shuttle finds a failing schedule of `model` whose message contains `why`.
pub(crate) fn must_fail(why: &str, model: impl Fn() + Send + Sync + 'static) {
    thread_local! {
        static MUTED: Cell<bool> = const { Cell::new(false) };
    }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !MUTED.get() {
                report(info);
            }
        }));
    });
    let mut config = Config::new();
    config.failure_persistence = FailurePersistence::None;
    let model = Arc::new(model);
    let again = model.clone();
    let random = RandomScheduler::new_from_seed(SEED, SCHEDULES_TO_FAIL);
    let random = Runner::new(random, config.clone());
    let pct = Runner::new(PctScheduler::new_from_seed(SEED, PCT_DEPTH, SCHEDULES_TO_FAIL), config);
    MUTED.set(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| random.run(move || model())));
    let outcome = outcome.and_then(|_passed| {
        // Some faults need a task that runs ahead of all others, which PCT produces.
        panic::catch_unwind(AssertUnwindSafe(|| pct.run(move || again())))
    });
    MUTED.set(false);
    let Err(payload) = outcome else { panic!("the model does not see the fault") };
    let message = payload.downcast_ref::<String>().map(String::as_str);
    let message = message.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or_default();
    assert!(message.contains(why), "it failed for another reason: {message}");
}

/// Returns a number below `end`.
pub(crate) fn below(end: usize) -> usize {
    thread_rng().gen_range(0..end)
}

struct Parker {
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        *self.woken.lock().unwrap() = true;
        self.changed.notify_one();
    }
}

/// State shared by the tasks of a model: whether they were cancelled, and how to wake all of them.
pub(crate) struct Query {
    /// The wakers of the tasks; `None` once the query was cancelled.
    tasks: Mutex<Option<Vec<Waker>>>,
}

impl Query {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { tasks: Mutex::new(Some(Vec::new())) })
    }

    pub(crate) fn cancel(&self) {
        let tasks = self.tasks.lock().unwrap().take();
        tasks.into_iter().flatten().for_each(Waker::wake);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.tasks.lock().unwrap().is_none()
    }
}

/// One task of a model: a thread that waits on gates only.
pub(crate) struct Task {
    query: Arc<Query>,
    parker: Arc<Parker>,
    waker: Waker,
    /// Successive waits that found a ready gate.
    spins: usize,
}

impl Task {
    pub(crate) fn new(query: &Arc<Query>) -> Self {
        let parker = Arc::new(Parker { woken: Mutex::new(false), changed: Condvar::new() });
        let waker = Waker::from(parker.clone());
        if let Some(tasks) = &mut *query.tasks.lock().unwrap() {
            tasks.push(waker.clone());
        }
        Self { query: query.clone(), parker, waker, spins: 0 }
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.query.is_cancelled()
    }

    /// Waits until `gate` is ready or the query is cancelled.
    ///
    /// # Panics
    /// If the task waits repeatedly although the gate is ready: it would never leave its worker,
    /// and poll instead of waiting.
    pub(crate) fn wait(&mut self, gate: &Gate) {
        self.wait_any(&[gate]);
    }

    /// Does what [`wait`](Self::wait) does, for any of `gates`.
    pub(crate) fn wait_any(&mut self, gates: &[&Gate]) {
        self.spins += 1;
        assert!(self.spins < MAX_SPINS, "spins on a ready gate: {gates:?}");
        while !self.is_cancelled() && !gates.iter().any(|gate| gate.poll_ready(&self.waker)) {
            self.spins = 0;
            PARKS.set(PARKS.get() + 1);
            let mut woken = self.parker.woken.lock().unwrap();
            while !std::mem::take(&mut *woken) {
                woken = self.parker.changed.wait(woken).unwrap();
            }
        }
    }

    /// Records progress since the last wait.
    pub(crate) fn progress(&mut self) {
        self.spins = 0;
    }
}

/// Counts the bytes of live items. Not a part of the schedule, so `std`'s atomics suffice.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    live_bytes: AtomicUsize,
    peak_bytes: AtomicUsize,
}

impl Ledger {
    pub(crate) fn live_bytes(&self) -> usize {
        self.live_bytes.load(Ordering::SeqCst)
    }

    pub(crate) fn peak_bytes(&self) -> usize {
        self.peak_bytes.load(Ordering::SeqCst)
    }
}

#[derive(Debug)]
struct Body {
    sink: usize,
    number: usize,
    bytes: usize,
    ledger: Arc<Ledger>,
}

impl Drop for Body {
    fn drop(&mut self) {
        self.ledger.live_bytes.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

/// Item `number` of sink `sink`. Clones share its bytes.
#[derive(Debug, Clone)]
pub(crate) struct Item(Arc<Body>);

impl Item {
    pub(crate) fn new(ledger: &Arc<Ledger>, sink: usize, number: usize, bytes: usize) -> Self {
        let live = ledger.live_bytes.fetch_add(bytes, Ordering::SeqCst) + bytes;
        ledger.peak_bytes.fetch_max(live, Ordering::SeqCst);
        Self(Arc::new(Body { sink, number, bytes, ledger: ledger.clone() }))
    }

    /// The sink that made the item, and the item's number there.
    pub(crate) fn id(&self) -> (usize, usize) {
        (self.0.sink, self.0.number)
    }
}

impl Payload for Item {
    fn rows(&self) -> usize {
        1 + self.0.number
    }

    fn bytes(&self) -> usize {
        self.0.bytes
    }
}
