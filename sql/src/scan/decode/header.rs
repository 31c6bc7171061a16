//! Page headers: the kind, sizes and number of rows of a page, known before the page is read.
//!
//! The parquet crate reads page headers too, but does not return the sizes, which must be plausible
//! before any allocation. It does not return the lengths of the levels either, which it adds
//! without a check.

use super::corrupt;
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
        let mut field = 0;
        while let Some(kind) = input.field(&mut field)? {
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
        Ok((header, input.offset))
    }

    /// Returns whether the header announces a dictionary with more entries than its bytes can hold.
    /// The parquet crate allocates the announced number of entries.
    pub(crate) fn is_oversized_dictionary(&self) -> bool {
        self.kind == 2 && !(0..=self.uncompressed_len).contains(&self.values)
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
