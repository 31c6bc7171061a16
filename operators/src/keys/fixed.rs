//! Packing of fixed-width columns into unsigned integers, and unpacking.

use arrow::{
    array::{Array, ArrayData, ArrayRef, BooleanArray, make_array},
    buffer::{BooleanBuffer, Buffer, NullBuffer},
    datatypes::DataType,
};
use datafusion_common::{cast::as_boolean_array, internal_err};

use super::encoder::{hash_u64, hash_u128};

/// Position of a column's value and null bit in a packed key.
#[derive(Debug, Clone, Copy)]
pub(super) struct PackedField {
    /// Bytes of the value: 1, 2, 4, 8 or 16.
    width: usize,
    shift: u32,
    /// Bit of the null flag, if NULL is a value.
    null_shift: Option<u32>,
    /// Whether the values have a sign.
    is_signed: bool,
}

impl PackedField {
    /// Returns a number that orders the values of keys like the column's type does. NULL has the
    /// number of zero.
    #[inline]
    pub(super) fn order<W: KeyWord>(self, key: W) -> u64 {
        let unused = 64 - 8 * self.width as u32;
        let value = (key.field(self.shift) as u64) << unused >> unused;
        value ^ u64::from(self.is_signed) << (63 - unused)
    }

    /// Returns whether the value of `key` is NULL.
    #[inline]
    pub(super) fn is_null<W: KeyWord>(self, key: W) -> bool {
        self.null_shift.is_some_and(|shift| key.field(shift) & 1 == 1)
    }

    /// Returns the field of values of type `kind` at bit `shift`, without a null flag; `None` if
    /// the type has no fixed width.
    pub(super) fn new(kind: &DataType, shift: u32) -> Option<Self> {
        let is_signed = is_signed(kind);
        width(kind).map(|width| Self { width, shift, null_shift: None, is_signed })
    }
}

/// Returns the fields of a packed key and their total bits; `None` if a type has no fixed width.
pub(super) fn fields(types: &[(DataType, bool)]) -> Option<(Vec<PackedField>, u32)> {
    let mut bits = 0;
    let mut fields = Vec::with_capacity(types.len());
    for (kind, null_bit) in types {
        let width = width(kind)?;
        let shift = bits;
        bits += 8 * width as u32;
        let null_shift = null_bit.then_some(bits);
        bits += u32::from(*null_bit);
        fields.push(PackedField { width, shift, null_shift, is_signed: is_signed(kind) });
    }
    Some((fields, bits))
}

/// Returns the bytes of a value of fixed width; `None` for other types.
pub(super) fn width(kind: &DataType) -> Option<usize> {
    match kind {
        DataType::Boolean => Some(1),
        DataType::Interval(_) => None,
        kind => kind.primitive_width().filter(|width| *width <= 16),
    }
}

fn is_signed(kind: &DataType) -> bool {
    !kind.is_unsigned_integer() && kind != &DataType::Boolean
}

/// Returns whether nearby values of type `kind` may be packed to nearby numbers of 64 bits.
pub(super) fn has_ranges(kind: &DataType) -> bool {
    !kind.is_floating() && width(kind).is_some_and(|width| width <= 8)
}

/// Integer type of a packed key.
pub(super) trait KeyWord: Copy + Default {
    fn or_shifted(&mut self, value: u128, shift: u32);
    fn field(self, shift: u32) -> u128;
    fn hash(self) -> u64;
}

impl KeyWord for u64 {
    fn or_shifted(&mut self, value: u128, shift: u32) {
        *self |= (value as u64) << shift;
    }

    fn field(self, shift: u32) -> u128 {
        u128::from(self >> shift)
    }

    fn hash(self) -> u64 {
        hash_u64(self)
    }
}

impl KeyWord for u128 {
    fn or_shifted(&mut self, value: u128, shift: u32) {
        *self |= value << shift;
    }

    fn field(self, shift: u32) -> u128 {
        self >> shift
    }

    fn hash(self) -> u64 {
        hash_u128(self)
    }
}

