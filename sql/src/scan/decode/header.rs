//! Page headers: the kind, sizes and number of rows of a page, known before the page is read.
//!
//! The parquet crate reads page headers too, but does not return the sizes, which must be plausible
//! before any allocation. It does not return the lengths of the levels either, which it adds
//! without a check.

use super::corrupt;
use parquet::basic::Compression;
use parquet::errors::Result;

/// Maximum nesting of the values of unknown fields.
const MAX_DEPTH: usize = 16;

/// The fields of a page header that are needed before the page is read.
#[derive(Default, Debug)]
pub(crate) struct PageHeader {
    /// Page type: 0 data page, 1 index page, 2 dictionary page, 3 data page of version 2.
    pub(crate) kind: i64,
    /// Size of the decompressed page in bytes.
    pub(crate) uncompressed_len: i64,
    /// Size in bytes of the page after the header.
    pub(crate) compressed_len: i64,
    /// CRC-32 of the bytes after the header, if the writer computed it.
    pub(crate) crc: Option<u32>,
    /// Number of values in the page, nulls included; number of entries of a dictionary.
    pub(crate) values: i64,
    /// Number of rows; only data pages of version 2 state it.
    pub(crate) rows: Option<i64>,
    /// Sizes in bytes of the definition and the repetition levels, in pages of version 2.
    pub(crate) levels_len: [i64; 2],
}

impl PageHeader {
    /// Reads the header at the beginning of `bytes`; also returns the header's length.
    pub(crate) fn read(bytes: &[u8]) -> Result<(Self, usize)> {
        let mut input = Compact { bytes, offset: 0 };
        let mut header = Self::default();
        let (mut field, mut seen) = (0, [false; 3]);
        while let Some(kind) = input.field(&mut field)? {
            if let (1..=3, ThriftType::INTEGER) = (field, kind) {
                seen[field as usize - 1] = true;
            }
            match (field, kind) {
                (1, ThriftType::INTEGER) => header.kind = input.integer()?,
                (2, ThriftType::INTEGER) => header.uncompressed_len = input.integer()?,
                (3, ThriftType::INTEGER) => header.compressed_len = input.integer()?,
                // Thrift has no unsigned integers.
                (4, ThriftType::INTEGER) => header.crc = Some(input.integer()? as u32),
                (5 | 7 | 8, ThriftType::STRUCT) => header.read_details(&mut input, field)?,
                _ => input.skip(kind, 0)?,
            }
        }
        if seen.contains(&false) {
            return Err(corrupt("a page header lacks its kind or a size"));
        }
        Ok((header, input.offset))
    }

    /// Checks the sizes that this header of a page with `compression` states. Readers allocate what
    /// a header states.
    pub(crate) fn check(&self, compression: Compression) -> Result<()> {
        let within = |value: &i64| (0..=i64::from(i32::MAX)).contains(value);
        let [levels, repetitions] = self.levels_len;
        let sizes = [self.compressed_len, self.uncompressed_len, self.values, levels, repetitions];
        if !sizes.iter().all(within)
            || levels + repetitions > self.uncompressed_len
            || self.uncompressed_len > max_uncompressed_len(compression, self.compressed_len)
        {
            return Err(corrupt("the header of a page is implausible"));
        }
        if self.kind == 2 && self.values > self.uncompressed_len {
            let (values, bytes) = (self.values, self.uncompressed_len);
            return Err(corrupt(format!("a dictionary of {values} values has {bytes} bytes")));
        }
        Ok(())
    }

    /// Reads the header of one kind of page, which is field `outer` of the page header.
    fn read_details(&mut self, input: &mut Compact<'_>, outer: i16) -> Result<()> {
        let mut field = 0;
        while let Some(kind) = input.field(&mut field)? {
            match (outer, field, kind) {
                (_, 1, ThriftType::INTEGER) => self.values = input.integer()?,
                (8, 3, ThriftType::INTEGER) => self.rows = Some(input.integer()?),
                (8, 5, ThriftType::INTEGER) => self.levels_len[0] = input.integer()?,
                (8, 6, ThriftType::INTEGER) => self.levels_len[1] = input.integer()?,
                _ => input.skip(kind, 0)?,
            }
        }
        Ok(())
    }
}

