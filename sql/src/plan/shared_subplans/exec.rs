//! The plan node of a reader of a shared subplan.

use std::{collections::HashSet, fmt, sync::Arc};

use arrow::datatypes::SchemaRef;
use datafusion::{
    common::{
        Statistics,
        tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion},
    },
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr},
    physical_plan::{
        ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan,
        ExecutionPlanProperties, PlanProperties, ReplaceChildrenOptions,
        execution_plan::{Boundedness, EmissionType},
        expressions::Column,
        projection::ProjectionExec,
        statistics::{StatisticsArgs, StatisticsContext},
    },
};

/// A subplan that several nodes of a plan read.
#[derive(Debug)]
pub(crate) struct SharedSubplan {
    id: usize,
    name: String,
    definition: Arc<dyn ExecutionPlan>,
    readers: usize,
}

impl SharedSubplan {
    pub(super) fn new(
        id: usize,
        name: String,
        definition: Arc<dyn ExecutionPlan>,
        readers: usize,
    ) -> Self {
        Self { id, name, definition, readers }
    }

    /// Returns a number that no other subplan of the process has.
    pub(crate) fn id(&self) -> usize {
        self.id
    }

    /// Returns the plan of the rows.
    pub(crate) fn definition(&self) -> &Arc<dyn ExecutionPlan> {
        &self.definition
    }
}

/// Reads some columns of a shared subplan.
///
/// Of the readers in a plan, the first one has the subplan as its child, where EXPLAIN and profiles
/// find it.
#[derive(Debug, Clone)]
pub(crate) struct SharedRowsExec {
    subplan: Arc<SharedSubplan>,
    columns: Arc<[usize]>,
    properties: Arc<PlanProperties>,
    shows_definition: bool,
}

impl SharedRowsExec {
    /// Creates a reader of the subplan's columns at these indices, named as in `schema`.
    pub(super) fn new(
        subplan: Arc<SharedSubplan>,
        columns: Arc<[usize]>,
        schema: SchemaRef,
    ) -> Self {
        let partitions = subplan.definition.output_partitioning().partition_count();
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        Self { subplan, columns, properties: Arc::new(properties), shows_definition: false }
    }

    pub(crate) fn subplan(&self) -> &Arc<SharedSubplan> {
        &self.subplan
    }

    /// Returns the indices of the columns in the subplan's output.
    pub(crate) fn columns(&self) -> &Arc<[usize]> {
        &self.columns
    }
}

/// Returns `plan` with each subplan as the child of its first reader.
pub(crate) fn show_definitions(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let mut shown = HashSet::new();
    plan.transform_down(|node| {
        let Some(reader) = node.downcast_ref::<SharedRowsExec>() else {
            return Ok(Transformed::no(node));
        };
        let first = shown.insert(reader.subplan.id) && !reader.shows_definition;
        let definition = reader.subplan.definition.clone();
        // An application's wrapper around the node stays.
        let keep = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Keep);
        let node = if first { node.replace_children(vec![definition], keep)? } else { node };
        Ok(Transformed::new(node, first, TreeNodeRecursion::Jump))
    })
    .data()
}

impl DisplayAs for SharedRowsExec {
    fn fmt_as(&self, kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SharedSubplan { name, readers, .. } = self.subplan.as_ref();
        if kind == DisplayFormatType::TreeRender {
            return writeln!(f, "subplan={name}");
        }
        match self.shows_definition {
            true => write!(f, "SharedRowsExec: {name}, computed once for {readers} readers"),
            false => write!(f, "SharedRowsExec: {name}"),
        }
    }
}

impl ExecutionPlan for SharedRowsExec {
    fn name(&self) -> &str {
        "SharedRowsExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        if self.shows_definition { vec![&self.subplan.definition] } else { vec![] }
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    /// Returns this node with its subplan as its child, or without. The subplan itself stays: all
    /// readers have the same, which a rule cannot change for one.
    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let shows_definition = !children.is_empty();
        Ok(Arc::new(Self { shows_definition, ..self.as_ref().clone() }))
    }

    /// Computes the subplan for this reader alone, below a parent that runs on DataFusion.
    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let definition = &self.subplan.definition;
        let names = self.properties.eq_properties.schema().fields().iter();
        let columns = self.columns.iter().zip(names).map(|(index, field)| {
            let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(field.name(), *index));
            (column, field.name().clone())
        });
        ProjectionExec::try_new(columns.collect::<Vec<_>>(), definition.clone())?
            .execute(partition, context)
    }

    fn statistics_from_inputs(
        &self,
        _: &[Arc<Statistics>],
        _: &StatisticsArgs,
    ) -> Result<Arc<Statistics>> {
        let arguments = StatisticsArgs::new();
        let definition = self.subplan.definition.as_ref();
        let all = StatisticsContext::new().compute(definition, &arguments)?;
        Ok(Arc::new(Statistics::clone(&all).project(Some(&self.columns)).to_inexact()))
    }
}
