//! [`GateworkExec`]: the wrapper around each supported node of a DataFusion plan.
//!
//! A wrapper looks like its inner node to rules, EXPLAIN and fallback operators
//! (`downcast_delegate`, properties, expressions). Its children are the wrapped children of the
//! inner node, and its metrics are gatework's. Only the topmost wrapper is executed: it turns the
//! wrappers below it, down to the first fallback nodes, into pipelines. Any wrapper can be the
//! topmost one, so a fallback parent, a rewritten plan or a worker's subplan need no special case.

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

use crate::{
    lower,
    nodes::NodeRegistry,
    run::{engine::Engine, region::Region},
};

/// A supported node of a plan.
#[derive(Debug)]
pub struct GateworkExec {
    /// The wrapped node, with its own unwrapped children.
    inner: Arc<dyn ExecutionPlan>,
    /// Wrapped children of the inner node; fallback nodes are not wrapped.
    children: Vec<Arc<dyn ExecutionPlan>>,
    metrics: ExecutionPlanMetricsSet,
    engine: Engine,
    region: Region,
}

/// Returns the plan as a `GateworkExec` if it is one. `ExecutionPlan::downcast_ref` cannot do this:
/// it follows the delegate to the inner node.
pub fn as_gatework_exec(plan: &dyn ExecutionPlan) -> Option<&GateworkExec> {
    (plan as &dyn Any).downcast_ref::<GateworkExec>()
}

/// Returns the names of the nodes of a planned query that DataFusion executes.
///
/// `EXPLAIN` and `EXPLAIN ANALYZE` themselves are not operators and are not listed.
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

/// Returns whether DataFusion's node itself runs on gatework, independent of its inputs.
pub fn is_supported(plan: &dyn ExecutionPlan) -> bool {
    as_gatework_exec(plan).is_some() || lower::supports(plan, &NodeRegistry::default())
}

/// Returns whether the node itself runs on `executor`, independent of its inputs: a node of
/// DataFusion's, or of a type that is registered with the executor.
pub fn is_supported_on(plan: &dyn ExecutionPlan, executor: &Executor) -> bool {
    as_gatework_exec(plan).is_some() || lower::supports(plan, &NodeRegistry::of(executor))
}

/// Wraps every supported node of `plan` in a [`GateworkExec`].
pub(crate) fn wrap(
    plan: Arc<dyn ExecutionPlan>,
    engine: &Engine,
) -> Result<Arc<dyn ExecutionPlan>> {
    Ok(bypass_admission_after_first(wrap_nodes(plan, engine, &|_| false)?))
}

/// Wraps every supported node of `plan` for `executor`. Nodes at which `is_boundary` returns true
/// stay unwrapped, and so do all nodes below them. Planners that put nodes of their own into
/// DataFusion's plans call this. The settings are those of the context that the plan is executed
/// with.
///
/// If a node rejects its wrapped children.
pub fn wrap_until(
    plan: Arc<dyn ExecutionPlan>,
    executor: &Executor,
    is_boundary: &dyn Fn(&dyn ExecutionPlan) -> bool,
) -> Result<Arc<dyn ExecutionPlan>> {
    Ok(bypass_admission_after_first(wrap_nodes(plan, &Engine::new(executor.clone()), is_boundary)?))
}

/// Counts the supported nodes of `plan` that are not wrapped.
pub(crate) fn count_unwrapped(plan: &dyn ExecutionPlan, registry: &NodeRegistry) -> usize {
    let own = usize::from(as_gatework_exec(plan).is_none() && lower::supports(plan, registry));
    let children = plan.children().into_iter();
    own + children.map(|child| count_unwrapped(child.as_ref(), registry)).sum::<usize>()
}

/// Coalesces `plan` to one output partition if its root is a [`GateworkExec`]: the result of a
/// query usually has one reader.
pub(crate) fn coalesce_partitions(plan: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    let Some(exec) = as_gatework_exec(plan.as_ref()) else { return plan };
    if plan.properties().partitioning.partition_count() <= 1 {
        return plan;
    }
    let (engine, inner) = (exec.engine.clone(), exec.inner.clone());
    let inner = Arc::new(CoalescePartitionsExec::new(inner));
    Arc::new(GateworkExec::new(inner, vec![plan], engine))
}

/// Lets all regions of `plan` but the first bypass admission. A fallback root may need rows of all
/// regions below it to make progress.
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
    if is_boundary(plan.as_ref()) {
        return Ok(plan);
    }
    let children = plan
        .children()
        .into_iter()
        .map(|child| wrap_nodes(child.clone(), engine, is_boundary))
        .collect::<Result<Vec<_>>>()?;
    if let Some(exec) = as_gatework_exec(plan.as_ref()) {
        // Part of a plan that was made earlier, for instance by a table provider. Rules may have
        // put other nodes below it since.
        let is_same = exec.children.iter().zip(&children).all(|(old, new)| Arc::ptr_eq(old, new));
        return Ok(match is_same {
            true => plan,
            false => Arc::new(GateworkExec::new(exec.inner.clone(), children, engine.clone())),
        });
    }
    if lower::supports(plan.as_ref(), &engine.nodes) {
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

    /// Returns the executor on which the node runs.
    pub fn executor(&self) -> &Executor {
        &self.engine.executor
    }

    /// Returns the wrapped node.
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
        // The file source of a scan has metrics of its own, which the native scan updates.
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
