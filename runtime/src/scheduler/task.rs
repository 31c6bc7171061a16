//! One task: its wake-up states, its body, its waker.
//!
//! ```text
//!            wake            begin                 suspend
//!   Idle ───────────▶ Queued ─────▶ Running ───────────────────▶ Idle
//!                        ▲             │ wake
//!                        │  suspend    ▼                finish
//!                        └──────── Notified   Running, Notified ─────▶ Done
//! ```
//!
//! * Who may change what: `wake` is anyone's; `begin` is a worker's that took the task from the
//!   queue; `suspend`, `requeue` and `finish` are the one runner's.
//! * A task that is woken while it runs becomes `Notified` and is queued once, when it leaves its
//!   worker: it is never queued twice and never run by two workers.
//! * A cancelled task may be queued a second time (in front). `begin` then fails for the entry that
//!   comes later, because the state is no longer `Queued` on behalf of that entry.
//! * No lost wake-up: the runner registers its waker on the gates while it is still `Running`. A
//!   gate that opens before the registration is seen by the registration; one that opens after it
//!   wakes the task, which is `Running` (then `Notified`, so `suspend` fails) or `Idle` (queued).

use std::{
    any::Any,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock, Weak},
    task::{Wake, Waker},
    time::{Duration, Instant},
};

use gatework_shared_state::{
    Gate,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
};
use smallvec::{SmallVec, smallvec};

use super::{executor::Registry, resource_group::ResourceGroup};

/// One gate or any of a few: what a blocked runnable waits for. Never empty.
#[derive(Debug, Clone)]
pub struct Gates(SmallVec<[Gate; 2]>);

impl Gates {
    /// Waits for `gate`.
    pub fn single(gate: Gate) -> Self {
        Self(smallvec![gate])
    }

    /// Waits for any of these gates or `gate`.
    #[must_use]
    pub fn or(mut self, gate: Gate) -> Self {
        self.0.push(gate);
        self
    }

    /// Waits for any gate of both.
    #[must_use]
    pub fn union(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// The gates.
    pub fn iter(&self) -> impl Iterator<Item = &Gate> {
        self.0.iter()
    }

    /// Registers `waker` on all gates; `true` if one of them is open already. A gate behind an open one
    /// needs no registration, since the task runs at once.
    pub fn poll_any_ready(&self, waker: &Waker) -> bool {
        self.poll_any_ready_at(waker.clone(), Instant::now())
    }

    /// [`poll_any_ready`](Self::poll_any_ready) for a caller that gives its waker away and knows the
    /// time.
    pub fn poll_any_ready_at(&self, waker: Waker, now: Instant) -> bool {
        let Some((last, others)) = self.0.split_last() else { return true };
        others.iter().any(|gate| gate.poll_ready_at(waker.clone(), now))
            || last.poll_ready_at(waker, now)
    }
}

impl From<Gate> for Gates {
    fn from(gate: Gate) -> Self {
        Self::single(gate)
    }
}

/// Why a runnable came back.
#[derive(Debug)]
pub enum RunResult {
    /// Its time slice ended; it wants to go on.
    Yield,
    /// It can go on when one of the gates is open.
    Blocked(Gates),
    /// It is done and will not be run again.
    Done,
}

/// What a worker runs.
pub trait Runnable: Send {
    /// Runs until it yields, is blocked or is done, on worker number `worker`.
    fn run(&mut self, worker: usize) -> RunResult;

    /// Takes a panic of [`run`](Self::run). The runnable is dropped afterwards.
    fn panicked(&mut self, payload: Box<dyn Any + Send>);
}

/// Told when no task of a group can run: none is in the queue or on a worker.
pub(crate) trait OnIdle: Send + Sync {
    /// Looks into it. A task may have been woken since.
    fn idle(&self);
}

const ONE_WAKE_UP: u64 = 1 << 32;
const ACTIVE_MASK: u64 = ONE_WAKE_UP - 1;

/// Tasks that share their place in the queue's order: those of one query.
#[derive(Default)]
pub struct TaskGroup {
    consumed_nanos: AtomicU64,
    /// Tasks in the queue or on a worker, in the lower half; one that is just being woken may not be counted
    /// yet, one that has just left may still be. In the upper half, how often one was woken.
    active: AtomicU64,
    on_idle: OnceLock<Weak<dyn OnIdle>>,
    resource_group: Option<Arc<ResourceGroup>>,
}

impl fmt::Debug for TaskGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskGroup")
            .field("consumed", &self.consumed())
            .field("active", &(self.active.load(Ordering::Relaxed) & ACTIVE_MASK))
            .finish_non_exhaustive()
    }
}

impl TaskGroup {
    /// A group that has consumed nothing.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A group that has consumed nothing, of queries that share limits.
    pub fn in_resource_group(resource_group: Arc<ResourceGroup>) -> Arc<Self> {
        Arc::new(Self { resource_group: Some(resource_group), ..Self::default() })
    }

    pub(super) fn resource_group(&self) -> Option<&Arc<ResourceGroup>> {
        self.resource_group.as_ref()
    }

