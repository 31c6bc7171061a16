//! The encoder: from key columns to encoded keys, their hashes, and back to columns.

use std::{hash::BuildHasher, ops::Range, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray},
    buffer::NullBuffer,
    compute::{cast, take},
    datatypes::DataType,
};
use arrow_row::{Row, RowConverter, SortField};
use datafusion_common::{Result, hash_utils::RandomState, utils::normalize_float_zero};

use super::{
    KeyRows, WordKeys,
    fixed::{self, PackedField},
    range_index::MAX_COLUMNS,
    words::{WordLayout, is_text},
};

/// How NULL compares in a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyNulls {
    /// NULL is a value, equal to itself: groups, set operations, `IS NOT DISTINCT FROM`.
    Equal,
    /// Rows with a NULL key are skipped, so NULL needs no code: joins.
    NeverMatch,
}

#[derive(Debug)]
enum KeyLayout {
    U64(Vec<PackedField>),
    U128(Vec<PackedField>),
    Words(WordLayout),
    Rows(RowConverter),
}

/// Encoder of key columns of fixed types; cheap to clone.
#[derive(Debug, Clone)]
pub struct KeyEncoder {
    types: Arc<[DataType]>,
    layout: Arc<KeyLayout>,
}

/// Encoded keys, one per row.
#[derive(Debug)]
pub enum EncodedKeys {
    /// Keys of at most 64 bits.
    U64(Vec<u64>),
    /// Keys of at most 128 bits.
    U128(Vec<u128>),
    /// Keys with texts, or of more bits.
    Words(WordKeys),
    /// All other keys.
    Rows(KeyRows),
}

/// Seed of all key hashes. It is fixed, so that equal keys hash alike in all tasks. It differs from
/// DataFusion's repartition seed: the rows of one DataFusion partition still spread over all slots.
const SEED: u64 = 0x67_61_74_65;

impl KeyEncoder {
    /// Creates an encoder for columns of these types; the flag says whether a column is nullable.
    ///
    /// # Errors
    /// If a type cannot be compared.
    pub fn new(types: &[(DataType, bool)], nulls: KeyNulls) -> Result<Self> {
        let with_nulls: Vec<_> = types
            .iter()
            .map(|(kind, nullable)| {
                (value_type(kind).clone(), *nullable && nulls == KeyNulls::Equal)
            })
            .collect();
        let layout = match fixed::fields(&with_nulls) {
            Some((fields, 0..=64)) => KeyLayout::U64(fields),
            Some((fields, 65..=128)) => KeyLayout::U128(fields),
            _ => match WordLayout::new(&with_nulls) {
                Some(layout) => KeyLayout::Words(layout),
                None => {
                    let kinds = types.iter().map(|(kind, _)| value_type(kind).clone());
                    KeyLayout::Rows(RowConverter::new(kinds.map(SortField::new).collect())?)
                }
            },
        };
        let types = types.iter().map(|(kind, _)| kind.clone()).collect();
        Ok(Self { types, layout: Arc::new(layout) })
    }

    /// Returns the keys of the rows of `columns`.
    ///
    /// # Errors
    /// If a column does not have its declared type.
    pub fn encode(&self, columns: &[ArrayRef]) -> Result<EncodedKeys> {
        let rows = columns.first().map_or(0, Array::len);
        let as_views = matches!(self.layout.as_ref(), KeyLayout::Words(_));
        let normalize = |column: &ArrayRef| Ok(normalize_float_zero(&expand(column, as_views)?));
        let columns: Vec<ArrayRef> = columns.iter().map(normalize).collect::<Result<_>>()?;
        Ok(match self.layout.as_ref() {
            KeyLayout::U64(fields) => {
                let mut keys = vec![0_u64; rows];
                for (column, field) in columns.iter().zip(fields) {
                    fixed::pack(column, *field, &mut keys);
                }
                EncodedKeys::U64(keys)
            }
            KeyLayout::U128(fields) => {
                let mut keys = vec![0_u128; rows];
                for (column, field) in columns.iter().zip(fields) {
                    fixed::pack(column, *field, &mut keys);
                }
                EncodedKeys::U128(keys)
            }
            KeyLayout::Words(layout) => EncodedKeys::Words(layout.encode(&columns)?),
            KeyLayout::Rows(converter) => {
                let rows = converter.convert_columns(&columns)?;
                EncodedKeys::Rows(KeyRows::new(rows, converter.empty_rows(0, 0)))
            }
        })
    }

