//! Bounds of float columns, which leave NaN out.
//!
//! The statistics of Parquet files are over the numbers only, and DataFusion takes them for those of all values: a
//! `max` is answered from them although a NaN is greater. This rule comes before any that does so.

use std::sync::Arc;

use datafusion::{
    common::{
        ColumnStatistics, ScalarValue, Statistics,
        config::ConfigOptions,
        stats::Precision,
        tree_node::{Transformed, TransformedResult, TreeNode},
    },
    datasource::{
        physical_plan::{FileGroup, FileScanConfig, FileScanConfigBuilder, ParquetSource},
        source::DataSourceExec,
    },
    error::Result,
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::ExecutionPlan,
};

/// Makes estimates of the bounds that scans of Parquet files have of their float columns.
#[derive(Debug)]
pub(crate) struct FloatBounds;

impl PhysicalOptimizerRule for FloatBounds {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| {
            let scan = node.downcast_ref::<DataSourceExec>();
            let files = scan.and_then(|scan| scan.data_source().downcast_ref::<FileScanConfig>());
            Ok(match files.and_then(estimated) {
                Some(config) => Transformed::yes(DataSourceExec::from_data_source(config)),
                None => Transformed::no(node),
            })
        })
        .data()
    }

    fn name(&self) -> &str {
        "gatework_float_bounds"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// `config` with estimates for bounds; `None` if it has none of floats.
fn estimated(config: &FileScanConfig) -> Option<FileScanConfig> {
    config.file_source.downcast_ref::<ParquetSource>()?;
    let mut statistics = config.statistics();
    let mut groups = config.file_groups.clone();
    let mut found = estimate(&mut statistics);
    for of_group in groups.iter_mut().filter_map(FileGroup::statistics_mut) {
        found |= estimate(of_group);
    }
    let builder = FileScanConfigBuilder::from(config.clone());
    found.then(|| builder.with_statistics(statistics).with_file_groups(groups).build())
}

fn estimate(statistics: &mut Statistics) -> bool {
    let is_float = |bound: &Precision<ScalarValue>| matches!(bound, Precision::Exact(value) if value.data_type().is_floating());
    let mut found = false;
    for ColumnStatistics { min_value, max_value, .. } in &mut statistics.column_statistics {
        for bound in [min_value, max_value] {
            if is_float(bound) {
                *bound = std::mem::take(bound).to_inexact();
                found = true;
            }
        }
    }
    found
}
