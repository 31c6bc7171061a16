//! Replacement of the sources of a plan's scans.

use std::sync::Arc;

use datafusion::{
    common::tree_node::{Transformed, TransformedResult, TreeNode},
    datasource::{
        physical_plan::FileScanConfig,
        source::{DataSource, DataSourceExec},
    },
    error::Result,
    physical_plan::ExecutionPlan,
};

/// A replacement of a source; `None` keeps the source.
type OtherSource = Option<Arc<dyn DataSource>>;

/// Returns `plan` with the sources of its scans replaced where `other` returns a replacement.
pub(crate) fn with_sources(
    plan: Arc<dyn ExecutionPlan>,
    other: &dyn Fn(&Arc<dyn DataSource>) -> OtherSource,
) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        let scan = node.downcast_ref::<DataSourceExec>();
        Ok(match scan.and_then(|scan| other(scan.data_source())) {
            Some(source) => Transformed::yes(Arc::new(DataSourceExec::new(source)) as _),
            None => Transformed::no(node),
        })
    })
    .data()
}

/// Replaces file sources as [`with_sources`] does.
pub(crate) fn with_file_scans(
    plan: Arc<dyn ExecutionPlan>,
    other: &dyn Fn(&FileScanConfig) -> Option<FileScanConfig>,
) -> Result<Arc<dyn ExecutionPlan>> {
    with_sources(plan, &|source| Some(Arc::new(other(source.downcast_ref()?)?) as _))
}
