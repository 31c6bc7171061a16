//! Tables whose splits go to all nodes: to any node, or each bucket to its own node.

use std::{fmt, sync::Arc};

use datafusion::{
    common::{config::ConfigOptions, internal_err, tree_node::TreeNodeRecursion},
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
        filter_pushdown::{ChildPushdownResult, FilterPushdownPhase, FilterPushdownPropagation},
    },
};
use gatework_sql::{
    buckets::{BucketedScan, Bucketing},
    splits::with_filter_support,
};

/// A scan of a table; each task of a stage reads the splits that it is given.
#[derive(Debug)]
pub struct SplitScanExec {
    table: Arc<dyn ExecutionPlan>,
    buckets: Option<BucketedScan>,
    properties: Arc<PlanProperties>,
}

impl SplitScanExec {
    /// Creates a scan of `table` by tasks on `nodes` nodes. An order of `table` is lost.
    pub fn new(table: Arc<dyn ExecutionPlan>, nodes: usize) -> Self {
        let table = with_filter_support(table);
        let buckets = BucketedScan::of(&table);
        let partitioning = match &buckets {
            Some(known) => Partitioning::Hash(known.keys.clone(), known.bucketing.count()),
            None => Partitioning::UnknownPartitioning(nodes),
        };
        let properties = PlanProperties::new(
            EquivalenceProperties::new(table.schema()),
            partitioning,
            table.pipeline_behavior(),
            table.boundedness(),
        );
        Self { table, buckets, properties: Arc::new(properties) }
    }

    /// The buckets of the table, if it is bucketed.
    pub fn buckets(&self) -> Option<&Arc<Bucketing>> {
        self.buckets.as_ref().map(|known| &known.bucketing)
    }

    /// Returns this scan over another scan of the whole table.
    pub(crate) fn with_table(&self, table: Arc<dyn ExecutionPlan>) -> Self {
        Self::new(table, self.properties.partitioning.partition_count())
    }

    /// The scan of the whole table.
    pub fn table(&self) -> &Arc<dyn ExecutionPlan> {
        &self.table
    }
}

impl DisplayAs for SplitScanExec {
    fn fmt_as(&self, kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.buckets() {
            Some(buckets) => write!(f, "buckets ({buckets}) of ")?,
            None => write!(f, "splits of ")?,
        }
        self.table.fmt_as(kind, f)
    }
}

impl ExecutionPlan for SplitScanExec {
    fn name(&self) -> &str {
        "SplitScanExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![]
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        self.table.apply_expressions(f)
    }

    fn with_new_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn handle_child_pushdown_result(
        &self,
        phase: FilterPushdownPhase,
        pushed: ChildPushdownResult,
        config: &ConfigOptions,
    ) -> Result<FilterPushdownPropagation<Arc<dyn ExecutionPlan>>> {
        let mut result = self.table.handle_child_pushdown_result(phase, pushed, config)?;
        let wrap = |table| Arc::new(self.with_table(table)) as Arc<dyn ExecutionPlan>;
        result.updated_node = result.updated_node.map(wrap);
        Ok(result)
    }

    fn execute(&self, _: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        internal_err!("splits can only be read by a task of a stage")
    }
}
