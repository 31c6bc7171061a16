//! A plan node made from a function, for nodes that need no type of their own.

use std::{fmt, sync::Arc};

use arrow::datatypes::SchemaRef;
use datafusion::{
    common::{internal_err, tree_node::TreeNodeRecursion},
    config::ConfigOptions,
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::{
        Distribution, EquivalenceProperties, LexOrdering, OrderingRequirements, Partitioning,
        PhysicalExpr,
    },
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
        execution_plan::{Boundedness, EmissionType},
        filter_pushdown::{FilterDescription, FilterPushdownPhase},
    },
};

use super::{NativeNode, NodeContext, NodeOperators};

type Operators = dyn Fn(&NodeContext<'_>) -> Result<NodeOperators> + Send + Sync;

/// A plan node that is made from a function, for plans that run on gatework.
///
/// It needs neither a type nor a registration. Workers of a cluster cannot run it: a node that is
/// sent to them needs a type of its own ([`PortableNode`](super::PortableNode)).
///
/// ```
/// # use datafusion::{error::Result, physical_plan::collect};
/// # use gatework_operators::limit::Limit;
/// # use gatework_sql::nodes::{NodeOperators, OperatorExec};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// let executor = gatework_runtime::Executor::builder().threads(2).build().unwrap();
/// let session = gatework_sql::session(&executor);
/// let input = session.sql("VALUES (1), (2), (3), (4)").await?.create_physical_plan().await?;
/// let schema = input.schema();
/// let node = OperatorExec::new("HeadExec", vec![input], schema, |_context| {
///     Ok(NodeOperators::operator(Limit::new(0, Some(3))))
/// });
/// let plan = gatework_sql::wrap_until(node.into_plan(), &executor, &|_| false)?;
/// let rows = collect(plan, session.task_ctx()).await?;
/// assert_eq!(rows.iter().map(|batch| batch.num_rows()).sum::<usize>(), 3);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct OperatorExec {
    name: Arc<str>,
    inputs: Vec<Arc<dyn ExecutionPlan>>,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
    operators: Arc<Operators>,
    passes_filters: bool,
    maintains_order: bool,
    output_ordering: Option<LexOrdering>,
    distribution: Distribution,
    input_ordering: Option<LexOrdering>,
}

