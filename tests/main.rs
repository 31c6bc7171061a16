//! What crosses crates, in one binary: linking DataFusion into many takes longer than running them.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests count as no tests for clippy"
)]

mod against_datafusion;
mod bad_input;
#[cfg(feature = "cluster")]
mod cluster;
mod endings;
mod equal_names;
mod join_matrix;
mod large_plans;
mod no_pretending;
mod options;
mod orders;
mod parquet_columns;
mod plan_as_value;
mod services;
mod soak;
mod spill;
mod sql_equality;
mod stages;
mod support;
mod tpch_chaos;
mod tpch_results;
mod world;
