//! Readers of Parquet bytes that are checked before anything decodes them: they belong to the
//! version of the file that was listed, they lie within the file, and the headers of pages among
//! them state plausible sizes.
//!
//! The parquet crate computes ranges from numbers in the file and allocates what page headers
//! state. A damaged number would end in a panic or in gigabytes of memory.

use std::{fmt, ops::Range, sync::Arc};

use bytes::Bytes;
use datafusion::{
    datasource::{listing::PartitionedFile, physical_plan::parquet::ParquetFileReaderFactory},
    error::Result,
    object_store::ObjectMeta,
    parquet::{
        arrow::{arrow_reader::ArrowReaderOptions, async_reader::AsyncFileReader},
        basic::Compression,
        errors::{ParquetError, Result as ParquetResult},
        file::metadata::{ParquetMetaData, RowGroupMetaData},
    },
    physical_plan::metrics::ExecutionPlanMetricsSet,
};
use futures::{FutureExt, future::BoxFuture};

use super::{decode::PageHeader, version::Listing};

/// The footer of a file, as an extension of that file: it tells a reader where pages are.
pub(super) struct FileFooter {
    pub(super) footer: Arc<ParquetMetaData>,
    /// The row group that is read, if it is only one.
    pub(super) group: Option<usize>,
}

impl FileFooter {
    /// Returns the column chunks that may be read, by their position in the file.
    fn chunks(&self) -> Vec<Chunk> {
        let groups = self.footer.row_groups();
        let groups = match self.group {
            Some(group) => &groups[group..=group],
            None => groups,
        };
        let chunks = groups.iter().flat_map(RowGroupMetaData::columns).map(|chunk| {
            let (start, length) = chunk.byte_range();
            Chunk { bytes: start..start.saturating_add(length), compression: chunk.compression() }
        });
        let mut chunks: Vec<_> = chunks.collect();
        chunks.sort_unstable_by_key(|chunk| chunk.bytes.start);
        chunks
    }
}

/// A column chunk in a file.
struct Chunk {
    bytes: Range<u64>,
    compression: Compression,
}

/// A factory that wraps another one; its readers check what they read.
#[derive(Debug)]
pub(super) struct CheckedReaders {
    pub(super) inner: Arc<dyn ParquetFileReaderFactory>,
    pub(super) listing: Listing,
}

impl ParquetFileReaderFactory for CheckedReaders {
    fn create_reader(
        &self,
        partition: usize,
        file: PartitionedFile,
        metadata_size_hint: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Result<Box<dyn AsyncFileReader + Send>> {
        let meta = file.object_meta.clone();
        let chunks = file.extension().map(FileFooter::chunks).unwrap_or_default();
        let inner = self.inner.create_reader(partition, file, metadata_size_hint, metrics)?;
        Ok(Box::new(CheckedReader { inner, listing: self.listing.clone(), meta, chunks }))
    }
}

struct CheckedReader {
    inner: Box<dyn AsyncFileReader + Send>,
    listing: Listing,
    meta: ObjectMeta,
    /// The column chunks that may be read, by their position in the file.
    chunks: Vec<Chunk>,
}

impl CheckedReader {
    /// Checks the result of reading bytes.
    async fn check<T>(&mut self, read: ParquetResult<T>) -> ParquetResult<T> {
        let listed = self.listing.check(&self.meta).await;
        listed.map_err(|error| ParquetError::External(Box::new(error)))?;
        // The file may have been deleted.
        read.inspect_err(|_| self.listing.forget_lists())
    }
}

impl AsyncFileReader for CheckedReader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, ParquetResult<Bytes>> {
        async move {
            check_range(&range, self.meta.size)?;
            let bytes = self.inner.get_bytes(range).await;
            self.check(bytes).await
        }
        .boxed()
    }

    fn get_byte_ranges(
        &mut self,
        ranges: Vec<Range<u64>>,
    ) -> BoxFuture<'_, ParquetResult<Vec<Bytes>>> {
        async move {
            ranges.iter().try_for_each(|range| check_range(range, self.meta.size))?;
            let starts: Vec<_> = ranges.iter().map(|range| range.start).collect();
            let bytes = self.inner.get_byte_ranges(ranges).await;
            let bytes = self.check(bytes).await?;
            let mut reads = starts.into_iter().zip(&bytes);
            reads.try_for_each(|(start, bytes)| check_pages(&self.chunks, start, bytes))?;
            Ok(bytes)
        }
        .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, ParquetResult<Arc<ParquetMetaData>>> {
        self.inner.get_metadata(options)
    }
}