    /// Worker time that the group's tasks have used.
    pub fn consumed(&self) -> Duration {
        Duration::from_nanos(self.consumed_nanos.load(Ordering::Relaxed))
    }

    pub(super) fn charge(&self, spent: Duration) {
        // Relaxed: a statistic that only steers priorities.
        self.consumed_nanos.fetch_add(spent.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Has `on_idle` told when none of its tasks can run.
    pub(crate) fn set_on_idle(&self, on_idle: Weak<dyn OnIdle>) {
        let _first = self.on_idle.set(on_idle);
    }

    fn task_runnable(&self) {
        // Relaxed: the task's state says whether it can run; this only says when to look.
        self.active.fetch_add(ONE_WAKE_UP + 1, Ordering::Relaxed);
    }

    /// A number that changes whenever a task is woken. Who saw the task suspended again sees the change.
    pub(crate) fn wake_ups(&self) -> u64 {
        self.active.load(Ordering::Acquire) / ONE_WAKE_UP
    }

    fn task_blocked(&self) {
        // Whoever takes the last one out has seen how all others left.
        if self.active.fetch_sub(1, Ordering::AcqRel) & ACTIVE_MASK == 1
            && let Some(on_idle) = self.on_idle.get().and_then(Weak::upgrade)
        {
            on_idle.idle();
        }
    }
}

const IDLE: u8 = 0;
const QUEUED: u8 = 1;
const RUNNING: u8 = 2;
const NOTIFIED: u8 = 3;
const DONE: u8 = 4;

/// A task's wake-up state, as shown in dumps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskState {
    /// Not started, or blocked on gates.
    Blocked,
    /// In the queue.
    Runnable,
    /// On a worker.
    Running,
    /// Finished.
    Finished,
}

/// The atomic at the centre of the protocol above.
#[derive(Debug)]
pub struct WakeState(AtomicU8);

impl Default for WakeState {
    fn default() -> Self {
        Self::new()
    }
}

impl WakeState {
    /// A task that nobody has woken yet.
    pub fn new() -> Self {
        Self(AtomicU8::new(IDLE))
    }

    /// Notes a wake-up. `true`: the caller must queue the task.
    #[must_use]
    pub fn wake(&self) -> bool {
        // AcqRel here and in all transitions: each synchronises with the one before, so what the
        // waker did is seen by the run it causes, and what a run did by the next run. That is why
        // there is a write even where nothing changes: a load alone could see a `Queued` that is
        // long over, or leave what the waker did unseen by the run that is about to begin.
        let previous =
            self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| match state {
                IDLE => Some(QUEUED),
                RUNNING => Some(NOTIFIED),
                QUEUED | NOTIFIED => Some(state),
                _ => None,
            });
        previous == Ok(IDLE)
    }

    /// Claims a task taken from the queue. `false`: this entry is stale, drop it.
    #[must_use]
    pub fn begin(&self) -> bool {
        self.0.compare_exchange(QUEUED, RUNNING, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Leaves the worker blocked. `false`: it was woken meanwhile and is `Queued`; queue it.
    #[must_use]
    pub fn suspend(&self) -> bool {
        if self.0.compare_exchange(RUNNING, IDLE, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            return true;
        }
        self.requeue();
        false
    }

    /// Leaves the worker runnable: the caller must queue it.
    pub fn requeue(&self) {
        // Not a store: this acquires what came with a wake-up and hands it on to the next run.
        self.0.swap(QUEUED, Ordering::AcqRel);
    }

    /// Leaves the worker for ever.
    pub fn finish(&self) {
        self.0.store(DONE, Ordering::Release);
    }

    /// The state at this moment.
    pub fn state(&self) -> TaskState {
        match self.0.load(Ordering::Acquire) {
            IDLE => TaskState::Blocked,
            QUEUED => TaskState::Runnable,
            DONE => TaskState::Finished,
            _ => TaskState::Running,
        }
    }
}

/// Counters of one task's life on the workers. Only its runner writes them.
#[derive(Debug, Default)]
pub(crate) struct TaskCounters {
    pub(crate) runs: AtomicU64,
    pub(crate) yields: AtomicU64,
    pub(crate) blocks: AtomicU64,
    pub(crate) busy_nanos: AtomicU64,
    /// Runs that a worker took from another worker's queue.
    pub(crate) steals: AtomicU64,
}

pub(crate) struct Task {
    wake_state: WakeState,
    /// Cancelled: goes to the front of the queue.
    urgent: AtomicBool,
    /// Locked by the one runner; who wants to know what a blocked task waits for tries to.
    body: Mutex<Body>,
    pub(super) group: Arc<TaskGroup>,
    pub(super) counters: TaskCounters,
    /// The worker that ran it last, plus one; 0 before the first run.
    pub(super) last_worker: AtomicUsize,
    registry: Weak<Registry>,
}

struct Body {
    /// `None` when it is done.
    runnable: Option<Box<dyn Runnable>>,
    /// What it waits for, if it is blocked.
    waits: Option<Gates>,
}

/// Adds to a counter that nobody else writes.
pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Ordering::Relaxed) + count, Ordering::Relaxed);
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("state", &self.wake_state.state()).finish_non_exhaustive()
    }
}

