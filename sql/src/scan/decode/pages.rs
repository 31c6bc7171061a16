//! The pages of a column chunk: peeked at before decompression, and split into parts after it.

use super::corrupt;
use super::header::PageHeader;
use super::levels::DefinitionLevels;
use bytes::{Buf, Bytes};
use parquet::basic::{Compression, Encoding};
use parquet::column::page::{Page, PageReader};
use parquet::errors::Result;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{ChunkReader, Length, SerializedPageReader};
use std::sync::Arc;

/// The bytes of a column chunk, addressed by their offset in the file.
struct ChunkBytes {
    start: u64,
    data: Bytes,
}

impl ChunkBytes {
    /// Returns the bytes from a file offset to the end of the chunk.
    fn bytes_from(&self, offset: u64) -> Result<Bytes> {
        offset
            .checked_sub(self.start)
            .and_then(|at| usize::try_from(at).ok())
            .filter(|at| *at <= self.data.len())
            .map(|at| self.data.slice(at..))
            .ok_or_else(|| corrupt("a page lies outside its column chunk"))
    }
}

impl Length for ChunkBytes {
    fn len(&self) -> u64 {
        self.start.saturating_add(self.data.len() as u64)
    }
}

impl ChunkReader for ChunkBytes {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        Ok(self.bytes_from(start)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let mut bytes = self.bytes_from(start)?;
        if length > bytes.len() {
            return Err(corrupt("a page is cut off"));
        }
        bytes.truncate(length);
        Ok(bytes)
    }
}

/// The next data or dictionary page of a chunk, according to its header.
#[derive(Clone, Copy)]
pub(crate) enum PageKind {
    /// A dictionary page.
    Dictionary,
    /// A data page with this number of rows.
    Data(usize),
}

/// A page whose header has been read.
#[derive(Clone, Copy)]
struct Peeked {
    /// The kind of the page; `None` for a page without rows and without a dictionary.
    kind: Option<PageKind>,
    header_len: usize,
    /// Number of bytes after the header.
    body_len: usize,
    crc: Option<u32>,
}

/// A decompressed page.
pub(crate) enum DecodedPage {
    /// A dictionary: its plain values and their number.
    Dictionary(Bytes, usize),
    /// A data page.
    Data(DataPage),
}

/// A data page, split into its levels and its values.
pub(crate) struct DataPage {
    /// The rows that have values.
    pub(crate) levels: DefinitionLevels,
    /// The encoding of the values.
    pub(crate) encoding: Encoding,
    /// The values that are not null.
    pub(crate) values: Bytes,
}

/// The pages of one column chunk, one after another.
pub(crate) struct Pages {
    chunk: Arc<ChunkBytes>,
    reader: SerializedPageReader<ChunkBytes>,
    /// Whether rows can be null, that is, whether the highest definition level is 1.
    nullable: bool,
    compression: Compression,
    /// File offset of the next page, in step with `reader`, and the bytes from that offset on.
    offset: u64,
    remaining: u64,
    /// The next page, if its header has been read.
    peeked: Option<Peeked>,
}

