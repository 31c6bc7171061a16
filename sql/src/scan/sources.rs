//! Other sources for the scans of a plan.

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

/// What stands for a source; `None` for the source itself.
type OtherSource = Option<Arc<dyn DataSource>>;

/// Returns `plan` with the sources of its scans replaced by what `other` gives for them, if it
/// gives something.
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

/// Does the same for scans of files.
pub(crate) fn with_file_scans(
    plan: Arc<dyn ExecutionPlan>,
    other: &dyn Fn(&FileScanConfig) -> Option<FileScanConfig>,
) -> Result<Arc<dyn ExecutionPlan>> {
    with_sources(plan, &|source| Some(Arc::new(other(source.downcast_ref()?)?) as _))
}
