//! Loom models of the scheduler: the wake-up states of a task, its gates, and how workers park.
//!
//! Run by `.ci/models`; without `--cfg loom` this file is empty. [`task`] and [`parking`] check the
//! types that ship, and next to them variants with one fault each, which the models must catch.

#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod parking;
mod support;
mod task;
