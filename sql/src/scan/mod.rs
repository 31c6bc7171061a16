//! Scans of files, through DataFusion's file sources, on our workers.
//!
//! A scan's files are cut into pieces ([`morsels`]): row groups of Parquet, byte ranges of CSV and
//! JSON. Tasks take pieces from one queue, so a skewed file idles nobody. A piece is planned late,
//! when a task takes it, so that statistics, page index and bloom filters are asked about whatever
//! runtime filters know by then. Decoding happens on the task's worker; a read that is not done yet
//! shuts the task's gate, and the I/O runtime opens it.

mod damage;
mod decode;
mod fallback;
mod filters;
mod footer;
mod ipc;
mod memory;
pub(crate) mod morsels;
mod queue;
mod reader;
mod row_group;
mod sources;
mod splits;
mod version;

pub(crate) use filters::ScanFilter;
pub(crate) use memory::{FilteredMemorySource, FilteredScan, MemoryFilterPushdown};
pub(crate) use morsels::FileMorsel;
pub(crate) use sources::with_file_scans;
pub(crate) use splits::SplitScan;

use std::{fmt, sync::Arc};

use datafusion::{
    datasource::physical_plan::FileScanConfig, error::Result, execution::TaskContext,
    object_store::ObjectStore, physical_plan::metrics::BaselineMetrics,
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
    queue::MorselQueue,
    reader::LocalFileScan,
    row_group::{LocalConjuncts, RowGroupPlan},
    version::{ListedVersions, Listing},
};
use crate::{engine::Engine, splits::Split};

/// A scan of files.
pub(crate) struct FileScan {
    shared: Arc<FileScanPlan>,
}

/// What the tasks of a scan share.
struct FileScanPlan {
    config: FileScanConfig,
    store: Arc<dyn ObjectStore>,
    /// DataFusion's reader.
    morselizer: Box<dyn Morselizer>,
    io: Handle,
    queue: MorselQueue,
    /// How row groups are read here; `None`: all by DataFusion's reader.
    row_group_plan: Option<Arc<RowGroupPlan>>,
    filters: Vec<Arc<ScanFilter>>,
    /// Gates that must be open before the scan starts: scalar subqueries in its predicate.
    start_after: Vec<Gate>,
    batch_rows: usize,
}

impl FileScan {
    /// A scan as `config` describes it: of all files, or of those parts that come as `splits`.
    pub(crate) fn new(
        config: &FileScanConfig,
        context: &Arc<TaskContext>,
        engine: &Engine,
        filters: Vec<Arc<ScanFilter>>,
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
        let queue = MorselQueue::new(&config, engine.executor.threads(), splits)?;
        let io = engine.io()?;
        let row_group_plan = RowGroupPlan::new(&config, &filters)?.map(Arc::new);
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

    fn local(&self, setup: OperatorContext) -> RuntimeResult<Box<dyn LocalSource>> {
        let shared = self.shared.clone();
        let metrics = shared.config.file_source.metrics();
        let baseline = BaselineMetrics::new(metrics, setup.task_index());
        let filters = LocalFilters::new(&shared.filters, setup.metrics().clone());
        let conjuncts = shared
            .row_group_plan
            .clone()
            .map(|plan| LocalConjuncts::new(plan, setup.metrics().clone()));
        Ok(Box::new(LocalFileScan::new(shared, setup.task_index(), baseline, filters, conjuncts)))
    }
}
