//! States of stages and tasks, their transitions, and the gates of observers.

use gatework_shared_state::{Dependency, DependencyKind, Gate};
use parking_lot::Mutex;

/// A state with final values.
pub trait State: Copy + PartialEq + std::fmt::Debug {
    /// Whether the state is final.
    fn is_final(self) -> bool;
}

/// State of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StageState {
    /// Nothing has started.
    Planned,
    /// Tasks are being created.
    Scheduling,
    /// All tasks are created; their splits are not assigned.
    FinishedTaskScheduling,
    /// Splits are being assigned, and no more tasks will be created.
    SchedulingSplits,
    /// All tasks are created and all splits assigned.
    Scheduled,
    /// Scheduled, and some tasks run.
    Running,
    /// All tasks have finished, and their output was read.
    Finished,
    /// The stage's rows have no reader any more.
    Cancelled,
    /// Another stage failed, or the query was cancelled.
    Aborted,
    /// The stage failed.
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

    /// Whether no more tasks will be created. Never true of a stage that failed or was aborted: its
    /// reader would take incomplete rows for the whole (rules C).
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

/// State of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TaskState {
    /// The task runs, or its output is being read.
    Running,
    /// The task wrote all its rows, and they were read.
    Finished,
    /// The task's rows have no reader any more.
    Cancelled,
    /// Another task failed, or the query was cancelled.
    Aborted,
    /// The task failed.
    Failed,
}

impl State for TaskState {
    fn is_final(self) -> bool {
        self != Self::Running
    }
}

/// A state with observers. A final state never changes. (Presto's `StateMachine`; rules A.)
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
    /// Gates of observers of the next change.
    waiters: Vec<Gate>,
}

impl<S: State> StateMachine<S> {
    /// Creates a machine in `state`.
    pub fn new(name: &'static str, state: S) -> Self {
        Self { name, inner: Mutex::new(Inner { state, waiters: Vec::new() }) }
    }

    /// The current state.
    pub fn get(&self) -> S {
        self.inner.lock().state
    }

    /// Changes the state to `next`, unless it is final, equals `next`, or `predicate` rejects it.
    /// Returns whether it changed. `predicate` is called without a lock, and again if the state has
    /// changed in between.
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
            // Each waiter is woken on its own executor, independently of the others.
            notified.iter().for_each(|gate| gate.set_always_ready());
            return true;
        }
    }

    /// Returns a gate that is ready once the state differs from `known` or is final.
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
