//! Opening a row group: is it worth reading, can it be read here, and its bytes.

use std::{ops::Range, sync::Arc};

use arrow::{
    array::BooleanBufferBuilder,
    buffer::BooleanBuffer,
    datatypes::{DataType, Schema},
};
use datafusion::{
    common::internal_datafusion_err,
    datasource::{
        listing::PartitionedFile,
        physical_plan::{
            FileScanConfig, ParquetFileMetrics, ParquetSource,
            parquet::{
                PagePruningAccessPlanFilter, ParquetAccessPlan, ParquetRowSelection,
                RowGroupAccess, RowGroupAccessPlanFilter,
            },
        },
    },
    error::Result,
    parquet::{
        arrow::{arrow_reader::RowSelection, parquet_to_arrow_schema},
        basic::Encoding,
        file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData},
        schema::types::SchemaDescriptor,
    },
    physical_optimizer::pruning::PruningPredicateBuilder,
};

use super::{ColumnPlan, RowGroupRows};
use crate::scan::{
    decode::{self, ColumnDecoder},
    pieces::RowGroup,
};

/// What became of a row group.
pub(in super::super) enum Opened {
    /// No row can match.
    Nothing,
    Rows(Box<RowGroupRows>),
    /// For DataFusion's reader.
    Foreign,
}

/// Opens row group `group` of `file`, for task number `worker`.
pub(in super::super) async fn open(
    plan: Arc<ColumnPlan>,
    config: &FileScanConfig,
    file: PartitionedFile,
    group: RowGroup,
    worker: usize,
    batch_rows: usize,
) -> Result<Opened> {
    let source = config.file_source.downcast_ref::<ParquetSource>();
    let source = source.ok_or_else(|| internal_datafusion_err!("row groups of another format"))?;
    let special = file.extension::<ParquetAccessPlan>().is_some()
        || file.extension::<ParquetRowSelection>().is_some();
    let Some(chunks) = plan.chunks(&group).filter(|_| !special) else { return Ok(Opened::Foreign) };
    let blooms = source.table_parquet_options().global.bloom_filter_on_read;
    if blooms && chunks.iter().any(|chunk| chunk.bloom_filter_offset().is_some()) {
        return Ok(Opened::Foreign);
    }
    let name = file.object_meta.location.as_ref();
    let metrics = ParquetFileMetrics::new(worker, name, config.file_source.metrics());
    let access = plan.prune(source, &group, &metrics);
    let rows = group.metadata().num_rows() as usize;
    let pages = match access {
        RowGroupAccess::Skip => return Ok(Opened::Nothing),
        RowGroupAccess::Scan => None,
        RowGroupAccess::Selection(selection) => Some(bits(&selection, rows)),
    };
    let ranges: Vec<Range<u64>> = chunks
        .iter()
        .map(|chunk| {
            let (start, length) = chunk.byte_range();
            start..start + length
        })
        .collect();
    let factory = source.parquet_file_reader_factory();
    let factory = factory.ok_or_else(|| internal_datafusion_err!("a scan without a reader"))?;
    let options = &source.table_parquet_options().global;
    let hint = file.metadata_size_hint.or(options.metadata_size_hint);
    let mut reader =
        factory.create_reader(worker, file.clone(), hint, config.file_source.metrics())?;
    let bytes = reader.get_byte_ranges(ranges.clone()).await?;
    let mut decoders = Vec::with_capacity(chunks.len());
    for (((chunk, range), bytes), field) in chunks.iter().zip(ranges).zip(bytes).zip(&plan.columns)
    {
        let kind = field.data_type().clone();
        decoders.push(ColumnDecoder::new(chunk, rows, bytes, range.start, kind)?);
    }
    let rows = RowGroupRows::new(plan.clone(), decoders, rows, pages, batch_rows);
    Ok(Opened::Rows(Box::new(rows)))
}

