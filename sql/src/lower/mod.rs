//! Lowering: from wrapped plan nodes to pipelines.
//!
//! Lowering walks the nodes of a region from its root. A node either extends the open pipeline of
//! its input (a [`PipelineBuilder`], without a sink) or is a breaker. A breaker's sink closes the
//! open pipeline, and its source starts a new one. Fallback nodes become stream scans.
//!
//! Order: a caller that relies on the order of a node's rows ([`is_ordered`]) passes `ordered`. It
//! gets a pipeline of one task whose operators preserve the order, or a sort. Otherwise pipelines
//! have one task per worker of the executor, independent of the plan's partitions. Nodes that exist
//! only for parallelism are elided.

mod aggregate;
mod bindings;
mod custom;
mod filter_pushdown;
mod joins;
mod kernel_workarounds;
mod lineage;
mod operators;
mod order;
mod pipeline_builder;
mod ranking;
mod scalar;
mod shared_rows;
mod sources;
mod supported;
mod targets;
mod union;
mod window_functions;
mod windows;

pub(crate) use bindings::Bindings;
pub use filter_pushdown::UniqueNamePushdown;
pub use lineage::PassThroughInputs;
pub(crate) use order::is_ordered;
use pipeline_builder::PipelineBuilder;
use ranking::RankedSort;
use shared_rows::SharedSubplans;
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

use arrow::{compute::SortOptions, datatypes::Schema};
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
    plan::{
        Settings,
        exec::{GateworkExec, as_gatework_exec},
    },
    run::{
        engine::Engine,
        region::{FallbackContext, OutputRequirement, Readers},
        remote_filters::{RemoteFilter, RemoteRuntimeFilters},
    },
    scan::ScanFilter,
};

/// A region as a pipeline graph.
pub(crate) struct Lowered {
    pub(crate) graph: Graph,
    /// Names of the fallback nodes.
    pub(crate) fallbacks: Vec<String>,
    /// Metric sets of the native nodes, by tag.
    pub(crate) nodes: HashMap<usize, ExecutionPlanMetricsSet>,
}

