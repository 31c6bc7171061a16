//! From shells to pipelines.
//!
//! Lowering walks the shells of a region from its root. Each node either extends the *flow* of its
//! input (a pipeline that has no sink yet) or closes it with the sink of a breaker and starts a new
//! flow from the breaker's source. Foreign nodes become stream scans.
//!
//! Order: a caller that needs the order of a node's rows ([`is_ordered`]) asks for it (`ordered`), and
//! gets a flow of one task whose operators keep it, or a sort. Where the order does not matter, flows
//! have as many tasks as the executor has workers, whatever the plan's partitions are; nodes that are
//! only there for parallelism are folded.

mod aggregate;
mod bindings;
mod filter_pushdown;
mod joins;
mod kernel_workarounds;
mod lineage;
mod operators;
mod order;
mod pipeline_builder;
mod scalar;
mod sources;
mod supported;
mod targets;
mod union;
mod windows;

pub(crate) use bindings::Bindings;
pub use filter_pushdown::UniqueNamePushdown;
pub use lineage::PassThroughInputs;
pub(crate) use order::is_ordered;
use pipeline_builder::PipelineBuilder;
pub(crate) use supported::{is_elided, is_explain, supports};
pub use targets::FilterTargets;
pub use windows::window_expressions;

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use arrow::datatypes::Schema;
use datafusion::{
    error::Result,
    execution::memory_pool::MemoryLimit,
    physical_expr::{LexOrdering, PhysicalExpr, PhysicalSortExpr, expressions::UnKnownColumn},
    physical_plan::{ExecutionPlan, Partitioning, metrics::ExecutionPlanMetricsSet},
};
use gatework_operators::{SharedDataFusionError, result::ResultSink, specialize_decimals};
use gatework_runtime::pipeline::{Graph, PipelineId, Sink, WaitEdge};
use gatework_shared_state::Gate;

use crate::{
    engine::Engine,
    exec::{GateworkExec, as_gatework_exec},
    region::{FallbackContext, OutputRequirement, Readers},
    remote_filters::{RemoteFilter, RemoteRuntimeFilters},
    scan::ScanFilter,
    settings::Settings,
};

/// A region as pipelines.
pub(crate) struct Lowered {
    pub(crate) graph: Graph,
    /// Foreign nodes, by name.
    pub(crate) fallbacks: Vec<String>,
    /// Metric sets of the covered nodes, by tag.
    pub(crate) nodes: HashMap<usize, ExecutionPlanMetricsSet>,
}

/// Lowers the region below `shell`; what it gives, its readers get.
pub(crate) fn lower(
    exec: &GateworkExec,
    context: FallbackContext,
    requirement: &OutputRequirement,
) -> Result<(Lowered, Readers)> {
    let mut lowering = Lowering::new(exec.engine(), context);
    let pipeline = lowering.lower_node(exec, requirement.ordered)?;
    let keys = match &requirement.partitioning {
        // A key that was projected away cannot be evaluated, and nobody above can name it.
        Partitioning::Hash(keys, _) if !keys.iter().any(|key| key.is::<UnKnownColumn>()) => {
            lowering.bindings.bind_all(keys)?
        }
        _ => Vec::new(),
    };
    let partitions = requirement.partitioning.partition_count();
    let (sink, readers) = ResultSink::new(
        pipeline.num_tasks,
        partitions,
        keys,
        requirement.buffer_limit(&lowering.settings),
    );
    Ok((lowering.finish(pipeline, Arc::new(sink))?, readers))
}

/// Lowers the regions below `plan`, which may be a foreign node itself. What it gives goes, in the order that it
/// promises if that is wanted, to the sink that `sink` makes for so many tasks.
pub(crate) fn lower_into(
    plan: &Arc<dyn ExecutionPlan>,
    engine: &Engine,
    context: FallbackContext,
    ordered: bool,
    sink: impl FnOnce(usize) -> Result<Arc<dyn Sink>>,
) -> Result<Lowered> {
    let mut lowering = Lowering::new(engine, context);
    let pipeline = lowering.child(plan, ordered && is_ordered(plan))?;
    let sink = sink(pipeline.num_tasks)?;
    lowering.finish(pipeline, sink)
}

/// A runtime filter of this region: what it is made of, and its gate.
struct FilterLink {
    gate: Gate,
    /// The pipeline that collects the build side, once that is closed: the filter is published when
    /// it has ended.
    build: Option<PipelineId>,
}

/// What is known while a region is lowered.
struct Lowering {
    settings: Arc<Settings>,
    engine: Engine,
    /// Instances of a parallel pipeline, at most.
    max_tasks: usize,
    batch_rows: usize,
    context: FallbackContext,
    /// What expressions of the plan refer to in this execution.
    bindings: Bindings,
    graph: Graph,
    fallbacks: Vec<String>,
    nodes: HashMap<usize, ExecutionPlanMetricsSet>,
    /// Filters by the id of the dynamic expression, which is this execution's own.
    filters: HashMap<u64, FilterLink>,
    /// Scans that wait: the filter's id, the scan's pipeline, the filter there.
    filter_waits: Vec<(u64, PipelineId, Arc<ScanFilter>)>,
    /// Gates that every leaf waits for: scalar subqueries of the levels around it.
    start_after: Vec<Gate>,
}

