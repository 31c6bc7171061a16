//! Plan nodes of one's own on gatework's operators.
//!
//! An application adds nodes to DataFusion's plans through a table provider, a table function, an
//! extension planner or an optimizer rule. [`OperatorExec`] is a node that is made from a function,
//! and [`NodeTable`] a table whose rows such a node makes.
//! A node with a type of its own implements [`NativeNode`], and the type is registered with the
//! executor ([`register_node`]). Sessions on the executor then run the node natively: EXPLAIN marks
//! it, profiles count its rows, and it is no fallback. (Velox registers such translators by node
//! type, in `Operator::registerOperator`.)

mod node_table;
mod operator_exec;
mod portable;

pub use node_table::NodeTable;
pub use operator_exec::OperatorExec;
pub use portable::{PortableNode, decode_node, encode_node, register_portable_node};

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    fmt,
    sync::Arc,
};

use datafusion::{
    error::Result, execution::TaskContext, physical_expr::PhysicalExpr,
    physical_plan::ExecutionPlan,
};
use gatework_runtime::{
    Executor,
    pipeline::{Operator, Sink, Source},
};
use parking_lot::RwLock;

use crate::{lower::Bindings, plan::exec::as_gatework_exec};

/// A plan node of one's own that runs on gatework's operators.
///
/// The node's properties say how its inputs are arranged; gatework follows them as DataFusion does:
///
/// | property of the node | its input |
/// |---|---|
/// | `required_input_ordering` (hard) | one task, whose rows have the order |
/// | distribution `SinglePartition` | one task |
/// | distribution `KeyPartitioned` | rows with equal keys, of all such inputs, meet in one task |
/// | otherwise | any number of tasks |
///
/// Order: if another node relies on the order of the node's output, an input whose order the node
/// maintains (`maintains_input_order`) is read in order by one task. A source of one task emits its
/// rows in the order that the node declares. Otherwise the output is sorted by that order. A
/// `fetch` is applied to the output.
///
/// A filter that the node passes on (`gather_filters_for_pushdown`) must mean the same columns
/// there: DataFusion looks them up by name.
///
/// A node that plans for workers carry implements [`PortableNode`].
///
/// Where a query runs as stages, on nodes or workers, each task of a stage is one execution of the
/// node, with a part of the rows. A node that needs all rows declares `SinglePartition`.
///
/// ```
/// # use std::sync::Arc;
/// # use datafusion::{common::tree_node::TreeNodeRecursion, error::Result, execution::*,
/// #     physical_expr::PhysicalExpr, physical_plan::*};
/// use gatework_operators::limit::Limit;
/// use gatework_sql::nodes::{NativeNode, NodeContext, NodeOperators, register_node};
///
/// /// The first rows of its input, in any order.
/// #[derive(Debug)]
/// struct HeadExec(Arc<dyn ExecutionPlan>);
///
/// impl NativeNode for HeadExec {
///     fn operators(&self, _context: &NodeContext<'_>) -> Result<NodeOperators> {
///         Ok(NodeOperators::operator(Limit::new(0, Some(3))))
///     }
/// }
/// # impl DisplayAs for HeadExec {
/// #     fn fmt_as(&self, _: DisplayFormatType, f: &mut std::fmt::Formatter) -> std::fmt::Result {
/// #         write!(f, "HeadExec")
/// #     }
/// # }
/// # impl ExecutionPlan for HeadExec {
/// #     fn name(&self) -> &str { "HeadExec" }
/// #     fn properties(&self) -> &Arc<PlanProperties> { self.0.properties() }
/// #     fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> { vec![&self.0] }
/// #     fn apply_expressions(
/// #         &self,
/// #         _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
/// #     ) -> Result<TreeNodeRecursion> {
/// #         Ok(TreeNodeRecursion::Continue)
/// #     }
/// #     fn required_input_distribution(&self) -> Vec<Distribution> {
/// #         vec![Distribution::SinglePartition]
/// #     }
/// #     fn with_new_children(
/// #         self: Arc<Self>,
/// #         mut children: Vec<Arc<dyn ExecutionPlan>>,
/// #     ) -> Result<Arc<dyn ExecutionPlan>> {
/// #         Ok(Arc::new(Self(children.remove(0))))
/// #     }
/// #     fn execute(&self, _: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
/// #         unimplemented!()
/// #     }
/// # }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// let executor = gatework_runtime::Executor::builder().threads(2).build().unwrap();
/// register_node::<HeadExec>(&executor);
/// let session = gatework_sql::session(&executor);
/// let numbers = session.sql("VALUES (1), (2), (3), (4), (5)").await?;
/// let plan = Arc::new(HeadExec(numbers.create_physical_plan().await?));
/// let plan = gatework_sql::wrap_until(plan, &executor, &|_| false)?;
/// assert!(gatework_sql::fallbacks(&plan).is_empty());
/// let rows = collect(plan, session.task_ctx()).await?;
/// assert_eq!(rows.iter().map(|batch| batch.num_rows()).sum::<usize>(), 3);
/// # Ok(())
/// # }
/// ```
pub trait NativeNode: ExecutionPlan {
    /// Returns what the node becomes in one execution of a plan. Called once per execution: state
    /// that its tasks share is created here.
    ///
    /// # Errors
    /// If the node cannot run, for instance because an expression does not fit its input.
    fn operators(&self, context: &NodeContext<'_>) -> Result<NodeOperators>;

    /// Returns whether the output columns are the columns of every input, by position, and each
    /// output row is an input row. Joins above then test such rows where they are scanned, if the
    /// node passes their filters on (`gather_filters_for_pushdown`). Default: false.
    fn keeps_columns(&self) -> bool {
        false
    }
}

/// What a node becomes: sinks that close the pipelines of inputs, and a source or an operator that
/// produces its rows.
#[derive(Debug)]
pub struct NodeOperators {
    pub(crate) sinks: Vec<(usize, Arc<dyn Sink>)>,
    pub(crate) output: NodeOutput,
}

/// What produces a node's rows.
#[derive(Debug)]
pub(crate) enum NodeOutput {
    /// A source, read by this number of tasks.
    Source(Arc<dyn Source>, usize),
    /// An operator in the pipeline of the input without a sink.
    Operator(Arc<dyn Operator>),
}

impl NodeOperators {
    /// Returns the operators of a streaming node: the rows of the input without a sink pass through
    /// `operator`.
    pub fn operator(operator: impl Operator + 'static) -> Self {
        Self { sinks: Vec::new(), output: NodeOutput::Operator(Arc::new(operator)) }
    }

