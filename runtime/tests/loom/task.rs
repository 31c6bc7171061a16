//! Models of a task between its wakers and its workers: no wake-up is lost, and no two runs
//! overlap.
//!
//! [`Task`] models the scheduler's task over the production [`WakeState`] and [`Gates`]. Its queue
//! adds no ordering of its own: it is a number of entries, read and written `Relaxed`. So only the
//! wake-up state orders a run after the previous run and after its wakers.

use std::{
    sync::Arc,
    task::{Wake, Waker},
};

use gatework_runtime::{
    scheduler::{Gates, TaskState, WakeState},
    shared_state::{Dependency, DependencyKind, Gate},
};
use loom::{
    sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering},
    thread,
};

use crate::support::{check, join_all, must_fail};

/// The protocol of a task's wake-up state, implemented by the production type and by broken ones.
trait States: Send + Sync + 'static {
    fn wake(&self) -> bool;
    fn begin(&self) -> bool;
    fn suspend(&self) -> bool;
    fn requeue(&self);
    fn finish(&self);
    fn is_queued(&self) -> bool;
}

impl States for WakeState {
    fn wake(&self) -> bool {
        self.wake()
    }
    fn begin(&self) -> bool {
        self.begin()
    }
    fn suspend(&self) -> bool {
        self.suspend()
    }
    fn requeue(&self) {
        self.requeue();
    }
    fn finish(&self) {
        self.finish();
    }
    fn is_queued(&self) -> bool {
        self.state() == TaskState::Runnable
    }
}

/// The result of one run of a task's body.
enum RunResult {
    Yield,
    Blocked(Gates),
    /// Blocked without a gate: only a direct wake-up (start, cancel) runs the task again.
    Suspended,
    Done,
}

type Body<S> = Box<dyn Fn(&Task<S>) -> RunResult + Send + Sync>;

struct Task<S> {
    states: S,
    body: Body<S>,
    /// The number of entries in the queue.
    entries: AtomicUsize,
    inside: AtomicBool,
    /// The number of runs so far, read and written by runs only.
    runs: AtomicUsize,
    done: AtomicBool,
    /// Set by a canceller before it wakes the task.
    cancelled: AtomicBool,
}

impl<S: States> Task<S> {
    fn new(states: S, body: impl Fn(&Self) -> RunResult + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            states,
            body: Box::new(body),
            entries: AtomicUsize::new(0),
            inside: AtomicBool::new(false),
            runs: AtomicUsize::new(0),
            done: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
        })
    }

    fn push(&self) {
        self.entries.fetch_add(1, Ordering::Relaxed);
    }

    fn schedule(&self) {
        if self.states.wake() {
            self.push();
        }
    }

    fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        if self.states.wake() || self.states.is_queued() {
            self.push();
        }
    }

    /// Takes one entry and runs the task unless the entry is stale. Returns `false` if there was
    /// none.
    fn run_entry(self: &Arc<Self>) -> bool {
        let take = |entries: usize| entries.checked_sub(1);
        if self.entries.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
            return false;
        }
        if !self.states.begin() {
            return true;
        }
        assert!(!self.inside.swap(true, Ordering::Relaxed), "two runs at once");
        assert!(!self.done.load(Ordering::Relaxed), "a run after the last");
        let runs = self.runs.load(Ordering::Relaxed);
        let result = (self.body)(self);
        assert_eq!(self.runs.load(Ordering::Relaxed), runs, "another run came in between");
        self.runs.store(runs + 1, Ordering::Relaxed);
        if let RunResult::Done = result {
            self.done.store(true, Ordering::Relaxed);
        }
        self.inside.store(false, Ordering::Relaxed);
        match result {
            RunResult::Yield => {
                self.states.requeue();
                self.push();
            }
            RunResult::Blocked(gates) => {
                if gates.poll_any_ready(&Waker::from(self.clone())) {
                    self.states.requeue();
                    self.push();
                } else if !self.states.suspend() {
                    self.push();
                }
            }
            RunResult::Suspended => {
                if !self.states.suspend() {
                    self.push();
                }
            }
            RunResult::Done => self.states.finish(),
        }
        true
    }

    /// Runs queued entries until the queue is empty, as a worker does before it parks.
    fn drain(self: &Arc<Self>) {
        while self.run_entry() {}
    }

    /// Called when all other threads have ended: runs the queued entries. If the task has not ended
    /// then, a wake-up was lost.
    fn must_end(self: &Arc<Self>) {
        self.drain();
        assert!(self.done.load(Ordering::Relaxed), "a wake-up was lost");
    }
}

