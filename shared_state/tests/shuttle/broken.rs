//! Shared states with one fault each. `cardinality` shows that the same state without a fault
//! passes, so each failure is caused by the fault.

use gatework_shared_state::{BufferLimit, ManyToMany};

use crate::{
    mailbox::{self, Fault},
    stream::{Plan, Reach, run},
    streams::one_channel_after_the_other,
    support::{Ending, must_fail},
};

const DEADLOCK: &str = "deadlock";

/// Runs a mailbox with `fault` to `ending`; the model must fail and its message contain `why`.
fn caught(fault: Fault, ending: Ending, why: &str) {
    must_fail(why, move || {
        let mut plan = Plan::new(ending, Reach::Routed, 2, 2);
        // Enough to exceed the one item that every sink may add to a full buffer.
        plan.items = 8;
        let gates = ManyToMany::new("broken", plan.sinks, plan.sources);
        let (sinks, sources) = mailbox::new(gates, plan.reach, plan.limit_bytes, fault);
        run(plan, sinks, sources);
    });
}

#[test]
fn blocking_outside_the_lock_loses_a_wake_up() {
    caught(Fault::BlocksOutsideTheLock, Ending::Finish, DEADLOCK);
}

#[test]
fn opening_before_the_data_loses_a_wake_up() {
    caught(Fault::OpensBeforeTheData, Ending::Finish, DEADLOCK);
}

#[test]
fn a_gate_left_open_makes_its_task_spin() {
    caught(Fault::LeavesTheGateOpen, Ending::Finish, "spins on a ready gate");
}

#[test]
fn room_that_frees_nobody_blocks_sinks() {
    caught(Fault::RoomFreesNobody, Ending::Finish, DEADLOCK);
}

#[test]
fn a_silent_last_sink_blocks_sources() {
    caught(Fault::LastSinkOpensNothing, Ending::Finish, DEADLOCK);
}

#[test]
fn a_silent_abort_blocks_sources() {
    caught(Fault::AbortOpensNothing, Ending::Abort, DEADLOCK);
}

#[test]
fn an_abort_that_looks_finished_is_seen() {
    let seen = "an aborted producer looks finished";
    caught(Fault::AbortLooksFinished, Ending::Abort, seen);
    caught(Fault::AbortLooksFinished, Ending::Cancel, seen);
}

#[test]
fn sources_that_leave_silently_block_sinks() {
    caught(Fault::LeavingFreesNobody, Ending::AllLeave, DEADLOCK);
}

#[test]
fn bytes_of_a_source_that_left_block_sinks() {
    caught(Fault::LeavingKeepsBytes, Ending::Leave, DEADLOCK);
}

#[test]
fn dropped_rest_is_seen() {
    caught(Fault::FinishDropsTheRest, Ending::Finish, "an item was lost");
}

#[test]
fn an_ignored_budget_is_seen() {
    caught(Fault::BudgetIgnored, Ending::Finish, "more bytes than the limit");
}

/// The purpose of a limit with `unless_starved`.
#[test]
fn a_full_channel_beside_a_starved_one_closes_a_cycle() {
    must_fail(DEADLOCK, || one_channel_after_the_other(BufferLimit::new(1)));
}
