//! Execution: a plan's native subtrees as queries on an executor.
//!
//! `region.rs` runs the subtree below a topmost wrapper and `region_stream.rs` returns its rows.
//! `engine.rs` has the executor and the I/O runtime, `memory.rs` and `spill.rs` connect a query
//! with DataFusion's memory pool and disk manager.

pub(crate) mod engine;
mod memory;
pub(crate) mod region;
mod region_stream;
pub(crate) mod remote_filters;
mod scope;
mod spill;

pub use engine::set_io_runtime;
pub use region::{QueryTimeout, profile, query, run_plan_into_sink, task_context_with};
pub use remote_filters::RemoteRuntimeFilters;
pub use scope::CancellationScope;
