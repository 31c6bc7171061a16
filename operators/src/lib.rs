//! Operators over Arrow batches: sources, streaming operators, sinks.
//!
//! Each operator has one file, or one folder: its configuration, its local state and its
//! implementation of the runtime's operator traits ([`gatework_runtime::pipeline`]). Expressions
//! are DataFusion's [`PhysicalExpr`], aggregates its `GroupsAccumulator`. Hash tables, joins,
//! aggregation, sort and exchange are implemented in this crate. `README.md` of this crate explains
//! how to add an operator.
//!
//! [`PhysicalExpr`]: datafusion_physical_expr::PhysicalExpr

#![forbid(unsafe_code)]

pub mod adaptive_filter;
mod batch_bytes;
mod buffer;
mod chunked;
mod compact;
mod concat;
mod decimal;
pub mod dictionary;
mod error;
pub mod exchange_source;
mod expressions;
pub mod filter;
pub mod harness;
pub mod hash_aggregate;
pub mod join;
pub mod keys;
pub mod limit;
pub mod local_exchange;
pub mod memory_scan;
pub mod multicast;
pub mod prelude;
pub mod projection;
pub mod ranking_filter;
pub mod result;
pub mod runtime_filter;
pub mod selection;
pub mod set_operation;
pub mod shared_rows;
mod slices;
pub mod sort;
pub mod spill;
pub mod stream_scan;
pub mod task_output;
#[cfg(test)]
mod test_support;
#[cfg(test)]
mod tests;
pub mod window;

pub use compact::apply_selection;
pub use decimal::specialize_decimals;
pub use error::{ResultExt, SharedDataFusionError};
pub use expressions::remap_columns;
pub use join::JoinFilter;
