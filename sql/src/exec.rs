//! Shells: our nodes in DataFusion's plans, one per original node.
//!
//! A shell looks like its original to rules, EXPLAIN and foreign operators (`downcast_delegate`,
//! properties, expressions), but its children are the shells of the original's children, and its
//! metrics are ours. Only the topmost shell is executed: it turns the shells below it, down to the
//! first foreign nodes, into pipelines. Any shell can be the topmost one, so a foreign parent, a
//! rewritten plan or a worker's subplan need no special case.

use std::{any::Any, fmt, sync::Arc};

use datafusion::{
    common::{Statistics, tree_node::TreeNodeRecursion},
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::{OrderingRequirements, PhysicalExpr},
    physical_plan::{
        ChildStats, ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan,
        InputDistributionRequirements, PlanProperties, ReplaceChildrenOptions, StatisticsArgs,
        coalesce_partitions::CoalescePartitionsExec,
        execution_plan::CardinalityEffect,
        metrics::{ExecutionPlanMetricsSet, MetricsSet},
    },
};

use gatework_runtime::Executor;

use crate::{engine::Engine, lower, region::Region};

/// A covered node of a plan.
#[derive(Debug)]
pub struct GateworkExec {
    /// The original, with its original children.
    inner: Arc<dyn ExecutionPlan>,
    /// Shells of the original's children, or foreign nodes.
    children: Vec<Arc<dyn ExecutionPlan>>,
    metrics: ExecutionPlanMetricsSet,
    engine: Engine,
    region: Region,
}

/// The plan as a shell, if it is one. `ExecutionPlan::downcast_ref` cannot be used for this, because
/// it follows the delegate to the original.
pub fn as_gatework_exec(plan: &dyn ExecutionPlan) -> Option<&GateworkExec> {
    (plan as &dyn Any).downcast_ref::<GateworkExec>()
}

/// Names of the nodes of a planned query that run as DataFusion's own.
///
/// `EXPLAIN` and `EXPLAIN ANALYZE` themselves are not operators and not named.
pub fn fallbacks(plan: &Arc<dyn ExecutionPlan>) -> Vec<String> {
    let mut names = Vec::new();
    collect_fallbacks(plan, &mut names);
    names
}

fn collect_fallbacks(plan: &Arc<dyn ExecutionPlan>, names: &mut Vec<String>) {
    if as_gatework_exec(plan.as_ref()).is_none() && !lower::is_explain(plan.as_ref()) {
        names.push(plan.name().to_owned());
    }
    for child in plan.children() {
        collect_fallbacks(child, names);
    }
}

/// Whether the node itself, whatever is below it, runs on gatework.
pub fn is_supported(plan: &dyn ExecutionPlan) -> bool {
    as_gatework_exec(plan).is_some() || lower::supports(plan)
}

/// `plan` with a shell around every node that we cover.
pub(crate) fn wrap(
    plan: Arc<dyn ExecutionPlan>,
    engine: &Engine,
) -> Result<Arc<dyn ExecutionPlan>> {
    Ok(bypass_admission_after_first(wrap_nodes(plan, engine, &|_| false)?))
}

/// `plan`, for `executor`, with a shell around every node that runs on gatework, but for those at which `is_end` says
/// that somebody else's part begins, and all behind them. For planners that put nodes of their own into plans of
/// DataFusion's; the settings are those of the context that it is executed with.
///
/// # Errors
/// If a node refuses its children.
pub fn wrap_until(
    plan: Arc<dyn ExecutionPlan>,
    executor: &Executor,
    is_boundary: &dyn Fn(&dyn ExecutionPlan) -> bool,
) -> Result<Arc<dyn ExecutionPlan>> {
    Ok(bypass_admission_after_first(wrap_nodes(plan, &Engine::new(executor.clone()), is_boundary)?))
}

/// How many nodes of `plan` could run on gatework and have no shell.
pub(crate) fn count_unwrapped(plan: &dyn ExecutionPlan) -> usize {
    let own = usize::from(as_gatework_exec(plan).is_none() && lower::supports(plan));
    own + plan.children().into_iter().map(|child| count_unwrapped(child.as_ref())).sum::<usize>()
}

/// `plan` with one output partition, if its root is a shell: the result of a query has one reader as a rule.
pub(crate) fn coalesce_partitions(plan: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    let Some(exec) = as_gatework_exec(plan.as_ref()) else { return plan };
    if plan.properties().partitioning.partition_count() <= 1 {
        return plan;
    }
    let (engine, inner) = (exec.engine.clone(), exec.inner.clone());
    let inner = Arc::new(CoalescePartitionsExec::new(inner));
    Arc::new(GateworkExec::new(inner, vec![plan], engine))
}