impl<S: States> Wake for Task<S> {
    fn wake(self: Arc<Self>) {
        self.schedule();
    }
}

fn gate() -> Gate {
    Dependency::blocked("gate", DependencyKind::Source)
}

/// Returns `Done` once cancelled; otherwise suspends until a wake-up.
fn until_cancelled<S: States>(task: &Task<S>) -> RunResult {
    if task.cancelled.load(Ordering::Relaxed) { RunResult::Done } else { RunResult::Suspended }
}

/// A gate becomes ready while the task finds it blocked and suspends.
fn gate_opens<S: States>(states: impl Fn() -> S) {
    let gate = gate();
    let task = Task::new(states(), {
        let gate = gate.clone();
        move |_: &Task<S>| {
            if gate.is_ready() {
                RunResult::Done
            } else {
                RunResult::Blocked(Gates::single(gate.clone()))
            }
        }
    });
    task.schedule();
    let opener = thread::spawn(move || gate.set_ready());
    task.drain();
    opener.join().unwrap();
    task.must_end();
}

/// Both gates of a task become ready while two workers drain its queue.
fn two_gates_two_workers<S: States>(states: impl Fn() -> S) {
    let gates = [gate(), gate()];
    let task = Task::new(states(), {
        let gates = gates.clone();
        move |_: &Task<S>| {
            if gates.iter().all(|gate| gate.is_ready()) {
                return RunResult::Done;
            }
            let blocked: Vec<_> = gates.iter().filter(|gate| !gate.is_ready()).cloned().collect();
            let Some((first, rest)) = blocked.split_first() else { return RunResult::Yield };
            let one = Gates::single(first.clone());
            RunResult::Blocked(rest.iter().fold(one, |gates, gate| gates.or(gate.clone())))
        }
    });
    task.schedule();
    let [first, second] = gates;
    let others = [
        thread::spawn({
            let task = task.clone();
            move || {
                first.set_ready();
                task.drain();
            }
        }),
        thread::spawn(move || second.set_ready()),
    ];
    task.drain();
    join_all(others);
    task.must_end();
}

/// A task is cancelled while it is queued, runs or suspends. It must see the cancel in this run or
/// run again, although no gate is involved.
fn cancelled_meanwhile<S: States>(states: impl Fn() -> S) {
    let task = Task::new(states(), until_cancelled);
    task.schedule();
    let canceller = thread::spawn({
        let task = task.clone();
        move || task.cancel()
    });
    task.drain();
    canceller.join().unwrap();
    task.must_end();
}

/// A task is cancelled while it yields: the wake-up races with the requeue.
fn cancelled_around_a_yield<S: States>(states: impl Fn() -> S) {
    let task = Task::new(states(), |task: &Task<S>| {
        if task.runs.load(Ordering::Relaxed) == 0 {
            RunResult::Yield
        } else {
            until_cancelled(task)
        }
    });
    task.schedule();
    let canceller = thread::spawn({
        let task = task.clone();
        move || task.cancel()
    });
    task.drain();
    canceller.join().unwrap();
    task.must_end();
}

/// A woken and cancelled task has two entries in the queue; two workers take one each.
fn stale_entries<S: States>(states: impl Fn() -> S) {
    let task = Task::new(states(), until_cancelled);
    task.schedule();
    let others = [
        thread::spawn({
            let task = task.clone();
            move || {
                task.cancel();
                task.drain();
            }
        }),
        thread::spawn({
            let task = task.clone();
            move || {
                task.schedule();
                task.drain();
            }
        }),
    ];
    task.drain();
    join_all(others);
    task.must_end();
}

mod ships {
    use super::*;

    #[test]
    fn gate_opens() {
        check(|| super::gate_opens(WakeState::new));
    }

    #[test]
    fn two_gates_two_workers() {
        check(|| super::two_gates_two_workers(WakeState::new));
    }

    #[test]
    fn cancelled_meanwhile() {
        check(|| super::cancelled_meanwhile(WakeState::new));
    }

    #[test]
    fn cancelled_around_a_yield() {
        check(|| super::cancelled_around_a_yield(WakeState::new));
    }