impl Pages {
    /// Creates the sequence of pages of a chunk whose bytes, `data`, begin at file offset `start`.
    pub(crate) fn new(
        chunk: &ColumnChunkMetaData,
        rows_in_group: usize,
        data: Bytes,
        start: u64,
    ) -> Result<Self> {
        let first = chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset());
        // The parquet crate assumes that neither is negative.
        let (Ok(offset), Ok(remaining)) =
            (u64::try_from(first), u64::try_from(chunk.compressed_size()))
        else {
            return Err(corrupt("a column chunk with a negative offset or length"));
        };
        let bytes = Arc::new(ChunkBytes { start, data });
        let reader = SerializedPageReader::new(Arc::clone(&bytes), chunk, rows_in_group, None)?;
        let nullable = chunk.column_descr().max_def_level() > 0;
        let compression = chunk.compression();
        Ok(Self { chunk: bytes, reader, nullable, compression, offset, remaining, peeked: None })
    }

    /// Peeks at the next page; `None` after the last one. Index pages are skipped.
    pub(crate) fn peek(&mut self) -> Result<Option<PageKind>> {
        loop {
            let Some(peeked) = self.read_header()? else { return Ok(None) };
            if peeked.kind.is_some() {
                return Ok(peeked.kind);
            }
            self.advance();
            self.reader.skip_next_page()?;
        }
    }

    /// Skips the next page, which is neither decompressed nor decoded.
    pub(crate) fn skip(&mut self) -> Result<()> {
        if self.peek()?.is_none() {
            return Ok(());
        }
        self.advance();
        self.reader.skip_next_page()
    }

    /// Decompresses the next page.
    pub(crate) fn open(&mut self) -> Result<DecodedPage> {
        self.peek()?;
        self.verify_checksum()?;
        self.advance();
        match self.reader.get_next_page()? {
            Some(Page::DictionaryPage {
                buf,
                num_values,
                encoding: Encoding::PLAIN | Encoding::PLAIN_DICTIONARY,
                ..
            }) => Ok(DecodedPage::Dictionary(buf, num_values as usize)),
            Some(Page::DataPage { buf, encoding, def_level_encoding, .. }) => {
                let (levels, values) = self.split_levels(buf, def_level_encoding)?;
                Ok(DecodedPage::Data(DataPage { levels, encoding, values }))
            }
            Some(Page::DataPageV2 {
                buf,
                encoding,
                num_nulls,
                def_levels_byte_len,
                rep_levels_byte_len,
                ..
            }) => {
                let levels = rep_levels_byte_len as usize;
                let values = levels.saturating_add(def_levels_byte_len as usize);
                if values > buf.len() {
                    return Err(corrupt("the levels of a page are cut off"));
                }
                // The levels decide which rows are null; the header only repeats the number of
                // nulls.
                let levels = match (self.nullable, levels < values) {
                    (true, true) => DefinitionLevels::new(buf.slice(levels..values))?,
                    (true, false) if num_nulls > 0 => {
                        return Err(corrupt("a page with nulls has no definition levels"));
                    }
                    _ => DefinitionLevels::required(),
                };
                Ok(DecodedPage::Data(DataPage { levels, encoding, values: buf.slice(values..) }))
            }
            _ => Err(corrupt("a page of an unknown kind")),
        }
    }

    /// Splits the levels of a data page of version 1 from its values.
    fn split_levels(
        &self,
        mut buf: Bytes,
        encoding: Encoding,
    ) -> Result<(DefinitionLevels, Bytes)> {
        if !self.nullable {
            return Ok((DefinitionLevels::required(), buf));
        }
        if encoding != Encoding::RLE {
            return Err(corrupt(format!("unsupported encoding of definition levels: {encoding}")));
        }
        let levels = take_length_prefixed(&mut buf)?;
        Ok((DefinitionLevels::new(levels)?, buf))
    }

    /// Reads the header of the next page; `None` after the last page.
    fn read_header(&mut self) -> Result<Option<Peeked>> {
        if self.peeked.is_none() && self.remaining > 0 {
            let bytes = self.chunk.bytes_from(self.offset)?;
            let (header, header_len) = PageHeader::read(&bytes)?;
            let kind = self.check(&header, header_len)?;
            let body_len = usize::try_from(header.compressed_len)?;
            self.peeked = Some(Peeked { kind, header_len, body_len, crc: header.crc });
        }
        Ok(self.peeked)
    }

    /// Advances past the next page.
    fn advance(&mut self) {
        let Some(Peeked { header_len, body_len, .. }) = self.peeked.take() else { return };
        let len = header_len as u64 + body_len as u64;
        self.offset = self.offset.saturating_add(len);
        self.remaining = self.remaining.saturating_sub(len);
    }

    /// Compares the bytes of the next page with their checksum, if the writer computed one.
    fn verify_checksum(&self) -> Result<()> {
        let Some(Peeked { header_len, body_len, crc: Some(crc), .. }) = self.peeked else {
            return Ok(());
        };
        let body = self.chunk.get_bytes(self.offset.saturating_add(header_len as u64), body_len)?;
        if crc32fast::hash(&body) == crc {
            return Ok(());
        }
        Err(corrupt("the checksum of a page does not match its bytes"))
    }

    /// Returns the kind of page that a header announces, if the header is plausible; `None` for an
    /// index page.
    fn check(&self, header: &PageHeader, header_len: usize) -> Result<Option<PageKind>> {
        let implausible = || corrupt("the header of a page is implausible");
        header.check(self.compression)?;
        if header_len as u64 + header.compressed_len.unsigned_abs() > self.remaining {
            return Err(implausible());
        }
        let values = usize::try_from(header.values)?;
        match header.kind {
            2 => Ok(Some(PageKind::Dictionary)),
            1 => Ok(None),
            // Supported columns are flat, so a row is a value.
            0 => Ok(Some(PageKind::Data(values))),
            3 if header.rows == Some(header.values) => Ok(Some(PageKind::Data(values))),
            _ => Err(implausible()),
        }
    }
}

/// Splits off bytes that begin with their length in four bytes.
pub(crate) fn take_length_prefixed(buf: &mut Bytes) -> Result<Bytes> {
    let len = buf.first_chunk::<4>().map(|len| u32::from_le_bytes(*len) as usize);
    match len {
        Some(len) if len <= buf.len() - 4 => {
            buf.advance(4);
            Ok(buf.split_to(len))
        }
        _ => Err(corrupt("the levels of a page are cut off")),
    }
}
