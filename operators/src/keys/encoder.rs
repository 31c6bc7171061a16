//! The encoder: from key columns to encoded keys, their hashes, and back.

use std::{hash::BuildHasher, ops::Range, sync::Arc};

use arrow::{
    array::{Array, ArrayRef},
    buffer::NullBuffer,
    compute::cast,
    datatypes::DataType,
};
use arrow_row::{Row, RowConverter, SortField};
use datafusion_common::{Result, hash_utils::RandomState, utils::normalize_float_zero};

use super::{
    KeyRows,
    fixed::{self, Field},
};

/// What NULL means in a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NullKeys {
    /// A value like others, equal to itself: groups, set operations, `IS NOT DISTINCT FROM`.
    AreValues,
    /// No row with one is looked at, so it needs no code: joins.
    AreSkipped,
}

#[derive(Debug)]
enum Shape {
    Word(Vec<Field>),
    Pair(Vec<Field>),
    Rows(RowConverter),
}

/// Encodes key columns of fixed types. Cheap to clone.
#[derive(Debug, Clone)]
pub struct KeyEncoder {
    types: Arc<[DataType]>,
    shape: Arc<Shape>,
}

/// Encoded keys, one per row.
#[derive(Debug)]
pub enum Keys {
    /// Keys of at most 64 bits.
    Word(Vec<u64>),
    /// Keys of at most 128 bits.
    Pair(Vec<u128>),
    /// All other keys.
    Rows(KeyRows),
}

/// Fixed, so that equal keys hash alike in all tasks; different from DataFusion's repartition seed,
/// so that partitions made by it do not fill only some of our slots.
const SEED: u64 = 0x67_61_74_65;

impl KeyEncoder {
    /// An encoder for columns of these types, each nullable or not.
    ///
    /// # Errors
    /// If a type cannot be compared.
    pub fn new(types: &[(DataType, bool)], nulls: NullKeys) -> Result<Self> {
        let with_nulls: Vec<_> = types
            .iter()
            .map(|(kind, nullable)| {
                (plain(kind).clone(), *nullable && nulls == NullKeys::AreValues)
            })
            .collect();
        let shape = match fixed::fields(&with_nulls) {
            Some((fields, 0..=64)) => Shape::Word(fields),
            Some((fields, 65..=128)) => Shape::Pair(fields),
            _ => {
                let fields = types.iter().map(|(kind, _)| SortField::new(plain(kind).clone()));
                let fields = fields.collect();
                Shape::Rows(RowConverter::new(fields)?)
            }
        };
        let types = types.iter().map(|(kind, _)| kind.clone()).collect();
        Ok(Self { types, shape: Arc::new(shape) })
    }

    /// The keys of the rows of `columns`.
    ///
    /// # Errors
    /// If a column is not of its type.
    pub fn encode(&self, columns: &[ArrayRef]) -> Result<Keys> {
        let rows = columns.first().map_or(0, Array::len);
        let normalize = |column: &ArrayRef| Ok(normalize_float_zero(&expand_runs(column)?));
        let columns: Vec<ArrayRef> = columns.iter().map(normalize).collect::<Result<_>>()?;
        Ok(match self.shape.as_ref() {
            Shape::Word(fields) => {
                let mut keys = vec![0_u64; rows];
                for (column, field) in columns.iter().zip(fields) {
                    fixed::pack(column, *field, &mut keys);
                }
                Keys::Word(keys)
            }
            Shape::Pair(fields) => {
                let mut keys = vec![0_u128; rows];
                for (column, field) in columns.iter().zip(fields) {
                    fixed::pack(column, *field, &mut keys);
                }
                Keys::Pair(keys)
            }
            Shape::Rows(converter) => {
                let rows = converter.convert_columns(&columns)?;
                Keys::Rows(KeyRows::new(rows, converter.empty_rows(0, 0)))
            }
        })
    }