impl Task {
    pub(super) fn new(
        registry: &Arc<Registry>,
        group: Arc<TaskGroup>,
        body: Box<dyn Runnable>,
    ) -> Arc<Self> {
        Arc::new(Self {
            wake_state: WakeState::new(),
            urgent: AtomicBool::new(false),
            body: Mutex::new(Body { runnable: Some(body), waits: None }),
            group,
            counters: TaskCounters::default(),
            last_worker: AtomicUsize::new(0),
            registry: Arc::downgrade(registry),
        })
    }

    pub(super) fn is_urgent(&self) -> bool {
        self.urgent.load(Ordering::Relaxed)
    }

    pub(super) fn registry(&self) -> &Weak<Registry> {
        &self.registry
    }

    /// Runs a task taken from the queue, once. The worker's time has been spent on it since `started`;
    /// answers until when.
    pub(super) fn run(
        self: Arc<Self>,
        registry: &Arc<Registry>,
        worker: usize,
        started: Instant,
    ) -> Instant {
        if !self.wake_state.begin() {
            return started;
        }
        let mut body = self.body.lock();
        let result = self.run_body(&mut body, worker);
        let now = Instant::now();
        self.charge(registry, now.duration_since(started));
        match result {
            RunResult::Yield => {
                drop(body);
                add(&self.counters.yields, 1);
                self.wake_state.requeue();
                registry.push_yielded(self);
            }
            RunResult::Blocked(gates) => {
                add(&self.counters.blocks, 1);
                // Registers on the gates while still `Running`, then leaves.
                let waker = Waker::from(self.clone());
                let ready = body.waits.insert(gates).poll_any_ready_at(waker, now);
                drop(body);
                if ready {
                    self.wake_state.requeue();
                    registry.push(self);
                } else if self.wake_state.suspend() {
                    self.group.task_blocked();
                } else {
                    registry.push(self);
                }
            }
            RunResult::Done => {
                // A gate that never opens keeps its wakers, and so this task, for as long as it
                // lives: the task must not keep the gate in turn.
                let left = (body.runnable.take(), body.waits.take());
                drop(body);
                self.wake_state.finish();
                // Counted as ended before the body goes, so that whoever learns of the end from the
                // body's destructor finds no task alive.
                registry.task_ended();
                // A destructor that panics must not take the worker with it.
                let _contained = catch_unwind(AssertUnwindSafe(|| drop(left)));
                self.group.task_blocked();
            }
        }
        now
    }

    fn run_body(&self, body: &mut Body, worker: usize) -> RunResult {
        add(&self.counters.runs, 1);
        let Some(runnable) = body.runnable.as_mut() else { return RunResult::Done };
        match catch_unwind(AssertUnwindSafe(|| runnable.run(worker))) {
            Ok(result) => result,
            Err(payload) => {
                let _contained = catch_unwind(AssertUnwindSafe(|| runnable.panicked(payload)));
                RunResult::Done
            }
        }
    }

    fn charge(&self, registry: &Registry, spent: Duration) {
        self.group.charge(spent);
        add(&self.counters.busy_nanos, spent.as_nanos() as u64);
        registry.queue.charge(&self.group, spent);
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        if self.wake_state.wake() {
            self.group.task_runnable();
            Registry::push_woken(self);
        }
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.wake_state.wake() {
            self.group.task_runnable();
            Registry::push_woken(self.clone());
        }
    }
}

/// A handle to a spawned task. Dropping it does not end the task.
#[derive(Debug, Clone)]
pub struct TaskHandle(pub(super) Arc<Task>);

impl TaskHandle {
    /// Makes the task runnable, as a gate would.
    pub fn wake(&self) {
        self.0.wake_by_ref();
    }

    /// Makes the task runnable in front of all others: it was cancelled.
    pub fn wake_urgently(&self) {
        self.0.urgent.store(true, Ordering::Relaxed);
        let Some(registry) = self.0.registry.upgrade() else { return };
        // An entry in front for a task that waits in a long queue; the old entry goes stale.
        if self.0.wake_state.wake() {
            self.0.group.task_runnable();
            registry.push(self.0.clone());
        } else if self.0.wake_state.state() == TaskState::Runnable {
            registry.push(self.0.clone());
        }
    }

    /// Its state.
    pub fn state(&self) -> TaskState {
        self.0.wake_state.state()
    }

    /// The gates it waits for, if it is blocked.
    pub fn waits_for(&self) -> Option<Gates> {
        // Whoever holds the body runs it.
        let body = self.0.body.try_lock()?;
        body.waits.as_ref().filter(|_| self.state() == TaskState::Blocked).cloned()
    }

    /// The worker that ran it last.
    pub(crate) fn last_worker(&self) -> Option<usize> {
        self.0.last_worker.load(Ordering::Relaxed).checked_sub(1)
    }

    pub(crate) fn counters(&self) -> &TaskCounters {
        &self.0.counters
    }
}
