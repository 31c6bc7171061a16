//! CSV: samples that end between records, and line ends within quotes.
//!
//! A file with line ends in values must not be split into ranges, since a range begins after its
//! first line end. DataFusion relies on the user to declare it (`newlines_in_values`). This module
//! scans the beginning of each file that could be split before a scan is planned.

use std::io::Read;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::Session;
use datafusion::common::config::CsvOptions;
use datafusion::common::{DataFusionError, Result};
use datafusion::datasource::file_format::DEFAULT_SCHEMA_INFER_MAX_RECORD;
use datafusion::datasource::file_format::csv::CsvFormat;
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::physical_plan::{FileScanConfig, FileScanConfigBuilder};
use datafusion::object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore};
use futures::stream;

use super::{Sample, content};

/// Bytes per read during schema inference.
const BLOCK_BYTES: usize = 64 << 10;
/// Maximum bytes of a record during schema inference.
const MAX_RECORD_BYTES: usize = 64 << 20;
/// Minimum bytes of a file that is split into morsels; the same value as in `gatework_sql`.
const MIN_MORSEL_BYTES: u64 = 8 << 20;
/// Bytes of a file that are scanned for line ends within quotes.
const SAMPLE_BYTES: u64 = 4 << 20;
/// Maximum values of a batch, unless one row has more.
const MAX_BATCH_VALUES: usize = 4 << 20;
/// Maximum number of files per scan that are scanned for line ends.
const MAX_SAMPLED_FILES: usize = 16;

#[async_trait]
impl Sample for CsvFormat {
    async fn columns(
        &self,
        state: &dyn Session,
        store: &Arc<dyn ObjectStore>,
        objects: &[ObjectMeta],
    ) -> Result<SchemaRef> {
        let options = self.options();
        let mut records = options.schema_infer_max_rec.unwrap_or(DEFAULT_SCHEMA_INFER_MAX_RECORD);
        let mut schemas = Vec::new();
        for object in objects {
            let content = content(store, object, options.compression.into()).await?;
            let chunks = stream::iter(Chunks::new(content, options));
            let found = self.infer_schema_from_stream(state, records, chunks).await;
            let (schema, read) = found.map_err(|error| {
                let what = format!("Error when processing CSV file {}", object.location);
                DataFusionError::Context(what, Box::new(error))
            })?;
            schemas.push(schema);
            records = records.saturating_sub(read);
            if records == 0 {
                break;
            }
        }
        merged(schemas)
    }

    async fn for_scan(
        &self,
        state: &dyn Session,
        scan: FileScanConfig,
    ) -> Result<(Option<Self>, FileScanConfig)> {
        let options = self.options().clone().with_newlines_in_values(true);
        let format = has_quoted_line_ends(self.options(), state, &scan).await?;
        let format = format.then(|| Self::default().with_options(options));
        Ok((format, in_small_batches(state, scan)))
    }
}

