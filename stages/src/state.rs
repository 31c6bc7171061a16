//! States of stages and tasks: who may go where, and who is told.

use gatework_shared_state::{Dependency, DependencyKind, Gate};
use parking_lot::Mutex;

/// A state of something that ends.
pub trait State: Copy + PartialEq + std::fmt::Debug {
    /// Whether it is an end.
    fn is_final(self) -> bool;
}

/// How far a stage has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StageState {
    /// Nothing has been done for it.
    Planned,
    /// Tasks are being made.
    Scheduling,
    /// All tasks are there; their splits are not.
    FinishedTaskScheduling,
    /// Splits are given out, and there are no other tasks to come.
    SchedulingSplits,
    /// All tasks and splits are given out.
    Scheduled,
    /// And some tasks run.
    Running,
    /// All tasks have finished, and what they wrote was read.
    Finished,
    /// Nobody wants the rest.
    Cancelled,
    /// The query failed elsewhere.
    Aborted,
    /// It failed.
    Failed,
}

impl State for StageState {
    fn is_final(self) -> bool {
        matches!(self, Self::Finished | Self::Cancelled | Self::Aborted | Self::Failed)
    }
}

impl StageState {
    /// Whether it may become `next` (rules B).
    pub fn can_transition_to(self, next: Self) -> bool {
        use StageState::*;
        match next {
            Planned => false,
            Scheduling => self == Planned,
            FinishedTaskScheduling => self == Scheduling,
            SchedulingSplits => matches!(self, Planned | Scheduling | FinishedTaskScheduling),
            Scheduled => {
                matches!(self, Planned | Scheduling | FinishedTaskScheduling | SchedulingSplits)
            }
            Running => !self.is_final() && self != Running,
            Finished | Cancelled | Aborted | Failed => !self.is_final(),
        }
    }

    /// Whether there will be no other tasks. Never of a stage that failed or was aborted: who reads it would
    /// take what it gave for the whole (rules C).
    pub fn has_all_tasks(self) -> bool {
        use StageState::*;
        match self {
            Planned | Scheduling | Aborted | Failed => false,
            FinishedTaskScheduling
            | SchedulingSplits
            | Scheduled
            | Running
            | Finished
            | Cancelled => true,
        }
    }
}

/// How far a task has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TaskState {
    /// It runs, or its output is being read.
    Running,
    /// It wrote all it had, and that was read.
    Finished,
    /// Nobody wants the rest.
    Cancelled,
    /// The query failed elsewhere.
    Aborted,
    /// It failed.
    Failed,
}

impl State for TaskState {
    fn is_final(self) -> bool {
        self != Self::Running
    }
}

/// A state that others read, and are told of when it changes. The end is for ever. (Presto's `StateMachine`;
/// rules A.)
///
/// ```
/// use gatework_stages::{StateMachine, TaskState};
/// let state = StateMachine::new("task", TaskState::Running);
/// let change = state.changed(TaskState::Running);
/// assert!(!change.is_ready());
/// assert!(state.compare_and_set(TaskState::Finished, |known| known == TaskState::Running));
/// assert!(change.is_ready());
/// assert!(!state.compare_and_set(TaskState::Failed, |_| true));
/// ```
#[derive(Debug)]
pub struct StateMachine<S> {
    name: &'static str,
    inner: Mutex<Inner<S>>,
}

#[derive(Debug)]
struct Inner<S> {
    state: S,
    /// Those who wait for the next change.
    waiters: Vec<Gate>,
}

impl<S: State> StateMachine<S> {
    /// A machine in `state`.
    pub fn new(name: &'static str, state: S) -> Self {
        Self { name, inner: Mutex::new(Inner { state, waiters: Vec::new() }) }
    }

    /// The state.
    pub fn get(&self) -> S {
        self.inner.lock().state
    }

    /// Goes to `next` if `predicate` says so of the state it is in, and that is no end. `true` if it went; to stay is
    /// not to go. `predicate` is asked without a lock, and again if the state has changed meanwhile.
    pub fn compare_and_set(&self, next: S, predicate: impl Fn(S) -> bool) -> bool {
        loop {
            let known = self.get();
            if known == next || known.is_final() || !predicate(known) {
                return false;
            }
            let notified = {
                let mut inner = self.inner.lock();
                if inner.state != known {
                    continue;
                }
                inner.state = next;
                std::mem::take(&mut inner.waiters)
            };
            // Who waits is woken on his own executor, whatever the others do.
            notified.iter().for_each(|gate| gate.set_always_ready());
            return true;
        }
    }

    /// A gate that opens when the state is another one than `known`: open at once if it is, and if it is an end.
    pub fn changed(&self, known: S) -> Gate {
        let mut inner = self.inner.lock();
        let gate = Dependency::blocked(format!("{} change", self.name), DependencyKind::External);
        if inner.state != known || inner.state.is_final() {
            gate.set_always_ready();
        } else {
            inner.waiters.push(gate.clone());
        }
        gate
    }
}
