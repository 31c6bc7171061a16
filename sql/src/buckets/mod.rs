//! Bucketed tables: each file contains the rows of one hash bucket of a key.
//!
//! A join of two tables by their bucket key, or a grouping by it, needs no exchange between nodes.
//! It can run one bucket after the other, in the memory that one bucket takes (`gatework-stages`).
//! File names state the bucket, the number of buckets and the types of the key
//! (`bucket-3-of-16-by-i-….parquet`). Parquet files also state the key columns. A table is
//! [declared](BucketedTable) as bucketed, and files that contradict the declaration are an error.
//!
//! A row's bucket is the XXH64 hash of its key, modulo the number of buckets. The hash of a column
//! is seeded with the hash of the columns before it, starting with 0. Integers and days are hashed
//! as eight little-endian bytes, strings and binary values as their bytes. A NULL leaves the hash
//! unchanged. (CSV does not distinguish NULL from an empty string, so strings are not allowed as
//! keys there.) So a bucket does not depend on the width of an integer, the layout of a string
//! array or the version of this library.

mod options;
mod table;

pub use options::copy_into_buckets;
pub use table::{BucketedScan, BucketedTable};

pub(crate) use options::{copies_into_buckets, take_bucketing};
pub(crate) use table::check_footer;

use std::{fmt, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    compute::{cast, take_record_batch},
    datatypes::{DataType, Int64Type, Schema, UInt64Type},
};
use arrow_array::UInt32Array;
use datafusion::{common::plan_err, error::Result};
use twox_hash::XxHash64;

/// Maximum number of buckets; every writer has one file per bucket.
const MAX_BUCKETS: usize = 4096;

/// The columns by which rows are divided into buckets, and the number of buckets.
///
/// ```
/// use std::sync::Arc;
/// use arrow::{array::{ArrayRef, Int64Array}, record_batch::RecordBatch};
/// use gatework_sql::buckets::Bucketing;
/// # fn main() -> datafusion::error::Result<()> {
/// let by_key = Bucketing::new(vec!["k".into()], 4)?;
/// let keys: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 1]));
/// let buckets = by_key.buckets_of(&RecordBatch::try_from_iter([("k", keys)])?)?;
/// assert!(buckets.iter().all(|bucket| *bucket < 4));
/// assert_eq!(buckets[0], buckets[2]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucketing {
    columns: Vec<String>,
    count: usize,
}

impl Bucketing {
    /// Creates a bucketing of `count` buckets, from 1 to 4096, by the columns with these names.
    ///
    /// # Errors
    /// If there are no columns, or `count` is out of range.
    pub fn new(columns: Vec<String>, count: usize) -> Result<Self> {
        if columns.is_empty() || columns.iter().any(String::is_empty) {
            return plan_err!("a bucket key needs at least one column");
        }
        if !(1..=MAX_BUCKETS).contains(&count) {
            return plan_err!("{count} buckets requested: use from 1 to {MAX_BUCKETS}");
        }
        Ok(Self { columns, count })
    }

    /// Returns the names of the columns.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Returns the number of buckets.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Returns the indices of the columns in `schema`.
    ///
    /// # Errors
    /// If a column is missing, or its type cannot be hashed.
    pub fn column_indices(&self, schema: &Schema) -> Result<Vec<usize>> {
        let index_of = |name: &String| {
            let Some((index, field)) = schema.column_with_name(name) else {
                let known: Vec<_> = schema.fields().iter().map(|field| field.name()).collect();
                return plan_err!("bucket column {name} is none of the columns {known:?}");
            };
            match KeyType::of(field.data_type()) {
                Some(_) => Ok(index),
                None => plan_err!(
                    "bucket column {name} is {}: use integers, days, strings or binary",
                    field.data_type()
                ),
            }
        };
        self.columns.iter().map(index_of).collect()
    }

    /// Returns one letter for each bucket column in `schema`: `i` for integers, `d` for days, `b`
    /// for bytes.
    pub(crate) fn type_codes(&self, schema: &Schema) -> Result<String> {
        let code = |index: usize| KeyType::of(schema.field(index).data_type()).map(KeyType::code);
        Ok(self.column_indices(schema)?.into_iter().filter_map(code).collect())
    }

    /// Returns the bucket of each row.
    ///
    /// # Errors
    /// If a column is missing, or its type cannot be hashed.
    pub fn buckets_of(&self, rows: &RecordBatch) -> Result<Vec<u32>> {
        let mut hashes = vec![0; rows.num_rows()];
        for index in self.column_indices(rows.schema_ref())? {
            hash_column(rows.column(index), &mut hashes)?;
        }
        let count = self.count as u64;
        Ok(hashes.into_iter().map(|hash| (hash % count) as u32).collect())
    }

