//! Decoding of a column's values, independent of their type: dictionary, pages, output.

use super::bits::RleBitPackedReader;
use super::corrupt;
use super::gather::gather;
use super::mask::Mask;
use super::pages::take_length_prefixed;
use arrow_array::ArrayRef;
use arrow_buffer::{BooleanBuffer, NullBuffer};
use bytes::{Buf, Bytes};
use parquet::basic::Encoding;
use parquet::errors::Result;

/// The type-specific part of decoding, independent of dictionaries, nulls and encodings.
pub(crate) trait ValueEncoding: Send {
    /// A value in the output under construction.
    type Native: Copy + Default + Send;

    /// Whether the values are single bits, whose plain encoding is packed.
    const BITS: bool = false;

    /// Returns the dictionary that pages refer to if the chunk has no dictionary page.
    fn constants(&self) -> Vec<Self::Native> {
        Vec::new()
    }

    /// Decodes a dictionary of `count` plain values.
    fn dictionary(&mut self, data: Bytes, count: usize) -> Result<Vec<Self::Native>>;

    /// Adapts dictionary values that were just appended to the output of this read.
    fn adopt(&mut self, appended: &mut [Self::Native]) {
        let _ = appended;
    }

    /// Starts a page of plain values.
    fn open(&mut self, data: Bytes);

    /// Drops the page of plain values.
    fn close(&mut self);

    /// Appends those of the next `count` plain values that `mask` selects.
    fn read(
        &mut self,
        count: usize,
        mask: Option<Mask<'_>>,
        out: &mut Vec<Self::Native>,
    ) -> Result<()>;

    /// Skips plain values.
    fn skip(&mut self, count: usize) -> Result<()>;

    /// Builds an array of the values read.
    fn finish(&mut self, values: Vec<Self::Native>, nulls: Option<NullBuffer>) -> Result<ArrayRef>;
}

/// A decoder of a column's values, of any type.
pub(crate) trait ValueDecoder: Send {
    /// Sets the dictionary of the pages that follow.
    fn dictionary(&mut self, data: Bytes, count: usize) -> Result<()>;

    /// Starts the values of the next page.
    fn open(&mut self, encoding: Encoding, data: Bytes) -> Result<()>;

    /// Drops the page, so that its memory can serve the next one.
    fn close(&mut self);

    /// Starts an output of `rows` rows.
    fn begin(&mut self, rows: usize);

    /// Appends those of the next `count` values that `mask` selects.
    fn read(&mut self, count: usize, mask: Option<Mask<'_>>) -> Result<()>;

    /// Skips values.
    fn skip(&mut self, count: usize) -> Result<()>;

    /// Moves the `count` values appended last to the rows that are set in `present`.
    fn spread(&mut self, present: &BooleanBuffer, count: usize);

    /// Returns the output.
    fn finish(&mut self, nulls: Option<NullBuffer>) -> Result<ArrayRef>;
}

/// The source of the current page's values.
enum ValueSource {
    /// No page is open.
    None,
    /// The page is plain.
    Plain,
    /// The page has indices into the dictionary.
    Indices(RleBitPackedReader),
    /// The page has an index width of 0: all its values are the first entry of the dictionary.
    First,
}

/// A decoder of the values of a column with the encoding `K`.
pub(crate) struct TypedDecoder<K: ValueEncoding> {
    encoding: K,
    dictionary: Vec<K::Native>,
    source: ValueSource,
    out: Vec<K::Native>,
}

impl<K: ValueEncoding> TypedDecoder<K> {
    /// Creates a decoder without values.
    pub(crate) fn new(encoding: K) -> Self {
        Self {
            dictionary: encoding.constants(),
            encoding,
            source: ValueSource::None,
            out: Vec::new(),
        }
    }
}

impl<K: ValueEncoding> ValueDecoder for TypedDecoder<K> {
    fn dictionary(&mut self, data: Bytes, count: usize) -> Result<()> {
        self.dictionary = self.encoding.dictionary(data, count)?;
        Ok(())
    }

    fn open(&mut self, encoding: Encoding, mut data: Bytes) -> Result<()> {
        self.source = match encoding {
            Encoding::PLAIN if K::BITS => {
                ValueSource::Indices(RleBitPackedReader::bit_width_one(data))
            }
            Encoding::RLE if K::BITS => {
                ValueSource::Indices(RleBitPackedReader::new(take_length_prefixed(&mut data)?, 1)?)
            }
            Encoding::PLAIN => {
                self.encoding.open(data);
                ValueSource::Plain
            }
            Encoding::PLAIN_DICTIONARY | Encoding::RLE_DICTIONARY if !K::BITS => {
                match data.try_get_u8() {
                    // A page that has only nulls may be empty; no value is read from it.
                    Err(_) | Ok(0) => ValueSource::First,
                    Ok(width) => {
                        ValueSource::Indices(RleBitPackedReader::new(data, u32::from(width))?)
                    }
                }
            }
            encoding => return Err(corrupt(format!("unsupported encoding of values: {encoding}"))),
        };
        Ok(())
    }

    fn close(&mut self) {
        self.source = ValueSource::None;
        self.encoding.close();
    }

    fn begin(&mut self, rows: usize) {
        self.out = Vec::with_capacity(rows);
    }

    fn read(&mut self, count: usize, mask: Option<Mask<'_>>) -> Result<()> {
        let before = self.out.len();
        match &mut self.source {
            ValueSource::None => return Err(corrupt("no data page precedes the values")),
            ValueSource::Plain => return self.encoding.read(count, mask, &mut self.out),
            ValueSource::Indices(indices) => {
                gather(indices, count, mask, &self.dictionary, &mut self.out)?;
            }
            ValueSource::First => {
                let selected = mask.map_or(count, |mask| mask.count());
                if selected > 0 {
                    let first = self.dictionary.first();
                    let first = first.ok_or_else(|| corrupt("a dictionary is missing"))?;
                    self.out.resize(before + selected, *first);
                }
            }
        }
        self.encoding.adopt(&mut self.out[before..]);
        Ok(())
    }

    fn skip(&mut self, count: usize) -> Result<()> {
        match &mut self.source {
            ValueSource::None => Err(corrupt("no data page precedes the values")),
            ValueSource::Plain => self.encoding.skip(count),
            ValueSource::Indices(indices) => indices.skip(count),
            ValueSource::First => Ok(()),
        }
    }

    fn spread(&mut self, present: &BooleanBuffer, count: usize) {
        let base = self.out.len().saturating_sub(count);
        self.out.resize(base + present.len(), K::Native::default());
        let out = &mut self.out[base..];
        // Runs backwards, so that no value is overwritten before it has moved.
        let mut from = count;
        for to in (0..out.len()).rev() {
            if from > to {
                break; // All earlier rows are present, and their values are in place.
            }
            out[to] = if present.value(to) && from > 0 {
                from -= 1;
                out[from]
            } else {
                K::Native::default()
            };
        }
    }

    fn finish(&mut self, nulls: Option<NullBuffer>) -> Result<ArrayRef> {
        self.encoding.finish(std::mem::take(&mut self.out), nulls)
    }
}