/// Where several regions lie below a foreign root, which may need the rows of all of them to get on, only the first waits
/// for its turn.
fn bypass_admission_after_first(plan: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    fn visit(plan: &dyn ExecutionPlan, seen: &mut bool) {
        match as_gatework_exec(plan) {
            Some(exec) if *seen => exec.region.set_bypass_admission(),
            Some(_) => *seen = true,
            None => plan.children().into_iter().for_each(|child| visit(child.as_ref(), seen)),
        }
    }
    visit(plan.as_ref(), &mut false);
    plan
}

fn wrap_nodes(
    plan: Arc<dyn ExecutionPlan>,
    engine: &Engine,
    is_boundary: &dyn Fn(&dyn ExecutionPlan) -> bool,
) -> Result<Arc<dyn ExecutionPlan>> {
    if as_gatework_exec(plan.as_ref()).is_some() || is_boundary(plan.as_ref()) {
        return Ok(plan);
    }
    let children = plan
        .children()
        .into_iter()
        .map(|child| wrap_nodes(child.clone(), engine, is_boundary))
        .collect::<Result<Vec<_>>>()?;
    if lower::supports(plan.as_ref()) {
        return Ok(Arc::new(GateworkExec::new(plan, children, engine.clone())));
    }
    if children.is_empty() {
        return Ok(plan);
    }
    let keep = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Keep);
    plan.replace_children(children, keep)
}

impl GateworkExec {
    fn new(
        inner: Arc<dyn ExecutionPlan>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        engine: Engine,
    ) -> Self {
        let metrics = ExecutionPlanMetricsSet::new();
        Self { inner, children, metrics, engine, region: Region::default() }
    }

    /// The node that this shell stands for.
    pub fn inner(&self) -> &Arc<dyn ExecutionPlan> {
        &self.inner
    }

    pub(crate) fn children(&self) -> &[Arc<dyn ExecutionPlan>] {
        &self.children
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn region(&self) -> &Region {
        &self.region
    }

    pub(crate) fn own_metrics(&self) -> &ExecutionPlanMetricsSet {
        &self.metrics
    }
}

fn unwrap_plan(plan: &Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    as_gatework_exec(plan.as_ref()).map_or_else(|| plan.clone(), |exec| exec.inner.clone())
}

impl DisplayAs for GateworkExec {
    fn fmt_as(&self, kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if kind != DisplayFormatType::TreeRender {
            let elided = if lower::is_elided(self.inner.as_ref()) { " elided" } else { "" };
            write!(f, "[gatework{elided}] ")?;
        }
        self.inner.fmt_as(kind, f)
    }
}

impl ExecutionPlan for GateworkExec {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn downcast_delegate(&self) -> Option<&dyn ExecutionPlan> {
        Some(self.inner.as_ref())
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.inner.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        self.children.iter().collect()
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        self.inner.apply_expressions(f)
    }

    fn dynamic_expressions_produced(&self) -> Vec<Arc<dyn PhysicalExpr>> {
        self.inner.dynamic_expressions_produced()
    }

    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        self.inner.input_distribution_requirements()
    }

    fn required_input_ordering(&self) -> Vec<Option<OrderingRequirements>> {
        self.inner.required_input_ordering()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        self.inner.maintains_input_order()
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        self.inner.benefits_from_input_partitioning()
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let inner = if children.is_empty() {
            self.inner.clone()
        } else {
            let inner_children = children.iter().map(unwrap_plan).collect();
            self.inner.clone().replace_children(inner_children, options)?
        };
        Ok(Arc::new(Self::new(inner, children, self.engine.clone())))
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let recompute = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
        self.replace_children(children, recompute)
    }

    fn reset_state(self: Arc<Self>) -> Result<Arc<dyn ExecutionPlan>> {
        let inner = self.inner.clone().reset_state()?;
        Ok(Arc::new(Self::new(inner, self.children.clone(), self.engine.clone())))
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        self.region.execute(self, partition, context)
    }

    fn metrics(&self) -> Option<MetricsSet> {
        let ours = self.metrics.clone_inner();
        // A scan's own metrics are those of its file source, which we drive.
        match self.inner.metrics().filter(|_| self.children.is_empty()) {
            Some(mut scan) => {
                ours.iter().for_each(|metric| scan.push(metric.clone()));
                Some(scan)
            }
            None => Some(ours),
        }
    }

    fn statistics_from_inputs(
        &self,
        inputs: &[Arc<Statistics>],
        arguments: &StatisticsArgs,
    ) -> Result<Arc<Statistics>> {
        self.inner.statistics_from_inputs(inputs, arguments)
    }

    fn child_stats_requests(&self, partition: Option<usize>) -> Vec<ChildStats> {
        self.inner.child_stats_requests(partition)
    }

    fn supports_limit_pushdown(&self) -> bool {
        self.inner.supports_limit_pushdown()
    }

    fn fetch(&self) -> Option<usize> {
        self.inner.fetch()
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        self.inner.cardinality_effect()
    }
}
