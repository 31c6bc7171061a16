//! One task: its wake-up states, its body and its waker.
//!
//! ```text
//!            wake            begin                 suspend
//!   Idle ───────────▶ Queued ─────▶ Running ───────────────────▶ Idle
//!                        ▲             │ wake
//!                        │  suspend    ▼                finish
//!                        └──────── Notified   Running, Notified ─────▶ Done
//! ```
//!
//! * Permitted callers: any thread calls `wake`; the worker that took the task from the queue calls
//!   `begin`; the worker that runs the task calls `suspend`, `requeue` and `finish`.
//! * A task that is woken while it runs becomes `Notified` and is queued once, when it leaves its
//!   worker. It is never queued twice and never run by two workers.
//! * A cancelled task may be queued a second time (in front). `begin` then fails for the later
//!   entry, because the state is no longer `Queued` on behalf of that entry.
//! * No lost wake-up: the worker registers the task's waker on the gates while the task is still
//!   `Running`. The registration sees a gate that became ready before it. A gate that becomes ready
//!   later wakes the task: from `Running` it becomes `Notified`, so `suspend` fails; from `Idle` it
//!   is queued.

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

use super::{registry::Registry, resource_group::ResourceGroup};

/// The gates of a blocked runnable: it can run again when any of them is ready. Never empty.
#[derive(Debug, Clone)]
pub struct Gates(SmallVec<[Gate; 2]>);

impl Gates {
    /// Creates a set of one gate.
    pub fn single(gate: Gate) -> Self {
        Self(smallvec![gate])
    }

    /// Adds `gate` to the set.
    #[must_use]
    pub fn or(mut self, gate: Gate) -> Self {
        self.0.push(gate);
        self
    }

    /// Adds all gates of `other` to the set.
    #[must_use]
    pub fn union(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// Returns the gates.
    pub fn iter(&self) -> impl Iterator<Item = &Gate> {
        self.0.iter()
    }

    /// Registers `waker` on all gates; returns `true` if one of them is ready. Gates behind a ready
    /// one get no registration, since the task runs at once.
    pub fn poll_any_ready(&self, waker: &Waker) -> bool {
        self.poll_any_ready_at(waker.clone(), Instant::now())
    }

    /// Does what [`poll_any_ready`](Self::poll_any_ready) does, for a caller that passes its waker
    /// by value and knows the time.
    pub fn poll_any_ready_at(&self, waker: Waker, now: Instant) -> bool {
        let Some((last, others)) = self.0.split_last() else { return true };
        others.iter().any(|gate| gate.poll_ready_at(waker.clone(), now))
            || last.poll_ready_at(waker, now)
    }
}

impl From<&Gate> for Gates {
    fn from(gate: &Gate) -> Self {
        Self::single(gate.clone())
    }
}

impl From<Gate> for Gates {
    fn from(gate: Gate) -> Self {
        Self::single(gate)
    }
}

/// Why a runnable returned to its worker.
#[derive(Debug)]
pub enum RunResult {
    /// Its time slice is used up; it can go on.
    Yield,
    /// It can go on when one of the gates is ready.
    Blocked(Gates),
    /// It is done and will not be run again.
    Done,
}

/// The unit that a worker runs.
pub trait Runnable: Send {
    /// Runs on worker `worker` until it yields, blocks or is done.
    fn run(&mut self, worker: usize) -> RunResult;

    /// Handles a panic of [`run`](Self::run). The runnable is dropped afterwards.
    fn panicked(&mut self, payload: Box<dyn Any + Send>);
}

/// Callback for a group without runnable tasks: none is in the queue or on a worker.
pub(crate) trait OnIdle: Send + Sync {
    /// Called when the last task of the group was blocked. A task may have been woken since.
    fn idle(&self);
}

const ONE_WAKE_UP: u64 = 1 << 32;
const ACTIVE_MASK: u64 = ONE_WAKE_UP - 1;

/// Tasks that share a priority in the queue: those of one query.
#[derive(Default)]
pub struct TaskGroup {
    consumed_nanos: AtomicU64,
    /// Lower half: number of tasks in the queue or on a worker. A task that is being woken may not
    /// be counted yet, and a task that has just blocked may still be. Upper half: number of
    /// wake-ups.
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
    /// Creates a group that has consumed no worker time.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Creates a group that has consumed no worker time, with the limits of `resource_group`.
    pub fn in_resource_group(resource_group: Arc<ResourceGroup>) -> Arc<Self> {
        Arc::new(Self { resource_group: Some(resource_group), ..Self::default() })
    }

    pub(super) fn resource_group(&self) -> Option<&Arc<ResourceGroup>> {
        self.resource_group.as_ref()
    }

    /// Returns the worker time that the group's tasks have used.
    pub fn consumed(&self) -> Duration {
        Duration::from_nanos(self.consumed_nanos.load(Ordering::Relaxed))
    }