    /// Returns the columns from which `keys` were encoded.
    ///
    /// # Errors
    /// If a value cannot be decoded.
    pub fn decode(&self, keys: &EncodedKeys) -> Result<Vec<ArrayRef>> {
        self.decode_range(keys, 0..keys.len())
    }

    /// Returns the columns from which the keys of `range` were encoded.
    ///
    /// # Errors
    /// If a value cannot be decoded.
    pub fn decode_range(&self, keys: &EncodedKeys, range: Range<usize>) -> Result<Vec<ArrayRef>> {
        let types = self.value_types();
        self.cast_to_key_types(self.decode_as(&types, keys, range)?)
    }

    /// Returns the columns from which the keys of `range` were encoded: texts as views, without
    /// dictionaries and runs. [`encode`](Self::encode) accepts these too, unless keys are arrow
    /// rows.
    ///
    /// # Errors
    /// If a value cannot be decoded.
    pub(crate) fn decode_plain_range(
        &self,
        keys: &EncodedKeys,
        range: Range<usize>,
    ) -> Result<Vec<ArrayRef>> {
        let types = self.plain_types();
        self.decode_as(&types, keys, range)
    }

    /// Returns the types of the keys' values.
    fn value_types(&self) -> Vec<DataType> {
        self.types.iter().map(|kind| value_type(kind).clone()).collect()
    }

    /// Returns the types of the keys' values, views for texts.
    fn plain_types(&self) -> Vec<DataType> {
        self.types.iter().map(|kind| view_type(value_type(kind))).collect()
    }

    /// Decodes keys to columns of these types, as which texts may be views; arrow rows have the
    /// types of their values.
    fn decode_as(
        &self,
        types: &[DataType],
        keys: &EncodedKeys,
        range: Range<usize>,
    ) -> Result<Vec<ArrayRef>> {
        match (self.layout.as_ref(), keys) {
            (KeyLayout::U64(fields), EncodedKeys::U64(keys)) => {
                let fields = fields.iter().zip(types);
                fields
                    .map(|(field, kind)| fixed::unpack(&keys[range.clone()], *field, kind))
                    .collect()
            }
            (KeyLayout::U128(fields), EncodedKeys::U128(keys)) => {
                let fields = fields.iter().zip(types);
                fields
                    .map(|(field, kind)| fixed::unpack(&keys[range.clone()], *field, kind))
                    .collect()
            }
            (KeyLayout::Words(layout), EncodedKeys::Words(keys)) => {
                layout.decode(keys, range, types)
            }
            (KeyLayout::Rows(converter), EncodedKeys::Rows(rows)) => {
                Ok(converter.convert_rows(rows.range(range))?)
            }
            _ => datafusion_common::internal_err!("the keys come from another encoder"),
        }
    }

    /// Returns the columns from which the keys at `indices` were encoded.
    ///
    /// # Errors
    /// If a value cannot be decoded.
    pub fn decode_indices(&self, keys: &EncodedKeys, indices: &[u32]) -> Result<Vec<ArrayRef>> {
        let types = self.value_types();
        self.cast_to_key_types(self.decode_indices_as(&types, keys, indices)?)
    }

    /// Returns the columns from which the keys at `indices` were encoded, as
    /// [`decode_plain_range`](Self::decode_plain_range) does.
    ///
    /// # Errors
    /// If a value cannot be decoded.
    pub(crate) fn decode_plain_indices(
        &self,
        keys: &EncodedKeys,
        indices: &[u32],
    ) -> Result<Vec<ArrayRef>> {
        let types = self.plain_types();
        self.decode_indices_as(&types, keys, indices)
    }

