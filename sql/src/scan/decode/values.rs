//! Decoding of a column's values, independent of their type: dictionary, pages, output.

use super::bits::RleBitPackedReader;
use super::corrupt;
use super::gather::gather;
use super::mask::Mask;
use super::pages::take_length_prefixed;
use arrow_array::{ArrayRef, DictionaryArray};
use arrow_buffer::{BooleanBuffer, NullBuffer};
use bytes::{Buf, Bytes};
use parquet::basic::Encoding;
use parquet::errors::Result;
use std::sync::Arc;

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

    /// Starts an output of `rows` rows. With `max_entries`, values may become codes of a dictionary
    /// with at most that many entries.
    fn begin(&mut self, rows: usize, max_entries: Option<usize>);

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
    /// The codes of this read; `None` if values are read.
    codes: Option<Vec<u32>>,
    /// Maximum number of entries of a dictionary whose codes are read.
    max_entries: usize,
    /// The dictionary as an array, and the codes of its entries, once codes are read.
    entries: Option<Entries>,
}

/// The entries of a dictionary, of which the last one is NULL.
struct Entries {
    array: ArrayRef,
    /// 0, 1, 2, …: what a page's indices stand for.
    codes: Vec<u32>,
}

impl<K: ValueEncoding> TypedDecoder<K> {
    /// Creates a decoder without values.
    pub(crate) fn new(encoding: K) -> Self {
        Self {
            dictionary: encoding.constants(),
            encoding,
            source: ValueSource::None,
            out: Vec::new(),
            codes: None,
            max_entries: 0,
            entries: None,
        }
    }

    /// Reads as codes the next `count` values that `mask` selects. Returns false, without having
    /// read any, if this read has to return values.
    fn read_codes(&mut self, count: usize, mask: Option<Mask<'_>>) -> Result<bool> {
        let fits = self.dictionary.len() <= self.max_entries;
        if !fits || matches!(self.source, ValueSource::None | ValueSource::Plain) {
            self.decode_codes();
            return Ok(false);
        }
        self.make_entries()?;
        let (Some(codes), Some(entries)) = (&mut self.codes, &self.entries) else {
            return Ok(false);
        };
        match &mut self.source {
            ValueSource::Indices(indices) => gather(indices, count, mask, &entries.codes, codes)?,
            _ => {
                let selected = mask.map_or(count, |mask| mask.count());
                if selected > 0 && self.dictionary.is_empty() {
                    return Err(corrupt("a dictionary is missing"));
                }
                codes.resize(codes.len() + selected, 0);
            }
        }
        Ok(true)
    }

    /// Turns the codes of this read into values.
    fn decode_codes(&mut self) {
        let Some(codes) = self.codes.take() else { return };
        self.out = Vec::with_capacity(codes.capacity());
        if codes.is_empty() {
            return; // No buffer of the dictionary is needed.
        }
        let value = |code: u32| self.dictionary.get(code as usize).copied().unwrap_or_default();
        self.out.extend(codes.into_iter().map(value));
        self.encoding.adopt(&mut self.out);
    }

    /// Makes the dictionary an array, unless it is one.
    fn make_entries(&mut self) -> Result<()> {
        if self.entries.is_none() {
            let mut values = self.dictionary.clone();
            self.encoding.adopt(&mut values);
            values.push(K::Native::default());
            let valid: NullBuffer =
                (0..values.len()).map(|entry| entry < self.dictionary.len()).collect();
            let codes = (0..self.dictionary.len() as u32).collect();
            let array = self.encoding.finish(values, Some(valid))?;
            self.entries = Some(Entries { array, codes });
        }
        Ok(())
    }
}

/// Moves the `count` values appended last to the rows that are set in `present`; the other rows get
/// `absent`.
fn spread<T: Copy>(out: &mut Vec<T>, present: &BooleanBuffer, count: usize, absent: T) {
    let base = out.len().saturating_sub(count);
    out.resize(base + present.len(), absent);
    let out = &mut out[base..];
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
            absent
        };
    }
}

impl<K: ValueEncoding> ValueDecoder for TypedDecoder<K> {
    fn dictionary(&mut self, data: Bytes, count: usize) -> Result<()> {
        // The codes so far are those of another dictionary; without any, the output may still be
        // one of codes.
        if self.codes.as_ref().is_some_and(|codes| !codes.is_empty()) {
            self.decode_codes();
        }
        self.entries = None;
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

    fn begin(&mut self, rows: usize, max_entries: Option<usize>) {
        self.max_entries = max_entries.filter(|_| !K::BITS).unwrap_or(0);
        self.codes = (self.max_entries > 0).then(|| Vec::with_capacity(rows));
        self.out = if self.codes.is_some() { Vec::new() } else { Vec::with_capacity(rows) };
    }

    fn read(&mut self, count: usize, mask: Option<Mask<'_>>) -> Result<()> {
        if self.codes.is_some() && self.read_codes(count, mask)? {
            return Ok(());
        }
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
        match &mut self.codes {
            Some(codes) => spread(codes, present, count, self.dictionary.len() as u32),
            None => spread(&mut self.out, present, count, K::Native::default()),
        }
    }

    fn finish(&mut self, nulls: Option<NullBuffer>) -> Result<ArrayRef> {
        let Some(codes) = self.codes.take() else {
            return self.encoding.finish(std::mem::take(&mut self.out), nulls);
        };
        self.make_entries()?;
        let Some(entries) = &self.entries else { return Err(corrupt("a dictionary is missing")) };
        Ok(Arc::new(DictionaryArray::try_new(codes.into(), entries.array.clone())?))
    }
}
