//! The plan node at which rows change tasks.

use std::{fmt, sync::Arc};

use datafusion::{
    arrow::datatypes::SchemaRef,
    common::{config::ConfigOptions, internal_err, tree_node::TreeNodeRecursion},
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::{EquivalenceProperties, LexOrdering, Partitioning, PhysicalExpr},
    physical_plan::{
        ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties,
        ReplaceChildrenOptions,
        execution_plan::{Boundedness, EmissionType},
        filter_pushdown::{
            ChildFilterDescription, ChildPushdownResult, FilterDescription, FilterPushdownPhase,
            FilterPushdownPropagation,
        },
    },
};

/// Scope of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Between tasks of one node: the fragmenter does not cut at it.
    Local,
    /// Between nodes.
    Remote,
}

/// What an exchange does with rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangeKind {
    /// Sends all rows to one task.
    Gather,
    /// Sends each row to one of several tasks.
    Repartition,
    /// Sends each row to all tasks.
    Replicate,
    /// Sends all rows to one task, in the order that all sources have.
    Merge,
}

/// Distribution of rows over the tasks of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PartitioningHandle {
    /// One task has all rows.
    Single,
    /// Each task has the rows of its splits.
    Source,
    /// Each task has the rows whose keys' hash selects it.
    FixedHash,
    /// Each task has the rows of some buckets of bucketed tables.
    Buckets,
    /// Each task has arbitrary rows.
    FixedArbitrary,
    /// Each task has all rows.
    FixedBroadcast,
    /// Each task has arbitrary rows, and the number of tasks grows with the written bytes.
    ScaledWriter,
}

impl fmt::Display for PartitioningHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Single => "SINGLE",
            Self::Source => "SOURCE",
            Self::FixedHash => "HASH",
            Self::Buckets => "BUCKETS",
            Self::FixedArbitrary => "ARBITRARY",
            Self::FixedBroadcast => "BROADCAST",
            Self::ScaledWriter => "SCALED WRITER",
        })
    }
}

/// Distribution of a stage's output over the tasks that read it.
#[derive(Debug, Clone)]
pub struct PartitioningScheme {
    /// Kind of the distribution.
    pub handle: PartitioningHandle,
    /// Hash keys, in columns of the output; empty for other kinds.
    pub keys: Vec<Arc<dyn PhysicalExpr>>,
    /// Number of tasks that read the output.
    pub partitions: usize,
    /// Order of each task's output that readers preserve.
    pub ordering: Option<LexOrdering>,
}

impl PartitioningScheme {
    /// Sends all rows to one task.
    pub fn single() -> Self {
        let (keys, ordering) = (Vec::new(), None);
        Self { handle: PartitioningHandle::Single, keys, partitions: 1, ordering }
    }
}

impl PartitioningScheme {
    /// Whether one reader merges the ordered outputs of the tasks as they arrive.
    pub(crate) fn is_merged(&self) -> bool {
        self.handle == PartitioningHandle::Single && self.ordering.is_some()
    }
}

impl fmt::Display for PartitioningScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.handle)?;
        for (index, key) in self.keys.iter().enumerate() {
            write!(f, "{}{key}", if index == 0 { " of " } else { ", " })?;
        }
        if let Some(ordering) = &self.ordering {
            write!(f, ", merged by {ordering}")?;
        }
        Ok(())
    }
}

/// Moves rows of one or several sources to other tasks. All sources have the same column types by
/// index.
///
/// It marks a place in a plan and cannot be executed: the fragmenter replaces it by a
/// [`RemoteSourceExec`](crate::RemoteSourceExec).
#[derive(Debug)]
pub struct ExchangeExec {
    scope: Scope,
    kind: ExchangeKind,
    scheme: PartitioningScheme,
    sources: Vec<Arc<dyn ExecutionPlan>>,
    properties: Arc<PlanProperties>,
}

