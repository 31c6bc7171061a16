//! Arrow, CSV and JSON as DataFusion reads them, except for schema inference.
//!
//! DataFusion samples a CSV file in chunks that may end within quotes: object_store's line
//! delimiter looks for the last line end of a chunk. It also returns the keys of JSON objects in
//! alphabetical order. `csv` cuts chunks between records, and `json` restores the order of the
//! file. Everything else is DataFusion's.

mod arrow;
mod csv;
mod json;

use std::collections::HashMap;
use std::fmt;
use std::io::{Cursor, Read};
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::Session;
use datafusion::common::{GetExt, Result, Statistics};
use datafusion::datasource::file_format::arrow::ArrowFormat;
use datafusion::datasource::file_format::csv::CsvFormat;
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::file_format::json::JsonFormat;
use datafusion::datasource::file_format::{FileFormat, FileFormatFactory};
use datafusion::datasource::physical_plan::{FileScanConfig, FileSinkConfig, FileSource};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::object_store::{GetResultPayload, ObjectMeta, ObjectStore, ObjectStoreExt};
use datafusion::physical_expr::LexRequirement;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionContext;

/// Registers these formats in a session: for `--table`, `CREATE EXTERNAL TABLE` and `COPY`.
pub(crate) fn register(session: &SessionContext) {
    let state = session.state_ref();
    let mut state = state.write();
    for (name, wrap) in [("arrow", arrow as Wrap), ("csv", csv), ("json", json)] {
        if let Some(inner) = state.get_file_format_factory(name) {
            // The returned error only reports that the format existed; it is replaced.
            let _replaced = state.register_file_format(Arc::new(Factory { inner, wrap }), true);
        }
    }
}

type Wrap = fn(Arc<dyn FileFormat>) -> Arc<dyn FileFormat>;

fn arrow(format: Arc<dyn FileFormat>) -> Arc<dyn FileFormat> {
    match format.is::<ArrowFormat>() {
        true => Arc::new(Sampled(ArrowFormat)),
        false => format,
    }
}

fn csv(format: Arc<dyn FileFormat>) -> Arc<dyn FileFormat> {
    match format.downcast_ref::<CsvFormat>() {
        Some(csv) => Arc::new(Sampled(CsvFormat::default().with_options(csv.options().clone()))),
        None => format,
    }
}

fn json(format: Arc<dyn FileFormat>) -> Arc<dyn FileFormat> {
    match format.downcast_ref::<JsonFormat>() {
        Some(json) => Arc::new(Sampled(JsonFormat::default().with_options(json.options().clone()))),
        None => format,
    }
}

/// DataFusion's factory, with wrapped formats.
struct Factory {
    inner: Arc<dyn FileFormatFactory>,
    wrap: Wrap,
}

/// Same output as DataFusion's, since plans print it.
impl fmt::Debug for Factory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl GetExt for Factory {
    fn get_ext(&self) -> String {
        self.inner.get_ext()
    }
}

impl FileFormatFactory for Factory {
    fn create(
        &self,
        state: &dyn Session,
        options: &HashMap<String, String>,
    ) -> Result<Arc<dyn FileFormat>> {
        self.inner.create(state, options).map(self.wrap)
    }

    fn default(&self) -> Arc<dyn FileFormat> {
        (self.wrap)(FileFormatFactory::default(self.inner.as_ref()))
    }
}

/// How a format inspects files before they are read.
#[async_trait]
trait Sample: FileFormat {
    /// Infers the common schema of `objects`.
    async fn columns(
        &self,
        state: &dyn Session,
        store: &Arc<dyn ObjectStore>,
        objects: &[ObjectMeta],
    ) -> Result<SchemaRef>;

    /// Returns the scan, and the format to read its files with if it differs from `self`.
    async fn for_scan(
        &self,
        state: &dyn Session,
        scan: FileScanConfig,
    ) -> Result<(Option<Self>, FileScanConfig)>
    where
        Self: Sized;
}

/// A format with its own schema inference.
#[derive(Debug)]
struct Sampled<F>(F);

#[async_trait]
impl<F: Sample> FileFormat for Sampled<F> {
    fn get_ext(&self) -> String {
        self.0.get_ext()
    }

    fn get_ext_with_compression(&self, compression: &FileCompressionType) -> Result<String> {
        self.0.get_ext_with_compression(compression)
    }

    fn compression_type(&self) -> Option<FileCompressionType> {
        self.0.compression_type()
    }

    async fn infer_schema(
        &self,
        state: &dyn Session,
        store: &Arc<dyn ObjectStore>,
        objects: &[ObjectMeta],
    ) -> Result<SchemaRef> {
        self.0.columns(state, store, objects).await
    }

    async fn infer_stats(
        &self,
        state: &dyn Session,
        store: &Arc<dyn ObjectStore>,
        table_schema: SchemaRef,
        object: &ObjectMeta,
    ) -> Result<Statistics> {
        self.0.infer_stats(state, store, table_schema, object).await
    }

    async fn create_physical_plan(
        &self,
        state: &dyn Session,
        scan: FileScanConfig,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (format, scan) = self.0.for_scan(state, scan).await?;
        format.as_ref().unwrap_or(&self.0).create_physical_plan(state, scan).await
    }

    async fn create_writer_physical_plan(
        &self,
        input: Arc<dyn ExecutionPlan>,
        state: &dyn Session,
        sink: FileSinkConfig,
        order: Option<LexRequirement>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.0.create_writer_physical_plan(input, state, sink, order).await
    }

    fn file_source(&self, table_schema: TableSchema) -> Arc<dyn FileSource> {
        self.0.file_source(table_schema)
    }
}

/// The decompressed content of an object.
async fn content(
    store: &Arc<dyn ObjectStore>,
    object: &ObjectMeta,
    compression: FileCompressionType,
) -> Result<Box<dyn Read + Send>> {
    let result = store.get(&object.location).await?;
    match result.payload {
        GetResultPayload::File(file, _) => compression.convert_read(file),
        GetResultPayload::Stream(_) => compression.convert_read(Cursor::new(result.bytes().await?)),
    }
}

#[cfg(test)]
mod tests;