    /// Decodes the keys at `indices` to columns of these types, as
    /// [`decode_as`](Self::decode_as) does.
    fn decode_indices_as(
        &self,
        types: &[DataType],
        keys: &EncodedKeys,
        indices: &[u32],
    ) -> Result<Vec<ArrayRef>> {
        match (self.layout.as_ref(), keys) {
            (KeyLayout::Words(layout), EncodedKeys::Words(keys)) => {
                layout.decode(keys, indices.iter().map(|index| *index as usize), types)
            }
            (KeyLayout::Rows(converter), EncodedKeys::Rows(rows)) => {
                let rows = indices.iter().map(|index| rows.row(*index as usize));
                Ok(converter.convert_rows(rows)?)
            }
            _ => {
                let mut some = self.empty_keys();
                indices.iter().for_each(|index| some.push_from(keys, *index as usize));
                self.decode_as(types, &some, 0..some.len())
            }
        }
    }

    /// Casts decoded columns to the key types: keys have no dictionaries and no runs.
    fn cast_to_key_types(&self, columns: Vec<ArrayRef>) -> Result<Vec<ArrayRef>> {
        let cast_column = |(column, kind): (ArrayRef, &DataType)| {
            if column.data_type() == kind { Ok(column) } else { Ok(cast(&column, kind)?) }
        };
        columns.into_iter().zip(self.types.iter()).map(cast_column).collect()
    }

    /// Returns an empty list of keys in this encoder's layout.
    pub fn empty_keys(&self) -> EncodedKeys {
        match self.layout.as_ref() {
            KeyLayout::U64(_) => EncodedKeys::U64(Vec::new()),
            KeyLayout::U128(_) => EncodedKeys::U128(Vec::new()),
            KeyLayout::Words(layout) => EncodedKeys::Words(layout.empty_keys()),
            KeyLayout::Rows(converter) => {
                let empty = converter.empty_rows(0, 0);
                EncodedKeys::Rows(KeyRows::new(empty.clone(), empty))
            }
        }
    }

    /// Returns the fields of packed keys that may have a [`RangeIndex`](super::range_index);
    /// `None` for others.
    pub(super) fn range_fields(&self) -> Option<&[PackedField]> {
        let (KeyLayout::U64(fields) | KeyLayout::U128(fields)) = self.layout.as_ref() else {
            return None;
        };
        let may_have = (1..=MAX_COLUMNS).contains(&fields.len())
            && self.types.iter().all(|kind| fixed::has_ranges(value_type(kind)));
        may_have.then_some(fields)
    }

    /// Returns whether keys are words with texts.
    pub(crate) fn has_texts(&self) -> bool {
        matches!(self.layout.as_ref(), KeyLayout::Words(_))
            && self.types.iter().any(|kind| is_text(value_type(kind)))
    }

    /// Returns the key columns' types.
    pub fn types(&self) -> &[DataType] {
        &self.types
    }

    /// Returns which rows have no NULL in any of `columns`; `None` if no row has one.
    pub fn without_nulls(columns: &[ArrayRef]) -> Option<NullBuffer> {
        let nulls = columns.iter().fold(None, |nulls: Option<NullBuffer>, column| {
            NullBuffer::union(nulls.as_ref(), column.logical_nulls().as_ref())
        });
        nulls.filter(|nulls| nulls.null_count() > 0)
    }
}

/// Returns the value type of `kind`: that of the values of runs, or of a dictionary of texts, else
/// `kind`.
fn value_type(kind: &DataType) -> &DataType {
    match kind {
        DataType::RunEndEncoded(_, values) => value_type(values.data_type()),
        DataType::Dictionary(_, values) if is_text(values) => values,
        kind => kind,
    }
}

/// Returns the type of view with the texts of type `kind`; `kind` itself if it is no text.
fn view_type(kind: &DataType) -> DataType {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 => DataType::Utf8View,
        DataType::Binary | DataType::LargeBinary => DataType::BinaryView,
        kind => kind.clone(),
    }
}