impl ExchangeExec {
    /// Creates an exchange.
    ///
    /// # Errors
    /// If there are no sources, or the types of their columns differ.
    pub fn try_new(
        scope: Scope,
        kind: ExchangeKind,
        scheme: PartitioningScheme,
        sources: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Self> {
        let Some(first) = sources.first() else { return internal_err!("exchange without sources") };
        let schema = first.schema();
        for other in &sources {
            let other = other.schema();
            let types = |schema: &SchemaRef| -> Vec<_> {
                schema.fields().iter().map(|field| field.data_type().clone()).collect()
            };
            if types(&schema) != types(&other) {
                return internal_err!(
                    "sources of one exchange have different types: {schema} and {other}"
                );
            }
        }
        let properties = Arc::new(properties(schema, &scheme));
        Ok(Self { scope, kind, scheme, sources, properties })
    }

    /// Replaces the names and nullability of the output columns by those of `schema`.
    pub(crate) fn with_schema(mut self, schema: SchemaRef) -> Self {
        self.properties = Arc::new(properties(schema, &self.scheme));
        self
    }

    /// Scope of the exchange.
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// What the exchange does with rows.
    pub fn kind(&self) -> ExchangeKind {
        self.kind
    }

    /// Distribution of the output.
    pub fn scheme(&self) -> &PartitioningScheme {
        &self.scheme
    }

    /// Plans whose rows it moves.
    pub fn sources(&self) -> &[Arc<dyn ExecutionPlan>] {
        &self.sources
    }
}

/// Returns `plan` with other children.
pub(crate) fn with_children(
    plan: Arc<dyn ExecutionPlan>,
    children: Vec<Arc<dyn ExecutionPlan>>,
) -> Result<Arc<dyn ExecutionPlan>> {
    plan.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
}

/// Plan properties of rows with this distribution.
pub(crate) fn properties(schema: SchemaRef, scheme: &PartitioningScheme) -> PlanProperties {
    let equivalences = match &scheme.ordering {
        Some(ordering) => {
            EquivalenceProperties::new_with_orderings(schema, [ordering.iter().cloned()])
        }
        None => EquivalenceProperties::new(schema),
    };
    let partitioning = match scheme.handle {
        PartitioningHandle::FixedHash => Partitioning::Hash(scheme.keys.clone(), scheme.partitions),
        // Each reader has all rows.
        PartitioningHandle::Single | PartitioningHandle::FixedBroadcast => {
            Partitioning::UnknownPartitioning(1)
        }
        PartitioningHandle::Source
        | PartitioningHandle::Buckets
        | PartitioningHandle::FixedArbitrary
        | PartitioningHandle::ScaledWriter => Partitioning::UnknownPartitioning(scheme.partitions),
    };
    let (emission, bounded) = (EmissionType::Incremental, Boundedness::Bounded);
    PlanProperties::new(equivalences, partitioning, emission, bounded)
}

impl DisplayAs for ExchangeExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExchangeExec: {:?} {:?}, to {}", self.scope, self.kind, self.scheme)
    }
}

impl ExecutionPlan for ExchangeExec {
    fn name(&self) -> &str {
        "ExchangeExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        self.sources.iter().collect()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![self.scheme.ordering.is_some(); self.sources.len()]
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        let mut recursion = TreeNodeRecursion::Continue;
        for key in &self.scheme.keys {
            recursion = f(key)?;
            if recursion == TreeNodeRecursion::Stop {
                break;
            }
        }
        Ok(recursion)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = self.schema();
        let again = Self::try_new(self.scope, self.kind, self.scheme.clone(), children)?;
        Ok(Arc::new(again.with_schema(schema)))
    }

    fn gather_filters_for_pushdown(
        &self,
        _: FilterPushdownPhase,
        filters: Vec<Arc<dyn PhysicalExpr>>,
        _: &ConfigOptions,
    ) -> Result<FilterDescription> {
        let [source] = self.sources.as_slice() else {
            // Column names may differ between sources.
            let sources = self.sources.iter().collect::<Vec<_>>();
            return Ok(FilterDescription::all_unsupported(&filters, &sources));
        };
        // DataFusion finds columns by name, so columns with ambiguous or changed names do not take
        // part.
        let (own, below) = (self.schema(), source.schema());
        let name_of = |schema: &SchemaRef, index: usize| schema.field(index).name().clone();
        let named =
            |name: &String| below.fields().iter().filter(|field| field.name() == name).count();
        let known = (0..own.fields().len()).filter(|index| {
            let name = name_of(&own, *index);
            name == name_of(&below, *index) && named(&name) == 1
        });
        let known = known.collect();
        let child =
            ChildFilterDescription::from_child_with_allowed_indices(&filters, known, source)?;
        Ok(FilterDescription::new().with_child(child))
    }

    fn handle_child_pushdown_result(
        &self,
        _: FilterPushdownPhase,
        pushed: ChildPushdownResult,
        _: &ConfigOptions,
    ) -> Result<FilterPushdownPropagation<Arc<dyn ExecutionPlan>>> {
        Ok(FilterPushdownPropagation::if_all(pushed))
    }

    fn execute(&self, _: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        internal_err!("an exchange to {} cannot be executed: fragment the plan first", self.scheme)
    }
}
