//! Lookups: from a batch of probe keys to pairs of rows, in chunks.

use std::{
    fmt,
    hash::{Hash, Hasher},
    hint::black_box,
    sync::{Arc, Weak},
};

use arrow::{
    array::{Array, ArrayRef, BooleanArray, BooleanBufferBuilder, RecordBatch, UInt32Array},
    buffer::BooleanBuffer,
    datatypes::{DataType, Schema},
};
use datafusion_common::{Result, internal_err};
use datafusion_expr::{ColumnarValue, Operator as BinaryOperator};
use datafusion_physical_expr::{PhysicalExpr, expressions::BinaryExpr, split_conjunction};

use super::{
    build_keys::place_of,
    index::{IndexKind, JoinIndex, PRELOADED},
    table::JoinHashTable,
};
use crate::{
    batch_bytes::{SLICE_BYTES, value_bytes},
    dictionary::EntriesId,
    keys::{EncodedKeys, KeyEncoder},
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
    /// The next chain entry to test, plus one; 0 for the head of the row's chain.
    entry: u32,
}

/// Keys that are compared with those of a table.
struct HashedKeys {
    keys: EncodedKeys,
    /// Hashes of the keys; read only where variable-length keys are compared.
    hashes: Vec<u64>,
}

/// The keys of a probe batch, and the heads of their chains.
pub(super) struct ProbeKeys {
    keys: Arc<HashedKeys>,
    /// Per row, the index of its key in `keys`; `None` if that is the row's index.
    codes: Option<UInt32Array>,
    /// Per row: the first row of its chain plus one, or 0.
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
    /// The keys of the entries with the heads of their chains, once looked up.
    found: Option<(Arc<HashedKeys>, Vec<u32>)>,
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
            let ProbeKeys { keys, entries, .. } =
                ProbeKeys::new(encoder, columns, skip_nulls, index)?;
            self.found = Some((keys, entries));
        }
        Ok(self.found.as_ref().map(|(keys, entries)| ProbeKeys {
            keys: keys.clone(),
            entries: codes.values().iter().map(|code| entries[*code as usize]).collect(),
            codes: Some(codes.clone()),
        }))
    }
}

impl ProbeKeys {
    pub(super) fn new(
        encoder: &KeyEncoder,
        columns: &[ArrayRef],
        skip_nulls: bool,
        index: &JoinIndex,
    ) -> Result<Self> {
        let valid = if skip_nulls { KeyEncoder::without_nulls(columns) } else { None };
        let keys = encoder.encode(columns)?;
        let (mut hashes, mut entries) = (Vec::new(), Vec::new());
        index.lookup_chains(&keys, valid.as_ref(), &mut hashes, &mut entries);
        Ok(Self { keys: Arc::new(HashedKeys { keys, hashes }), codes: None, entries })
    }

    /// Returns the index of a row's key.
    #[inline]
    fn key_of(&self, row: usize) -> usize {
        self.codes.as_ref().map_or(row, |codes| codes.values()[row] as usize)
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
        let HashedKeys { keys, hashes: probe_hashes } = self.keys.as_ref();
        match (index.kind(), keys) {
            (IndexKind::Dense { .. }, _) if index.is_exact() => {
                self.probe_unique(cursor, limit, pairs)
            }
            (IndexKind::Dense { .. }, _) => {
                self.probe_chains(index, cursor, mode, limit, pairs, |_| 0, |_, _| true)
            }
            (IndexKind::Hashed { keys: build, .. }, EncodedKeys::U64(probe)) => {
                let build = build.each(|chunk| match &chunk.keys {
                    EncodedKeys::U64(keys) => Some(keys.as_slice()),
                    _ => None,
                });
                let key = |row: u32| {
                    let (chunk, place) = place_of(row);
                    build[chunk][place]
                };
                let equal = |row: u32, probe_row| key(row) == probe[self.key_of(probe_row)];
                self.probe_chains(index, cursor, mode, limit, pairs, key, equal)
            }
            (IndexKind::Hashed { keys: build, .. }, EncodedKeys::U128(probe)) => {
                let build = build.each(|chunk| match &chunk.keys {
                    EncodedKeys::U128(keys) => Some(keys.as_slice()),
                    _ => None,
                });
                let key = |row: u32| {
                    let (chunk, place) = place_of(row);
                    build[chunk][place]
                };
                let equal = |row: u32, probe_row| key(row) == probe[self.key_of(probe_row)];
                let load = |row: u32| key(row) as u64;
                self.probe_chains(index, cursor, mode, limit, pairs, load, equal)
            }
            (IndexKind::Hashed { keys: build, .. }, EncodedKeys::Words(probe)) => {
                let build = build.each(|chunk| match &chunk.keys {
                    EncodedKeys::Words(keys) => Some(keys),
                    _ => None,
                });
                let equal = |row: u32, probe_row: usize| {
                    let (chunk, place) = place_of(row);
                    build[chunk].equals(place, probe, self.key_of(probe_row))
                };
                let load = |row: u32| {
                    let (chunk, place) = place_of(row);
                    build[chunk].first_word(place)
                };
                self.probe_chains(index, cursor, mode, limit, pairs, load, equal)
            }
            (IndexKind::Hashed { keys: build, .. }, EncodedKeys::Rows(probe)) => {
                let build = build.each(|chunk| match &chunk.keys {
                    EncodedKeys::Rows(keys) => Some((keys, chunk.hashes.as_slice())),
                    _ => None,
                });
                let equal = |row: u32, probe_row: usize| {
                    let ((chunk, place), key) = (place_of(row), self.key_of(probe_row));
                    let (rows, hashes) = &build[chunk];
                    hashes[place] == probe_hashes[key] && rows.row(place) == probe.row(key)
                };
                let load = |row: u32| {
                    let (chunk, place) = place_of(row);
                    build[chunk].1[place]
                };
                self.probe_chains(index, cursor, mode, limit, pairs, load, equal)
            }
        }
    }