impl Lowering {
    fn new(engine: &Engine, context: FallbackContext) -> Self {
        let settings = Settings::of(context.task_context());
        let threads = engine.executor.threads();
        Self {
            max_tasks: settings.max_tasks_per_pipeline.map_or(threads, NonZeroUsize::get),
            settings,
            engine: engine.clone(),
            batch_rows: context.task_context().session_config().batch_size().max(1),
            bindings: context.bindings(),
            context,
            graph: Graph::new(),
            fallbacks: Vec::new(),
            nodes: HashMap::new(),
            filters: HashMap::new(),
            filter_waits: Vec::new(),
            start_after: Vec::new(),
        }
    }

    /// The whole, whose last flow ends in `sink`.
    fn finish(mut self, last: PipelineBuilder, sink: Arc<dyn Sink>) -> Result<Lowered> {
        self.add_pipeline(last, sink, None)?;
        self.declare_filter_waits();
        let Self { graph, fallbacks, nodes, .. } = self;
        Ok(Lowered { graph, fallbacks, nodes })
    }

    /// What is evaluated for `expr` of a node whose input has `schema`.
    fn expression(
        &self,
        expr: &Arc<dyn PhysicalExpr>,
        schema: &Schema,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        specialize_decimals(self.key(expr, schema)?, schema)
    }

    /// The same for a key, whose type others agree with.
    fn key(&self, expr: &Arc<dyn PhysicalExpr>, schema: &Schema) -> Result<Arc<dyn PhysicalExpr>> {
        kernel_workarounds::with_kernel_workarounds(self.bindings.bind(expr)?, schema)
    }

    /// The same for the keys of an order.
    fn ordering(&self, ordering: LexOrdering, schema: &Schema) -> Result<LexOrdering> {
        let bound = |key: &PhysicalSortExpr| {
            Ok(PhysicalSortExpr { expr: self.key(&key.expr, schema)?, options: key.options })
        };
        let keys = ordering.iter().map(bound).collect::<Result<Vec<_>>>()?;
        Ok(LexOrdering::new(keys).unwrap_or(ordering))
    }

    /// Whether what does not fit has to spill.
    fn memory_is_limited(&self) -> bool {
        !matches!(self.context.task_context().memory_pool().memory_limit(), MemoryLimit::Infinite)
    }

    /// A runtime filter that goes from one stage to another.
    fn remote_filter(&self, id: u64) -> Option<Arc<RemoteFilter>> {
        let filters =
            self.context.task_context().session_config().get_extension::<RemoteRuntimeFilters>()?;
        filters.get(id).cloned()
    }

    /// The flow of any child: a shell's, or a foreign node's stream.
    fn child(&mut self, plan: &Arc<dyn ExecutionPlan>, ordered: bool) -> Result<PipelineBuilder> {
        match as_gatework_exec(plan.as_ref()) {
            Some(exec) => self.lower_node(exec, ordered),
            None => self.fallback(plan, ordered),
        }
    }

    /// Gives a node's operators a tag under which its counters are found.
    fn tag(&mut self, exec: &GateworkExec) -> usize {
        static NEXT_TAG: AtomicUsize = AtomicUsize::new(0);
        let tag = NEXT_TAG.fetch_add(1, Ordering::Relaxed);
        self.nodes.insert(tag, exec.own_metrics().clone());
        tag
    }

    /// Ends `flow` in `sink`.
    fn add_pipeline(
        &mut self,
        pipeline: PipelineBuilder,
        sink: Arc<dyn Sink>,
        tag: Option<usize>,
    ) -> Result<PipelineId> {
        let mut tags = vec![pipeline.source.1];
        tags.extend(pipeline.operators.iter().map(|(_, tag)| *tag));
        tags.push(tag);
        let operators = pipeline.operators.into_iter().map(|(operator, _)| operator).collect();
        let pipeline_id = self
            .graph
            .add_pipeline_with_tags(
                pipeline.name,
                pipeline.num_tasks,
                pipeline.source.0,
                operators,
                sink,
                tags,
            )
            .map_err(|error| SharedDataFusionError::to_datafusion(&error))?;
        for producer in pipeline.dependencies {
            self.graph.add_edge(WaitEdge::Breaker { producer, consumer: pipeline_id });
        }
        for buffer in pipeline.buffers {
            self.graph.add_edge(WaitEdge::Buffer {
                producer: buffer.producer,
                consumer: pipeline_id,
                budget: buffer.limit,
                ordered: false,
            });
        }
        for (id, scan) in pipeline.filter_waits {
            // The first probe of the scan's own pipeline asks the same table the same question.
            if pipeline.published_filters.first() == Some(&id) {
                scan.disable_row_filter();
            }
            // A join's own probe pipeline starts after its build anyway.
            if pipeline.published_filters.contains(&id) {
                scan.disable_wait();
            } else {
                self.filter_waits.push((id, pipeline_id, scan));
            }
        }
        Ok(pipeline_id)
    }

    /// Tells the wait-for graph which scans wait for which filters.
    fn declare_filter_waits(&mut self) {
        for (id, scan, filter) in std::mem::take(&mut self.filter_waits) {
            // Stages are a tree, in which no wait for a filter closes a cycle.
            if self.remote_filter(id).is_some() && !self.filters.contains_key(&id) {
                continue;
            }
            match self.filters.get(&id).and_then(|link| link.build) {
                Some(build) => {
                    let on_dropped = Arc::new(move || filter.disable_wait());
                    self.graph.add_edge(WaitEdge::RuntimeFilter { build, scan, on_dropped });
                }
                None => filter.disable_wait(),
            }
        }
    }
}

/// A runtime's error as DataFusion's.
fn to_datafusion(error: gatework_runtime::Error) -> datafusion::error::DataFusionError {
    SharedDataFusionError::to_datafusion(&error)
}
