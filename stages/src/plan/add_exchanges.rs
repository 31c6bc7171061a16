//! Adds remote exchanges to a plan that DataFusion made for several partitions.
//!
//! DataFusion decides which aggregates have two phases, which joins are partitioned and which build
//! side is broadcast. It also decides what is sorted per partition and merged. It expresses this
//! with repartitionings and merges between *partitions*, which become exchanges between *nodes*.
//! Partitions of one process and nodes differ in two points, which are corrected:
//!
//! * A scan of one file is one partition to DataFusion, with all its rows in one place. The splits
//!   of that scan go to all nodes. A parent that needs the rows of a key, or all rows, in one place
//!   therefore gets an exchange.
//! * Partitions of a join share the table of a build side and its match marks; nodes do not. A join
//!   that emits build rows by these marks is partitioned by its keys, or runs as one task.

mod several_children;

use std::sync::Arc;

use datafusion::{
    common::{
        plan_err,
        tree_node::{Transformed, TreeNode},
    },
    datasource::sink::DataSinkExec,
    error::Result,
    functions_aggregate::sum::sum_udaf,
    physical_expr::{
        Distribution, LexOrdering, OrderingRequirements, PhysicalExpr,
        aggregate::AggregateExprBuilder, expressions::Column,
    },
    physical_plan::{
        ExecutionPlan, ExecutionPlanProperties, Partitioning,
        aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy},
        coalesce_partitions::CoalescePartitionsExec,
        joins::{HashJoinExec, PartitionMode},
        limit::GlobalLimitExec,
        recursive_query::RecursiveQueryExec,
        repartition::RepartitionExec,
        sorts::sort::SortExec,
        sorts::sort_preserving_merge::SortPreservingMergeExec,
        union::{InterleaveExec, UnionExec},
    },
};
use gatework_sql::{
    WriteExec, WriteTarget,
    buckets::{BucketedScan, Bucketing},
    splits::has_splits,
};

use crate::plan::{
    buckets::is_partitioned_by,
    exchange::{
        ExchangeExec, ExchangeKind, PartitioningHandle as Handle, PartitioningScheme, Scope,
        with_children,
    },
    scan::SplitScanExec,
};

/// Returns `plan` with remote exchanges in place of its repartitionings and merges. `plan` was made
/// for `nodes` partitions. With `copy_into`, its writes go into those buckets.
///
/// # Errors
/// If a node of the plan rejects its new children, or `copy_into` is given and the plan's sink
/// cannot write buckets.
pub fn add_exchanges(
    plan: Arc<dyn ExecutionPlan>,
    nodes: usize,
    copy_into: Option<&Arc<Bucketing>>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let rules = AddExchanges { nodes, copy_into };
    let planned = rules.rewrite(plan)?;
    // The result has one reader.
    Ok(rules.gathered(planned)?.plan)
}

struct AddExchanges<'a> {
    nodes: usize,
    copy_into: Option<&'a Arc<Bucketing>>,
}

/// A plan and the distribution of its rows over tasks.
pub(crate) struct PlanWithDistribution {
    pub(crate) plan: Arc<dyn ExecutionPlan>,
    pub(crate) handle: Handle,
}

impl PlanWithDistribution {
    fn is_single(&self) -> bool {
        self.handle == Handle::Single
    }
}

