//! Shuttle models of every cardinality and every shared state, over thousands of random schedules.
//!
//! Run by `.ci/models`; without `--cfg shuttle` this file is empty. Each model runs sink and source
//! tasks that wait on gates through standard wakers, and ends in every way there is ([`Ending`]).
//! Shuttle finds the deadlock that a lost wake-up becomes; the models check the rest: nothing lost or
//! doubled, no aborted producer that looks finished, bounded bytes, nothing left over.
//! [`broken`] holds variants with one fault each, which the models must catch.
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
mod set;
mod stream;
mod stream_set;
mod streams;
mod support;
