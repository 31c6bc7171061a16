//! Loom models of the gate, of a state's lock, of the counted tokens and of the hash index: every
//! interleaving (of at most two preemptions) and every value that the memory model lets a load see.
//!
//! Run by `.ci/models`; without `--cfg loom` this file is empty. [`gate`], [`state_lock`],
//! [`tokens`] and [`hash_index`] check the real types. [`broken`] checks gates with one fault each,
//! [`broken_tokens`] tokens and [`broken_hash_index`] the index. These expect the model to fail.

#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod broken;
mod broken_hash_index;
mod broken_tokens;
mod gate;
mod hash_index;
mod state_lock;
mod support;
mod tokens;