impl AddExchanges<'_> {
    fn rewrite(&self, plan: Arc<dyn ExecutionPlan>) -> Result<PlanWithDistribution> {
        // The fetch of a single partition is global: DataFusion puts no other limit above it.
        let whole = plan.output_partitioning().partition_count() == 1;
        let limits = !plan.is::<AggregateExec>() && !plan.is::<SortExec>();
        let fetch = plan.fetch().filter(|_| whole && limits);
        let planned = self.rewrite_node(plan)?;
        match fetch {
            Some(fetch) if !planned.is_single() => {
                let gathered = self.gathered(planned)?;
                let plan = Arc::new(GlobalLimitExec::new(gathered.plan, 0, Some(fetch)));
                Ok(PlanWithDistribution { plan, ..gathered })
            }
            _ => Ok(planned),
        }
    }

    fn rewrite_node(&self, plan: Arc<dyn ExecutionPlan>) -> Result<PlanWithDistribution> {
        // The steps of a recursive query exchange rows within one task.
        if plan.downcast_ref::<RecursiveQueryExec>().is_some() {
            return Ok(PlanWithDistribution { plan, handle: Handle::Single });
        }
        let children = plan.children().into_iter().cloned();
        let children: Vec<PlanWithDistribution> =
            children.map(|child| self.rewrite(child)).collect::<Result<_>>()?;
        if let Some(repartition) = plan.downcast_ref::<RepartitionExec>() {
            return self.repartition(repartition, children);
        }
        if let Some(sink) = plan.downcast_ref::<DataSinkExec>() {
            match (WriteTarget::of(sink)?, self.copy_into) {
                (Some(target), None) => return self.write(&plan, target, children),
                (Some(target), Some(buckets)) => {
                    let target = target.in_buckets(buckets.clone())?;
                    return self.write(&plan, target, children);
                }
                (None, None) => {}
                (None, Some(_)) => {
                    return plan_err!(
                        "buckets are written as Parquet or as CSV without compression, into a \
                         folder, in no order and without PARTITIONED BY"
                    );
                }
            }
        }
        if plan.downcast_ref::<CoalescePartitionsExec>().is_some() {
            return self.gather(plan, children, None);
        }
        if let Some(merge) = plan.downcast_ref::<SortPreservingMergeExec>() {
            let ordering = merge.expr().clone();
            return self.gather(plan, children, Some(ordering));
        }
        if let Some(join) = plan.downcast_ref::<HashJoinExec>()
            && *join.partition_mode() != PartitionMode::Partitioned
        {
            return self.collect_left_join(join, children);
        }
        match children.len() {
            0 => Ok(self.leaf(plan)),
            1 => self.one_child(plan, children),
            _ if plan.downcast_ref::<UnionExec>().is_some() => self.union(plan, children),
            _ if plan.downcast_ref::<InterleaveExec>().is_some() => {
                match children.iter().all(|child| child.handle == Handle::FixedHash) {
                    true => Self::with_children(plan, children),
                    false => self.union(plan, children),
                }
            }
            _ => self.several_children(plan, children),
        }
    }

    /// A leaf: its splits go to all nodes if it can be spread and has several partitions.
    fn leaf(&self, plan: Arc<dyn ExecutionPlan>) -> PlanWithDistribution {
        // A single node, too, reads buckets one after the other.
        if is_spreadable(&plan) && BucketedScan::of(&plan).is_some() {
            return PlanWithDistribution { handle: Handle::Buckets, ..self.in_splits(plan) };
        }
        let partitions = plan.output_partitioning().partition_count();
        match self.nodes > 1 && partitions > 1 && is_spreadable(&plan) {
            true => self.in_splits(plan),
            false => PlanWithDistribution { plan, handle: Handle::Single },
        }
    }

    fn in_splits(&self, table: Arc<dyn ExecutionPlan>) -> PlanWithDistribution {
        PlanWithDistribution {
            plan: Arc::new(SplitScanExec::new(table, self.nodes)),
            handle: Handle::Source,
        }
    }

    fn exchange(
        &self,
        kind: ExchangeKind,
        scheme: PartitioningScheme,
        from: PlanWithDistribution,
    ) -> Result<PlanWithDistribution> {
        let (handle, schema) = (scheme.handle, from.plan.schema());
        let is_superseded = |before: &&ExchangeExec| match before.kind() {
            // A gathered build side is broadcast instead, and gathered rows to be written go to the
            // writers instead.
            ExchangeKind::Gather => {
                kind == ExchangeKind::Replicate || scheme.handle == Handle::ScaledWriter
            }
            // An exchange to arbitrary tasks is superseded by every other one.
            _ => before.scheme().handle == Handle::FixedArbitrary,
        };
        let sources = match from.plan.downcast_ref::<ExchangeExec>().filter(is_superseded) {
            Some(before) => before.sources().to_vec(),
            None => vec![from.plan],
        };
        let exchange = ExchangeExec::try_new(Scope::Remote, kind, scheme, sources)?;
        Ok(PlanWithDistribution { plan: Arc::new(exchange.with_schema(schema)), handle })
    }

    fn gathered(&self, from: PlanWithDistribution) -> Result<PlanWithDistribution> {
        match from.is_single() {
            true => Ok(from),
            false => self.exchange(ExchangeKind::Gather, PartitioningScheme::single(), from),
        }
    }

    fn hashed(
        &self,
        from: PlanWithDistribution,
        keys: &[Arc<dyn PhysicalExpr>],
    ) -> Result<PlanWithDistribution> {
        let scheme = PartitioningScheme {
            handle: Handle::FixedHash,
            keys: keys.to_vec(),
            partitions: self.nodes,
            ordering: None,
        };
        self.exchange(ExchangeKind::Repartition, scheme, from)
    }

    fn repartition(
        &self,
        plan: &RepartitionExec,
        mut children: Vec<PlanWithDistribution>,
    ) -> Result<PlanWithDistribution> {
        let child = children.remove(0);
        match plan.partitioning() {
            Partitioning::Hash(keys, _) if is_partitioned_by(&child, keys) => Ok(child),
            Partitioning::Hash(keys, _) if self.nodes > 1 => {
                let ordering = child.plan.output_ordering().cloned();
                let scheme = PartitioningScheme {
                    handle: Handle::FixedHash,
                    keys: keys.clone(),
                    partitions: self.nodes,
                    ordering: ordering.filter(|_| plan.preserve_order()),
                };
                self.exchange(ExchangeKind::Repartition, scheme, child)
            }
            // DataFusion repartitions large inputs round-robin; here the table's splits go to all
            // nodes instead.
            Partitioning::RoundRobinBatch(_) if self.nodes > 1 && is_spreadable(&child.plan) => {
                let with_splits = child.plan.transform_up(|node| {
                    Ok(match node.children().is_empty() {
                        true => Transformed::yes(self.in_splits(node).plan),
                        false => Transformed::no(node),
                    })
                })?;
                Ok(PlanWithDistribution { plan: with_splits.data, handle: Handle::Source })
            }
            // Repartitioning the output of one task does not pay off.
            _ => Ok(child),
        }
    }

    /// Adds a stage of scaled writers and the sum of their row counts.
    fn write(
        &self,
        sink: &Arc<dyn ExecutionPlan>,
        target: WriteTarget,
        mut children: Vec<PlanWithDistribution>,
    ) -> Result<PlanWithDistribution> {
        let mut rows = children.remove(0);
        if self.nodes > 1 {
            let scheme = PartitioningScheme {
                handle: Handle::ScaledWriter,
                partitions: self.nodes,
                ..PartitioningScheme::single()
            };
            rows = self.exchange(ExchangeKind::Repartition, scheme, rows)?;
        }
        let counts = sink.schema();
        let write = Arc::new(WriteExec::new(rows.plan, target, counts.clone()));
        let counted = self.gathered(PlanWithDistribution { plan: write, handle: rows.handle })?;
        let count: Arc<dyn PhysicalExpr> = Arc::new(Column::new(counts.field(0).name(), 0));
        let all = AggregateExprBuilder::new(sum_udaf(), vec![count])
            .schema(counts.clone())
            .alias(counts.field(0).name())
            .build()?;
        let (keys, calls) = (PhysicalGroupBy::default(), vec![Arc::new(all)]);
        let mode = AggregateMode::Single;
        let plan = AggregateExec::try_new(mode, keys, calls, vec![None], counted.plan, counts)?;
        Ok(PlanWithDistribution { plan: Arc::new(plan), handle: Handle::Single })
    }

    fn gather(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        mut children: Vec<PlanWithDistribution>,
        ordering: Option<LexOrdering>,
    ) -> Result<PlanWithDistribution> {
        let child = children.remove(0);
        if child.is_single() {
            return Self::with_children(plan, vec![child]);
        }
        let (kind, child) = match &ordering {
            Some(ordering) => (ExchangeKind::Merge, sorted_locally(child, ordering)?),
            None => (ExchangeKind::Gather, child),
        };
        let scheme = PartitioningScheme { ordering, ..PartitioningScheme::single() };
        let mut gathered = self.exchange(kind, scheme, child)?;
        if let Some(fetch) = plan.fetch() {
            gathered.plan = Arc::new(GlobalLimitExec::new(gathered.plan, 0, Some(fetch)));
        }
        Ok(gathered)
    }

    fn one_child(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        mut children: Vec<PlanWithDistribution>,
    ) -> Result<PlanWithDistribution> {
        let child = children.remove(0);
        // DataFusion planned a single-partition aggregate, which requires all rows in one place.
        if let Some(aggregate) = plan.downcast_ref::<AggregateExec>()
            && *aggregate.mode() == AggregateMode::Single
            && is_partitioned_by(&child, &aggregate.group_expr().input_exprs())
            && aggregate.group_expr().is_single()
        {
            let plan = AggregateExec::try_new(
                AggregateMode::SinglePartitioned,
                aggregate.group_expr().clone(),
                aggregate.aggr_expr().to_vec(),
                aggregate.filter_expr().to_vec(),
                aggregate.input().clone(),
                aggregate.input_schema(),
            )?;
            return Self::with_children(Arc::new(plan), vec![child]);
        }
        let child = self.as_required(&plan, 0, child)?;
        let aggregate = plan.downcast_ref::<AggregateExec>();
        // Grouping sets put NULL in place of keys, so every bucket has those groups.
        let spreads = aggregate.is_some_and(|aggregate| !aggregate.group_expr().is_single());
        let planned = Self::with_children(plan, vec![child])?;
        Ok(match planned.handle {
            Handle::Buckets if spreads => {
                PlanWithDistribution { handle: Handle::Source, ..planned }
            }
            _ => planned,
        })
    }

    /// Adds the exchange that `plan` requires for child number `child_index`.
    fn as_required(
        &self,
        plan: &Arc<dyn ExecutionPlan>,
        child_index: usize,
        child: PlanWithDistribution,
    ) -> Result<PlanWithDistribution> {
        let requirements = plan.input_distribution_requirements();
        match (requirements.child_distribution(child_index), child.handle) {
            (_, Handle::Single) | (Some(Distribution::UnspecifiedDistribution) | None, _) => {
                Ok(child)
            }
            (Some(Distribution::KeyPartitioned(_)), Handle::FixedHash) => Ok(child),
            (Some(Distribution::KeyPartitioned(keys)), _) if is_partitioned_by(&child, keys) => {
                Ok(child)
            }
            (Some(Distribution::KeyPartitioned(keys)), _) => self.hashed(child, keys),
            (Some(_), _) => self.gathered(child),
        }
    }

    /// Returns `plan` over children that are distributed as required. The result has the first
    /// child's distribution.
    fn with_children(
        plan: Arc<dyn ExecutionPlan>,
        children: Vec<PlanWithDistribution>,
    ) -> Result<PlanWithDistribution> {
        let handle = children.first().map_or(Handle::Single, |child| child.handle);
        let orders = plan.required_input_ordering();
        let in_order =
            |(child, order): (PlanWithDistribution, Option<OrderingRequirements>)| match order {
                Some(order) => Ok(in_order(child, &order.into_single().into())?.plan),
                None => Ok(child.plan),
            };
        let children = children.into_iter().zip(orders).map(in_order).collect::<Result<_>>()?;
        Ok(PlanWithDistribution { plan: with_children(plan, children)?, handle })
    }

    /// A union of children that are not all single reads them through one arbitrary exchange.
    fn union(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        children: Vec<PlanWithDistribution>,
    ) -> Result<PlanWithDistribution> {
        if children.iter().all(PlanWithDistribution::is_single) {
            let children = children.into_iter().map(|child| child.plan).collect();
            return Ok(PlanWithDistribution {
                plan: UnionExec::try_new(children)?,
                handle: Handle::Single,
            });
        }
        let scheme = PartitioningScheme {
            handle: Handle::FixedArbitrary,
            keys: Vec::new(),
            partitions: self.nodes,
            ordering: None,
        };
        let schema = plan.schema();
        let sources = children.into_iter().map(|child| child.plan).collect();
        let kind = ExchangeKind::Repartition;
        let exchange = ExchangeExec::try_new(Scope::Remote, kind, scheme, sources)?;
        // Column names and nullability of the union may differ from its first child's.
        let plan: Arc<dyn ExecutionPlan> = Arc::new(exchange.with_schema(schema));
        Ok(PlanWithDistribution { plan, handle: Handle::FixedArbitrary })
    }
}

