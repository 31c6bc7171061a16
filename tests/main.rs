//! Tests across crates, in one binary: linking DataFusion into many takes longer than running them.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests count as no tests for clippy"
)]

mod against_datafusion;
mod bad_input;
#[cfg(feature = "cluster")]
mod cluster;
mod equal_names;
mod explain;
mod fallbacks;
mod fixture;
mod join_matrix;
mod join_order;
mod large_plans;
mod options;
mod orders;
mod own_kernels;
mod own_nodes;
mod own_operators;
mod parquet_columns;
mod plan_as_value;
mod query_end;
mod ranking;
mod services;
mod shared_subplans;
mod slt;
mod soak;
mod spill;
mod stages;
mod support;
mod tpch_chaos;
mod tpch_results;
