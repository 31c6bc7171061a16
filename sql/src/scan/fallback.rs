//! Restrictions for files that DataFusion's reader reads.
//!
//! DataFusion prunes by float columns although their statistics leave NaN out. It also reads a
//! column with equal minimum and maximum as a constant. So float bounds and conjuncts that a NaN
//! may pass are withheld from it.

use std::sync::Arc;

use datafusion::{
    common::{ScalarValue, stats::Precision},
    datasource::{
        listing::PartitionedFile,
        physical_plan::{FileScanConfig, FileSource, ParquetSource},
    },
    physical_expr::{conjunction, split_conjunction},
};

use super::row_group::without_nan;

/// Returns the source of `config` for DataFusion's reader, without those conjuncts of its predicate
/// that a NaN may pass. If the reader also filters rows by the predicate, pruning is disabled
/// instead.
pub(super) fn source(config: &FileScanConfig) -> Arc<dyn FileSource> {
    let unchanged = config.file_source.clone();
    let Some(source) = unchanged.downcast_ref::<ParquetSource>() else { return unchanged };
    let Some(predicate) = source.filter() else { return unchanged };
    let conjuncts: Vec<_> = split_conjunction(&predicate).into_iter().cloned().collect();
    let count = conjuncts.len();
    let kept = without_nan(conjuncts, source.table_schema().table_schema(), |_| false);
    if kept.len() == count {
        return unchanged;
    }
    let mut options = source.table_parquet_options().clone();
    if options.global.pushdown_filters {
        options.global.pruning = false;
        options.global.enable_page_index = false;
        return Arc::new(source.clone().with_table_parquet_options(options));
    }
    Arc::new(source.with_predicate(conjunction(kept)))
}

/// Returns `file` without the bounds of its float columns.
pub(super) fn without_float_bounds(mut file: PartitionedFile) -> PartitionedFile {
    let is_float = |bound: &Precision<ScalarValue>| {
        bound.get_value().is_some_and(|value| value.data_type().is_floating())
    };
    if let Some(statistics) = &mut file.statistics
        && statistics.column_statistics.iter().any(|column| is_float(&column.min_value))
    {
        for column in &mut Arc::make_mut(statistics).column_statistics {
            if is_float(&column.min_value) {
                (column.min_value, column.max_value) = (Precision::Absent, Precision::Absent);
            }
        }
    }
    file
}
