//! Loom models of the gate: every interleaving (of at most two preemptions) and every value that
//! the memory model lets a load see.
//!
//! Run by `.ci/models`; without `--cfg loom` this file is empty. [`gate`] checks the real gate.
//! [`broken`] checks gates with one fault each, and expects the model to fail.

#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod broken;
mod gate;
mod support;
