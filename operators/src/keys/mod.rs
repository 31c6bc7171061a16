//! Keys of joins, groups and partitions in a form that compares and hashes fast.
//!
//! A [`KeyEncoder`] picks its layout once, from the key columns' types. Keys that fit 64 or 128
//! bits are packed into one integer, with a null bit per column where NULL is a value. Texts and
//! further columns of fixed width become several words of 128 bits ([`WordKeys`]). Nested types,
//! intervals and very wide keys become arrow rows. Encoded keys are equal if and only if the keys
//! are. Floats compare by their bits with -0 as +0, as in DataFusion's joins and groups.

mod encoder;
mod fixed;
mod partition;
mod range_index;
mod rows;
mod table;
mod words;

#[cfg(test)]
mod tests;

pub use encoder::{EncodedKeys, KeyEncoder, KeyNulls};
pub(crate) use partition::partition_rows_reseeded;
pub use partition::{partition_indices, partition_rows, split_by_partition};
pub use rows::KeyRows;
pub use table::GroupValues;
pub use words::WordKeys;
pub(crate) use words::is_text;
