//! Lookups: from a batch of probe keys to pairs of rows, in chunks.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::{Arc, Weak},
};

use arrow::{
    array::{ArrayRef, BooleanArray, RecordBatch},
    buffer::{BooleanBuffer, NullBuffer},
    datatypes::{DataType, Schema},
};
use datafusion_common::Result;
use datafusion_expr::ColumnarValue;
use datafusion_physical_expr::PhysicalExpr;

use super::table::Table;
use crate::keys::{KeyEncoder, Keys};

/// Pairs of a table's row and a probe batch's row, in the order of the probe rows.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    pub(super) left: Vec<u32>,
    pub(super) right: Vec<u32>,
}

/// Where the search in a probe batch goes on.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Cursor {
    row: usize,
    /// The chain entry to look at next, plus one; 0 for the head of the row's chain.
    entry: u32,
}

/// The keys of a probe batch.
pub(super) struct ProbeKeys {
    keys: Keys,
    hashes: Vec<u64>,
    /// Rows that can match at all.
    valid: Option<NullBuffer>,
}

impl ProbeKeys {
    pub(super) fn new(
        encoder: &KeyEncoder,
        columns: &[ArrayRef],
        skip_nulls: bool,
    ) -> Result<Self> {
        let valid = if skip_nulls { KeyEncoder::without_nulls(columns) } else { None };
        let keys = encoder.encode(columns)?;
        let mut hashes = Vec::new();
        keys.hash_into(&mut hashes);
        Ok(Self { keys, hashes, valid })
    }

    /// Adds pairs from `cursor` on until there are about `limit`. `true`: the batch is done.
    pub(super) fn find(
        &self,
        table: &Table,
        cursor: &mut Cursor,
        first_only: bool,
        limit: usize,
        pairs: &mut Pairs,
    ) -> bool {
        match (table.keys(), &self.keys) {
            (Keys::Word(build), Keys::Word(probe)) => {
                let equal = |left: u32, right: usize| build[left as usize] == probe[right];
                self.walk(table, cursor, first_only, limit, pairs, equal)
            }
            (Keys::Pair(build), Keys::Pair(probe)) => {
                let equal = |left: u32, right: usize| build[left as usize] == probe[right];
                self.walk(table, cursor, first_only, limit, pairs, equal)
            }
            (Keys::Rows(build), Keys::Rows(probe)) => {
                let equal = |left: u32, right: usize| {
                    table.hash(left) == self.hashes[right]
                        && build.row(left as usize) == probe.row(right)
                };
                self.walk(table, cursor, first_only, limit, pairs, equal)
            }
            // Both sides come from the join's one encoder.
            _ => true,
        }
    }

    fn walk(
        &self,
        table: &Table,
        cursor: &mut Cursor,
        first_only: bool,
        limit: usize,
        pairs: &mut Pairs,
        equal: impl Fn(u32, usize) -> bool,
    ) -> bool {
        let rows = self.hashes.len();
        while cursor.row < rows {
            let row = cursor.row;
            let mut entry = match std::mem::take(&mut cursor.entry) {
                0 if self.valid.as_ref().is_some_and(|valid| valid.is_null(row)) => 0,
                0 => table.first(self.hashes[row]),
                entry => entry,
            };
            while entry != 0 {
                let left = entry - 1;
                entry = table.next(left);
                if equal(left, row) {
                    pairs.left.push(left);
                    pairs.right.push(row as u32);
                    if first_only {
                        break;
                    }
                    if pairs.left.len() >= limit && entry != 0 {
                        cursor.entry = entry;
                        return false;
                    }
                }
            }
            cursor.row += 1;
            if pairs.left.len() >= limit {
                return cursor.row == rows;
            }
        }
        true
    }

    /// One bit per row: whether its key is in the table.
    fn contained(&self, table: &Table) -> BooleanBuffer {
        let mut found = Pairs::default();
        self.find(table, &mut Cursor::default(), true, usize::MAX, &mut found);
        let mut bits = vec![false; self.hashes.len()];
        for row in found.right {
            bits[row as usize] = true;
        }
        BooleanBuffer::from(bits)
    }
}

/// A predicate for scans: whether the keys are in a join's table. True for all once the table is
/// gone, and for NULL keys if they must reach the join.
#[derive(Debug, Clone)]
pub(super) struct InTable {
    keys: Vec<Arc<dyn PhysicalExpr>>,
    encoder: KeyEncoder,
    table: Weak<Table>,
    keep_nulls: bool,
    skip_nulls: bool,
}

impl InTable {
    pub(super) fn new(
        keys: Vec<Arc<dyn PhysicalExpr>>,
        encoder: KeyEncoder,
        table: &Arc<Table>,
        keep_nulls: bool,
        skip_nulls: bool,
    ) -> Self {
        Self { keys, encoder, table: Arc::downgrade(table), keep_nulls, skip_nulls }
    }
}

impl fmt::Display for InTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "(")?;
        for (place, key) in self.keys.iter().enumerate() {
            write!(f, "{}{key}", if place > 0 { ", " } else { "" })?;
        }
        write!(f, ") in join table")
    }
}

impl PartialEq for InTable {
    fn eq(&self, other: &Self) -> bool {
        self.table.ptr_eq(&other.table) && self.keys == other.keys
    }
}

impl Eq for InTable {}

impl Hash for InTable {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.table.as_ptr().hash(state);
        self.keys.hash(state);
    }
}

impl PhysicalExpr for InTable {
    fn data_type(&self, _input: &Schema) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn nullable(&self, _input: &Schema) -> Result<bool> {
        Ok(false)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        let rows = batch.num_rows();
        let Some(table) = self.table.upgrade() else {
            return Ok(ColumnarValue::from(datafusion_common::ScalarValue::from(true)));
        };
        let key = |key: &Arc<dyn PhysicalExpr>| key.evaluate(batch)?.into_array_of_size(rows);
        let columns = self.keys.iter().map(key).collect::<Result<Vec<_>>>()?;
        let keys = ProbeKeys::new(&self.encoder, &columns, self.skip_nulls)?;
        let mut found = keys.contained(&table);
        if self.keep_nulls
            && let Some(valid) = KeyEncoder::without_nulls(&columns)
        {
            found = &found | &!valid.inner();
        }
        let found: ArrayRef = Arc::new(BooleanArray::new(found, None));
        Ok(ColumnarValue::Array(found))
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        self.keys.iter().collect()
    }

    fn with_new_children(
        self: Arc<Self>,
        keys: Vec<Arc<dyn PhysicalExpr>>,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        Ok(Arc::new(Self { keys, ..self.as_ref().clone() }))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
