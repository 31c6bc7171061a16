//! Division of files into morsels, which tasks claim one by one.

use std::{collections::HashSet, sync::Arc};

use arrow::datatypes::SchemaRef;
use datafusion::{
    datasource::{
        listing::PartitionedFile,
        physical_plan::{
            FileScanConfig, ParquetSource,
            parquet::{CachedParquetFileReaderFactory, ParquetAccessPlan},
        },
    },
    error::Result,
    execution::TaskContext,
    parquet::{
        arrow::{arrow_reader::ArrowReaderOptions, parquet_to_arrow_schema},
        file::metadata::{
            FileMetaData, PageIndexPolicy, ParquetMetaData, ParquetMetaDataBuilder,
            RowGroupMetaData,
        },
    },
};

use super::{
    damage, footer,
    parquet_bytes::{CheckedReaders, FileFooter},
    version::Listing,
};
use crate::buckets::check_footer;

/// The unit of work of a scan's task.
pub(crate) struct FileMorsel {
    /// The file, with a byte range unless the morsel is the whole file.
    pub(crate) file: PartitionedFile,
    /// The row group, if the morsel is one.
    pub(crate) group: Option<RowGroup>,
}

impl FileMorsel {
    /// Returns the file for DataFusion's reader, which is told where the pages of its row group
    /// are, so that they are checked. gatework's own reader checks them itself.
    pub(crate) fn for_fallback(&self) -> PartitionedFile {
        let file = self.file.clone();
        let Some(RowGroup { footer, index, .. }) = &self.group else { return file };
        file.with_extension(FileFooter { footer: footer.clone(), group: Some(*index) })
    }
}

impl From<PartitionedFile> for FileMorsel {
    fn from(file: PartitionedFile) -> Self {
        Self { file, group: None }
    }
}

/// A row group of a Parquet file.
pub(crate) struct RowGroup {
    pub(super) footer: Arc<ParquetMetaData>,
    /// The file's schema; `None` if Arrow has no such schema.
    pub(super) schema: Option<SchemaRef>,
    pub(super) index: usize,
}

impl RowGroup {
    pub(crate) fn metadata(&self) -> &RowGroupMetaData {
        self.footer.row_group(self.index)
    }

    /// Returns a footer that has this row group alone. To prune with the file's footer takes time
    /// in proportion to its row groups, for each of them.
    pub(super) fn footer_of_itself(&self) -> ParquetMetaData {
        let columns = self.footer.column_index().and_then(|groups| groups.get(self.index));
        let offsets = self.footer.offset_index().and_then(|groups| groups.get(self.index));
        let file = self.footer.file_metadata();
        let file = FileMetaData::new(
            file.version(),
            self.metadata().num_rows(),
            file.created_by().map(str::to_owned),
            None,
            file.schema_descr_ptr(),
            file.column_orders().cloned(),
        );
        ParquetMetaDataBuilder::new(file)
            .add_row_group(self.metadata().clone())
            .set_column_index(columns.map(|columns| vec![columns.clone()]))
            .set_offset_index(offsets.map(|columns| vec![columns.clone()]))
            .build()
    }
}

/// Minimum size in bytes of a text file's morsel that is worth the overhead of its start.
const MIN_MORSEL_BYTES: i64 = 4 << 20;
/// Maximum number of morsels per worker for one range of a text file.
const MAX_MORSELS_PER_WORKER: u64 = 8;

/// Configures a Parquet source to read footers through the runtime's cache, since each morsel reads
/// its file's footer. Also makes it read files in the version that was listed.
pub(crate) fn prepare(config: &mut FileScanConfig, context: &TaskContext) -> Result<()> {
    let Some(source) = config.file_source.downcast_ref::<ParquetSource>() else { return Ok(()) };
    let listing = Listing::of(config, context)?;
    let inner = source.parquet_file_reader_factory().cloned().unwrap_or_else(|| {
        let cache = context.runtime_env().cache_manager.get_file_metadata_cache();
        Arc::new(CachedParquetFileReaderFactory::new(listing.store().clone(), cache))
    });
    let factory = Arc::new(CheckedReaders { inner, listing });
    config.file_source = Arc::new(source.clone().with_parquet_file_reader_factory(factory));
    Ok(())
}

/// Returns whether the files have row groups; only their footers list these.
pub(crate) fn has_row_groups(config: &FileScanConfig) -> bool {
    config.file_source.downcast_ref::<ParquetSource>().is_some()
}

