//! Lookups: from a batch of probe keys to pairs of rows, in chunks.

use std::{
    fmt,
    hash::{Hash, Hasher},
    hint::black_box,
    sync::{Arc, Weak},
};

use arrow::{
    array::{Array, ArrayRef, BooleanArray, RecordBatch, UInt32Array},
    buffer::BooleanBuffer,
    datatypes::{DataType, Schema},
};
use datafusion_common::Result;
use datafusion_expr::{ColumnarValue, Operator as BinaryOperator};
use datafusion_physical_expr::{PhysicalExpr, expressions::BinaryExpr, split_conjunction};

use super::{
    index::{JoinIndex, PRELOADED},
    table::JoinHashTable,
};
use crate::{
    batch_bytes::{SLICE_BYTES, value_bytes},
    dictionary::EntriesId,
    keys::KeyEncoder,
    spill::{PartitionSet, partition_of},
};

/// Pairs of a table row and a probe row, in the order of the probe rows.
#[derive(Debug, Default)]
pub(super) struct RowPairs {
    pub(super) build_rows: Vec<u32>,
    pub(super) probe_rows: Vec<u32>,
}

/// Matches of a probe row to return.
#[derive(Clone, Copy)]
pub(super) enum MatchMode<'a> {
    All,
    /// Any one match.
    First,
    /// All matches that the table has not marked. Used where pairs do nothing but mark. A probe row
    /// marks all rows of its key, so one marked row proves that all are marked. Without this rule,
    /// a key with many rows on both sides would cost their product.
    UnmatchedBuildRows(&'a JoinHashTable),
}

/// Position at which the search in a probe batch continues.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct ProbeCursor {
    row: usize,
    /// The next build row of its key, plus one; 0 for the row that was looked up.
    entry: u32,
}

/// The keys of a probe batch, looked up.
pub(super) struct ProbeKeys {
    /// Per row: a row with its key plus one, or 0.
    entries: Vec<u32>,
}

/// Maximum number of entries of a dictionary that are looked up at once: more would delay a
/// cancellation, and take memory that is not reserved.
const MAX_ENTRIES: usize = if cfg!(test) { 64 } else { 1 << 16 };

/// The keys of a task's current dictionary, looked up once for all batches that have it.
#[derive(Default)]
pub(super) struct DictionaryLookup {
    entries: Option<EntriesId>,
    /// Rows that were seen with these entries before they were looked up.
    rows: usize,
    /// Whether the entries are too many or too long to be looked up.
    is_large: bool,
    /// The keys of the entries, once looked up.
    found: Option<ProbeKeys>,
}

impl DictionaryLookup {
    /// Returns the keys of a batch with the `codes` of a dictionary; `None` if the dictionary is
    /// large, and while it has more entries than rows were seen, so that looking up the values of
    /// the rows costs less.
    pub(super) fn probe_keys(
        &mut self,
        encoder: &KeyEncoder,
        codes: &UInt32Array,
        values: &ArrayRef,
        skip_nulls: bool,
        index: &JoinIndex,
    ) -> Result<Option<ProbeKeys>> {
        if !self.entries.as_ref().is_some_and(|known| known.is(values)) {
            let is_large = values.len() > MAX_ENTRIES || value_bytes(values) > SLICE_BYTES;
            *self = Self { entries: Some(EntriesId::of(values)), is_large, ..Self::default() };
        }
        if self.is_large {
            return Ok(None);
        }
        if self.found.is_none() {
            self.rows = self.rows.saturating_add(codes.len());
            if self.rows < values.len() {
                return Ok(None);
            }
            let columns = std::slice::from_ref(values);
            self.found = Some(ProbeKeys::new(encoder, columns, skip_nulls, index)?);
        }
        Ok(self.found.as_ref().map(|found| {
            let codes = codes.values().iter();
            ProbeKeys { entries: codes.map(|code| found.entries[*code as usize]).collect() }
        }))
    }
}

impl ProbeKeys {
    /// Looks up the keys of the rows of `columns`.
    pub(super) fn new(
        encoder: &KeyEncoder,
        columns: &[ArrayRef],
        skip_nulls: bool,
        index: &JoinIndex,
    ) -> Result<Self> {
        let valid = if skip_nulls { KeyEncoder::without_nulls(columns) } else { None };
        let keys = encoder.encode(columns)?;
        Ok(Self { entries: index.look_up(&keys, valid.as_ref()) })
    }

    /// Appends pairs from `cursor` on until there are about `limit`. Returns true when the batch is
    /// done.
    pub(super) fn find(
        &self,
        index: &JoinIndex,
        cursor: &mut ProbeCursor,
        mode: MatchMode<'_>,
        limit: usize,
        pairs: &mut RowPairs,
    ) -> bool {
        if index.is_unique() {
            self.find_unique(cursor, limit, pairs)
        } else {
            self.find_linked(index, cursor, mode, limit, pairs)
        }
    }