/// Whether `plan` is a table, possibly below nodes that need no distribution and no order.
fn is_spreadable(plan: &Arc<dyn ExecutionPlan>) -> bool {
    // A fetch applies to all splits together.
    if plan.fetch().is_some() {
        return false;
    }
    let children = plan.children();
    match children.as_slice() {
        [] => has_splits(plan) && plan.output_ordering().is_none(),
        [child] => {
            let requirements = plan.input_distribution_requirements();
            let required = requirements.child_distribution(0);
            matches!(required, Some(Distribution::UnspecifiedDistribution)) && is_spreadable(child)
        }
        _ => false,
    }
}

/// Sorts each task's rows by `ordering`, unless they are sorted: an exchange does not keep an
/// order.
fn in_order(from: PlanWithDistribution, ordering: &LexOrdering) -> Result<PlanWithDistribution> {
    if from.plan.equivalence_properties().ordering_satisfy(ordering.iter().cloned())? {
        return Ok(from);
    }
    let spread = !from.is_single();
    let sort = SortExec::new(ordering.clone(), from.plan).with_preserve_partitioning(spread);
    Ok(PlanWithDistribution { plan: Arc::new(sort), ..from })
}

/// Sorts above all other exchanges. Tasks of a merge wait for each other, so each of them must have
/// read its input before.
fn sorted_locally(
    from: PlanWithDistribution,
    ordering: &LexOrdering,
) -> Result<PlanWithDistribution> {
    let from = in_order(from, ordering)?;
    let mut node = &from.plan;
    loop {
        if node.downcast_ref::<SortExec>().is_some() {
            return Ok(from);
        }
        match node.children().as_slice() {
            [child] if node.downcast_ref::<ExchangeExec>().is_none() => node = child,
            _ => break,
        }
    }
    let sort = SortExec::new(ordering.clone(), from.plan).with_preserve_partitioning(true);
    Ok(PlanWithDistribution { plan: Arc::new(sort), ..from })
}