    /// Probes an index without chains. Every entry is a match, and the only one of its row, so
    /// `limit` rows yield at most `limit` pairs.
    fn probe_unique(&self, cursor: &mut ProbeCursor, limit: usize, pairs: &mut RowPairs) -> bool {
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

    /// Follows the chain of each row. `equal` compares the keys of a build row and a probe row;
    /// `load` reads a part of the key of a build row.
    #[expect(clippy::too_many_arguments, reason = "a kernel, one call per layout of keys")]
    fn probe_chains(
        &self,
        index: &JoinIndex,
        cursor: &mut ProbeCursor,
        mode: MatchMode<'_>,
        limit: usize,
        pairs: &mut RowPairs,
        load: impl Fn(u32) -> u64,
        equal: impl Fn(u32, usize) -> bool,
    ) -> bool {
        let rows = self.entries.len();
        let mut preloaded = if index.is_large() { cursor.row } else { rows };
        while cursor.row < rows {
            let row = cursor.row;
            if row == preloaded {
                preloaded = rows.min(row + PRELOADED);
                let entries = self.entries[row..preloaded].iter();
                // A row without an entry reads row 0.
                let rows = entries.map(|entry| entry.saturating_sub(1));
                black_box(
                    rows.fold(0, |read, row| {
                        read ^ load(row) ^ u64::from(index.next_in_chain(row))
                    }),
                );
            }
            let mut first = cursor.entry == 0;
            let mut entry = match std::mem::take(&mut cursor.entry) {
                0 => self.entries[row],
                entry => entry,
            };
            while entry != 0 {
                let build_row = entry - 1;
                entry = index.next_in_chain(build_row);
                if equal(build_row, row) {
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
            }
            cursor.row += 1;
            if pairs.build_rows.len() >= limit {
                return cursor.row == rows;
            }
        }
        true
    }

    /// Returns one bit per row: whether its key is in the table.
    fn contains_keys(&self, index: &JoinIndex) -> BooleanBuffer {
        let mut found = RowPairs::default();
        self.find(index, &mut ProbeCursor::default(), MatchMode::First, usize::MAX, &mut found);
        let mut bits = BooleanBufferBuilder::new(self.entries.len());
        bits.append_n(self.entries.len(), false);
        for row in found.probe_rows {
            bits.set_bit(row as usize, true);
        }
        bits.finish()
    }
}

/// Returns one bit per row of `columns`: whether its key is in `index`.
fn contains_keys(
    encoder: &KeyEncoder,
    columns: &[ArrayRef],
    skip_nulls: bool,
    index: &JoinIndex,
) -> Result<BooleanBuffer> {
    let IndexKind::Dense { dense, .. } = index.kind() else {
        return Ok(ProbeKeys::new(encoder, columns, skip_nulls, index)?.contains_keys(index));
    };
    let valid = if skip_nulls { KeyEncoder::without_nulls(columns) } else { None };
    let EncodedKeys::U64(keys) = encoder.encode(columns)? else {
        return internal_err!("a dense join index needs keys of 64 bits");
    };
    let found = dense.contains_keys(&keys);
    Ok(match valid {
        Some(valid) => &found & valid.inner(),
        None => found,
    })
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
        let mut found = contains_keys(&self.encoder, &columns, self.skip_nulls, table.index())?;
        if !self.spilled_partitions.is_empty() {
            let mut hashes = Vec::new();
            self.encoder.encode(&columns)?.hash_into(&mut hashes);
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
