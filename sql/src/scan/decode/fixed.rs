//! Values of a fixed width: numbers, dates, times, decimals and booleans.

use super::corrupt;
use super::mask::Mask;
use super::values::ValueEncoding;
use arrow_array::types::ArrowPrimitiveType;
use arrow_array::{ArrayRef, BooleanArray, PrimitiveArray};
use arrow_buffer::{ArrowNativeType, BooleanBuffer, NullBuffer, ScalarBuffer};
use arrow_schema::DataType;
use bytes::Bytes;
use parquet::errors::Result;
use std::marker::PhantomData;
use std::sync::Arc;

/// The layout of values in plain pages.
pub(crate) trait Layout: Send {
    /// The native type to which a value is converted.
    type Native: ArrowNativeType;

    /// Returns the size of a value in bytes, at least one.
    fn width(&self) -> usize;

    /// Appends the `count` values at the beginning of `data`, which may be longer.
    fn append(&self, data: &[u8], count: usize, out: &mut Vec<Self::Native>);
}

/// A type in which Parquet stores numbers.
pub(crate) trait Stored: Copy + Send {
    /// The size of a value in bytes.
    const WIDTH: usize;

    /// Appends converted values.
    fn append<N: FromStored<Self>>(data: &[u8], count: usize, out: &mut Vec<N>);
}

/// A type to which values stored as `S` are converted.
pub(crate) trait FromStored<S>: ArrowNativeType {
    /// Converts a value. Truncation is harmless: a writer of a narrower type stores no larger
    /// value.
    fn convert(stored: S) -> Self;
}

macro_rules! stored {
    ($($stored:ident $width:literal => $($native:ident)*;)*) => {$(
        impl Stored for $stored {
            const WIDTH: usize = $width;

            #[inline]
            fn append<N: FromStored<Self>>(data: &[u8], count: usize, out: &mut Vec<N>) {
                let (values, _) = data.as_chunks::<$width>();
                let values = values.iter().take(count);
                out.extend(values.map(|bytes| N::convert($stored::from_le_bytes(*bytes))));
            }
        }
        $(impl FromStored<$stored> for $native {
            #[inline]
            fn convert(stored: $stored) -> Self {
                stored as $native
            }
        })*
    )*};
}

stored! {
    i32 4 => i8 i16 i32 u8 u16 u32 i128;
    i64 8 => i64 u64 i128;
    f32 4 => f32;
    f64 8 => f64;
}

/// Values stored as `S`, little-endian, that are converted to `N`.
pub(crate) struct LittleEndian<S, N>(PhantomData<(S, N)>);

impl<S, N> LittleEndian<S, N> {
    /// Returns the only value of the type.
    pub(crate) fn new() -> Self {
        Self(PhantomData)
    }
}

impl<S: Stored, N: FromStored<S>> Layout for LittleEndian<S, N> {
    type Native = N;

    fn width(&self) -> usize {
        S::WIDTH
    }

    #[inline]
    fn append(&self, data: &[u8], count: usize, out: &mut Vec<N>) {
        S::append(data, count, out);
    }
}

/// Signed big-endian integers of 1 to 16 bytes, the layout of decimals.
pub(crate) struct BigEndian {
    width: usize,
}

impl BigEndian {
    /// Creates the layout of integers of `width` bytes, 1 to 16.
    pub(crate) fn new(width: usize) -> Self {
        Self { width }
    }
}

impl Layout for BigEndian {
    type Native = i128;

    fn width(&self) -> usize {
        self.width
    }

    #[inline]
    fn append(&self, data: &[u8], count: usize, out: &mut Vec<i128>) {
        let unused_bits = 8 * (16 - self.width);
        out.extend((0..count).map(|value| {
            let bytes = data.get(value * self.width..).unwrap_or_default();
            let sixteen = match bytes.first_chunk::<16>() {
                Some(sixteen) => *sixteen,
                None => {
                    let mut padded = [0; 16];
                    padded[..bytes.len()].copy_from_slice(bytes);
                    padded
                }
            };
            // The shift drops the bytes of the next values and extends the sign.
            i128::from_be_bytes(sixteen) >> unused_bits
        }));
    }
}

