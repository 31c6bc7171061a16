//! Rules A and B: states of stages.

use crate::{StageState, State, StateMachine, TaskState};

const ALL: [StageState; 10] = [
    StageState::Planned,
    StageState::Scheduling,
    StageState::FinishedTaskScheduling,
    StageState::SchedulingSplits,
    StageState::Scheduled,
    StageState::Running,
    StageState::Finished,
    StageState::Cancelled,
    StageState::Aborted,
    StageState::Failed,
];

#[test]
fn a1_a2_no_change_is_none_and_an_end_is_for_ever() {
    let state = StateMachine::new("task", TaskState::Running);
    assert!(!state.compare_and_set(TaskState::Running, |_| true), "to stay is not to go");
    assert!(!state.compare_and_set(TaskState::Failed, |_| false), "the predicate says no");
    assert!(state.compare_and_set(TaskState::Finished, |known| known == TaskState::Running));
    for next in [TaskState::Running, TaskState::Failed, TaskState::Cancelled] {
        assert!(!state.compare_and_set(next, |_| true), "{next:?}");
        assert_eq!(state.get(), TaskState::Finished);
    }
}

/// The predicate may read the machine itself, since no lock is taken. It is called again if the
/// state changed.
#[test]
fn a3_the_predicate_is_asked_without_a_lock() {
    let state = StateMachine::new("stage", StageState::Planned);
    let calls = std::cell::Cell::new(0);
    let went = state.compare_and_set(StageState::Running, |known| {
        calls.set(calls.get() + 1);
        assert_eq!(state.get(), known);
        if calls.get() == 1 {
            // A concurrent transition comes first.
            assert!(state.compare_and_set(StageState::Scheduling, |_| true));
        }
        true
    });
    assert!(went && calls.get() == 2);
}

#[test]
fn a5_a6_each_waits_at_a_gate_of_his_own() {
    let state = StateMachine::new("stage", StageState::Planned);
    let (one, other) = (state.changed(StageState::Planned), state.changed(StageState::Planned));
    assert!(!std::sync::Arc::ptr_eq(&one, &other));
    assert!(state.changed(StageState::Running).is_ready(), "the state differs already");
    state.compare_and_set(StageState::Scheduling, |_| true);
    assert!(one.is_ready() && other.is_ready());
    state.compare_and_set(StageState::Failed, |_| true);
    assert!(state.changed(StageState::Failed).is_ready(), "no change follows");
}

#[test]
fn b_who_may_go_where() {
    use StageState::*;
    for from in ALL {
        for to in ALL {
            let allowed = match to {
                Planned => false,
                Scheduling => from == Planned,
                FinishedTaskScheduling => from == Scheduling,
                SchedulingSplits => [Planned, Scheduling, FinishedTaskScheduling].contains(&from),
                Scheduled => {
                    [Planned, Scheduling, FinishedTaskScheduling, SchedulingSplits].contains(&from)
                }
                Running => !from.is_final() && from != Running,
                Finished | Cancelled | Aborted | Failed => !from.is_final(),
            };
            assert_eq!(from.can_transition_to(to), allowed, "{from:?} to {to:?}");
        }
    }
}

/// B-1: a final state never changes.
#[test]
fn b1_ends_are_for_ever() {
    for end in ALL.into_iter().filter(|state| state.is_final()) {
        let state = StateMachine::new("stage", end);
        for next in ALL {
            assert!(
                !state.compare_and_set(next, |known| known.can_transition_to(next)),
                "{end:?} to {next:?}"
            );
        }
    }
}

/// The table of C: a stage that failed or was aborted is never reported complete to its reader.
#[test]
fn c_who_has_all_tasks() {
    use StageState::*;
    let complete: Vec<_> = ALL.into_iter().filter(|state| state.has_all_tasks()).collect();
    let expected =
        [FinishedTaskScheduling, SchedulingSplits, Scheduled, Running, Finished, Cancelled];
    assert_eq!(complete, expected);
}
