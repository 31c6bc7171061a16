//! Cuts a plan at its remote exchanges.
//!
//! Each source of an exchange becomes a fragment, and the exchange a [`RemoteSourceExec`] that
//! names the fragments. (Presto's `PlanFragmenter`; rules F of `RULES.md`.)

use std::{fmt, sync::Arc};

use datafusion::{
    common::{internal_err, plan_err, tree_node::TreeNodeRecursion},
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::PhysicalExpr,
    physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties},
};

use crate::plan::{
    buckets::{bucket_count, uses_buckets},
    exchange::{
        ExchangeExec, ExchangeKind, PartitioningHandle as Handle, PartitioningScheme, Scope,
        with_children,
    },
    scan::SplitScanExec,
};

/// Number of a fragment in its plan; the root's is 0.
pub type FragmentId = usize;

/// The part of a plan that runs as one stage.
#[derive(Debug, Clone)]
pub struct PlanFragment {
    /// Number of the fragment.
    pub id: FragmentId,
    /// Plan of each of its tasks.
    pub root: Arc<dyn ExecutionPlan>,
    /// Distribution of its input over its tasks.
    pub partitioning: Handle,
    /// Distribution of its output.
    pub output: PartitioningScheme,
    /// Its tables in the order in which their splits are needed: build side first.
    pub tables: Vec<Arc<dyn ExecutionPlan>>,
    /// Number of buckets of its tables; none if its tasks do not rely on buckets.
    pub buckets: Option<usize>,
    /// Whether a task reads its buckets one after the other and frees each before the next (rule
    /// F-9).
    pub grouped_execution: bool,
}

impl PlanFragment {
    /// Number of its tasks on `nodes` nodes.
    pub fn tasks(&self, nodes: usize) -> usize {
        match self.partitioning {
            Handle::Single => 1,
            _ => nodes.min(self.buckets.unwrap_or(nodes)),
        }
    }
}

/// A fragment, and the fragments that it reads.
#[derive(Debug, Clone)]
pub struct SubPlan {
    /// The fragment.
    pub fragment: PlanFragment,
    /// The fragments that it reads, by number.
    pub children: Vec<SubPlan>,
}

impl SubPlan {
    /// Returns all fragments, a parent before its children.
    pub fn fragments(&self) -> Vec<&PlanFragment> {
        let mut all = vec![&self.fragment];
        all.extend(self.children.iter().flat_map(Self::fragments));
        all
    }

    /// Checks that each fragment reads all of its children and nothing else (rule F-8).
    ///
    /// # Errors
    /// An internal error, if it does not.
    pub fn check(&self) -> Result<()> {
        let mut read = Vec::new();
        remote_sources(&self.fragment.root, &mut read);
        let mut read: Vec<FragmentId> =
            read.iter().flat_map(|source| source.fragments()).copied().collect();
        let mut children: Vec<_> = self.children.iter().map(|child| child.fragment.id).collect();
        read.sort_unstable();
        children.sort_unstable();
        if read != children {
            let id = self.fragment.id;
            return internal_err!(
                "fragment {id} reads {read:?}, but its children are {children:?}"
            );
        }
        self.children.iter().try_for_each(Self::check)
    }
}

pub(crate) fn remote_sources<'a>(
    plan: &'a Arc<dyn ExecutionPlan>,
    found: &mut Vec<&'a RemoteSourceExec>,
) {
    found.extend(plan.downcast_ref::<RemoteSourceExec>());
    plan.children().into_iter().for_each(|child| remote_sources(child, found));
}

/// Cuts `plan` into at most `max_stages` fragments.
///
/// # Errors
/// If there are more fragments, or distributions within one fragment are incompatible.
pub fn fragment_plan(plan: &Arc<dyn ExecutionPlan>, max_stages: usize) -> Result<SubPlan> {
    let mut fragmenter = Fragmenter { next: 0 };
    let whole = fragmenter.fragment(plan, PartitioningScheme::single())?;
    whole.check()?;
    if fragmenter.next > max_stages {
        let found = fragmenter.next;
        return plan_err!(
            "the query has {found} stages, of at most {max_stages}: simplify it, or allow more \
             (StageOptions::max_stages)"
        );
    }
    Ok(whole)
}

struct Fragmenter {
    next: FragmentId,
}

/// Properties that a fragment collects while it is built.
#[derive(Default)]
struct FragmentProperties {
    partitioning: Option<Handle>,
    tables: Vec<Arc<dyn ExecutionPlan>>,
    children: Vec<SubPlan>,
}