/// Divides `file` into one morsel per row group that may have matching rows.
///
/// A morsel is the byte range that contains the first byte of one row group. DataFusion's reader
/// takes the row groups that start in its range. Files whose row group offsets are not distinct
/// stay whole.
pub(crate) async fn row_groups(
    config: &FileScanConfig,
    file: PartitionedFile,
    task_index: usize,
) -> Result<Vec<FileMorsel>> {
    let name = damage::name(&config.object_store_url, &file.object_meta.location);
    damage::named_future(&name, plan_file(config, file, task_index)).await
}

async fn plan_file(
    config: &FileScanConfig,
    file: PartitionedFile,
    task_index: usize,
) -> Result<Vec<FileMorsel>> {
    let source = config.file_source.downcast_ref::<ParquetSource>();
    let Some((source, factory)) =
        source.and_then(|source| Some((source, source.parquet_file_reader_factory()?)))
    else {
        return Ok(vec![file.into()]);
    };
    let options = &source.table_parquet_options().global;
    let hint = file.metadata_size_hint.or(options.metadata_size_hint);
    // Morsels use the page index if there is a predicate; requested now, it is cached with the
    // footer.
    let pages = config.file_source.filter().is_some() && options.enable_page_index;
    let with_pages = |policy| ArrowReaderOptions::new().with_page_index_policy(policy);
    let metrics = config.file_source.metrics();
    let mut reader = factory.create_reader(task_index, file.clone(), hint, metrics)?;
    let mut footer = reader.get_metadata(Some(&with_pages(PageIndexPolicy::Skip))).await?;
    // The footer locates the page index, so the footer is checked first.
    footer::check(&footer, file.object_meta.size)?;
    if pages && has_page_index(&footer) && footer.column_index().is_none() {
        footer = reader.get_metadata(Some(&with_pages(PageIndexPolicy::Optional))).await?;
    }
    check_footer(&file, &footer)?;

    let (low, high) =
        file.range.as_ref().map_or((i64::MIN, i64::MAX), |range| (range.start, range.end));
    let chosen = file.extension::<ParquetAccessPlan>();
    let in_file = footer.file_metadata();
    let schema = parquet_to_arrow_schema(in_file.schema_descr(), in_file.key_value_metadata());
    let schema = schema.ok().map(Arc::new);
    let (mut seen, mut morsels) = (HashSet::new(), Vec::new());
    let whole = |file: PartitionedFile| {
        let footer = FileFooter { footer: footer.clone(), group: None };
        Ok(vec![file.with_extension(footer).into()])
    };
    for (index, group) in footer.row_groups().iter().enumerate() {
        if group.num_columns() == 0 {
            return whole(file);
        }
        let first = group.column(0);
        let start = first.dictionary_page_offset().unwrap_or_else(|| first.data_page_offset());
        let skipped = chosen.is_some_and(|plan| index < plan.len() && !plan.should_scan(index));
        // An empty row group may share the next row group's offset.
        if group.num_rows() == 0 || start < low || start >= high || skipped {
            continue;
        }
        if !seen.insert(start) {
            return whole(file);
        }
        let group = RowGroup { footer: footer.clone(), schema: schema.clone(), index };
        morsels.push(FileMorsel {
            file: file.clone().with_range(start, start + 1),
            group: Some(group),
        });
    }
    Ok(morsels)
}

fn has_page_index(footer: &ParquetMetaData) -> bool {
    let mut chunks = footer.row_groups().iter().flat_map(RowGroupMetaData::columns);
    chunks.any(|chunk| chunk.column_index_offset().is_some())
}

/// Divides `file` into byte ranges. Only a range is divided: DataFusion sets ranges where the
/// file's format, options and session allow to read it from the middle.
pub(crate) fn byte_ranges(file: PartitionedFile, workers: usize) -> Vec<PartitionedFile> {
    let Some(range) = file.range.clone() else { return vec![file] };
    let bytes = range.end.saturating_sub(range.start);
    let max_count = MAX_MORSELS_PER_WORKER.saturating_mul(workers as u64).max(1) as i64;
    let count = (bytes / MIN_MORSEL_BYTES).clamp(1, max_count);
    let start = |morsel: i64| {
        range.start + (i128::from(bytes) * i128::from(morsel) / i128::from(count)) as i64
    };
    (0..count).map(|morsel| file.clone().with_range(start(morsel), start(morsel + 1))).collect()
}