/// Lowers the region below `exec`, and returns it with the readers of its result. Called by
/// `Region::start`.
pub(crate) fn lower(
    exec: &GateworkExec,
    context: FallbackContext,
    requirement: &OutputRequirement,
) -> Result<(Lowered, Readers)> {
    let mut lowering = Lowering::new(exec.engine(), context);
    lowering.shared.count_readers(exec);
    let pipeline = lowering.lower_node(exec, requirement.ordered)?;
    let keys = match &requirement.partitioning {
        // A key that was projected out cannot be evaluated, and no node above can name it.
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

/// Lowers the regions below `plan`, which may be a fallback node itself, and sends the output to a
/// sink. `sink` is called once with the number of tasks. If `ordered`, the plan's output ordering
/// is preserved.
pub(crate) fn lower_into(
    plan: &Arc<dyn ExecutionPlan>,
    engine: &Engine,
    context: FallbackContext,
    ordered: bool,
    sink: impl FnOnce(usize) -> Result<Arc<dyn Sink>>,
) -> Result<Lowered> {
    let mut lowering = Lowering::new(engine, context);
    if let Some(exec) = as_gatework_exec(plan.as_ref()) {
        lowering.shared.count_readers(exec);
    }
    let pipeline = lowering.child(plan, ordered && is_ordered(plan))?;
    let sink = sink(pipeline.num_tasks)?;
    lowering.finish(pipeline, sink)
}

/// A runtime filter of this region: its gate, and the pipeline that produces it.
struct FilterLink {
    gate: Gate,
    /// The pipeline of the build side, once it is added: the filter is published when it has ended.
    build: Option<PipelineId>,
}

/// The state of lowering one region.
struct Lowering {
    settings: Settings,
    engine: Engine,
    /// Maximum number of tasks of a pipeline.
    max_tasks: usize,
    batch_rows: usize,
    context: FallbackContext,
    /// The values that expressions of the plan refer to in this execution.
    bindings: Bindings,
    graph: Graph,
    fallbacks: Vec<String>,
    nodes: HashMap<usize, ExecutionPlanMetricsSet>,
    /// Filters by the id of the dynamic expression, which belongs to this execution.
    filters: HashMap<u64, FilterLink>,
    /// Direction of the first key of each top-n whose threshold is a filter of scans, by the id of
    /// the filter.
    thresholds: HashMap<u64, SortOptions>,
    /// Scans that wait for a filter: the filter's id, the scan's pipeline, the filter in the scan.
    filter_waits: Vec<(u64, PipelineId, Arc<ScanFilter>)>,
    /// Gates that every source waits for: those of the scalar subqueries above it.
    start_after: Vec<Gate>,
    shared: SharedSubplans,
    /// The ranking that the filter above means for the next sort.
    ranked_sort: Option<RankedSort>,
}

impl Lowering {
    fn new(engine: &Engine, context: FallbackContext) -> Self {
        let settings = Settings::of(context.task_context().session_config());
        let threads = engine.executor.threads();
        Self {
            max_tasks: settings.max_tasks_per_pipeline.map_or(threads, NonZeroUsize::get),
            settings,
            engine: engine.clone(),
            batch_rows: context.task_context().session_config().batch_size().max(1),
            bindings: context.bindings().with_nodes(engine.nodes.clone()),
            context,
            graph: Graph::new(),
            fallbacks: Vec::new(),
            nodes: HashMap::new(),
            filters: HashMap::new(),
            thresholds: HashMap::new(),
            filter_waits: Vec::new(),
            start_after: Vec::new(),
            shared: SharedSubplans::default(),
            ranked_sort: None,
        }
    }

    /// Closes the last pipeline with `sink` and returns the region.
    fn finish(mut self, last: PipelineBuilder, sink: Arc<dyn Sink>) -> Result<Lowered> {
        self.add_pipeline(last, sink, None)?;
        self.declare_filter_waits();
        let Self { graph, fallbacks, nodes, .. } = self;
        Ok(Lowered { graph, fallbacks, nodes })
    }

    /// Returns the expression that operators evaluate for `expr` of a node with the input `schema`.
    fn expression(
        &self,
        expr: &Arc<dyn PhysicalExpr>,
        schema: &Schema,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        specialize_decimals(self.key(expr, schema)?, schema)
    }

    /// As [`Self::expression`], but for a key, whose type must not change: other nodes depend on
    /// it.
    fn key(&self, expr: &Arc<dyn PhysicalExpr>, schema: &Schema) -> Result<Arc<dyn PhysicalExpr>> {
        kernel_workarounds::with_kernel_workarounds(self.bindings.bind(expr)?, schema)
    }

    /// As [`Self::key`], for the keys of an ordering.
    fn ordering(&self, ordering: LexOrdering, schema: &Schema) -> Result<LexOrdering> {
        let bound = |key: &PhysicalSortExpr| {
            Ok(PhysicalSortExpr { expr: self.key(&key.expr, schema)?, options: key.options })
        };
        let keys = ordering.iter().map(bound).collect::<Result<Vec<_>>>()?;
        Ok(LexOrdering::new(keys).unwrap_or(ordering))
    }

    /// Returns whether the memory pool has a limit, so that operators may spill.
    fn memory_is_limited(&self) -> bool {
        !matches!(self.context.task_context().memory_pool().memory_limit(), MemoryLimit::Infinite)
    }

    /// Returns the runtime filter with this id that crosses a stage boundary, if there is one.
    fn remote_filter(&self, id: u64) -> Option<Arc<RemoteFilter>> {
        let filters =
            self.context.task_context().session_config().get_extension::<RemoteRuntimeFilters>()?;
        filters.get(id).cloned()
    }

    /// Lowers a child: a wrapped node, or a fallback node's stream.
    fn child(&mut self, plan: &Arc<dyn ExecutionPlan>, ordered: bool) -> Result<PipelineBuilder> {
        match as_gatework_exec(plan.as_ref()) {
            Some(exec) => self.lower_node(exec, ordered),
            None => self.fallback(plan, ordered),
        }
    }

    /// Returns a new tag for a node's operators, under which its counters are found.
    fn tag(&mut self, exec: &GateworkExec) -> usize {
        static NEXT_TAG: AtomicUsize = AtomicUsize::new(0);
        let tag = NEXT_TAG.fetch_add(1, Ordering::Relaxed);
        self.nodes.insert(tag, exec.own_metrics().clone());
        tag
    }

    /// Closes `pipeline` with `sink` and adds it to the graph.
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
            // The first probe of the scan's own pipeline tests the same keys against the same
            // table.
            if pipeline.published_filters.first() == Some(&id) {
                scan.disable_row_filter();
            }
            // A join's own probe pipeline starts after its build pipeline anyway.
            if pipeline.published_filters.contains(&id) {
                scan.disable_wait();
            } else {
                self.filter_waits.push((id, pipeline_id, scan));
            }
        }
        Ok(pipeline_id)
    }

    /// Adds the waits of scans for runtime filters to the wait-for graph.
    fn declare_filter_waits(&mut self) {
        for (id, scan, filter) in std::mem::take(&mut self.filter_waits) {
            // Stages form a tree, in which no wait for a filter closes a cycle.
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

/// Converts a runtime error to DataFusion's error type.
fn to_datafusion(error: gatework_runtime::Error) -> datafusion::error::DataFusionError {
    SharedDataFusionError::to_datafusion(&error)
}