    /// Returns the rows of each non-empty bucket, in their original order.
    pub(crate) fn partition(&self, rows: &RecordBatch) -> Result<Vec<(usize, RecordBatch)>> {
        let mut rows_of = vec![Vec::new(); self.count];
        for (row, bucket) in (0..).zip(self.buckets_of(rows)?) {
            rows_of[bucket as usize].push(row);
        }
        let some = rows_of.into_iter().enumerate().filter(|(_, of)| !of.is_empty());
        let part = |(bucket, of)| {
            Ok((bucket, gc_views(take_record_batch(rows, &UInt32Array::from(of))?)?))
        };
        some.map(part).collect()
    }
}

impl fmt::Display for Bucketing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {}", self.count, self.columns.join(", "))
    }
}

/// The bucket that a file contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bucket {
    pub(crate) number: usize,
    pub(crate) bucketing: Arc<Bucketing>,
    /// Type codes of the bucket columns.
    pub(crate) type_codes: String,
}

impl Bucket {
    /// Returns the prefix of the file's name.
    pub(crate) fn prefix(&self) -> String {
        format!("bucket-{}-of-{}-by-{}-", self.number, self.bucketing.count, self.type_codes)
    }

    /// Returns the value that Parquet files have under [`FOOTER_KEY`].
    pub(crate) fn in_footer(&self) -> String {
        format!("{} of {}, xxh64", self.number, self.bucketing)
    }
}

/// Key of the footer's entry that states the bucket.
pub(crate) const FOOTER_KEY: &str = "gatework.bucket";

/// The values that are hashed for a type.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyType {
    Integer,
    Day,
    Bytes,
}

impl KeyType {
    fn of(data_type: &DataType) -> Option<Self> {
        use DataType::{
            Binary, BinaryView, Date32, Int8, Int16, Int32, Int64, LargeBinary, LargeUtf8, UInt8,
            UInt16, UInt32, UInt64, Utf8, Utf8View,
        };
        match data_type {
            Int8 | Int16 | Int32 | Int64 | UInt8 | UInt16 | UInt32 | UInt64 => Some(Self::Integer),
            Date32 => Some(Self::Day),
            Utf8 | LargeUtf8 | Utf8View | Binary | LargeBinary | BinaryView => Some(Self::Bytes),
            _ => None,
        }
    }

    /// Returns the type's letter in file names.
    pub(crate) fn code(self) -> char {
        match self {
            Self::Integer => 'i',
            Self::Day => 'd',
            Self::Bytes => 'b',
        }
    }
}

/// Copies the views of `rows` into buffers of their own; the original buffers are shared by all
/// buckets.
fn gc_views(rows: RecordBatch) -> Result<RecordBatch> {
    let own = |column: &ArrayRef| match column.data_type() {
        DataType::Utf8View => Arc::new(column.as_string_view().gc()) as ArrayRef,
        DataType::BinaryView => Arc::new(column.as_binary_view().gc()),
        _ => column.clone(),
    };
    let columns = rows.columns().iter().map(own).collect();
    Ok(RecordBatch::try_new(rows.schema(), columns)?)
}

fn hash_column(column: &ArrayRef, hashes: &mut [u64]) -> Result<()> {
    let numbers = |hashes: &mut [u64], nulls: &dyn Array, values: &mut dyn Iterator<Item = u64>| {
        for (row, (hash, value)) in hashes.iter_mut().zip(values).enumerate() {
            if !nulls.is_null(row) {
                *hash = XxHash64::oneshot(*hash, &value.to_le_bytes());
            }
        }
    };
    match KeyType::of(column.data_type()) {
        Some(KeyType::Integer) if column.data_type() == &DataType::UInt64 => {
            let values = column.as_primitive::<UInt64Type>().values();
            numbers(hashes, column, &mut values.iter().copied());
        }
        Some(KeyType::Integer | KeyType::Day) => {
            // Arrow casts a day to 64 bits only by way of 32.
            let whole = match column.data_type() {
                DataType::Date32 => cast(&cast(column, &DataType::Int32)?, &DataType::Int64)?,
                _ => cast(column, &DataType::Int64)?,
            };
            let values = whole.as_primitive::<Int64Type>().values();
            numbers(hashes, &whole, &mut values.iter().map(|value| value.cast_unsigned()));
        }
        Some(KeyType::Bytes) => {
            let views = cast(column, &DataType::BinaryView)?;
            for (hash, value) in hashes.iter_mut().zip(views.as_binary_view()) {
                if let Some(value) = value {
                    *hash = XxHash64::oneshot(*hash, value);
                }
            }
        }
        None => return plan_err!("values of {} cannot be hashed", column.data_type()),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