/// Checks that a range lies within a file of `file_bytes` bytes.
fn check_range(range: &Range<u64>, file_bytes: u64) -> ParquetResult<()> {
    if range.start <= range.end && range.end <= file_bytes {
        return Ok(());
    }
    let (start, end) = (range.start, range.end);
    damaged(format_args!("it refers to its bytes {start} to {end}, but has {file_bytes} bytes"))
}

fn damaged(reason: impl fmt::Display) -> ParquetResult<()> {
    Err(ParquetError::General(reason.to_string()))
}

/// Checks the headers of the pages in `bytes`, which begin at offset `start` of the file. Bytes
/// outside of the `chunks`, such as those of a bloom filter, are not pages.
fn check_pages(chunks: &[Chunk], start: u64, bytes: &Bytes) -> ParquetResult<()> {
    let next = chunks.partition_point(|chunk| chunk.bytes.start <= start);
    let chunk = next.checked_sub(1).and_then(|chunk| chunks.get(chunk));
    let Some(chunk) = chunk.filter(|chunk| chunk.bytes.contains(&start)) else { return Ok(()) };
    let mut rest = bytes.as_ref();
    // The reader of the page says what is wrong with a header that is cut off.
    while let Ok((header, header_len)) = PageHeader::read(rest) {
        header.check(chunk.compression)?;
        let page = header.compressed_len.unsigned_abs() as usize;
        match rest.get(header_len + page..) {
            Some(after) if !after.is_empty() => rest = after,
            _ => break,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;

    /// Returns a dictionary page of `values` entries, in Thrift's compact protocol: a header that
    /// states `uncompressed` bytes, and one byte.
    fn dictionary(uncompressed: &[u8], values: &[u8]) -> Vec<u8> {
        let end = [0x15, 0, 0x12, 0, 0, 7];
        [&[0x15, 4, 0x15], uncompressed, &[0x15, 2, 0x4c, 0x15], values, &end].concat()
    }

    fn error(pages: &[Vec<u8>], compression: Compression) -> Option<String> {
        let bytes = Bytes::from(pages.concat());
        let chunks = [
            Chunk { bytes: 4..40, compression: Compression::UNCOMPRESSED },
            Chunk { bytes: 40..40 + bytes.len() as u64, compression },
        ];
        assert!(check_pages(&chunks, 40 + bytes.len() as u64, &bytes).is_ok(), "behind the chunks");
        check_pages(&chunks, 40, &bytes).err().map(|error| error.to_string())
    }

    /// The number in the header of a page that is as large as it can be.
    const LARGEST: [u8; 5] = [0xfe, 0xff, 0xff, 0xff, 0x0f];

    #[test]
    fn every_page_has_a_plausible_size() {
        let small = dictionary(&[2], &[2]);
        assert_eq!(error(&[small.clone(), small.clone()], Compression::SNAPPY), None);
        let large = dictionary(&LARGEST, &[0]);
        for pages in [vec![large.clone()], vec![small, large]] {
            let error = error(&pages, Compression::SNAPPY).unwrap();
            assert!(error.contains("the header of a page is implausible"), "{error}");
        }
    }

    #[test]
    fn dictionaries_of_more_entries_than_bytes() {
        let error = error(&[dictionary(&[2], &LARGEST)], Compression::UNCOMPRESSED).unwrap();
        assert!(error.contains("a dictionary of 2147483647 values has 1 bytes"), "{error}");
    }

    #[test]
    fn ranges_lie_within_the_file() {
        assert!(check_range(&(4..100), 100).is_ok());
        #[expect(clippy::reversed_empty_ranges, reason = "the parquet crate asks for such a range")]
        for range in [4..101, 8..4, 101..101] {
            let error = check_range(&range, 100).unwrap_err().to_string();
            assert!(error.contains("but has 100 bytes"), "{error}");
        }
    }
}