    /// Returns the operators of a node whose rows come from `source`, read by `num_tasks` tasks: a
    /// leaf, or a breaker with a [sink](Self::with_sink) for each input.
    pub fn source(source: impl Source + 'static, num_tasks: usize) -> Self {
        Self { sinks: Vec::new(), output: NodeOutput::Source(Arc::new(source), num_tasks) }
    }

    /// Adds the sink of the input with this index. The node's source and operators start when the
    /// input has ended.
    #[must_use]
    pub fn with_sink(mut self, input: usize, sink: impl Sink + 'static) -> Self {
        self.sinks.push((input, Arc::new(sink)));
        self
    }
}

/// One execution of a node.
#[derive(Debug)]
pub struct NodeContext<'a> {
    pub(crate) num_input_tasks: Vec<usize>,
    pub(crate) max_tasks: usize,
    pub(crate) batch_rows: usize,
    pub(crate) task_context: &'a Arc<TaskContext>,
    pub(crate) bindings: &'a Bindings,
}

impl NodeContext<'_> {
    /// Returns the number of tasks that produce the rows of an input.
    ///
    /// # Panics
    /// If there is no such input.
    pub fn num_input_tasks(&self, input: usize) -> usize {
        self.num_input_tasks[input]
    }

    /// Returns the maximum number of tasks of a pipeline, which a parallel source should have.
    pub fn max_tasks(&self) -> usize {
        self.max_tasks
    }

    /// Returns the number of rows that an output batch should have at most.
    pub fn batch_rows(&self) -> usize {
        self.batch_rows
    }

    /// Returns the expression to evaluate in place of `expr`, an expression of the node: one that
    /// refers to the scalar subqueries and runtime filters of this execution.
    ///
    /// # Errors
    /// If an expression cannot be rewritten.
    pub fn bind(&self, expr: &Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
        self.bindings.bind(expr)
    }

    /// Returns DataFusion's context of the execution.
    pub fn task_context(&self) -> &Arc<TaskContext> {
        self.task_context
    }
}

type Cast = fn(&dyn ExecutionPlan) -> Option<&dyn NativeNode>;

/// The node types that an executor runs natively beside DataFusion's.
#[derive(Default)]
pub(crate) struct NodeRegistry {
    casts: RwLock<HashMap<TypeId, Cast>>,
    /// Formats of the types that can be sent, by their names.
    formats: RwLock<HashMap<&'static str, portable::NodeFormat>>,
}

impl NodeRegistry {
    /// Returns the registry of `executor`.
    pub(crate) fn of(executor: &Executor) -> Arc<Self> {
        executor.extension(Self::default)
    }

    /// Returns `plan` itself if it is an [`OperatorExec`] or its type is registered.
    pub(crate) fn find<'a>(&self, plan: &'a dyn ExecutionPlan) -> Option<&'a dyn NativeNode> {
        if let Some(node) = plan.downcast_ref::<OperatorExec>() {
            return Some(node);
        }
        let cast = *self.casts.read().get(&(plan as &dyn Any).type_id())?;
        cast(plan)
    }

    /// Returns the inputs of a registered node whose columns pass through.
    pub(crate) fn pass_through<'a>(
        &self,
        plan: &'a Arc<dyn ExecutionPlan>,
    ) -> Option<Vec<&'a Arc<dyn ExecutionPlan>>> {
        let node =
            self.find(as_gatework_exec(plan.as_ref()).map_or(plan, |exec| exec.inner()).as_ref())?;
        node.keeps_columns().then(|| plan.children())
    }
}

impl fmt::Debug for NodeRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeRegistry").field("types", &self.casts.read().len()).finish()
    }
}

/// Makes plan nodes of type `N` native on all sessions and workers of `executor`. See
/// [`NativeNode`].
pub fn register_node<N: NativeNode>(executor: &Executor) {
    let cast: Cast = |plan| plan.downcast_ref::<N>().map(|node| node as &dyn NativeNode);
    NodeRegistry::of(executor).casts.write().insert(TypeId::of::<N>(), cast);
}
