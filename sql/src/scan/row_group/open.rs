//! Opens a row group: prunes it, checks that this reader supports it, and fetches its bytes.

use std::{ops::Range, sync::Arc};

use arrow::datatypes::{DataType, Field, SchemaRef};
use datafusion::{
    common::{exec_err, internal_datafusion_err},
    datasource::{
        listing::PartitionedFile,
        physical_plan::{
            FileScanConfig, ParquetFileMetrics, ParquetSource,
            parquet::{
                ParquetAccessPlan, ParquetRowSelection, RowGroupAccess,
                apply_file_schema_type_coercions,
            },
        },
    },
    error::Result,
    parquet::{
        basic::Encoding, file::metadata::ColumnChunkMetaData, schema::types::SchemaDescriptor,
    },
};

use super::{
    RowGroupPlan, RowGroupReader, pages::PageRows, prune::PruningTarget, rows::column_error,
};
use crate::scan::{
    decode::{self, ColumnDecoder},
    morsels::RowGroup,
};

/// A dictionary stays one if it has at most one entry for this number of rows.
const ROWS_PER_ENTRY: usize = 2;

/// Result of opening a row group.
pub(in super::super) enum OpenedRowGroup {
    /// No row of the row group can match the predicate.
    Pruned,
    Reader(Box<RowGroupReader>),
    /// DataFusion's reader has to read the row group.
    Unsupported,
}

/// Opens row group `group` of `file` for the task with index `task_index`.
pub(in super::super) async fn open(
    plan: Arc<RowGroupPlan>,
    config: &FileScanConfig,
    file: PartitionedFile,
    group: RowGroup,
    task_index: usize,
    batch_rows: usize,
) -> Result<OpenedRowGroup> {
    let source = config.file_source.downcast_ref::<ParquetSource>();
    let source = source.ok_or_else(|| internal_datafusion_err!("the file is not Parquet"))?;
    let special = file.extension::<ParquetAccessPlan>().is_some()
        || file.extension::<ParquetRowSelection>().is_some();
    let Some((schema, chunks)) = plan.chunks_in_file(&group).filter(|_| !special) else {
        return Ok(OpenedRowGroup::Unsupported);
    };
    let name = file.object_meta.location.as_ref();
    let metrics = ParquetFileMetrics::new(task_index, name, config.file_source.metrics());
    let target = PruningTarget { source, file: &file, group: &group, schema: &schema };
    let (access, predicate) = plan.prune(&target, &metrics);
    let Ok(rows) = usize::try_from(group.metadata().num_rows()) else {
        return exec_err!("a row group has {} rows", group.metadata().num_rows());
    };
    let pages = match access {
        RowGroupAccess::Skip => return Ok(OpenedRowGroup::Pruned),
        RowGroupAccess::Scan => None,
        RowGroupAccess::Selection(selection) => Some(PageRows::new(&selection)),
    };
    let ranges: Vec<Range<u64>> = chunks
        .iter()
        .map(|chunk| {
            let (start, length) = chunk.byte_range();
            start..start + length
        })
        .collect();
    let factory = source.parquet_file_reader_factory();
    let factory = factory.ok_or_else(|| internal_datafusion_err!("no reader factory is set"))?;
    let options = &source.table_parquet_options().global;
    let hint = file.metadata_size_hint.or(options.metadata_size_hint);
    let mut reader =
        factory.create_reader(task_index, file.clone(), hint, config.file_source.metrics())?;
    if let Some(predicate) = predicate
        && target.is_excluded(&predicate, reader.as_mut(), &metrics).await
    {
        return Ok(OpenedRowGroup::Pruned);
    }
    let bytes = reader.get_byte_ranges(ranges.clone()).await?;
    let mut decoders = Vec::with_capacity(chunks.len());
    let columns = plan.columns.iter().enumerate();
    for (((chunk, range), bytes), (slot, field)) in
        chunks.iter().zip(ranges).zip(bytes).zip(columns)
    {
        let data_type = field.data_type().clone();
        let decoder = ColumnDecoder::new(chunk, rows, bytes, range.start, data_type);
        let decoder = decoder.map_err(|error| column_error(field.name(), error))?;
        decoders.push(match plan.takes_dictionary(slot) {
            true => decoder.with_codes(rows / ROWS_PER_ENTRY),
            false => decoder,
        });
    }
    let rows = RowGroupReader::new(plan.clone(), decoders, rows, pages, batch_rows);
    Ok(OpenedRowGroup::Reader(Box::new(rows)))
}

impl RowGroupPlan {
    /// Returns the schema of a row group's file and the chunks of the columns that are read. `None`
    /// if a column is missing, differs from the table's type, or cannot be decoded natively.
    fn chunks_in_file<'a>(
        &self,
        group: &'a RowGroup,
    ) -> Option<(SchemaRef, Vec<&'a ColumnChunkMetaData>)> {
        let schema = group.schema.clone()?;
        let columns = self.columns.iter();
        let chunks = columns.map(|field| chunk(group, &schema, field)).collect::<Option<_>>()?;
        // String columns are views for statistics, as in the table's schema.
        let schema = match apply_file_schema_type_coercions(&self.table, &schema) {
            Some(coerced) => Arc::new(coerced),
            None => schema,
        };
        Some((schema, chunks))
    }
}

/// Returns the chunk of the table's column `field` in a row group of a file with `schema`.
fn chunk<'a>(
    group: &'a RowGroup,
    schema: &SchemaRef,
    field: &Field,
) -> Option<&'a ColumnChunkMetaData> {
    let in_file = schema.field_with_name(field.name()).ok()?;
    let leaf = leaf(group.footer.file_metadata().schema_descr(), field.name())?;
    let chunk = group.metadata().columns().get(leaf)?;
    let same = field.data_type() == &as_read(in_file.data_type());
    let same = same || field.data_type() == in_file.data_type();
    // Level encodings that current writers do not use.
    let nullable = chunk.column_descr().max_def_level() > 0;
    let old = nullable && has_old_levels(chunk);
    (same && !old && decode::supports(chunk, field.data_type())).then_some(chunk)
}

#[expect(deprecated, reason = "detects files with a deprecated encoding")]
fn has_old_levels(chunk: &ColumnChunkMetaData) -> bool {
    chunk.encodings().any(|encoding| encoding == Encoding::BIT_PACKED)
}

/// Returns the leaf index of a column that is not nested.
pub(super) fn leaf(descriptor: &SchemaDescriptor, name: &str) -> Option<usize> {
    let mut indices = descriptor.columns().iter().enumerate().filter_map(|(index, column)| {
        let path = column.path().parts();
        (path.len() == 1 && path[0] == name).then_some(index)
    });
    // If two columns have the name, only DataFusion can resolve it.
    indices.next().filter(|_| indices.next().is_none())
}

/// Returns the type as which DataFusion reads a column of type `kind`.
fn as_read(kind: &DataType) -> DataType {
    match kind {
        DataType::Utf8 => DataType::Utf8View,
        DataType::Binary => DataType::BinaryView,
        kind => kind.clone(),
    }
}
