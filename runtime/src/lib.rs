//! Runs pipelines as tasks that only gates block and wake.
//!
//! Two layers. [`scheduler`] knows opaque runnables, a work-stealing queue, workers and executors.
//! [`pipeline`] knows batches, operators with local states, the driver of one task, and the query
//! that owns its tasks. Neither knows kernels, concrete operators, DataFusion or tokio.

#![forbid(unsafe_code)]
// Without the layer above it, parts of the scheduler have no caller.
#![cfg_attr(
    any(loom, shuttle),
    allow(dead_code, unused_imports, reason = "models check the scheduler alone")
)]

mod error;
#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod hang_guard;
// Not part of any model: what it shares, it shares through gates and shared states.
#[cfg(not(any(loom, shuttle)))]
pub mod pipeline;
pub mod scheduler;

pub use error::{Error, Result};
pub use gatework_shared_state as shared_state;
pub use scheduler::{Executor, ExecutorBuilder};
