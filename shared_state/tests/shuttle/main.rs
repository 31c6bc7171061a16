//! Shuttle models of every cardinality and every shared state, over thousands of random schedules.
//!
//! Run by `.ci/models`; without `--cfg shuttle` this file is empty. Each model runs sink and source
//! tasks that wait on gates through standard wakers, and ends in every possible way ([`Ending`]).
//! Shuttle finds the deadlock that a lost wake-up causes. The models check the rest: no item is
//! lost or duplicated, no aborted producer looks finished, bytes are bounded, no item is left.
//! [`broken`] contains variants with one fault each, which the models must catch.
//!
//! [`Ending`]: support::Ending

#![cfg(shuttle)]
#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod breaker;
mod broken;
mod cardinality;
mod join;
mod mailbox;
mod memory;
mod output;
mod own_state;
mod set;
mod stream;
mod stream_set;
mod streams;
mod support;
mod tokens;
