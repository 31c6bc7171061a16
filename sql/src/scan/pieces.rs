//! Cutting files into pieces that tasks take one by one.

use std::{collections::HashSet, sync::Arc};

use datafusion::{
    datasource::{
        listing::PartitionedFile,
        physical_plan::{
            FileGroup, FileGroupPartitioner, FileScanConfig, ParquetSource,
            parquet::{
                CachedParquetFileReaderFactory, ParquetAccessPlan, ParquetFileReaderFactory,
            },
        },
    },
    error::Result,
    execution::TaskContext,
    parquet::{
        arrow::arrow_reader::ArrowReaderOptions,
        file::metadata::{PageIndexPolicy, ParquetMetaData, RowGroupMetaData},
    },
};

use crate::buckets::check_footer;

/// What a task of a scan reads at a time.
pub(crate) struct Piece {
    /// With a range, unless it is all of the file.
    pub(crate) file: PartitionedFile,
    /// If the piece is a row group.
    pub(crate) group: Option<RowGroup>,
}

impl From<PartitionedFile> for Piece {
    fn from(file: PartitionedFile) -> Self {
        Self { file, group: None }
    }
}

/// A row group of a Parquet file.
pub(crate) struct RowGroup {
    pub(super) footer: Arc<ParquetMetaData>,
    pub(super) place: usize,
}

impl RowGroup {
    pub(crate) fn metadata(&self) -> &RowGroupMetaData {
        self.footer.row_group(self.place)
    }
}

/// Bytes of a text file that make a piece worth its start.
const MIN_PIECE_BYTES: u64 = 4 << 20;
/// Pieces per worker that a text file is cut into at most.
const PIECES_PER_WORKER: u64 = 8;

/// Makes a Parquet source read footers through the runtime's cache: each piece asks for its file's
/// footer, and the default reader would fetch it every time.
pub(crate) fn cache_metadata(config: &mut FileScanConfig, context: &TaskContext) -> Result<()> {
    let Some(source) = config.file_source.downcast_ref::<ParquetSource>() else { return Ok(()) };
    if source.parquet_file_reader_factory().is_some() {
        return Ok(());
    }
    let runtime = context.runtime_env();
    let factory: Arc<dyn ParquetFileReaderFactory> = Arc::new(CachedParquetFileReaderFactory::new(
        runtime.object_store(&config.object_store_url)?,
        runtime.cache_manager.get_file_metadata_cache(),
    ));
    config.file_source = Arc::new(source.clone().with_parquet_file_reader_factory(factory));
    Ok(())
}

/// Whether the files have row groups, which only their footers tell.
pub(crate) fn has_row_groups(config: &FileScanConfig) -> bool {
    config.file_source.downcast_ref::<ParquetSource>().is_some()
}

/// `file` as one piece per row group that may have rows for us.
///
/// A piece is a byte range that holds the first byte of one row group: DataFusion's reader takes the
/// row groups that start in its range. Files whose offsets are not distinct stay whole.
pub(crate) async fn row_groups(
    config: &FileScanConfig,
    file: PartitionedFile,
    worker: usize,
) -> Result<Vec<Piece>> {
    let source = config.file_source.downcast_ref::<ParquetSource>();
    let Some((source, factory)) =
        source.and_then(|source| Some((source, source.parquet_file_reader_factory()?)))
    else {
        return Ok(vec![file.into()]);
    };
    let options = &source.table_parquet_options().global;
    let hint = file.metadata_size_hint.or(options.metadata_size_hint);
    // Pieces use the page index if there is a predicate; asked for here, it is cached with the footer.
    let pages = config.file_source.filter().is_some() && options.enable_page_index;
    let policy = if pages { PageIndexPolicy::Optional } else { PageIndexPolicy::Skip };
    let reader_options = ArrowReaderOptions::new().with_page_index_policy(policy);
    let metrics = config.file_source.metrics();
    let mut reader = factory.create_reader(worker, file.clone(), hint, metrics)?;
    let footer = reader.get_metadata(Some(&reader_options)).await?;
    check_footer(&file, &footer)?;

    let (low, high) =
        file.range.as_ref().map_or((i64::MIN, i64::MAX), |range| (range.start, range.end));
    let chosen = file.extension::<ParquetAccessPlan>();
    let (mut seen, mut pieces) = (HashSet::new(), Vec::new());
    for (place, group) in footer.row_groups().iter().enumerate() {
        if group.num_columns() == 0 {
            return Ok(vec![file.into()]);
        }
        let first = group.column(0);
        let start = first.dictionary_page_offset().unwrap_or_else(|| first.data_page_offset());
        let skipped = chosen.is_some_and(|plan| place < plan.len() && !plan.should_scan(place));
        // An empty row group may share the next one's offset.
        if group.num_rows() == 0 || start < low || start >= high || skipped {
            continue;
        }
        if !seen.insert(start) {
            return Ok(vec![file.into()]);
        }
        let group = RowGroup { footer: footer.clone(), place };
        pieces.push(Piece { file: file.clone().with_range(start, start + 1), group: Some(group) });
    }
    Ok(pieces)
}

/// `file` as byte ranges, where its format can be read from the middle.
pub(crate) fn byte_ranges(
    config: &FileScanConfig,
    file: PartitionedFile,
    workers: usize,
) -> Vec<PartitionedFile> {
    let bytes = file.object_meta.size;
    let count = (bytes / MIN_PIECE_BYTES).min(PIECES_PER_WORKER * workers as u64) as usize;
    if count < 2
        || config.file_compression_type.is_compressed()
        || !config.file_source.supports_repartitioning()
        || config.file_source.file_type() == "json" && is_json_array(config, &file)
    {
        return vec![file];
    }
    FileGroupPartitioner::new()
        .with_target_partitions(count)
        .with_repartition_file_min_size(0)
        .with_preserve_order_within_groups(false)
        .repartition_file_groups(&[FileGroup::new(vec![file.clone()])])
        .map(|groups| groups.into_iter().flat_map(FileGroup::into_inner).collect())
        .unwrap_or_else(|| vec![file])
}

/// A JSON array cannot be read from the middle, and the source only says so when it is asked to.
fn is_json_array(config: &FileScanConfig, file: &PartitionedFile) -> bool {
    let nowhere = Arc::new(datafusion::object_store::memory::InMemory::new());
    match config.file_source.create_file_opener(nowhere, config, 0) {
        Ok(opener) => opener.open(file.clone().with_range(0, 1)).is_err(),
        Err(_) => true,
    }
}