impl OperatorExec {
    /// Creates a node over `inputs` whose rows have `schema`. `operators` is called once for each
    /// execution of a plan, as [`NativeNode::operators`].
    pub fn new(
        name: impl Into<Arc<str>>,
        inputs: Vec<Arc<dyn ExecutionPlan>>,
        schema: SchemaRef,
        operators: impl Fn(&NodeContext<'_>) -> Result<NodeOperators> + Send + Sync + 'static,
    ) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema.clone()),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        let node = Self {
            name: name.into(),
            inputs,
            properties: Arc::new(properties),
            schema,
            operators: Arc::new(operators),
            passes_filters: false,
            maintains_order: false,
            output_ordering: None,
            distribution: Distribution::UnspecifiedDistribution,
            input_ordering: None,
        };
        node.with_derived_properties()
    }

    /// Lets filters above the node apply below it, to the columns of the same names and positions.
    /// That is right only if each output row is an input row, and if it does not depend on other
    /// rows whether the node drops it ([`NativeNode::keeps_columns`]).
    #[must_use]
    pub fn with_filters_pushed_down(self) -> Self {
        Self { passes_filters: true, ..self }
    }

    /// Declares that the rows are rows of the only input, in its order.
    #[must_use]
    pub fn with_same_order(self) -> Self {
        Self { maintains_order: true, ..self }.with_derived_properties()
    }

    /// Declares that the node's rows come in this order. A source of one task must emit them so;
    /// otherwise gatework sorts them where the order is needed.
    #[must_use]
    pub fn with_output_ordering(self, ordering: LexOrdering) -> Self {
        Self { output_ordering: Some(ordering), ..self }.with_derived_properties()
    }

    fn with_derived_properties(mut self) -> Self {
        let schema = || self.schema.clone();
        let (equivalences, partitioning) = match (self.inputs.as_slice(), &self.output_ordering) {
            (_, Some(ordering)) => {
                let keys = [ordering.iter().cloned()];
                (EquivalenceProperties::new_with_orderings(schema(), keys), None)
            }
            ([input], None) if self.maintains_order => {
                let same = input.equivalence_properties().clone().with_new_schema(schema());
                let same = same.unwrap_or_else(|_| EquivalenceProperties::new(schema()));
                (same, Some(input.output_partitioning().clone()))
            }
            _ => (EquivalenceProperties::new(schema()), None),
        };
        let unbounded = self.inputs.iter().find(|input| input.boundedness().is_unbounded());
        let bounds = unbounded.map_or(Boundedness::Bounded, |input| input.boundedness());
        self.properties = Arc::new(PlanProperties::new(
            equivalences,
            // Its rows are read by any number of tasks, whatever the number of partitions.
            partitioning.unwrap_or(Partitioning::UnknownPartitioning(1)),
            EmissionType::Incremental,
            bounds,
        ));
        self
    }

    /// Requires that each input is distributed so: in one task, or by keys.
    #[must_use]
    pub fn with_input_distribution(self, distribution: Distribution) -> Self {
        Self { distribution, ..self }
    }

    /// Requires that each input comes in this order, in one task.
    #[must_use]
    pub fn with_input_ordering(self, ordering: LexOrdering) -> Self {
        Self { input_ordering: Some(ordering), ..self }
    }

    /// Returns the node as a plan.
    pub fn into_plan(self) -> Arc<dyn ExecutionPlan> {
        Arc::new(self)
    }
}

impl NativeNode for OperatorExec {
    fn operators(&self, context: &NodeContext<'_>) -> Result<NodeOperators> {
        (self.operators)(context)
    }

    fn keeps_columns(&self) -> bool {
        self.passes_filters
    }
}

impl fmt::Debug for OperatorExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OperatorExec").field("name", &self.name).finish_non_exhaustive()
    }
}

impl DisplayAs for OperatorExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl ExecutionPlan for OperatorExec {
    fn name(&self) -> &str {
        &self.name
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        self.inputs.iter().collect()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn required_input_distribution(&self) -> Vec<Distribution> {
        vec![self.distribution.clone(); self.inputs.len()]
    }

    fn required_input_ordering(&self) -> Vec<Option<OrderingRequirements>> {
        let required = |ordering: LexOrdering| OrderingRequirements::new(ordering.into());
        vec![self.input_ordering.clone().map(required); self.inputs.len()]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![self.maintains_order && self.inputs.len() == 1; self.inputs.len()]
    }

    fn gather_filters_for_pushdown(
        &self,
        _phase: FilterPushdownPhase,
        filters: Vec<Arc<dyn PhysicalExpr>>,
        _config: &ConfigOptions,
    ) -> Result<FilterDescription> {
        // DataFusion looks the columns up by name.
        let is_same = |input: &Arc<dyn ExecutionPlan>| {
            let (own, theirs) = (self.schema.fields().iter(), input.schema());
            own.map(|field| field.name()).eq(theirs.fields().iter().map(|field| field.name()))
        };
        match self.passes_filters && self.inputs.iter().all(is_same) {
            true => FilterDescription::from_children(filters, &self.children()),
            false => Ok(FilterDescription::all_unsupported(&filters, &self.children())),
        }
    }

    fn with_new_children(
        self: Arc<Self>,
        inputs: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(Self { inputs, ..self.as_ref().clone() }.with_derived_properties()))
    }

    fn execute(&self, _: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let name = &self.name;
        internal_err!(
            "{name} runs on gatework only, and not over unbounded or range-partitioned rows"
        )
    }
}
