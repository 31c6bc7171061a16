//! The inputs of a task: outputs of other stages, and splits of tables.

use std::sync::Arc;

use datafusion::{
    common::{
        internal_datafusion_err,
        tree_node::{Transformed, TreeNode},
    },
    error::Result as PlanResult,
    physical_plan::{ExecutionPlan, sorts::sort::SortExec},
};
use gatework_operators::{
    SharedDataFusionError,
    exchange_source::RemoteExchangeSource,
    sort::{MergeExchangeSource, SortConfig},
};
use gatework_runtime::pipeline::BufferedBatch;
use gatework_shared_state::{output::ExchangeClient, splits::SplitQueue};
use gatework_sql::{
    SourceExec,
    splits::{Split, with_split_queue},
};

use crate::{PlanFragment, RemoteSourceExec, SplitScanExec, plan::fragment::remote_sources};

/// Inputs of a query of a task.
#[derive(Debug)]
pub(super) struct Inputs {
    /// One client per remote source, in plan order.
    pub(super) exchanges: Vec<(Vec<usize>, ExchangeClient<BufferedBatch>)>,
    /// One queue per table of the fragment.
    pub(super) tables: Vec<SplitQueue<Split>>,
}

impl Inputs {
    pub(super) fn new(name: &str, fragment: &PlanFragment, max_queued_splits: usize) -> Self {
        let mut sources = Vec::new();
        remote_sources(&fragment.root, &mut sources);
        let exchange =
            |source: &RemoteSourceExec| (source.fragments().to_vec(), ExchangeClient::new(name));
        let tables = fragment.tables.iter();
        Self {
            exchanges: sources.into_iter().map(exchange).collect(),
            tables: tables.map(|_| SplitQueue::new(name, max_queued_splits)).collect(),
        }
    }

    fn exchange(
        &self,
        exec: &RemoteSourceExec,
        batch_rows: usize,
    ) -> PlanResult<Arc<dyn ExecutionPlan>> {
        let found = self.exchanges.iter().find(|(fragments, _)| fragments == exec.fragments());
        let Some((_, client)) = found else {
            let fragments = exec.fragments();
            return Err(internal_datafusion_err!("stages {fragments:?} have no reader"));
        };
        let scheme = exec.scheme();
        if exec.is_merged()
            && let Some(ordering) = scheme.ordering.clone()
        {
            let config = SortConfig {
                ordering: ordering.clone(),
                fetch: None,
                schema: exec.schema(),
                batch_rows,
            };
            let source = MergeExchangeSource::new(client.clone(), config);
            let source = source.map_err(|error| SharedDataFusionError::to_datafusion(&error))?;
            let rows = SourceExec::in_order(Arc::new(source), exec.schema(), &ordering);
            return Ok(Arc::new(rows));
        }
        let source = RemoteExchangeSource::new(client.clone(), exec.schema());
        let rows: Arc<dyn ExecutionPlan> =
            Arc::new(SourceExec::new(Arc::new(source), exec.schema()));
        Ok(match &scheme.ordering {
            Some(ordering) => Arc::new(SortExec::new(ordering.clone(), rows)),
            None => rows,
        })
    }

    fn table(
        &self,
        fragment: &PlanFragment,
        scan: &SplitScanExec,
    ) -> PlanResult<Arc<dyn ExecutionPlan>> {
        let mut tables = fragment.tables.iter().zip(&self.tables);
        match tables.find(|(table, _)| Arc::ptr_eq(table, scan.table())) {
            Some((table, queue)) => with_split_queue(table, queue.clone()),
            None => Err(internal_datafusion_err!("the fragment does not list a table of its plan")),
        }
    }
}

/// Returns the plan of a task: its fragment, with exchange sources for remote sources and split
/// queues for tables.
pub(super) fn task_plan(
    fragment: &PlanFragment,
    inputs: &Inputs,
    batch_rows: usize,
) -> PlanResult<Arc<dyn ExecutionPlan>> {
    let whole = fragment.root.clone().transform_up(|node| {
        if let Some(source) = node.downcast_ref::<RemoteSourceExec>() {
            return Ok(Transformed::yes(inputs.exchange(source, batch_rows)?));
        }
        if let Some(scan) = node.downcast_ref::<SplitScanExec>() {
            return Ok(Transformed::yes(inputs.table(fragment, scan)?));
        }
        Ok(Transformed::no(node))
    })?;
    Ok(whole.data)
}