    /// The columns that `keys` were made of.
    ///
    /// # Errors
    /// If a value cannot be rebuilt.
    pub fn decode(&self, keys: &Keys) -> Result<Vec<ArrayRef>> {
        self.decode_range(keys, 0..keys.len())
    }

    /// The columns that the keys of `range` were made of.
    ///
    /// # Errors
    /// If a value cannot be rebuilt.
    pub fn decode_range(&self, keys: &Keys, range: Range<usize>) -> Result<Vec<ArrayRef>> {
        match (self.shape.as_ref(), keys) {
            (Shape::Word(fields), Keys::Word(keys)) => {
                let keys = &keys[range];
                let unpack =
                    |(field, kind): (&Field, &DataType)| fixed::unpack(keys, *field, plain(kind));
                let columns = fields.iter().zip(self.types.iter()).map(unpack);
                self.restore(columns.collect::<Result<_>>()?)
            }
            (Shape::Pair(fields), Keys::Pair(keys)) => {
                let keys = &keys[range];
                let unpack =
                    |(field, kind): (&Field, &DataType)| fixed::unpack(keys, *field, plain(kind));
                let columns = fields.iter().zip(self.types.iter()).map(unpack);
                self.restore(columns.collect::<Result<_>>()?)
            }
            (Shape::Rows(converter), Keys::Rows(rows)) => {
                self.restore(converter.convert_rows(rows.range(range))?)
            }
            _ => datafusion_common::internal_err!("keys of another encoder"),
        }
    }

    /// The columns that the keys at `places` were made of.
    ///
    /// # Errors
    /// If a value cannot be rebuilt.
    pub fn decode_some(&self, keys: &Keys, places: &[u32]) -> Result<Vec<ArrayRef>> {
        match (self.shape.as_ref(), keys) {
            (Shape::Rows(converter), Keys::Rows(rows)) => {
                let rows = places.iter().map(|place| rows.row(*place as usize));
                self.restore(converter.convert_rows(rows)?)
            }
            _ => {
                let mut some = self.no_keys();
                places.iter().for_each(|place| some.push_from(keys, *place as usize));
                self.decode(&some)
            }
        }
    }

    /// Rows forget dictionaries, and keys have no runs; the types that were promised come back
    /// here.
    fn restore(&self, columns: Vec<ArrayRef>) -> Result<Vec<ArrayRef>> {
        let restore = |(column, kind): (ArrayRef, &DataType)| {
            if column.data_type() == kind { Ok(column) } else { Ok(cast(&column, kind)?) }
        };
        columns.into_iter().zip(self.types.iter()).map(restore).collect()
    }

    /// No keys yet, of this encoder's form.
    pub fn no_keys(&self) -> Keys {
        match self.shape.as_ref() {
            Shape::Word(_) => Keys::Word(Vec::new()),
            Shape::Pair(_) => Keys::Pair(Vec::new()),
            Shape::Rows(converter) => {
                let none = converter.empty_rows(0, 0);
                Keys::Rows(KeyRows::new(none.clone(), none))
            }
        }
    }

    /// The key columns' types.
    pub fn types(&self) -> &[DataType] {
        &self.types
    }

    /// Which rows have no NULL in any of `columns`; `None` if all.
    pub fn without_nulls(columns: &[ArrayRef]) -> Option<NullBuffer> {
        let nulls = columns.iter().fold(None, |nulls: Option<NullBuffer>, column| {
            NullBuffer::union(nulls.as_ref(), column.logical_nulls().as_ref())
        });
        nulls.filter(|nulls| nulls.null_count() > 0)
    }
}

/// The type of what a column of type `kind` has, in runs or not.
fn plain(kind: &DataType) -> &DataType {
    match kind {
        DataType::RunEndEncoded(_, values) => plain(values.data_type()),
        kind => kind,
    }
}

/// `column` with a value for each row, if it is of runs. Such a column has no NULLs of its own.
fn expand_runs(column: &ArrayRef) -> Result<ArrayRef> {
    match column.data_type() {
        kind @ DataType::RunEndEncoded(..) => Ok(cast(column, plain(kind))?),
        _ => Ok(column.clone()),
    }
}