    pub(super) fn charge(&self, spent: Duration) {
        // Relaxed: a statistic that only affects priorities.
        self.consumed_nanos.fetch_add(spent.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Sets the callback for the time when none of the group's tasks can run.
    pub(crate) fn set_on_idle(&self, on_idle: Weak<dyn OnIdle>) {
        let _first = self.on_idle.set(on_idle);
    }

    fn task_runnable(&self) {
        // Relaxed: the task's state says whether it can run; this count only triggers the check.
        self.active.fetch_add(ONE_WAKE_UP + 1, Ordering::Relaxed);
    }

    /// Returns the number of wake-ups so far. A thread that saw a task suspended again sees the
    /// wake-up that came before.
    pub(crate) fn wake_ups(&self) -> u64 {
        self.active.load(Ordering::Acquire) / ONE_WAKE_UP
    }

    fn task_blocked(&self) {
        // AcqRel: the thread that takes the count to 0 has seen what all other tasks did.
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

/// The atomic state of the protocol above.
#[derive(Debug)]
pub struct WakeState(AtomicU8);

impl Default for WakeState {
    fn default() -> Self {
        Self::new()
    }
}

impl WakeState {
    /// Creates the state of a task that was never woken.
    pub fn new() -> Self {
        Self(AtomicU8::new(IDLE))
    }

    /// Records a wake-up. `true`: the caller must queue the task.
    #[must_use]
    pub fn wake(&self) -> bool {
        // AcqRel here and in all transitions: each synchronises with the one before. So a run sees
        // what the waker that caused it did, and what the previous run did. This is why the state
        // is written even if it does not change. A load alone could see an outdated `Queued`, or
        // hide the waker's effects from the run that is about to begin.
        let previous =
            self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| match state {
                IDLE => Some(QUEUED),
                RUNNING => Some(NOTIFIED),
                QUEUED | NOTIFIED => Some(state),
                _ => None,
            });
        previous == Ok(IDLE)
    }

    /// Claims a task taken from the queue. `false`: this entry is stale and must be dropped.
    #[must_use]
    pub fn begin(&self) -> bool {
        self.0.compare_exchange(QUEUED, RUNNING, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Suspends the task as blocked. `false`: it was woken meanwhile, is `Queued`, and must be
    /// queued.
    #[must_use]
    pub fn suspend(&self) -> bool {
        if self.0.compare_exchange(RUNNING, IDLE, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            return true;
        }
        self.requeue();
        false
    }

    /// Leaves the worker as runnable: the caller must queue the task.
    pub fn requeue(&self) {
        // A swap, not a store: it acquires the effects of a wake-up and releases them to the next
        // run.
        self.0.swap(QUEUED, Ordering::AcqRel);
    }

    /// Marks the task as done.
    pub fn finish(&self) {
        self.0.store(DONE, Ordering::Release);
    }

    /// Returns the state at this moment.
    pub fn state(&self) -> TaskState {
        match self.0.load(Ordering::Acquire) {
            IDLE => TaskState::Blocked,
            QUEUED => TaskState::Runnable,
            DONE => TaskState::Finished,
            _ => TaskState::Running,
        }
    }
}

/// Run counters of one task. Only the worker that runs the task writes them.
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
    /// Whether the task was cancelled: it goes to the front of the queue.
    urgent: AtomicBool,
    /// Locked by the worker that runs the task. A dump of a blocked task's gates only tries the
    /// lock.
    body: Mutex<Body>,
    pub(super) group: Arc<TaskGroup>,
    pub(super) counters: TaskCounters,
    /// The worker of the last run, plus one; 0 before the first run.
    pub(super) last_worker: AtomicUsize,
    registry: Weak<Registry>,
}

struct Body {
    /// `None` when the task is done.
    runnable: Option<Box<dyn Runnable>>,
    /// The gates of a blocked task.
    waits: Option<Gates>,
}

/// Adds to a counter that has a single writer.
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

    /// Runs a task taken from the queue, once. Charges the worker's time since `started` to it, and
    /// returns the end of the run.
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
                // Registers on the gates while still `Running`, then suspends.
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
                // A gate that never becomes ready keeps its wakers, and so this task, alive. The
                // task must not keep the gate alive in turn.
                let left = (body.runnable.take(), body.waits.take());
                drop(body);
                self.wake_state.finish();
                // Counted as ended before the body is dropped: a thread that learns of the end from
                // the body's destructor then finds no live task.
                registry.task_ended();
                // A destructor that panics must not end the worker.
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
    /// Makes the task runnable, as a gate does.
    pub fn wake(&self) {
        self.0.wake_by_ref();
    }

    /// Makes the task runnable, in front of all others. Called when the query was cancelled.
    pub fn wake_urgently(&self) {
        self.0.urgent.store(true, Ordering::Relaxed);
        let Some(registry) = self.0.registry.upgrade() else { return };
        // A second entry at the front, for a task in a long queue; the old entry becomes stale.
        if self.0.wake_state.wake() {
            self.0.group.task_runnable();
            registry.push(self.0.clone());
        } else if self.0.wake_state.state() == TaskState::Runnable {
            registry.push(self.0.clone());
        }
    }

    /// Returns the task's state.
    pub fn state(&self) -> TaskState {
        self.0.wake_state.state()
    }

    /// Returns the gates of a blocked task.
    pub fn waits_for(&self) -> Option<Gates> {
        // A locked body is running.
        let body = self.0.body.try_lock()?;
        body.waits.as_ref().filter(|_| self.state() == TaskState::Blocked).cloned()
    }

    /// Returns the worker of the last run.
    pub(crate) fn last_worker(&self) -> Option<usize> {
        self.0.last_worker.load(Ordering::Relaxed).checked_sub(1)
    }

    pub(crate) fn counters(&self) -> &TaskCounters {
        &self.0.counters
    }
}
