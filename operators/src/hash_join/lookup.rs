//! Lookups: from a batch of probe keys to pairs of rows, in chunks.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::{Arc, Weak},
};

use arrow::{
    array::{ArrayRef, BooleanArray, BooleanBufferBuilder, RecordBatch},
    buffer::BooleanBuffer,
    datatypes::{DataType, Schema},
};
use datafusion_common::{Result, internal_err};
use datafusion_expr::{ColumnarValue, Operator as BinaryOperator};
use datafusion_physical_expr::{PhysicalExpr, expressions::BinaryExpr, split_conjunction};

use super::{
    index::{Index, Kind},
    table::Table,
};
use crate::{
    keys::{KeyEncoder, Keys},
    spilling::{UnitSet, unit_of},
};

/// Pairs of a table's row and a probe batch's row, in the order of the probe rows.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    pub(super) left: Vec<u32>,
    pub(super) right: Vec<u32>,
}

/// Which matches of a probe row are asked for.
#[derive(Clone, Copy)]
pub(super) enum Wanted<'a> {
    All,
    /// Any one of them.
    One,
    /// All that the table has not marked. Where pairs do nothing but mark, whoever marks one row of a key
    /// marks all of them, so one that is marked says enough: else a key of many rows on both sides would
    /// cost their product.
    Unmarked(&'a Table),
}

/// Where the search in a probe batch goes on.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Cursor {
    row: usize,
    /// The chain entry to look at next, plus one; 0 for the head of the row's chain.
    entry: u32,
}

/// The keys of a probe batch, and where their chains begin.
pub(super) struct ProbeKeys {
    keys: Keys,
    /// Of keys that are costly to compare; else empty or not wanted any more.
    hashes: Vec<u64>,
    /// Per row: the first row of its chain plus one, or 0.
    entries: Vec<u32>,
}

impl ProbeKeys {
    pub(super) fn new(
        encoder: &KeyEncoder,
        columns: &[ArrayRef],
        skip_nulls: bool,
        index: &Index,
    ) -> Result<Self> {
        let valid = if skip_nulls { KeyEncoder::without_nulls(columns) } else { None };
        let keys = encoder.encode(columns)?;
        let (mut hashes, mut entries) = (Vec::new(), Vec::new());
        index.first_into(&keys, valid.as_ref(), &mut hashes, &mut entries);
        Ok(Self { keys, hashes, entries })
    }

    /// Adds pairs from `cursor` on until there are about `limit`. `true`: the batch is done.
    pub(super) fn find(
        &self,
        index: &Index,
        cursor: &mut Cursor,
        wanted: Wanted<'_>,
        limit: usize,
        pairs: &mut Pairs,
    ) -> bool {
        match (index.kind(), &self.keys) {
            (Kind::Dense { .. }, _) if index.is_exact() => self.all(cursor, limit, pairs),
            (Kind::Dense { .. }, _) => self.walk(index, cursor, wanted, limit, pairs, |_, _| true),
            (Kind::Hashed { keys: Keys::Word(build), .. }, Keys::Word(probe)) => {
                let equal = |left: u32, right: usize| build[left as usize] == probe[right];
                self.walk(index, cursor, wanted, limit, pairs, equal)
            }
            (Kind::Hashed { keys: Keys::Pair(build), .. }, Keys::Pair(probe)) => {
                let equal = |left: u32, right: usize| build[left as usize] == probe[right];
                self.walk(index, cursor, wanted, limit, pairs, equal)
            }
            (Kind::Hashed { keys: Keys::Rows(build), hashes, .. }, Keys::Rows(probe)) => {
                let equal = |left: u32, right: usize| {
                    hashes[left as usize] == self.hashes[right]
                        && build.row(left as usize) == probe.row(right)
                };
                self.walk(index, cursor, wanted, limit, pairs, equal)
            }
            // Both sides come from the join's one encoder.
            _ => true,
        }
    }

    /// Every entry is a match, and the only one of its row, so `limit` rows give at most as many
    /// pairs.
    fn all(&self, cursor: &mut Cursor, limit: usize, pairs: &mut Pairs) -> bool {
        let first = cursor.row;
        cursor.row = first.saturating_add(limit).min(self.entries.len());
        let rows = first..cursor.row;
        pairs.left.resize(rows.len(), 0);
        pairs.right.resize(rows.len(), 0);
        let mut found = 0;
        // Without branches: what finds nothing is written over.
        for (row, entry) in rows.clone().zip(&self.entries[rows]) {
            pairs.left[found] = entry.wrapping_sub(1);
            pairs.right[found] = row as u32;
            found += usize::from(*entry != 0);
        }
        pairs.left.truncate(found);
        pairs.right.truncate(found);
        cursor.row == self.entries.len()
    }

