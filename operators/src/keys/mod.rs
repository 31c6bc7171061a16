//! Keys of joins, groups and partitions in a form that compares and hashes fast.
//!
//! A [`KeyEncoder`] is chosen once from the key columns' types. Keys that fit 64 or 128 bits are
//! packed into one integer (a null bit each where NULL is a value); all others become arrow rows.
//! Equality of encoded keys is equality of keys: floats compare by their bits with -0 as +0, as
//! DataFusion's joins and groups do.

mod encoder;
mod fixed;
mod partition;
mod rows;
mod table;

#[cfg(test)]
mod tests;

pub use encoder::{EncodedKeys, KeyEncoder, KeyNulls};
pub(crate) use fixed::{is_narrow, pack_to_u128};
pub(crate) use partition::partition_rows_reseeded;
pub use partition::{partition_indices, partition_rows, split_by_partition};
pub use rows::KeyRows;
pub use table::GroupValues;