/// Returns the maximum size to which `compressed` bytes can decompress.
fn max_uncompressed_len(compression: Compression, compressed: i64) -> i64 {
    match compression {
        // Uncompressed pages are not copied, so their size does not matter.
        Compression::UNCOMPRESSED => i64::MAX,
        // A copy of 64 bytes takes at least three.
        Compression::SNAPPY => compressed * 32 + 64,
        // A further byte of a length stands for 255 bytes.
        Compression::LZ4 | Compression::LZ4_RAW => compressed * 256 + 64,
        // A copy of 258 bytes takes at least two bits.
        Compression::GZIP(_) => compressed * 1032 + 64,
        // A block that repeats one byte takes four bytes and yields 128 KiB.
        Compression::ZSTD(_) => compressed * (32 << 10) + (128 << 10),
        _ => i64::MAX,
    }
}

/// A type in Thrift's compact protocol.
struct ThriftType;

impl ThriftType {
    const TRUE: u8 = 1;
    const FALSE: u8 = 2;
    const BYTE: u8 = 3;
    const SHORT: u8 = 4;
    const INTEGER: u8 = 5;
    const LONG: u8 = 6;
    const DOUBLE: u8 = 7;
    const BINARY: u8 = 8;
    const LIST: u8 = 9;
    const SET: u8 = 10;
    const STRUCT: u8 = 12;
}

/// A reader of Thrift's compact protocol.
struct Compact<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl Compact<'_> {
    /// Reads the next byte.
    fn byte(&mut self) -> Result<u8> {
        let byte =
            self.bytes.get(self.offset).ok_or_else(|| corrupt("a page header is cut off"))?;
        self.offset += 1;
        Ok(*byte)
    }

    /// Reads the next unsigned integer.
    fn unsigned(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(corrupt("an integer in a page header is too long"))
    }

    /// Reads the next signed integer, in zigzag encoding.
    fn integer(&mut self) -> Result<i64> {
        let value = self.unsigned()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// Returns the type of the next field, whose number is stored in `field`; `None` at the end of
    /// the struct.
    fn field(&mut self, field: &mut i16) -> Result<Option<u8>> {
        let byte = self.byte()?;
        if byte == 0 {
            return Ok(None);
        }
        *field = match i16::from(byte >> 4) {
            0 => i16::try_from(self.integer()?).unwrap_or(i16::MAX),
            step => field.saturating_add(step),
        };
        Ok(Some(byte & 0x0f))
    }

    /// Skips a value.
    fn skip(&mut self, kind: u8, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(corrupt("a page header is nested too deeply"));
        }
        match kind {
            ThriftType::TRUE | ThriftType::FALSE => {}
            ThriftType::BYTE => self.advance(1)?,
            ThriftType::SHORT | ThriftType::INTEGER | ThriftType::LONG => {
                self.unsigned().map(drop)?
            }
            ThriftType::DOUBLE => self.advance(8)?,
            ThriftType::BINARY => {
                let len = self.unsigned()?;
                self.advance(usize::try_from(len).unwrap_or(usize::MAX))?;
            }
            ThriftType::LIST | ThriftType::SET => {
                let head = self.byte()?;
                let count = if head >> 4 == 15 { self.unsigned()? } else { u64::from(head >> 4) };
                for _ in 0..count {
                    match head & 0x0f {
                        // In a list, unlike in a field, a boolean takes a byte. So every element
                        // consumes input, and a wrong count ends with the input.
                        ThriftType::TRUE | ThriftType::FALSE => self.advance(1)?,
                        kind => self.skip(kind, depth + 1)?,
                    }
                }
            }
            ThriftType::STRUCT => {
                let mut field = 0;
                while let Some(kind) = self.field(&mut field)? {
                    self.skip(kind, depth + 1)?;
                }
            }
            _ => return Err(corrupt("an unknown type in a page header")),
        }
        Ok(())
    }

    /// Skips `len` bytes.
    fn advance(&mut self, len: usize) -> Result<()> {
        if len > self.bytes.len() - self.offset {
            return Err(corrupt("a page header is cut off"));
        }
        self.offset += len;
        Ok(())
    }
}
