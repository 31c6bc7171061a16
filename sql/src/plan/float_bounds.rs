//! Bounds of float columns, which leave NaN out.
//!
//! The statistics of Parquet files cover only the numbers, but DataFusion treats them as bounds of
//! all values. It answers a `max` from them although a NaN is greater. This rule runs before any
//! rule that relies on such bounds.

use std::sync::Arc;

use datafusion::{
    common::{ColumnStatistics, Statistics, config::ConfigOptions, stats::Precision},
    datasource::physical_plan::{FileGroup, FileScanConfig, FileScanConfigBuilder, ParquetSource},
    error::Result,
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::ExecutionPlan,
};

use crate::scan::with_file_scans;

/// Marks the bounds of float columns in scans of Parquet files as estimates.
#[derive(Debug)]
pub(crate) struct FloatBounds;

impl PhysicalOptimizerRule for FloatBounds {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        with_file_scans(plan, &estimated)
    }

    fn name(&self) -> &str {
        "gatework_float_bounds"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Returns `config` with estimated bounds; `None` if no bounds are of float columns.
fn estimated(config: &FileScanConfig) -> Option<FileScanConfig> {
    config.file_source.downcast_ref::<ParquetSource>()?;
    let mut statistics = config.statistics();
    let mut groups = config.file_groups.clone();
    let mut found = estimate(&mut statistics);
    for group_statistics in groups.iter_mut().filter_map(FileGroup::statistics_mut) {
        found |= estimate(group_statistics);
    }
    let builder = FileScanConfigBuilder::from(config.clone());
    found.then(|| builder.with_statistics(statistics).with_file_groups(groups).build())
}

/// Marks the bounds of float columns as estimates; returns whether there are any.
fn estimate(statistics: &mut Statistics) -> bool {
    let mut found = false;
    for ColumnStatistics { min_value, max_value, .. } in &mut statistics.column_statistics {
        for bound in [min_value, max_value] {
            let exact = matches!(bound, Precision::Exact(value) if value.data_type().is_floating());
            if exact {
                *bound = std::mem::take(bound).to_inexact();
            }
            found |= exact;
        }
    }
    found
}
