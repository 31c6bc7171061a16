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
mod cover;
mod flow;
mod joins;
mod leaves;
mod lineage;
mod mended;
mod nodes;
mod order;
mod pushed;
mod scalar;
mod targets;
mod unite;
mod windows;

pub(crate) use bindings::Bindings;
pub(crate) use cover::{covers, is_folded, is_statement};
use flow::Flow;
pub use lineage::RowsOf;
pub(crate) use order::is_ordered;
pub use pushed::UniqueNamePushdown;
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
use gatework_operators::{Failure, narrow_decimals, result::ResultOutput};
use gatework_runtime::pipeline::{Edge, Graph, PipelineId, Sink};
use gatework_shared_state::Gate;

use crate::{
    engine::Engine,
    region::{Contract, ForeignContext, Readers},
    remote_filters::{RemoteFilter, RemoteFilters},
    scan::ScanFilter,
    settings::Settings,
    shell::{Shell, as_shell},
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
    shell: &Shell,
    context: ForeignContext,
    contract: &Contract,
) -> Result<(Lowered, Readers)> {
    let mut lowering = Lowering::new(shell.engine(), context);
    let flow = lowering.shell(shell, contract.ordered)?;
    let keys = match &contract.partitioning {
        // A key that was projected away cannot be evaluated, and nobody above can name it.
        Partitioning::Hash(keys, _) if !keys.iter().any(|key| key.is::<UnKnownColumn>()) => {
            lowering.bindings.bind_all(keys)?
        }
        _ => Vec::new(),
    };
    let partitions = contract.partitioning.partition_count();
    let (output, readers) =
        ResultOutput::new(flow.instances, partitions, keys, contract.budget(&lowering.settings));
    Ok((lowering.end(flow, Arc::new(output))?, readers))
}

/// Lowers the regions below `plan`, which may be a foreign node itself. What it gives goes, in the order that it
/// promises if that is wanted, to the sink that `sink` makes for so many tasks.
pub(crate) fn lower_into(
    plan: &Arc<dyn ExecutionPlan>,
    engine: &Engine,
    context: ForeignContext,
    ordered: bool,
    sink: impl FnOnce(usize) -> Result<Arc<dyn Sink>>,
) -> Result<Lowered> {
    let mut lowering = Lowering::new(engine, context);
    let flow = lowering.child(plan, ordered && is_ordered(plan))?;
    let sink = sink(flow.instances)?;
    lowering.end(flow, sink)
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
    instances: usize,
    batch_rows: usize,
    context: ForeignContext,
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
    fn new(engine: &Engine, context: ForeignContext) -> Self {
        let settings = Settings::of(context.outer());
        let threads = engine.executor.threads();
        Self {
            instances: settings.instances.map_or(threads, NonZeroUsize::get),
            settings,
            engine: engine.clone(),
            batch_rows: context.outer().session_config().batch_size().max(1),
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
    fn end(mut self, last: Flow, sink: Arc<dyn Sink>) -> Result<Lowered> {
        self.close(last, sink, None)?;
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
        narrow_decimals(self.key(expr, schema)?, schema)
    }

    /// The same for a key, whose type others agree with.
    fn key(&self, expr: &Arc<dyn PhysicalExpr>, schema: &Schema) -> Result<Arc<dyn PhysicalExpr>> {
        mended::mended(self.bindings.bind(expr)?, schema)
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
        !matches!(self.context.outer().memory_pool().memory_limit(), MemoryLimit::Infinite)
    }

    /// A runtime filter that goes from one stage to another.
    fn remote_filter(&self, id: u64) -> Option<Arc<RemoteFilter>> {
        let filters = self.context.outer().session_config().get_extension::<RemoteFilters>()?;
        filters.get(id).cloned()
    }

    /// The flow of any child: a shell's, or a foreign node's stream.
    fn child(&mut self, plan: &Arc<dyn ExecutionPlan>, ordered: bool) -> Result<Flow> {
        match as_shell(plan.as_ref()) {
            Some(shell) => self.shell(shell, ordered),
            None => self.foreign(plan, ordered),
        }
    }

    /// Gives a node's operators a tag under which its counters are found.
    fn tag(&mut self, shell: &Shell) -> usize {
        static NEXT_TAG: AtomicUsize = AtomicUsize::new(0);
        let tag = NEXT_TAG.fetch_add(1, Ordering::Relaxed);
        self.nodes.insert(tag, shell.own_metrics().clone());
        tag
    }

    /// Ends `flow` in `sink`.
    fn close(&mut self, flow: Flow, sink: Arc<dyn Sink>, tag: Option<usize>) -> Result<PipelineId> {
        let mut tags = vec![flow.source.1];
        tags.extend(flow.operators.iter().map(|(_, tag)| *tag));
        tags.push(tag);
        let operators = flow.operators.into_iter().map(|(operator, _)| operator).collect();
        let pipeline = self
            .graph
            .add_tagged(flow.name, flow.instances, flow.source.0, operators, sink, tags)
            .map_err(|error| Failure::to_datafusion(&error))?;
        for producer in flow.after {
            self.graph.wait(Edge::Breaker { producer, consumer: pipeline });
        }
        for buffer in flow.buffers {
            self.graph.wait(Edge::Buffer {
                producer: buffer.producer,
                consumer: pipeline,
                budget: buffer.budget,
                ordered: false,
            });
        }
        for (id, scan) in flow.filter_waits {
            // The first probe of the scan's own pipeline asks the same table the same question.
            if flow.publishes.first() == Some(&id) {
                scan.do_not_drop_rows();
            }
            // A join's own probe pipeline starts after its build anyway.
            if flow.publishes.contains(&id) {
                scan.do_not_wait();
            } else {
                self.filter_waits.push((id, pipeline, scan));
            }
        }
        Ok(pipeline)
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
                    let drop_wait = Arc::new(move || filter.do_not_wait());
                    self.graph.wait(Edge::RuntimeFilter { build, scan, drop_wait });
                }
                None => filter.do_not_wait(),
            }
        }
    }
}

/// A runtime's error as DataFusion's.
fn failed(error: gatework_runtime::Error) -> datafusion::error::DataFusionError {
    Failure::to_datafusion(&error)
}