    fn walk(
        &self,
        index: &Index,
        cursor: &mut Cursor,
        wanted: Wanted<'_>,
        limit: usize,
        pairs: &mut Pairs,
        equal: impl Fn(u32, usize) -> bool,
    ) -> bool {
        let rows = self.entries.len();
        while cursor.row < rows {
            let row = cursor.row;
            let mut first = cursor.entry == 0;
            let mut entry = match std::mem::take(&mut cursor.entry) {
                0 => self.entries[row],
                entry => entry,
            };
            while entry != 0 {
                let left = entry - 1;
                entry = index.next(left);
                if equal(left, row) {
                    if std::mem::take(&mut first)
                        && let Wanted::Unmarked(table) = wanted
                        && table.is_marked(left as usize)
                    {
                        break;
                    }
                    pairs.left.push(left);
                    pairs.right.push(row as u32);
                    if let Wanted::One = wanted {
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
    fn contained(&self, index: &Index) -> BooleanBuffer {
        let mut found = Pairs::default();
        self.find(index, &mut Cursor::default(), Wanted::One, usize::MAX, &mut found);
        let mut bits = BooleanBufferBuilder::new(self.entries.len());
        bits.append_n(self.entries.len(), false);
        for row in found.right {
            bits.set_bit(row as usize, true);
        }
        bits.finish()
    }
}

/// One bit per row of `columns`: whether its key is in `index`.
fn contained(
    encoder: &KeyEncoder,
    columns: &[ArrayRef],
    skip_nulls: bool,
    index: &Index,
) -> Result<BooleanBuffer> {
    let Kind::Dense { dense, .. } = index.kind() else {
        return Ok(ProbeKeys::new(encoder, columns, skip_nulls, index)?.contained(index));
    };
    let valid = if skip_nulls { KeyEncoder::without_nulls(columns) } else { None };
    let Keys::Word(keys) = encoder.encode(columns)? else {
        return internal_err!("a dense index over keys that are no words");
    };
    let found = dense.contained(&keys);
    Ok(match valid {
        Some(valid) => &found & valid.inner(),
        None => found,
    })
}

/// A predicate for scans: whether the keys are in a join's table. True for all once the table is
/// gone, and for NULL keys if they must reach the join.
#[derive(Debug, Clone)]
pub(super) struct InTable {
    keys: Vec<Arc<dyn PhysicalExpr>>,
    encoder: KeyEncoder,
    table: Weak<Table>,
    /// Units of rows that are not in the table, but in files.
    away: UnitSet,
    keep_nulls: bool,
    skip_nulls: bool,
}

impl InTable {
    pub(super) fn new(
        keys: Vec<Arc<dyn PhysicalExpr>>,
        encoder: KeyEncoder,
        table: &Arc<Table>,
        away: UnitSet,
        keep_nulls: bool,
        skip_nulls: bool,
    ) -> Self {
        Self { keys, encoder, table: Arc::downgrade(table), away, keep_nulls, skip_nulls }
    }
}

/// What of a published runtime filter decides about a row: membership in the table, if it is a part.
/// Bounds, which are there for whoever cannot ask the table, say no more. Of several filters of which one must
/// hold, each is asked so.
pub fn row_test(filter: &Arc<dyn PhysicalExpr>) -> Arc<dyn PhysicalExpr> {
    if let Some(either) = filter.downcast_ref::<BinaryExpr>()
        && *either.op() == BinaryOperator::Or
    {
        let (left, right) = (row_test(either.left()), row_test(either.right()));
        return Arc::new(BinaryExpr::new(left, BinaryOperator::Or, right));
    }
    let mut parts = split_conjunction(filter).into_iter();
    parts.find(|part| part.is::<InTable>()).unwrap_or(filter).clone()
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
        let mut found = contained(&self.encoder, &columns, self.skip_nulls, table.index())?;
        if !self.away.is_empty() {
            let mut hashes = Vec::new();
            self.encoder.encode(&columns)?.hash_into(&mut hashes);
            let away = |row: usize| self.away.contains(unit_of(hashes[row], 0));
            found = &found | &BooleanBuffer::collect_bool(rows, away);
        }
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
