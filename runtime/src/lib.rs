//! Runs pipelines as tasks that only gates block and wake.
//!
//! Two layers. [`scheduler`] knows opaque runnables, a work-stealing queue, workers and executors.
//! [`pipeline`] knows batches, operators with local states, the driver of one task, and the query
//! that owns its tasks. Neither knows kernels, concrete operators, DataFusion or tokio.

#![forbid(unsafe_code)]

mod error;
pub mod pipeline;
pub mod scheduler;

pub use error::{Error, Result};
pub use gatework_shared_state as shared_state;
pub use scheduler::{Executor, ExecutorBuilder};
