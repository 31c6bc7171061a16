//! Joins: what [hash joins](hash_join) and [nested-loop joins](nested_loop_join) share.
//!
//! `layout.rs` has the truth table of the join types (which rows of which side are output, and
//! when), the output columns, and the bits of matched rows. `filter.rs` has the residual condition.

pub(crate) mod filter;
pub mod hash_join;
pub(crate) mod layout;
pub mod nested_loop_join;

pub use filter::JoinFilter;
