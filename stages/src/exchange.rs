//! The node of a plan at which rows change tasks.

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

/// How far rows go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// To other tasks of the same node: nothing is cut here.
    Local,
    /// To other nodes.
    Remote,
}

/// What an exchange does with rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangeKind {
    /// All to one task.
    Gather,
    /// Each to one of several tasks.
    Repartition,
    /// Each to all tasks.
    Replicate,
    /// All to one task, in the order that all sources have.
    Merge,
}

/// Which rows are where: how the tasks of a stage share them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PartitioningHandle {
    /// One task has all.
    Single,
    /// Each task has those of the splits it is given.
    Source,
    /// Each task has those whose keys' hash is its own.
    FixedHash,
    /// Each task has those of some buckets of tables that were written so.
    Buckets,
    /// Each task has some.
    FixedArbitrary,
    /// Each task has all.
    FixedBroadcast,
    /// Each task has some, and there are more tasks as there is more.
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

/// How the output of a stage is shared out among the tasks that read it.
#[derive(Debug, Clone)]
pub struct PartitioningScheme {
    /// By what.
    pub handle: PartitioningHandle,
    /// The keys whose hash decides, in the columns of the output; none otherwise.
    pub keys: Vec<Arc<dyn PhysicalExpr>>,
    /// How many tasks read it.
    pub partitions: usize,
    /// The order that the output of each task has, and that is kept.
    pub ordering: Option<LexOrdering>,
}

impl PartitioningScheme {
    /// All rows to one task.
    pub fn single() -> Self {
        let (keys, ordering) = (Vec::new(), None);
        Self { handle: PartitioningHandle::Single, keys, partitions: 1, ordering }
    }
}

impl PartitioningScheme {
    /// Whether its one reader merges what the tasks give, each in order, as it comes.
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

/// Rows of one or several sources, which have the same columns by place, on their way to other tasks.
///
/// It is a mark in a plan, and cannot be executed: the fragmenter puts a
/// [`RemoteSourceExec`](crate::RemoteSourceExec) in its place.
#[derive(Debug)]
pub struct ExchangeExec {
    scope: Scope,
    kind: ExchangeKind,
    scheme: PartitioningScheme,
    sources: Vec<Arc<dyn ExecutionPlan>>,
    properties: Arc<PlanProperties>,
}

impl ExchangeExec {
    /// An exchange.
    ///
    /// # Errors
    /// If there are no sources, or they differ in the types of their columns.
    pub fn try_new(
        scope: Scope,
        kind: ExchangeKind,
        scheme: PartitioningScheme,
        sources: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Self> {
        let Some(first) = sources.first() else { return internal_err!("an exchange of nothing") };
        let schema = first.schema();
        for other in &sources {
            let other = other.schema();
            let types = |schema: &SchemaRef| -> Vec<_> {
                schema.fields().iter().map(|field| field.data_type().clone()).collect()
            };
            if types(&schema) != types(&other) {
                return internal_err!("sources of one exchange with {schema} and {other}");
            }
        }
        let properties = Arc::new(properties(schema, &scheme));
        Ok(Self { scope, kind, scheme, sources, properties })
    }

    /// The same, whose columns come out under the names of `schema`.
    pub(crate) fn with_schema(mut self, schema: SchemaRef) -> Self {
        self.properties = Arc::new(properties(schema, &self.scheme));
        self
    }

    /// How far rows go.
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// What it does with them.
    pub fn kind(&self) -> ExchangeKind {
        self.kind
    }

    /// Where they go.
    pub fn scheme(&self) -> &PartitioningScheme {
        &self.scheme
    }

    /// Where they come from.
    pub fn sources(&self) -> &[Arc<dyn ExecutionPlan>] {
        &self.sources
    }
}

/// `plan` with other children.
pub(crate) fn with_children(
    plan: Arc<dyn ExecutionPlan>,
    children: Vec<Arc<dyn ExecutionPlan>>,
) -> Result<Arc<dyn ExecutionPlan>> {
    plan.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
}

/// What a reader of rows that are shared out like this may rely on.
pub(crate) fn properties(schema: SchemaRef, scheme: &PartitioningScheme) -> PlanProperties {
    let equivalences = match &scheme.ordering {
        Some(ordering) => {
            EquivalenceProperties::new_with_orderings(schema, [ordering.iter().cloned()])
        }
        None => EquivalenceProperties::new(schema),
    };
    let partitioning = match scheme.handle {
        PartitioningHandle::FixedHash => Partitioning::Hash(scheme.keys.clone(), scheme.partitions),
        // Each reader has all there is.
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
            // Several sources have different names for their columns.
            let sources = self.sources.iter().collect::<Vec<_>>();
            return Ok(FilterDescription::all_unsupported(&filters, &sources));
        };
        // DataFusion finds columns by their names. Those that are there twice, or come out under other names, are
        // not meant.
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
        internal_err!("an exchange to {} is cut before it runs", self.scheme)
    }
}
