//! Loom models of the gate, of a state's lock and of the counted tokens: every interleaving (of at
//! most two preemptions) and every value that the memory model lets a load see.
//!
//! Run by `.ci/models`; without `--cfg loom` this file is empty. [`gate`], [`state_lock`] and
//! [`tokens`] check the real types. [`broken`] checks gates with one fault each, and
//! [`broken_tokens`] tokens. Both expect the model to fail.

#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod broken;
mod broken_tokens;
mod gate;
mod state_lock;
mod support;
mod tokens;
