//! A leaf of a plan that reads a gatework [`Source`].

use std::{fmt, sync::Arc};

use datafusion::{
    arrow::datatypes::SchemaRef,
    common::{internal_err, tree_node::TreeNodeRecursion},
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::{EquivalenceProperties, LexOrdering, Partitioning, PhysicalExpr},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties,
        execution_plan::{Boundedness, EmissionType},
    },
};
use gatework_runtime::pipeline::Source;

/// A plan node that reads a [`Source`]; for plans that run on gatework. It has one partition, read
/// by up to the executor's number of tasks.
///
/// A source emits each row once, so such a plan can be executed once.
#[derive(Debug)]
pub struct SourceExec {
    source: Arc<dyn Source>,
    properties: Arc<PlanProperties>,
}

impl SourceExec {
    /// Creates a node that reads `source`, whose rows have `schema`.
    pub fn new(source: Arc<dyn Source>, schema: SchemaRef) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { source, properties: Arc::new(properties) }
    }

    /// Creates a node that reads `source` with one task and declares its rows ordered by
    /// `ordering`.
    pub fn in_order(source: Arc<dyn Source>, schema: SchemaRef, ordering: &LexOrdering) -> Self {
        let ordered =
            EquivalenceProperties::new_with_orderings(schema.clone(), [ordering.iter().cloned()]);
        let plain = Self::new(source, schema);
        let properties = plain.properties.as_ref().clone().with_eq_properties(ordered);
        Self { properties: Arc::new(properties), ..plain }
    }

    pub(crate) fn source(&self) -> &Arc<dyn Source> {
        &self.source
    }
}

impl DisplayAs for SourceExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SourceExec: {}", self.source.name())
    }
}

impl ExecutionPlan for SourceExec {
    fn name(&self) -> &str {
        "SourceExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, _: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        internal_err!("{} runs on gatework only", self.source.name())
    }
}