    #[test]
    fn stale_entries() {
        check(|| super::stale_entries(WakeState::new));
    }
}

/// Wake-up states with one fault each.
mod broken {
    use super::*;

    const IDLE: u8 = 0;
    const QUEUED: u8 = 1;
    const RUNNING: u8 = 2;
    const NOTIFIED: u8 = 3;
    const DONE: u8 = 4;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Fault {
        None,
        /// `wake` does nothing for a running task.
        LostNotify,
        /// `suspend` stores Idle, even over a concurrent wake-up.
        SuspendStoresIdle,
        /// `begin` loads, then stores, instead of one compare-and-exchange.
        BeginWithoutExchange,
        /// `wake` queues a running task instead of marking it.
        WakeQueuesRunning,
        /// `wake` only loads if there is nothing to change, so nothing orders it before the run of
        /// the queued entry.
        WakeOnlyLoads,
        /// `requeue` stores over a wake-up without acquiring the waker's writes.
        RequeueStores,
    }

    struct Broken {
        state: AtomicU8,
        fault: Fault,
    }

    impl Broken {
        fn exchange(&self, from: u8, to: u8) -> bool {
            self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
        }
    }

    impl States for Broken {
        fn wake(&self) -> bool {
            let next = |state| match state {
                IDLE => Some(QUEUED),
                RUNNING if self.fault == Fault::LostNotify => None,
                RUNNING if self.fault == Fault::WakeQueuesRunning => Some(QUEUED),
                RUNNING => Some(NOTIFIED),
                QUEUED | NOTIFIED if self.fault != Fault::WakeOnlyLoads => Some(state),
                _ => None,
            };
            let before = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
            before == Ok(IDLE) || (before == Ok(RUNNING) && self.fault == Fault::WakeQueuesRunning)
        }

        fn begin(&self) -> bool {
            if self.fault == Fault::BeginWithoutExchange {
                let queued = self.is_queued();
                if queued {
                    self.state.store(RUNNING, Ordering::Release);
                }
                return queued;
            }
            self.exchange(QUEUED, RUNNING)
        }

        fn suspend(&self) -> bool {
            if self.fault == Fault::SuspendStoresIdle {
                self.state.store(IDLE, Ordering::Release);
                return true;
            }
            if self.exchange(RUNNING, IDLE) {
                return true;
            }
            self.requeue();
            false
        }

        fn requeue(&self) {
            if self.fault == Fault::RequeueStores {
                self.state.store(QUEUED, Ordering::Release);
            } else {
                self.state.swap(QUEUED, Ordering::AcqRel);
            }
        }

        fn finish(&self) {
            self.state.store(DONE, Ordering::Release);
        }

        fn is_queued(&self) -> bool {
            self.state.load(Ordering::Acquire) == QUEUED
        }
    }

    const LOST: &[&str] = &["a wake-up was lost"];
    const TWICE: &[&str] =
        &["two runs at once", "another run came in between", "a run after the last"];

    fn with(fault: Fault) -> impl Fn() -> Broken + Copy {
        move || Broken { state: AtomicU8::new(IDLE), fault }
    }

    #[test]
    fn without_a_fault_it_passes() {
        let states = with(Fault::None);
        check(move || gate_opens(states));
        check(move || two_gates_two_workers(states));
        check(move || cancelled_meanwhile(states));
        check(move || cancelled_around_a_yield(states));
        check(move || stale_entries(states));
    }

    #[test]
    fn lost_notify_while_running() {
        let states = with(Fault::LostNotify);
        must_fail(LOST, move || gate_opens(states));
        must_fail(LOST, move || cancelled_meanwhile(states));
    }

    #[test]
    fn suspend_stores_idle() {
        must_fail(LOST, || gate_opens(with(Fault::SuspendStoresIdle)));
    }

    #[test]
    fn begin_without_exchange() {
        must_fail(TWICE, || stale_entries(with(Fault::BeginWithoutExchange)));
    }

    #[test]
    fn wake_queues_a_running_task() {
        must_fail(TWICE, || stale_entries(with(Fault::WakeQueuesRunning)));
    }

    #[test]
    fn wake_only_loads() {
        must_fail(LOST, || cancelled_meanwhile(with(Fault::WakeOnlyLoads)));
    }

    #[test]
    fn requeue_stores() {
        must_fail(LOST, || cancelled_around_a_yield(with(Fault::RequeueStores)));
    }
}
