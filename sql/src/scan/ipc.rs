//! Checks of the lengths in Arrow IPC files and streams, before a reader uses them.
//!
//! The arrow crate's readers allocate the length that a footer, message, message body or compressed
//! buffer states. So the messages of a file are walked first. The walk reads each message's header,
//! and the first eight bytes of each compressed buffer, which state its uncompressed length.

mod schema;

use std::ops::Range;

use arrow::ipc::{
    Block, CompressionType, Message, RecordBatch, reader::read_footer_length, root_as_footer,
    root_as_message,
};
use bytes::Bytes;
use datafusion::{
    common::{exec_datafusion_err, exec_err},
    datasource::listing::FileRange,
    error::Result,
    object_store::{ObjectMeta, ObjectStore, ObjectStoreExt},
};

use schema::check_schema;

/// Magic bytes at the beginning and the end of the file format; a stream has neither.
const MAGIC: &[u8] = b"ARROW1";
/// Size of the tail of a file: the footer's length and [`MAGIC`].
const TAIL_BYTES: u64 = 10;
/// Marker that precedes the length of a message, except in files of old writers.
const CONTINUATION: &[u8] = &[0xff; 4];
/// Minimum size of one read in bytes; most headers are shorter.
const WINDOW_BYTES: u64 = 4 << 10;
/// Size of a compressed buffer's prefix, which states its uncompressed length.
const PREFIX_BYTES: u64 = 8;

/// The part of a file that is about to be read.
#[derive(Debug, Clone)]
pub(super) enum Part {
    /// The schema only.
    Schema,
    All,
    /// The batches of the file format that begin in a byte range.
    Range(FileRange),
}

/// Checks those lengths of an Arrow file or stream that a reader of its schema uses.
pub(super) async fn check_arrow_schema(store: &dyn ObjectStore, object: &ObjectMeta) -> Result<()> {
    let mut file = IpcFile::new(store, object);
    let length = MAGIC.len() as u64;
    let is_file = object.size >= length
        && (&*file.bytes(0, length).await? == MAGIC
            || &*file.bytes(object.size - length, length).await? == MAGIC);
    file.check(is_file, &Part::Schema).await
}

/// Checks the lengths of `part` of an Arrow file, or of a stream.
pub(super) async fn check(
    store: &dyn ObjectStore,
    object: &ObjectMeta,
    is_file: bool,
    part: &Part,
) -> Result<()> {
    IpcFile::new(store, object).check(is_file, part).await
}

/// A file whose headers are being read.
struct IpcFile<'a> {
    store: &'a dyn ObjectStore,
    object: &'a ObjectMeta,
    /// The bytes of the last read, and their offset in the file.
    window: Bytes,
    window_start: u64,
}

/// The checked contents of a message header.
struct Header {
    /// Size of the message's body in bytes.
    body: u64,
    /// Byte ranges of the compressed buffers in the body.
    compressed: Vec<Range<u64>>,
    codec: CompressionType,
}

impl<'a> IpcFile<'a> {
    fn new(store: &'a dyn ObjectStore, object: &'a ObjectMeta) -> Self {
        Self { store, object, window: Bytes::new(), window_start: 0 }
    }

    async fn check(&mut self, is_file: bool, part: &Part) -> Result<()> {
        match is_file {
            true => self.check_file(part).await,
            false => self.check_stream(part).await,
        }
    }

    /// Reads `length` bytes at `start`; fails if the file does not have them.
    async fn bytes(&mut self, start: u64, length: u64) -> Result<Bytes> {
        self.checked_end(start, length)?;
        let known = start.checked_sub(self.window_start);
        let known = known.filter(|at| at + length <= self.window.len() as u64);
        if known.is_none() {
            let end = start + length.max(WINDOW_BYTES).min(self.object.size - start);
            self.window = self.store.get_range(&self.object.location, start..end).await?;
            self.window_start = start;
        }
        let at = (start - self.window_start) as usize;
        match self.window.len() >= at + length as usize {
            true => Ok(self.window.slice(at..at + length as usize)),
            false => exec_err!("the file has become shorter"),
        }
    }