fn hash_u64(key: u64) -> u64 {
    const MULTIPLIER: u128 = 0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835;
    let product = (u128::from(key) ^ u128::from(SEED)).wrapping_mul(MULTIPLIER);
    let folded = (product as u64) ^ ((product >> 64) as u64);
    // A second round, since tables use the low bits and partitions the high ones.
    (folded ^ (folded >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93)
}

fn hash_row(state: &RandomState, row: Row<'_>) -> u64 {
    state.hash_one(row.data())
}

impl Keys {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Word(keys) => keys.len(),
            Self::Pair(keys) => keys.len(),
            Self::Rows(rows) => rows.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes room for `more`.
    pub fn reserve(&mut self, more: usize) {
        match self {
            Self::Word(keys) => keys.reserve(more),
            Self::Pair(keys) => keys.reserve(more),
            // These do not move.
            Self::Rows(_) => {}
        }
    }

    /// Has none any more.
    pub fn clear(&mut self) {
        match self {
            Self::Word(keys) => keys.clear(),
            Self::Pair(keys) => keys.clear(),
            Self::Rows(rows) => rows.clear(),
        }
    }

    /// The bytes they take.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Word(keys) => 8 * keys.capacity(),
            Self::Pair(keys) => 16 * keys.capacity(),
            Self::Rows(rows) => rows.bytes(),
        }
    }

    /// Whether comparing two of them costs more than a hash that is kept for each.
    pub fn are_costly(&self) -> bool {
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
            Self::Word(keys) => hashes.extend(keys[range].iter().map(|key| hash_u64(*key))),
            Self::Pair(keys) => hashes.extend(keys[range].iter().map(|key| {
                hash_u64((*key as u64).rotate_left(29) ^ hash_u64((*key >> 64) as u64))
            })),
            Self::Rows(rows) => {
                let state = RandomState::with_seed(SEED);
                hashes.extend(rows.range(range).map(|row| hash_row(&state, row)));
            }
        }
    }

    /// The bytes of all of those whose length differs.
    pub(crate) fn text_bytes(&self) -> usize {
        match self {
            Self::Rows(rows) => rows.bytes(),
            Self::Word(_) | Self::Pair(_) => 0,
        }
    }

    /// The bytes of key `index`, if the length of keys differs.
    pub(crate) fn length(&self, index: usize) -> usize {
        match self {
            Self::Rows(rows) => rows.row(index).data().len(),
            Self::Word(_) | Self::Pair(_) => 0,
        }
    }

    /// Appends all keys of `other`, which come from the same encoder.
    pub fn append(&mut self, other: &Self) {
        match (self, other) {
            (Self::Word(keys), Self::Word(more)) => keys.extend_from_slice(more),
            (Self::Pair(keys), Self::Pair(more)) => keys.extend_from_slice(more),
            (Self::Rows(rows), Self::Rows(more)) => more.iter().for_each(|row| rows.push(row)),
            _ => debug_assert!(false, "keys of another encoder"),
        }
    }

    /// Appends key `index` of `other`, which comes from the same encoder.
    pub fn push_from(&mut self, other: &Self, index: usize) {
        match (self, other) {
            (Self::Word(keys), Self::Word(more)) => keys.push(more[index]),
            (Self::Pair(keys), Self::Pair(more)) => keys.push(more[index]),
            (Self::Rows(rows), Self::Rows(more)) => rows.push(more.row(index)),
            _ => debug_assert!(false, "keys of another encoder"),
        }
    }

    /// Whether key `index` equals key `other_index` of `other`.
    pub fn equals(&self, index: usize, other: &Self, other_index: usize) -> bool {
        match (self, other) {
            (Self::Word(keys), Self::Word(others)) => keys[index] == others[other_index],
            (Self::Pair(keys), Self::Pair(others)) => keys[index] == others[other_index],
            (Self::Rows(rows), Self::Rows(others)) => rows.row(index) == others.row(other_index),
            _ => false,
        }
    }
}
