//! Prunes row groups by the bloom filters of their columns (Putze et al., "Cache-, Hash- and
//! Space-Efficient Bloom Filters", 2007; the Parquet format's split block bloom filters).
//!
//! The parquet crate reads a filter and DataFusion evaluates a predicate over it. A filter is an
//! optimization: one that cannot be read prunes nothing.

use std::ops::Range;

use arrow::datatypes::DataType;
use datafusion::{
    datasource::physical_plan::{
        ParquetFileMetrics,
        parquet::{BloomFilterStatistics, RowGroupAccessPlanFilter},
    },
    parquet::{arrow::async_reader::AsyncFileReader, bloom_filter::Sbbf},
    physical_optimizer::pruning::PruningPredicate,
};

use super::{open::leaf, prune::PruningTarget};

/// A column with a bloom filter that may prune a row group.
struct FilteredColumn {
    name: String,
    leaf: usize,
    bytes: Range<u64>,
}

impl PruningTarget<'_> {
    /// Returns whether the bloom filters of the row group show that no row passes `predicate`.
    pub(super) async fn is_excluded(
        &self,
        predicate: &PruningPredicate,
        reader: &mut dyn AsyncFileReader,
        metrics: &ParquetFileMetrics,
    ) -> bool {
        let columns: Vec<_> = predicate
            .literal_columns()
            .into_iter()
            .filter_map(|name| self.filtered_column(name))
            .collect();
        if columns.is_empty() {
            return false;
        }
        let ranges = columns.iter().map(|column| column.bytes.clone()).collect();
        let Ok(filters) = reader.get_byte_ranges(ranges).await else {
            metrics.predicate_evaluation_errors.add(1);
            return false;
        };
        let mut statistics = BloomFilterStatistics::with_capacity(columns.len());
        for (column, bytes) in columns.into_iter().zip(filters) {
            let descriptor = self.group.metadata().column(column.leaf).column_descr();
            // A damaged filter without blocks cannot be asked.
            match Sbbf::from_bytes(&bytes).ok().filter(|filter| filter.num_blocks() > 0) {
                Some(filter) => {
                    let (kind, length) = (descriptor.physical_type(), descriptor.type_length());
                    statistics.insert(column.name, filter, kind, length);
                }
                None => metrics.predicate_evaluation_errors.add(1),
            }
        }
        let mut filter = RowGroupAccessPlanFilter::new(Self::only_row_group());
        filter.prune_by_bloom_filters(predicate, metrics, &[statistics]);
        !filter.build().should_scan(0)
    }

    /// Returns the column with this name if the row group has a bloom filter for it, of a length
    /// that the footer states.
    fn filtered_column(&self, name: String) -> Option<FilteredColumn> {
        let field = self.schema.field_with_name(&name).ok()?;
        // 0.0 and -0.0 are equal, but their bits differ: a filter would exclude one of them.
        if field.data_type().is_floating() || matches!(field.data_type(), DataType::Null) {
            return None;
        }
        let leaf = leaf(self.group.footer.file_metadata().schema_descr(), &name)?;
        let chunk = self.group.metadata().columns().get(leaf)?;
        let start = u64::try_from(chunk.bloom_filter_offset()?).ok()?;
        let length = u64::try_from(chunk.bloom_filter_length()?).ok()?;
        Some(FilteredColumn { name, leaf, bytes: start..start.checked_add(length)? })
    }
}