/// Returns `column` with one value per row, expanded if it has runs or a dictionary of texts. Such
/// arrays may have NULL among their values. `as_views`: the texts of a dictionary may become views,
/// which share its bytes.
fn expand(column: &ArrayRef, as_views: bool) -> Result<ArrayRef> {
    let (kind, value) = (column.data_type(), value_type(column.data_type()));
    if let (DataType::Dictionary(..), true) = (kind, as_views && kind != value) {
        // `cast` would take NULLs among the values for empty texts.
        let dictionary = column.as_any_dictionary();
        let views = cast(dictionary.values(), &view_type(value))?;
        return Ok(take(&views, dictionary.keys(), None)?);
    }
    Ok(if kind == value { column.clone() } else { cast(column, value)? })
}

/// Returns the hash of a key of at most 64 bits.
pub(super) fn hash_u64(key: u64) -> u64 {
    const MULTIPLIER: u128 = 0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835;
    let product = (u128::from(key) ^ u128::from(SEED)).wrapping_mul(MULTIPLIER);
    let folded = (product as u64) ^ ((product >> 64) as u64);
    // A second round: tables use the low bits, partitions the high bits.
    (folded ^ (folded >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93)
}

/// Returns the hash of a key of at most 128 bits.
pub(super) fn hash_u128(key: u128) -> u64 {
    hash_u64((key as u64).rotate_left(29) ^ hash_u64((key >> 64) as u64))
}

fn hash_row(state: &RandomState, row: Row<'_>) -> u64 {
    state.hash_one(row.data())
}

impl EncodedKeys {
    /// Returns the number of keys.
    pub fn len(&self) -> usize {
        match self {
            Self::U64(keys) => keys.len(),
            Self::U128(keys) => keys.len(),
            Self::Words(keys) => keys.len(),
            Self::Rows(rows) => rows.len(),
        }
    }

    /// Returns whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reserves capacity for `more` keys.
    pub fn reserve(&mut self, more: usize) {
        match self {
            Self::U64(keys) => keys.reserve(more),
            Self::U128(keys) => keys.reserve(more),
            Self::Words(keys) => keys.reserve(more),
            // Rows grow in chunks and are never moved.
            Self::Rows(_) => {}
        }
    }

    /// Removes all keys.
    pub fn clear(&mut self) {
        match self {
            Self::U64(keys) => keys.clear(),
            Self::U128(keys) => keys.clear(),
            Self::Words(keys) => keys.clear(),
            Self::Rows(rows) => rows.clear(),
        }
    }

    /// Returns the memory of the keys, in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::U64(keys) => 8 * keys.capacity(),
            Self::U128(keys) => 16 * keys.capacity(),
            Self::Words(keys) => keys.bytes(),
            Self::Rows(rows) => rows.bytes(),
        }
    }

    /// Reads a part of key `index`.
    #[inline]
    pub(crate) fn touch(&self, index: usize) -> u64 {
        match self {
            Self::U64(keys) => keys[index],
            Self::U128(keys) => keys[index] as u64,
            Self::Words(keys) => keys.touch(index),
            Self::Rows(rows) => rows.row(index).data().first().copied().unwrap_or(0).into(),
        }
    }

    /// Returns whether comparing two keys costs more than keeping a hash per key.
    pub fn is_variable_length(&self) -> bool {
        matches!(self, Self::Rows(_))
    }

    /// Replaces `hashes` by one hash per key.
    pub fn hash_into(&self, hashes: &mut Vec<u64>) {
        self.hash_range_into(0..self.len(), hashes);
    }

    /// Replaces `hashes` by one hash per key of `range`.
    pub fn hash_range_into(&self, range: Range<usize>, hashes: &mut Vec<u64>) {
        hashes.clear();
        match self {
            Self::U64(keys) => hashes.extend(keys[range].iter().map(|key| hash_u64(*key))),
            Self::U128(keys) => hashes.extend(keys[range].iter().map(|key| hash_u128(*key))),
            Self::Words(keys) => keys.hash_range_into(range, hashes),
            Self::Rows(rows) => {
                let state = RandomState::with_seed(SEED);
                hashes.extend(rows.range(range).map(|row| hash_row(&state, row)));
            }
        }
    }

    /// Returns the bytes of all keys if they have variable length, else 0.
    pub(crate) fn text_bytes(&self) -> usize {
        match self {
            Self::Words(keys) => keys.text_bytes(),
            Self::Rows(rows) => rows.bytes(),
            Self::U64(_) | Self::U128(_) => 0,
        }
    }

    /// Returns the bytes of key `index` if keys have variable length, else 0.
    pub(crate) fn length(&self, index: usize) -> usize {
        match self {
            Self::Words(keys) => keys.length(index),
            Self::Rows(rows) => rows.row(index).data().len(),
            Self::U64(_) | Self::U128(_) => 0,
        }
    }

    /// Appends all keys of `other`. Both must come from the same encoder.
    pub fn append(&mut self, other: &Self) {
        match (self, other) {
            (Self::U64(keys), Self::U64(more)) => keys.extend_from_slice(more),
            (Self::U128(keys), Self::U128(more)) => keys.extend_from_slice(more),
            (Self::Words(keys), Self::Words(more)) => keys.append(more),
            (Self::Rows(rows), Self::Rows(more)) => more.iter().for_each(|row| rows.push(row)),
            _ => debug_assert!(false, "the keys come from another encoder"),
        }
    }

    /// Appends the keys of `other` in `range`. Long texts that `other` owns are shared. Both must
    /// come from the same encoder.
    pub(crate) fn append_range(&mut self, other: &Self, range: Range<usize>) {
        match (self, other) {
            (Self::U64(keys), Self::U64(more)) => keys.extend_from_slice(&more[range]),
            (Self::U128(keys), Self::U128(more)) => keys.extend_from_slice(&more[range]),
            (Self::Words(keys), Self::Words(more)) => keys.append_range(more, range),
            (Self::Rows(rows), Self::Rows(more)) => {
                more.range(range).for_each(|row| rows.push(row));
            }
            _ => debug_assert!(false, "the keys come from another encoder"),
        }
    }

    /// Returns no keys, for keys of the same encoder.
    pub(crate) fn empty_like(&self) -> Self {
        match self {
            Self::U64(_) => Self::U64(Vec::new()),
            Self::U128(_) => Self::U128(Vec::new()),
            Self::Words(keys) => Self::Words(keys.empty_like()),
            Self::Rows(rows) => Self::Rows(rows.empty_like()),
        }
    }

    /// Returns the keys without references to the columns that they were encoded from.
    pub(crate) fn into_owned(self) -> Self {
        match self {
            Self::Words(keys) => Self::Words(keys.into_owned()),
            keys => keys,
        }
    }

    /// Appends the keys of `other` at `indices`, without copying long texts: their buffers are
    /// shared. Both must come from the same encoder.
    pub(crate) fn extend_sharing(&mut self, other: &Self, indices: &[u32]) {
        match (self, other) {
            (Self::Words(keys), Self::Words(more)) => keys.extend_sharing(more, indices),
            (keys, more) => {
                keys.reserve(indices.len());
                indices.iter().for_each(|index| keys.push_from(more, *index as usize));
            }
        }
    }

    /// Prepares the long texts for [`extend_sharing`](Self::extend_sharing) from these keys.
    pub(crate) fn seal_texts(&mut self) {
        if let Self::Words(keys) = self {
            keys.seal_texts();
        }
    }

    /// Appends key `index` of `other`. Both must come from the same encoder.
    pub fn push_from(&mut self, other: &Self, index: usize) {
        match (self, other) {
            (Self::U64(keys), Self::U64(more)) => keys.push(more[index]),
            (Self::U128(keys), Self::U128(more)) => keys.push(more[index]),
            (Self::Words(keys), Self::Words(more)) => keys.push_from(more, index),
            (Self::Rows(rows), Self::Rows(more)) => rows.push(more.row(index)),
            _ => debug_assert!(false, "the keys come from another encoder"),
        }
    }

    /// Returns whether key `index` equals key `other_index` of `other`.
    pub fn equals(&self, index: usize, other: &Self, other_index: usize) -> bool {
        match (self, other) {
            (Self::U64(keys), Self::U64(others)) => keys[index] == others[other_index],
            (Self::U128(keys), Self::U128(others)) => keys[index] == others[other_index],
            (Self::Words(keys), Self::Words(others)) => keys.equals(index, others, other_index),
            (Self::Rows(rows), Self::Rows(others)) => rows.row(index) == others.row(other_index),
            _ => false,
        }
    }
}
