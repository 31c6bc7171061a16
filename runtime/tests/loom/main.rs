//! Loom models of the scheduler: the wake-up states of a task, its gates, and how workers park.
//!
//! Run by `.ci/models`; without `--cfg loom` this file is empty. [`task`] and [`parking`] check the
//! production types. They also check variants with one fault each, which the models must detect.

#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod parking;
mod support;
mod task;