    /// Returns the end of the `length` bytes at `start`; fails if the file does not have them.
    fn checked_end(&self, start: u64, length: u64) -> Result<u64> {
        match start.checked_add(length).filter(|end| *end <= self.object.size) {
            Some(end) => Ok(end),
            None => exec_err!(
                "it is damaged: {length} bytes at {start} in a file of {} bytes",
                self.object.size
            ),
        }
    }

    /// Walks the blocks that the footer lists.
    async fn check_file(&mut self, part: &Part) -> Result<()> {
        let Some(footer_end) = self.object.size.checked_sub(TAIL_BYTES) else {
            return exec_err!("it is damaged: an Arrow file of {} bytes", self.object.size);
        };
        let tail = self.bytes(footer_end, TAIL_BYTES).await?;
        let tail = tail.first_chunk().ok_or_else(|| exec_datafusion_err!("it is cut off"))?;
        let length = read_footer_length(*tail)
            .map_err(|error| exec_datafusion_err!("it is damaged: {error}"))?
            as u64;
        let Some(start) = footer_end.checked_sub(length) else {
            return exec_err!("it is damaged: a footer of {length} bytes");
        };
        let footer = self.bytes(start, length).await?;
        for block in blocks(&footer, part)? {
            self.check_block(&block).await?;
        }
        Ok(())
    }

    async fn check_block(&mut self, block: &Block) -> Result<()> {
        let negative = || exec_datafusion_err!("it is damaged: a block with a negative length");
        let start = u64::try_from(block.offset()).map_err(|_| negative())?;
        let length = u64::try_from(block.metaDataLength()).map_err(|_| negative())?;
        let body = u64::try_from(block.bodyLength()).map_err(|_| negative())?;
        let body_start = self.checked_end(start, length)?;
        self.checked_end(body_start, body)?;
        let bytes = self.bytes(start, length).await?;
        let prefix = if bytes.starts_with(CONTINUATION) { 8 } else { 4 };
        let header = Header::read(bytes.get(prefix..).unwrap_or_default())?;
        self.check_buffers(body_start, body, &header).await
    }

