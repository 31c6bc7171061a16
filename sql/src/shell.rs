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
pub struct Shell {
    /// The original, with its original children.
    original: Arc<dyn ExecutionPlan>,
    /// Shells of the original's children, or foreign nodes.
    children: Vec<Arc<dyn ExecutionPlan>>,
    metrics: ExecutionPlanMetricsSet,
    engine: Engine,
    region: Region,
}

/// The plan as a shell, if it is one. `ExecutionPlan::downcast_ref` cannot be used for this, because
/// it follows the delegate to the original.
pub fn as_shell(plan: &dyn ExecutionPlan) -> Option<&Shell> {
    (plan as &dyn Any).downcast_ref::<Shell>()
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
    if as_shell(plan.as_ref()).is_none() && !lower::is_statement(plan.as_ref()) {
        names.push(plan.name().to_owned());
    }
    for child in plan.children() {
        collect_fallbacks(child, names);
    }
}

/// Whether the node itself, whatever is below it, runs on gatework.
pub fn is_covered(plan: &dyn ExecutionPlan) -> bool {
    as_shell(plan).is_some() || lower::covers(plan)
}

/// `plan` with a shell around every node that we cover.
pub(crate) fn cover(
    plan: Arc<dyn ExecutionPlan>,
    engine: &Engine,
) -> Result<Arc<dyn ExecutionPlan>> {
    Ok(admitted_once(cover_to(plan, engine, &|_| false)?))
}

/// `plan`, for `executor`, with a shell around every node that runs on gatework, but for those at which `is_end` says
/// that somebody else's part begins, and all behind them. For planners that put nodes of their own into plans of
/// DataFusion's; the settings are those of the context that it is executed with.
///
/// # Errors
/// If a node refuses its children.
pub fn cover_above(
    plan: Arc<dyn ExecutionPlan>,
    executor: &Executor,
    is_end: &dyn Fn(&dyn ExecutionPlan) -> bool,
) -> Result<Arc<dyn ExecutionPlan>> {
    Ok(admitted_once(cover_to(plan, &Engine::new(executor.clone()), is_end)?))
}

/// How many nodes of `plan` could run on gatework and have no shell.
pub(crate) fn lost(plan: &dyn ExecutionPlan) -> usize {
    let own = usize::from(as_shell(plan).is_none() && lower::covers(plan));
    own + plan.children().into_iter().map(|child| lost(child.as_ref())).sum::<usize>()
}

/// `plan` with one output partition, if its root is a shell: the result of a query has one reader as a rule.
pub(crate) fn coalesced(plan: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    let Some(shell) = as_shell(plan.as_ref()) else { return plan };
    if plan.properties().partitioning.partition_count() <= 1 {
        return plan;
    }
    let (engine, original) = (shell.engine.clone(), shell.original.clone());
    let original = Arc::new(CoalescePartitionsExec::new(original));
    Arc::new(Shell::new(original, vec![plan], engine))
}

/// Where several regions lie below a foreign root, which may need the rows of all of them to get on, only the first waits
/// for its turn.
fn admitted_once(plan: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    fn visit(plan: &dyn ExecutionPlan, seen: &mut bool) {
        match as_shell(plan) {
            Some(shell) if *seen => shell.region.admit(),
            Some(_) => *seen = true,
            None => plan.children().into_iter().for_each(|child| visit(child.as_ref(), seen)),
        }
    }
    visit(plan.as_ref(), &mut false);
    plan
}

fn cover_to(
    plan: Arc<dyn ExecutionPlan>,
    engine: &Engine,
    is_end: &dyn Fn(&dyn ExecutionPlan) -> bool,
) -> Result<Arc<dyn ExecutionPlan>> {
    if as_shell(plan.as_ref()).is_some() || is_end(plan.as_ref()) {
        return Ok(plan);
    }
    let children = plan
        .children()
        .into_iter()
        .map(|child| cover_to(child.clone(), engine, is_end))
        .collect::<Result<Vec<_>>>()?;
    if lower::covers(plan.as_ref()) {
        return Ok(Arc::new(Shell::new(plan, children, engine.clone())));
    }
    if children.is_empty() {
        return Ok(plan);
    }
    let keep = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Keep);
    plan.replace_children(children, keep)
}

impl Shell {
    fn new(
        original: Arc<dyn ExecutionPlan>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        engine: Engine,
    ) -> Self {
        let metrics = ExecutionPlanMetricsSet::new();
        Self { original, children, metrics, engine, region: Region::default() }
    }

    /// The node that this shell stands for.
    pub fn original(&self) -> &Arc<dyn ExecutionPlan> {
        &self.original
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

fn bare(plan: &Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    as_shell(plan.as_ref()).map_or_else(|| plan.clone(), |shell| shell.original.clone())
}

impl DisplayAs for Shell {
    fn fmt_as(&self, kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if kind != DisplayFormatType::TreeRender {
            let folded = if lower::is_folded(self.original.as_ref()) { " folded" } else { "" };
            write!(f, "[gatework{folded}] ")?;
        }
        self.original.fmt_as(kind, f)
    }
}

impl ExecutionPlan for Shell {
    fn name(&self) -> &str {
        self.original.name()
    }

    fn downcast_delegate(&self) -> Option<&dyn ExecutionPlan> {
        Some(self.original.as_ref())
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.original.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        self.children.iter().collect()
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        self.original.apply_expressions(f)
    }

    fn dynamic_expressions_produced(&self) -> Vec<Arc<dyn PhysicalExpr>> {
        self.original.dynamic_expressions_produced()
    }

    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        self.original.input_distribution_requirements()
    }

    fn required_input_ordering(&self) -> Vec<Option<OrderingRequirements>> {
        self.original.required_input_ordering()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        self.original.maintains_input_order()
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        self.original.benefits_from_input_partitioning()
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let original = if children.is_empty() {
            self.original.clone()
        } else {
            let bare = children.iter().map(bare).collect();
            self.original.clone().replace_children(bare, options)?
        };
        Ok(Arc::new(Self::new(original, children, self.engine.clone())))
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let recompute = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
        self.replace_children(children, recompute)
    }

    fn reset_state(self: Arc<Self>) -> Result<Arc<dyn ExecutionPlan>> {
        let original = self.original.clone().reset_state()?;
        Ok(Arc::new(Self::new(original, self.children.clone(), self.engine.clone())))
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
        match self.original.metrics().filter(|_| self.children.is_empty()) {
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
        self.original.statistics_from_inputs(inputs, arguments)
    }

    fn child_stats_requests(&self, partition: Option<usize>) -> Vec<ChildStats> {
        self.original.child_stats_requests(partition)
    }

    fn supports_limit_pushdown(&self) -> bool {
        self.original.supports_limit_pushdown()
    }

    fn fetch(&self) -> Option<usize> {
        self.original.fetch()
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        self.original.cardinality_effect()
    }
}