impl FragmentProperties {
    /// Records the distribution of an input (rule F-5).
    fn set_partitioning(&mut self, handle: Handle) -> Result<()> {
        self.partitioning = Some(match (self.partitioning, handle) {
            (None, handle) => handle,
            (Some(known), handle) if known == handle => known,
            // A single task has all rows of each input.
            (Some(Handle::Single), _) => Handle::Single,
            // Splits go to the tasks that receive the rows of the other input.
            (Some(Handle::Source), Handle::FixedArbitrary)
            | (Some(Handle::FixedArbitrary), Handle::Source) => Handle::Source,
            (Some(known), handle) => {
                return internal_err!(
                    "one fragment reads rows distributed by {known} and by {handle}"
                );
            }
        });
        Ok(())
    }
}

impl Fragmenter {
    /// Returns a fragment of `plan` with this output. It is numbered before its children.
    fn fragment(
        &mut self,
        plan: &Arc<dyn ExecutionPlan>,
        output: PartitioningScheme,
    ) -> Result<SubPlan> {
        let id = self.next;
        self.next += 1;
        let mut properties = FragmentProperties::default();
        if output.handle == Handle::Single && id == 0 {
            properties.set_partitioning(Handle::Single)?;
        }
        let root = self.rewrite(plan, &mut properties)?;
        let mut partitioning = properties.partitioning.unwrap_or(Handle::Single);
        let useful = partitioning == Handle::Buckets && uses_buckets(&root);
        if partitioning == Handle::Buckets && !useful {
            // No node relies on the buckets, so splits may go to the least loaded task.
            partitioning = Handle::Source;
        }
        let fragment = PlanFragment {
            id,
            partitioning,
            output,
            tables: properties.tables,
            buckets: if useful { bucket_count(&root) } else { None },
            // Rows of other stages arrive once for all groups.
            grouped_execution: useful && properties.children.is_empty(),
            root,
        };
        Ok(SubPlan { fragment, children: properties.children })
    }

    /// Returns `plan` with remote sources in place of remote exchanges.
    fn rewrite(
        &mut self,
        plan: &Arc<dyn ExecutionPlan>,
        properties: &mut FragmentProperties,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if let Some(exchange) = plan.downcast_ref::<ExchangeExec>()
            && exchange.scope() == Scope::Remote
        {
            return self.fragment_at(exchange, properties);
        }
        if let Some(scan) = plan.downcast_ref::<SplitScanExec>() {
            properties.tables.push(scan.table().clone());
            let buckets = scan.buckets().is_some();
            properties.set_partitioning(if buckets { Handle::Buckets } else { Handle::Source })?;
            return Ok(plan.clone());
        }
        if plan.children().is_empty() {
            properties.set_partitioning(Handle::Single)?;
            return Ok(plan.clone());
        }
        let children = plan.children().into_iter().map(|child| self.rewrite(child, properties));
        with_children(plan.clone(), children.collect::<Result<_>>()?)
    }

    fn fragment_at(
        &mut self,
        exchange: &ExchangeExec,
        properties: &mut FragmentProperties,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match exchange.kind() {
            ExchangeKind::Gather | ExchangeKind::Merge => {
                properties.set_partitioning(Handle::Single)?
            }
            ExchangeKind::Repartition => properties.set_partitioning(exchange.scheme().handle)?,
            // A broadcast input does not restrict the distribution of the other input.
            ExchangeKind::Replicate => {}
        }
        let mut fragments = Vec::new();
        let mut merged = exchange.scheme().is_merged();
        for source in exchange.sources() {
            let child = self.fragment(source, exchange.scheme().clone())?;
            fragments.push(child.fragment.id);
            // In grouped execution a task's output is ordered within each group only.
            merged &= !child.fragment.grouped_execution;
            properties.children.push(child);
        }
        Ok(Arc::new(RemoteSourceExec {
            fragments,
            merged,
            scheme: exchange.scheme().clone(),
            properties: exchange.properties().clone(),
        }))
    }
}

/// Rows of other stages, in place of an exchange (rule F-1).
#[derive(Debug)]
pub struct RemoteSourceExec {
    fragments: Vec<FragmentId>,
    scheme: PartitioningScheme,
    merged: bool,
    properties: Arc<PlanProperties>,
}

impl RemoteSourceExec {
    /// The fragments that it reads, in the order of the exchange's sources.
    pub fn fragments(&self) -> &[FragmentId] {
        &self.fragments
    }

    /// Whether the ordered outputs of the tasks are merged as they arrive.
    pub fn is_merged(&self) -> bool {
        self.merged
    }

    /// Distribution of the rows.
    pub fn scheme(&self) -> &PartitioningScheme {
        &self.scheme
    }
}

impl DisplayAs for RemoteSourceExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteSourceExec: fragments {:?}, {}", self.fragments, self.scheme)
    }
}

impl ExecutionPlan for RemoteSourceExec {
    fn name(&self) -> &str {
        "RemoteSourceExec"
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
        internal_err!("rows of stages {:?} can only be read by a task of a stage", self.fragments)
    }
}