/// Whether values in the beginnings of the files of `scan` have line ends. False if the user has
/// declared it, or no file is ever split.
async fn has_quoted_line_ends(
    options: &CsvOptions,
    state: &dyn Session,
    scan: &FileScanConfig,
) -> Result<bool> {
    let compression = FileCompressionType::from(options.compression);
    let known =
        state.config_options().catalog.newlines_in_values || options.newlines_in_values.is_some();
    if known || compression.is_compressed() {
        return Ok(false);
    }
    let store = state.runtime_env().object_store(&scan.object_store_url)?;
    let files = scan.file_groups.iter().flat_map(|group| group.iter());
    let large = files.filter(|file| file.object_meta.size >= MIN_MORSEL_BYTES);
    for file in large.take(MAX_SAMPLED_FILES) {
        let head = GetOptions {
            range: Some(GetRange::Bounded(0..SAMPLE_BYTES.min(file.object_meta.size))),
            ..GetOptions::default()
        };
        let head = store.get_opts(&file.object_meta.location, head).await?.bytes().await?;
        if Records::new(options).has_quoted_line_end(&head) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Limits the rows of a batch if a row has many values: Arrow's reader allocates an offset for each
/// value of a batch up front.
fn in_small_batches(state: &dyn Session, scan: FileScanConfig) -> FileScanConfig {
    let columns = scan.file_schema().fields().len().max(1);
    let rows = scan.batch_size.unwrap_or_else(|| state.config().batch_size());
    match (MAX_BATCH_VALUES / columns).max(1) {
        max_rows if max_rows < rows => {
            FileScanConfigBuilder::from(scan).with_batch_size(Some(max_rows)).build()
        }
        _ => scan,
    }
}

/// Merges schemas. A single schema skips the merge, which is quadratic in the number of columns.
fn merged(mut schemas: Vec<Schema>) -> Result<SchemaRef> {
    Ok(Arc::new(match schemas.len() {
        1 => schemas.remove(0),
        _ => Schema::try_merge(schemas)?,
    }))
}

/// A state machine over the bytes of a CSV file, from its beginning.
struct Records {
    quote: u8,
    delimiter: u8,
    escape: Option<u8>,
    comment: Option<u8>,
    line_end: u8,
    state: CsvState,
}

/// State before the next byte.
#[derive(Clone, Copy, PartialEq)]
enum CsvState {
    RecordStart,
    ValueStart,
    Value,
    Quoted,
    /// After a quote within quotes: either their end, or the first half of an escaped quote.
    Quote,
    Escaped,
    Comment,
}

impl Records {
    fn new(options: &CsvOptions) -> Self {
        Self {
            quote: options.quote,
            delimiter: options.delimiter,
            escape: options.escape,
            comment: options.comment,
            line_end: options.terminator.unwrap_or(b'\n'),
            state: CsvState::RecordStart,
        }
    }

    /// Consumes the next byte. Returns whether it ends a record.
    fn advance(&mut self, byte: u8) -> bool {
        self.state = match self.state {
            CsvState::RecordStart if Some(byte) == self.comment => CsvState::Comment,
            CsvState::RecordStart | CsvState::ValueStart if byte == self.quote => CsvState::Quoted,
            CsvState::Quoted if Some(byte) == self.escape => CsvState::Escaped,
            CsvState::Quoted if byte == self.quote => CsvState::Quote,
            CsvState::Quoted | CsvState::Escaped => CsvState::Quoted,
            CsvState::Quote if byte == self.quote => CsvState::Quoted,
            _ if byte == self.line_end => CsvState::RecordStart,
            CsvState::Comment => CsvState::Comment,
            _ if byte == self.delimiter => CsvState::ValueStart,
            _ => CsvState::Value,
        };
        self.state == CsvState::RecordStart
    }

    fn has_quoted_line_end(&mut self, bytes: &[u8]) -> bool {
        bytes.iter().any(|&byte| {
            self.advance(byte);
            byte == self.line_end && self.state == CsvState::Quoted
        })
    }
}

/// The content of a CSV file in chunks of whole records.
struct Chunks {
    content: Box<dyn Read + Send>,
    records: Records,
    /// Bytes of a record that has not ended.
    remainder: Vec<u8>,
    ended: bool,
}

impl Chunks {
    fn new(content: Box<dyn Read + Send>, options: &CsvOptions) -> Self {
        Self { content, records: Records::new(options), remainder: Vec::new(), ended: false }
    }

    /// Reads until a record ends. Returns `None` at the end of the file.
    fn read(&mut self) -> Result<Option<Bytes>> {
        while !self.ended {
            let begin = self.remainder.len();
            let block = self.content.by_ref().take(BLOCK_BYTES as u64);
            let read = { block }.read_to_end(&mut self.remainder)?;
            self.ended = read < BLOCK_BYTES;
            let mut end = None;
            for (index, &byte) in self.remainder.iter().enumerate().skip(begin) {
                if self.records.advance(byte) {
                    end = Some(index + 1);
                }
            }
            if let Some(end) = end.filter(|_| !self.ended) {
                let remainder = self.remainder.split_off(end);
                return Ok(Some(std::mem::replace(&mut self.remainder, remainder).into()));
            }
            if self.remainder.len() > MAX_RECORD_BYTES {
                return Err(DataFusionError::Execution(format!(
                    "a record of a CSV file has more than {} MiB; a closing quote may be missing",
                    MAX_RECORD_BYTES >> 20
                )));
            }
        }
        let remainder = std::mem::take(&mut self.remainder);
        Ok((!remainder.is_empty()).then(|| remainder.into()))
    }
}

impl Iterator for Chunks {
    type Item = Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}
