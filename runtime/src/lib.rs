//! Runs pipelines as tasks that only gates block and wake.
//!
//! The crate has two layers. [`scheduler`] knows opaque runnables, a work-stealing queue, workers
//! and executors. [`pipeline`] knows batches, operators with local states, the driver of one task,
//! and the query that owns its tasks. Neither knows kernels, concrete operators, DataFusion or
//! tokio.

#![forbid(unsafe_code)]
// Without the pipeline layer, parts of the scheduler have no caller.
#![cfg_attr(
    any(loom, shuttle),
    allow(dead_code, unused_imports, reason = "models check the scheduler alone")
)]

mod error;
#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod hang_guard;
// In no model: its tasks share state only through gates and shared states.
#[cfg(not(any(loom, shuttle)))]
pub mod pipeline;
pub mod scheduler;

pub use error::{Error, Result};
pub use gatework_shared_state as shared_state;
pub use scheduler::{Executor, ExecutorBuilder};