/// Ors `column`'s values into `keys`; a NULL leaves its value bits zero.
pub(super) fn pack<W: KeyWord>(column: &dyn Array, field: PackedField, keys: &mut [W]) {
    if let Ok(booleans) = as_boolean_array(column) {
        for (key, bit) in keys.iter_mut().zip(booleans.values()) {
            key.or_shifted(u128::from(bit), field.shift);
        }
    } else {
        let data = column.to_data();
        match field.width {
            1 => pack_values::<u8, W>(&data, field.shift, keys),
            2 => pack_values::<u16, W>(&data, field.shift, keys),
            4 => pack_values::<u32, W>(&data, field.shift, keys),
            8 => pack_values::<u64, W>(&data, field.shift, keys),
            _ => {
                let values = &data.buffer::<i128>(0)[..keys.len()];
                for (key, value) in keys.iter_mut().zip(values) {
                    key.or_shifted(*value as u128, field.shift);
                }
            }
        }
    }
    let Some(nulls) = column.nulls().filter(|nulls| nulls.null_count() > 0) else { return };
    for (row, key) in keys.iter_mut().enumerate() {
        if nulls.is_null(row) {
            clear(key, field);
            if let Some(null_shift) = field.null_shift {
                key.or_shifted(1, null_shift);
            }
        }
    }
}

/// Zeroes the value bits of a NULL, which are undefined in the column.
fn clear<W: KeyWord>(key: &mut W, field: PackedField) {
    let value = key.field(0);
    let mask = low_bits(8 * field.width as u32) << field.shift;
    let mut cleared = W::default();
    cleared.or_shifted(value & !mask, 0);
    *key = cleared;
}

fn low_bits(bits: u32) -> u128 {
    u128::MAX >> (128 - bits)
}

fn pack_values<T, W>(data: &ArrayData, shift: u32, keys: &mut [W])
where
    T: arrow::datatypes::ArrowNativeType + Into<u128>,
    W: KeyWord,
{
    let values = &data.buffer::<T>(0)[..keys.len()];
    for (key, value) in keys.iter_mut().zip(values) {
        key.or_shifted((*value).into(), shift);
    }
}

/// Returns the column of type `kind` that was packed at `field`.
pub(super) fn unpack<W: KeyWord>(
    keys: &[W],
    field: PackedField,
    kind: &DataType,
) -> datafusion_common::Result<ArrayRef> {
    let nulls = field.null_shift.map(|shift| {
        NullBuffer::new(BooleanBuffer::collect_bool(keys.len(), |row| {
            keys[row].field(shift) & 1 == 0
        }))
    });
    unpack_values(keys, field, kind, nulls)
}

/// Returns the column of type `kind` with these nulls whose values were packed at `field`.
pub(super) fn unpack_values<W: KeyWord>(
    keys: &[W],
    field: PackedField,
    kind: &DataType,
    nulls: Option<NullBuffer>,
) -> datafusion_common::Result<ArrayRef> {
    let value = |key: &W| key.field(field.shift);
    let nulls = nulls.filter(|nulls| nulls.null_count() > 0);
    if kind == &DataType::Boolean {
        let bits = BooleanBuffer::collect_bool(keys.len(), |row| value(&keys[row]) & 1 == 1);
        return Ok(std::sync::Arc::new(BooleanArray::new(bits, nulls)));
    }
    let buffer = match field.width {
        1 => Buffer::from_vec(keys.iter().map(|key| value(key) as u8).collect()),
        2 => Buffer::from_vec(keys.iter().map(|key| value(key) as u16).collect()),
        4 => Buffer::from_vec(keys.iter().map(|key| value(key) as u32).collect()),
        8 => Buffer::from_vec(keys.iter().map(|key| value(key) as u64).collect()),
        16 => Buffer::from_vec(keys.iter().map(|key| value(key) as i128).collect()),
        width => return internal_err!("unsupported width of a packed key field: {width} bytes"),
    };
    let data = ArrayData::builder(kind.clone()).len(keys.len()).add_buffer(buffer).nulls(nulls);
    Ok(make_array(data.build()?))
}
