//! Native file scans on top of DataFusion's file sources.
//!
//! Files are divided into morsels ([`morsels`]): row groups of Parquet, byte ranges of CSV and
//! JSON. Tasks claim morsels from one queue, so that skewed file sizes leave no task idle. A morsel
//! is planned only when a task claims it. Statistics, page index and bloom filters are thus checked
//! against the runtime filters published by then. Decoding runs on the task's worker. A pending
//! read blocks the task's gate, and the I/O runtime makes it ready.

mod damage;
mod decode;
mod fallback;
mod filters;
mod footer;
mod group_order;
mod ipc;
mod memory;
pub(crate) mod morsels;
mod parquet_bytes;
mod queue;
mod reader;
mod row_group;
mod sources;
mod splits;
mod version;

pub(crate) use damage::contain_panic;
pub(crate) use filters::{ScanFilter, ScanThreshold, Thresholds};
pub(crate) use memory::{FilteredMemorySource, FilteredScan, MemoryFilterPushdown};
pub(crate) use morsels::FileMorsel;
pub(crate) use sources::with_file_scans;
pub(crate) use splits::SplitScan;

use std::{fmt, sync::Arc};

use datafusion::{
    datasource::physical_plan::FileScanConfig,
    error::Result,
    execution::{TaskContext, object_store::ObjectStoreUrl},
    object_store::{ObjectStore, ObjectStoreExt, path::Path},
};
use datafusion_datasource::morsel::Morselizer;
use gatework_runtime::{
    Result as RuntimeResult,
    pipeline::{LocalSource, OperatorContext, Source},
};
use gatework_shared_state::{Gate, splits::SplitQueue};
use tokio::runtime::Handle;

use self::{
    filters::LocalFilters,
    group_order::GroupOrder,
    queue::MorselQueue,
    reader::LocalFileScan,
    row_group::{LocalConjuncts, RowGroupPlan},
    version::{ListedVersions, Listing},
};
use crate::{run::engine::Engine, splits::Split};

/// Checks an Arrow file before another reader infers its schema; an error names the file.
pub(crate) async fn check_arrow_schema(
    store_url: &ObjectStoreUrl,
    store: &dyn ObjectStore,
    location: &Path,
) -> Result<()> {
    let check = async {
        // A cached list may have the size of an earlier version.
        let file = store.head(location).await?;
        // An empty file has no schema, and DataFusion leaves it out.
        if file.size == 0 { Ok(()) } else { ipc::check_arrow_schema(store, &file).await }
    };
    damage::named_future(&damage::name(store_url, location), check).await
}

/// A scan of files.
pub(crate) struct FileScan {
    shared: Arc<FileScanPlan>,
}

/// State shared by the tasks of a scan.
struct FileScanPlan {
    config: FileScanConfig,
    store: Arc<dyn ObjectStore>,
    /// DataFusion's reader; it reads the morsels that `row_group_plan` does not support.
    morselizer: Box<dyn Morselizer>,
    io: Handle,
    queue: MorselQueue,
    /// Plan of the native Parquet reader; `None` if DataFusion's reader reads all morsels.
    row_group_plan: Option<Arc<RowGroupPlan>>,
    filters: Vec<Arc<ScanFilter>>,
    /// Gates that must be ready before the scan starts: those of scalar subqueries in its
    /// predicate.
    start_after: Vec<Gate>,
    batch_rows: usize,
}

impl FileScan {
    /// Creates the scan that `config` describes: of all its files, or only of those morsels that
    /// arrive as `splits`.
    pub(crate) fn new(
        config: &FileScanConfig,
        context: &Arc<TaskContext>,
        engine: &Engine,
        filters: Vec<Arc<ScanFilter>>,
        thresholds: Thresholds<'_>,
        start_after: Vec<Gate>,
        splits: Option<SplitQueue<Split>>,
    ) -> Result<Self> {
        let session_rows = context.session_config().batch_size();
        let batch_rows = config.batch_size.unwrap_or(session_rows).max(1);
        let mut config = config.clone();
        config.file_source = config.file_source.with_batch_size(batch_rows);
        let listing = Listing::of(&config, context)?;
        let store: Arc<dyn ObjectStore> = Arc::new(ListedVersions::new(listing, &config));
        morsels::prepare(&mut config, context)?;
        let fallback = fallback::source(&config);
        let morselizer = fallback.create_morselizer(store.clone(), &config, 0)?;
        let first = thresholds.all.first().filter(|_| thresholds.order_groups);
        let table = config.file_source.table_schema().file_schema();
        let order = first.and_then(|threshold| GroupOrder::of(threshold, table));
        let queue = MorselQueue::new(&config, engine.executor.threads(), splits, order)?;
        let io = engine.io()?;
        let row_group_plan = RowGroupPlan::new(&config, &filters, thresholds.all)?.map(Arc::new);
        let shared = FileScanPlan {
            config,
            store,
            morselizer,
            io,
            queue,
            row_group_plan,
            filters,
            start_after,
            batch_rows,
        };
        Ok(Self { shared: Arc::new(shared) })
    }
}

impl fmt::Debug for FileScan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} scan", self.shared.config.file_source.file_type())
    }
}

impl Source for FileScan {
    fn name(&self) -> &str {
        "file scan"
    }

    fn take_dictionaries(&self, output: &[usize]) {
        if let Some(plan) = &self.shared.row_group_plan {
            plan.take_dictionaries(output);
        }
    }

    fn local(&self, context: OperatorContext) -> RuntimeResult<Box<dyn LocalSource>> {
        let shared = self.shared.clone();
        let filters = LocalFilters::new(&shared.filters, context.metrics().clone());
        let conjuncts = shared
            .row_group_plan
            .clone()
            .map(|plan| LocalConjuncts::new(plan, context.metrics().clone()));
        Ok(Box::new(LocalFileScan::new(shared, context.task_index(), filters, conjuncts)))
    }
}