/// Decoder of primitive arrays of type `T` from values in layout `L`.
pub(crate) struct Primitive<L, T> {
    layout: L,
    /// The type of the arrays, with its time zone or its precision and scale.
    target: DataType,
    page: Bytes,
    offset: usize,
    array: PhantomData<T>,
}

impl<L: Layout, T: ArrowPrimitiveType<Native = L::Native>> Primitive<L, T> {
    /// Creates a decoder of arrays of type `target`, which must be a type of `T`.
    pub(crate) fn new(layout: L, target: DataType) -> Self {
        Self { layout, target, page: Bytes::new(), offset: 0, array: PhantomData }
    }

    /// Advances past `count` values; returns the offset of the first.
    fn take(&mut self, count: usize) -> Result<usize> {
        let from = self.offset;
        let len = count.saturating_mul(self.layout.width());
        if len > self.page.len() - from {
            return Err(corrupt("a page has fewer values than its header says"));
        }
        self.offset += len;
        Ok(from)
    }
}

impl<L: Layout, T> ValueEncoding for Primitive<L, T>
where
    T: ArrowPrimitiveType<Native = L::Native> + Send,
{
    type Native = L::Native;

    fn dictionary(&mut self, data: Bytes, count: usize) -> Result<Vec<Self::Native>> {
        if count.checked_mul(self.layout.width()).is_none_or(|len| len > data.len()) {
            return Err(corrupt("a dictionary page is cut off"));
        }
        let mut values = Vec::with_capacity(count);
        self.layout.append(&data, count, &mut values);
        Ok(values)
    }

    fn open(&mut self, data: Bytes) {
        self.page = data;
        self.offset = 0;
    }

    fn close(&mut self) {
        self.open(Bytes::new());
    }

    fn read(
        &mut self,
        count: usize,
        mask: Option<Mask<'_>>,
        out: &mut Vec<Self::Native>,
    ) -> Result<()> {
        let from = self.take(count)?;
        let width = self.layout.width();
        let values = &self.page[from..];
        let Some(mask) = mask else {
            self.layout.append(values, count, out);
            return Ok(());
        };
        let mut at = 0;
        while at < count {
            let mut word = mask.word(at);
            let mut value = at;
            // Processes runs of selected values; most masks have long runs or few of them.
            while word != 0 {
                let gap = word.trailing_zeros();
                word >>= gap;
                let run = word.trailing_ones();
                value += gap as usize;
                self.layout.append(&values[value * width..], run as usize, out);
                value += run as usize;
                word = word.checked_shr(run).unwrap_or(0);
            }
            at += 64;
        }
        Ok(())
    }

    fn skip(&mut self, count: usize) -> Result<()> {
        self.take(count).map(drop)
    }

    fn finish(&mut self, values: Vec<Self::Native>, nulls: Option<NullBuffer>) -> Result<ArrayRef> {
        let values = ScalarBuffer::from(values);
        let array = PrimitiveArray::<T>::try_new(values, nulls)?;
        Ok(Arc::new(array.with_data_type(self.target.clone())))
    }
}

/// Decoder of booleans: indices of one bit into the dictionary of false and true.
pub(crate) struct Booleans;

impl ValueEncoding for Booleans {
    type Native = u8;

    const BITS: bool = true;

    fn constants(&self) -> Vec<u8> {
        vec![0, 1]
    }

    fn dictionary(&mut self, _: Bytes, _: usize) -> Result<Vec<u8>> {
        Err(corrupt("a boolean column has a dictionary page"))
    }

    fn open(&mut self, _: Bytes) {}

    fn close(&mut self) {}

    fn read(&mut self, _: usize, _: Option<Mask<'_>>, _: &mut Vec<u8>) -> Result<()> {
        Err(corrupt("boolean values are not bit-packed"))
    }

    fn skip(&mut self, _: usize) -> Result<()> {
        Err(corrupt("boolean values are not bit-packed"))
    }

    fn finish(&mut self, values: Vec<u8>, nulls: Option<NullBuffer>) -> Result<ArrayRef> {
        let bits = BooleanBuffer::collect_bool(values.len(), |at| values[at] != 0);
        Ok(Arc::new(BooleanArray::new(bits, nulls)))
    }
}