impl ColumnPlan {
    /// The chunks of the columns that are read; `None` if one is not there, has another type than
    /// the table says, or cannot be decoded here.
    fn chunks<'a>(&self, group: &'a RowGroup) -> Option<Vec<&'a ColumnChunkMetaData>> {
        if group.metadata().num_rows() < 0 {
            return None;
        }
        let file = group.footer.file_metadata();
        let descriptor = file.schema_descr();
        let schema = parquet_to_arrow_schema(descriptor, file.key_value_metadata()).ok()?;
        let chunk = |field: &Arc<arrow::datatypes::Field>| {
            let in_file = schema.field_with_name(field.name()).ok()?;
            let leaf = leaf(descriptor, field.name())?;
            let chunk = group.metadata().columns().get(leaf)?;
            let same = field.data_type() == &as_read(in_file.data_type());
            let same = same || field.data_type() == in_file.data_type();
            let sound = chunk.data_page_offset() >= 0
                && chunk.dictionary_page_offset().is_none_or(|offset| offset >= 0)
                && chunk.compressed_size() >= 0;
            // Levels that nobody writes any more.
            let nullable = chunk.column_descr().max_def_level() > 0;
            let old = nullable && has_old_levels(chunk);
            let known = sound && same && !old;
            (known && decode::supports(chunk, field.data_type())).then_some(chunk)
        };
        self.columns.iter().map(chunk).collect()
    }

    /// What of row group `group` may match, by its statistics and its page index.
    fn prune(
        &self,
        source: &ParquetSource,
        group: &RowGroup,
        metrics: &ParquetFileMetrics,
    ) -> RowGroupAccess {
        let Some(predicate) = &self.predicate else { return RowGroupAccess::Scan };
        let footer: &ParquetMetaData = &group.footer;
        let options = &source.table_parquet_options().global;
        let mut access = ParquetAccessPlan::new_none(footer.num_row_groups());
        access.scan(group.place);
        let schema: &Schema = &self.table;
        let descriptor = footer.file_metadata().schema_descr();
        if options.pruning
            && let Ok(pruning) = PruningPredicateBuilder::new()
                .with_file_schema(self.table.clone())
                .try_build(predicate.clone())
            && !pruning.always_true()
        {
            let groups: &[RowGroupMetaData] = footer.row_groups();
            let mut filter = RowGroupAccessPlanFilter::new(access);
            filter.prune_by_statistics(schema, descriptor, groups, &pruning, metrics);
            access = filter.build();
        }
        let indexed = footer.column_index().is_some() && footer.offset_index().is_some();
        if options.enable_page_index && indexed && access.should_scan(group.place) {
            let pages = PagePruningAccessPlanFilter::new(predicate, self.table.clone());
            access = pages.prune_plan_with_page_index(access, schema, descriptor, footer, metrics);
        }
        access.into_inner().swap_remove(group.place)
    }
}

#[expect(deprecated, reason = "the question is whether a file has what is deprecated")]
fn has_old_levels(chunk: &ColumnChunkMetaData) -> bool {
    chunk.encodings().any(|encoding| encoding == Encoding::BIT_PACKED)
}

/// The leaf of a column that is no structure.
fn leaf(descriptor: &SchemaDescriptor, name: &str) -> Option<usize> {
    let mut places = descriptor.columns().iter().enumerate().filter_map(|(place, column)| {
        let path = column.path().parts();
        (path.len() == 1 && path[0] == name).then_some(place)
    });
    // With a name that is there twice, DataFusion knows which is meant.
    places.next().filter(|_| places.next().is_none())
}

/// The type as which DataFusion reads a column of type `kind`.
fn as_read(kind: &DataType) -> DataType {
    match kind {
        DataType::Utf8 => DataType::Utf8View,
        DataType::Binary => DataType::BinaryView,
        kind => kind.clone(),
    }
}

fn bits(selection: &RowSelection, rows: usize) -> BooleanBuffer {
    let mut bits = BooleanBufferBuilder::new(rows);
    for run in selection.iter() {
        bits.append_n(run.row_count, !run.skip);
    }
    bits.append_n(rows.saturating_sub(bits.len()), false);
    bits.finish()
}