    /// Finds pairs in a table whose keys have one row each, so `limit` rows yield at most `limit`
    /// pairs.
    fn find_unique(&self, cursor: &mut ProbeCursor, limit: usize, pairs: &mut RowPairs) -> bool {
        let first = cursor.row;
        cursor.row = first.saturating_add(limit).min(self.entries.len());
        let rows = first..cursor.row;
        pairs.build_rows.resize(rows.len(), 0);
        pairs.probe_rows.resize(rows.len(), 0);
        let mut found = 0;
        // Branch-free: an entry without a match is overwritten by the next one.
        for (row, entry) in rows.clone().zip(&self.entries[rows]) {
            pairs.build_rows[found] = entry.wrapping_sub(1);
            pairs.probe_rows[found] = row as u32;
            found += usize::from(*entry != 0);
        }
        pairs.build_rows.truncate(found);
        pairs.probe_rows.truncate(found);
        cursor.row == self.entries.len()
    }

    /// Finds pairs along the links between the rows of each key.
    fn find_linked(
        &self,
        index: &JoinIndex,
        cursor: &mut ProbeCursor,
        mode: MatchMode<'_>,
        limit: usize,
        pairs: &mut RowPairs,
    ) -> bool {
        let rows = self.entries.len();
        let mut preloaded = if index.has_uncached_links() { cursor.row } else { rows };
        while cursor.row < rows {
            let row = cursor.row;
            if row == preloaded {
                preloaded = rows.min(row + PRELOADED);
                // A row without an entry reads the link of row 0.
                let linked = self.entries[row..preloaded].iter();
                let linked = linked.map(|entry| index.entry_before(entry.saturating_sub(1)));
                black_box(linked.fold(0, |read, entry| read ^ entry));
            }
            let mut first = cursor.entry == 0;
            let mut entry = match std::mem::take(&mut cursor.entry) {
                0 => self.entries[row],
                entry => entry,
            };
            while entry != 0 {
                let build_row = entry - 1;
                entry = index.entry_before(build_row);
                if std::mem::take(&mut first)
                    && let MatchMode::UnmatchedBuildRows(table) = mode
                    && table.matched().is_set(build_row)
                {
                    break;
                }
                pairs.build_rows.push(build_row);
                pairs.probe_rows.push(row as u32);
                if let MatchMode::First = mode {
                    break;
                }
                if pairs.build_rows.len() >= limit && entry != 0 {
                    cursor.entry = entry;
                    return false;
                }
            }
            cursor.row += 1;
            if pairs.build_rows.len() >= limit {
                return cursor.row == rows;
            }
        }
        true
    }
}

/// A scan predicate: whether the keys are in a join's table. True for all rows once the table is
/// dropped, and for NULL keys if they must reach the join.
#[derive(Debug, Clone)]
pub(super) struct HashTableLookupExpr {
    keys: Vec<Arc<dyn PhysicalExpr>>,
    encoder: KeyEncoder,
    table: Weak<JoinHashTable>,
    /// Partitions whose rows are spilled, and so not in the table.
    spilled_partitions: PartitionSet,
    keep_nulls: bool,
    skip_nulls: bool,
}

impl HashTableLookupExpr {
    pub(super) fn new(
        keys: Vec<Arc<dyn PhysicalExpr>>,
        encoder: KeyEncoder,
        table: &Arc<JoinHashTable>,
        spilled_partitions: PartitionSet,
        keep_nulls: bool,
        skip_nulls: bool,
    ) -> Self {
        Self {
            keys,
            encoder,
            table: Arc::downgrade(table),
            spilled_partitions,
            keep_nulls,
            skip_nulls,
        }
    }
}

/// Returns the conjunct of a published runtime filter that decides about a row: membership in the
/// table, if there is one. Bounds, meant for scans that cannot look keys up in the table, are
/// implied by it. Both operands of an OR are reduced in this way.
pub fn membership_predicate(filter: &Arc<dyn PhysicalExpr>) -> Arc<dyn PhysicalExpr> {
    if let Some(either) = filter.downcast_ref::<BinaryExpr>()
        && *either.op() == BinaryOperator::Or
    {
        let (left, right) =
            (membership_predicate(either.left()), membership_predicate(either.right()));
        return Arc::new(BinaryExpr::new(left, BinaryOperator::Or, right));
    }
    let mut conjuncts = split_conjunction(filter).into_iter();
    conjuncts.find(|conjunct| conjunct.is::<HashTableLookupExpr>()).unwrap_or(filter).clone()
}

impl fmt::Display for HashTableLookupExpr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "(")?;
        for (index, key) in self.keys.iter().enumerate() {
            write!(f, "{}{key}", if index > 0 { ", " } else { "" })?;
        }
        write!(f, ") in join table")
    }
}

impl PartialEq for HashTableLookupExpr {
    fn eq(&self, other: &Self) -> bool {
        self.table.ptr_eq(&other.table) && self.keys == other.keys
    }
}

impl Eq for HashTableLookupExpr {}

impl Hash for HashTableLookupExpr {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.table.as_ptr().hash(state);
        self.keys.hash(state);
    }
}

impl PhysicalExpr for HashTableLookupExpr {
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
        let valid = if self.skip_nulls { KeyEncoder::without_nulls(&columns) } else { None };
        let keys = self.encoder.encode(&columns)?;
        let mut found = table.index().contains_keys(&keys, valid.as_ref());
        if !self.spilled_partitions.is_empty() {
            let mut hashes = Vec::new();
            keys.hash_into(&mut hashes);
            let is_spilled =
                |row: usize| self.spilled_partitions.contains(partition_of(hashes[row], 0));
            found = &found | &BooleanBuffer::collect_bool(rows, is_spilled);
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