    /// Walks the messages one after the other.
    async fn check_stream(&mut self, part: &Part) -> Result<()> {
        let mut at = 0;
        while at + 4 <= self.object.size {
            let mut length = self.bytes(at, 4).await?;
            at += 4;
            if length == CONTINUATION {
                length = self.bytes(at, 4).await?;
                at += 4;
            }
            let length = length.first_chunk().map_or(0, |length| i32::from_le_bytes(*length));
            if length == 0 {
                return Ok(());
            }
            let length = u64::try_from(length);
            let length = length.map_err(|_| exec_datafusion_err!("it is damaged, or no stream"))?;
            let body_start = self.checked_end(at, length)?;
            let header = Header::read(&self.bytes(at, length).await?)?;
            at = self.checked_end(body_start, header.body)?;
            self.check_buffers(body_start, header.body, &header).await?;
            if matches!(part, Part::Schema) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Checks the buffers of a message whose body has `length` bytes at `start`.
    async fn check_buffers(&self, start: u64, length: u64, header: &Header) -> Result<()> {
        if header.compressed.iter().any(|buffer| buffer.end > length) {
            return exec_err!("it is damaged: a buffer lies outside its message");
        }
        let prefix =
            |buffer: &Range<u64>| start + buffer.start..start + buffer.start + PREFIX_BYTES;
        let prefixes: Vec<Range<u64>> = header.compressed.iter().map(prefix).collect();
        if prefixes.is_empty() {
            return Ok(());
        }
        let said = self.store.get_ranges(&self.object.location, &prefixes).await?;
        for (buffer, said) in header.compressed.iter().zip(said) {
            let said = said.first_chunk().map_or(0, |said| i64::from_le_bytes(*said));
            let compressed = buffer.end - buffer.start;
            // -1 marks a buffer that is not compressed.
            if said > max_uncompressed_bytes(header.codec, compressed) {
                return exec_err!("it is damaged: {compressed} bytes decompress to {said}");
            }
        }
        Ok(())
    }
}

impl Header {
    /// Reads the header of a message.
    fn read(bytes: &[u8]) -> Result<Self> {
        let message = root_as_message(bytes)
            .map_err(|error| exec_datafusion_err!("it is damaged: {error}"))?;
        let Ok(body) = u64::try_from(message.bodyLength()) else {
            return exec_err!("it is damaged: a message body of {} bytes", message.bodyLength());
        };
        if let Some(schema) = message.header_as_schema() {
            check_schema(&schema)?;
        }
        let batch = rows(&message);
        batch.as_ref().map_or(Ok(()), check_lengths)?;
        let codec = batch.and_then(|batch| Some(batch.compression()?.codec()));
        let Some((batch, codec)) = batch.zip(codec) else {
            let codec = CompressionType::default();
            return Ok(Self { body, compressed: Vec::new(), codec });
        };
        let mut compressed = Vec::new();
        for buffer in batch.buffers().iter().flatten() {
            let start = u64::try_from(buffer.offset()).unwrap_or(u64::MAX);
            let end = start.saturating_add(u64::try_from(buffer.length()).unwrap_or(u64::MAX));
            if end - start >= PREFIX_BYTES || end == u64::MAX {
                compressed.push(start..end);
            }
        }
        Ok(Self { body, compressed, codec })
    }
}

/// Returns the record batch of a message, or that of its dictionary.
fn rows<'a>(message: &Message<'a>) -> Option<RecordBatch<'a>> {
    let dictionary = message.header_as_dictionary_batch();
    message.header_as_record_batch().or_else(|| dictionary?.data())
}

/// Checks the numbers of rows and values that a batch states. Columns of NULLs, and batches without
/// columns, have no bytes to compare them with.
fn check_lengths(batch: &RecordBatch<'_>) -> Result<()> {
    // Arrow's format recommends this maximum.
    if !(0..=i64::from(i32::MAX)).contains(&batch.length()) {
        return exec_err!("it is damaged: a batch of {} rows", batch.length());
    }
    match batch.nodes().iter().flatten().find(|node| node.length() < 0 || node.null_count() < 0) {
        Some(node) => exec_err!(
            "it is damaged: an array of {} values, {} of them NULL",
            node.length(),
            node.null_count()
        ),
        None => Ok(()),
    }
}

/// Returns the blocks of `part` that `footer` lists.
fn blocks(footer: &[u8], part: &Part) -> Result<Vec<Block>> {
    let footer =
        root_as_footer(footer).map_err(|error| exec_datafusion_err!("it is damaged: {error}"))?;
    match footer.schema() {
        Some(schema) => check_schema(&schema)?,
        None => return exec_err!("it is damaged: its footer has no schema"),
    }
    let wanted = |block: &&Block| match part {
        Part::Schema => false,
        Part::All => true,
        Part::Range(range) => (range.start..range.end).contains(&block.offset()),
    };
    let dictionaries = footer.dictionaries();
    let batches = footer.recordBatches();
    let batches = batches.iter().flatten().filter(wanted);
    Ok(dictionaries.iter().flatten().chain(batches).copied().collect())
}

/// Returns the maximum size to which `compressed` bytes can decompress.
fn max_uncompressed_bytes(codec: CompressionType, compressed: u64) -> i64 {
    let ratio = match codec {
        CompressionType::LZ4_FRAME => 256,
        // A block that repeats one byte takes four bytes and yields 128 KiB.
        _ => 32 << 10,
    };
    i64::try_from(compressed.saturating_add(4).saturating_mul(ratio)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
