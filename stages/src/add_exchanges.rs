//! Where a plan's rows change nodes: remote exchanges for a plan that DataFusion made for several partitions.
//!
//! DataFusion decides what is aggregated twice, which joins are partitioned and which side is small enough to
//! be sent to all, what is sorted apart and merged. It says so with repartitionings and merges between
//! *partitions*, which become exchanges between *nodes* here. Two things differ between partitions of one
//! process and nodes, and are mended:
//!
//! * A scan of one file is one partition to DataFusion, whose rows are all in one place. Here its splits go to
//!   all nodes, so a parent that needs rows of one key, or all, in one place gets an exchange where it had none.
//! * Partitions of a join share the table of a side that was collected once, with marks for the rows that
//!   found a match. Nodes do not: a join that gives rows of that side by these marks is partitioned by its
//!   keys, or done by one task.

use std::sync::Arc;

use datafusion::{
    common::{
        JoinType, plan_err,
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

use crate::{
    buckets::{colocated_sides, is_colocated_join, is_partitioned_by},
    exchange::{
        ExchangeExec, ExchangeKind, PartitioningHandle as Handle, PartitioningScheme, Scope,
        with_children,
    },
    scan::SplitScanExec,
};

/// `plan`, which was made for as many partitions as there are `nodes`, with remote exchanges in place of what
/// moves rows between partitions. What it writes goes into the buckets of `copy_into`, if there are any.
///
/// # Errors
/// If a node of the plan refuses its new children, or buckets are wanted where it writes none.
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

/// A plan, and which of its rows each task has.
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
        // A limit of one partition is one for all: DataFusion puts no other above it.
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
        // What its steps hand to each other stays in one place.
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
                        "buckets are written as Parquet or as CSV without compression, into a folder, in no order and without PARTITIONED BY"
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

    /// Splits of a table that is worth it go to all nodes.
    fn leaf(&self, plan: Arc<dyn ExecutionPlan>) -> PlanWithDistribution {
        // One node, too, reads buckets one after the other.
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
            // What was gathered to be collected goes to all at once, and what was to be written to the writers.
            ExchangeKind::Gather => {
                kind == ExchangeKind::Replicate || scheme.handle == Handle::ScaledWriter
            }
            // So do rows that were on their way anywhere, wherever they are wanted.
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
            // DataFusion sends round what it thinks is much; we give the splits of the table to all nodes.
            Partitioning::RoundRobinBatch(_) if self.nodes > 1 && is_spreadable(&child.plan) => {
                let with_splits = child.plan.transform_up(|node| {
                    Ok(match node.children().is_empty() {
                        true => Transformed::yes(self.in_splits(node).plan),
                        false => Transformed::no(node),
                    })
                })?;
                Ok(PlanWithDistribution { plan: with_splits.data, handle: Handle::Source })
            }
            // What one task has made is not worth to be sent round.
            _ => Ok(child),
        }
    }

    /// As many writers as there is enough to be written for, and the sum of what they have written.
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
        // For one partition it was planned so that all rows would have to be in one place.
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
        // Groups of NULL in place of the key are made in every bucket.
        let spreads = aggregate.is_some_and(|aggregate| !aggregate.group_expr().is_single());
        let planned = Self::with_children(plan, vec![child])?;
        Ok(match planned.handle {
            Handle::Buckets if spreads => {
                PlanWithDistribution { handle: Handle::Source, ..planned }
            }
            _ => planned,
        })
    }

    /// Child number `child_index` with its rows where `plan` needs them.
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

    /// `plan` over children whose rows are where it needs them, which share them as the first does.
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

    /// Rows of children that are not all in one place meet anywhere.
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
        // The union may call columns, or allow NULLs, unlike its first child.
        let plan: Arc<dyn ExecutionPlan> = Arc::new(exchange.with_schema(schema));
        Ok(PlanWithDistribution { plan, handle: Handle::FixedArbitrary })
    }

    /// Either all children's rows lie by the same keys' hash, or all are in one place.
    fn several_children(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        children: Vec<PlanWithDistribution>,
    ) -> Result<PlanWithDistribution> {
        if let Some(join) = plan.downcast_ref::<HashJoinExec>()
            && is_colocated_join(join, &children)
        {
            return Self::with_children(plan, children);
        }
        let requirements = plan.input_distribution_requirements();
        let by_keys = |child_index| {
            matches!(
                requirements.child_distribution(child_index),
                Some(Distribution::KeyPartitioned(keys)) if !keys.is_empty()
            )
        };
        let spread = children.iter().any(|child| !child.is_single());
        let children = if spread && (0..children.len()).all(by_keys) {
            let each = children.into_iter().enumerate().map(|(child_index, child)| {
                match requirements.child_distribution(child_index) {
                    Some(Distribution::KeyPartitioned(keys))
                        if child.handle != Handle::FixedHash =>
                    {
                        self.hashed(child, keys)
                    }
                    _ => Ok(child),
                }
            });
            each.collect::<Result<_>>()?
        } else if spread && Self::can_replicate_left(&plan) {
            return self.with_replicated_left(plan, children);
        } else {
            children.into_iter().map(|child| self.gathered(child)).collect::<Result<Vec<_>>>()?
        };
        Self::with_children(plan, children)
    }

    /// Whether it is a join without keys that gives no row of its left side by itself.
    fn can_replicate_left(plan: &Arc<dyn ExecutionPlan>) -> bool {
        use datafusion::physical_plan::joins::{CrossJoinExec, NestedLoopJoinExec};
        if plan.downcast_ref::<CrossJoinExec>().is_some() {
            return true;
        }
        let join = plan.downcast_ref::<NestedLoopJoinExec>();
        join.is_some_and(|join| !tracks_left_matches(*join.join_type()))
    }

    /// A join of which each task has all of the left side, and some of the right.
    fn with_replicated_left(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        mut children: Vec<PlanWithDistribution>,
    ) -> Result<PlanWithDistribution> {
        let right = children.remove(1);
        let left = children.remove(0);
        if right.is_single() {
            return Self::with_children(plan, vec![self.gathered(left)?, right]);
        }
        let left = self.replicated(left)?;
        let handle = right.handle;
        let plan = with_children(plan, vec![left.plan, right.plan])?;
        Ok(PlanWithDistribution { plan, handle })
    }

    fn replicated(&self, from: PlanWithDistribution) -> Result<PlanWithDistribution> {
        let scheme = PartitioningScheme {
            handle: Handle::FixedBroadcast,
            partitions: self.nodes,
            ..PartitioningScheme::single()
        };
        self.exchange(ExchangeKind::Replicate, scheme, from)
    }

    /// A hash join that collects its left side.
    fn collect_left_join(
        &self,
        join: &HashJoinExec,
        mut children: Vec<PlanWithDistribution>,
    ) -> Result<PlanWithDistribution> {
        if let Some(children) = colocated_sides(join, &mut children) {
            return Self::partitioned(join, children);
        }
        let tracks_matches = tracks_left_matches(*join.join_type());
        let spread = !children[1].is_single();
        if !spread || join.null_aware {
            let children = children.into_iter().map(|child| self.gathered(child));
            return Self::with_children(
                join.builder().build_exec()?,
                children.collect::<Result<_>>()?,
            );
        }
        if !tracks_matches {
            return self.with_replicated_left(join.builder().build_exec()?, children);
        }
        let (left_keys, right_keys): (Vec<_>, Vec<_>) = join.on().iter().cloned().unzip();
        let right = self.hashed(children.remove(1), &right_keys)?;
        let left = self.hashed(ungathered(children.remove(0)), &left_keys)?;
        Self::partitioned(join, vec![left, right])
    }

    /// `join` of sides that are divided alike.
    fn partitioned(
        join: &HashJoinExec,
        children: Vec<PlanWithDistribution>,
    ) -> Result<PlanWithDistribution> {
        let handle = children[0].handle;
        let children = children.into_iter().map(|child| child.plan).collect();
        let plan = join
            .builder()
            .with_partition_mode(PartitionMode::Partitioned)
            .with_new_children(children)?
            .build_exec()?;
        Ok(PlanWithDistribution { plan, handle })
    }
}

/// Whether it is a table, with nothing behind it that needs rows in one place or in order.
fn is_spreadable(plan: &Arc<dyn ExecutionPlan>) -> bool {
    // A limit is one for all splits together.
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

/// The same rows, in each task in this order: exchanges do not keep the one that they may have had.
fn in_order(from: PlanWithDistribution, ordering: &LexOrdering) -> Result<PlanWithDistribution> {
    if from.plan.equivalence_properties().ordering_satisfy(ordering.iter().cloned())? {
        return Ok(from);
    }
    let spread = !from.is_single();
    let sort = SortExec::new(ordering.clone(), from.plan).with_preserve_partitioning(spread);
    Ok(PlanWithDistribution { plan: Arc::new(sort), ..from })
}

/// The same, sorted behind all other exchanges: its tasks, which wait for one another while they are merged, have
/// read what they want before.
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

/// What was gathered, where it was.
fn ungathered(from: PlanWithDistribution) -> PlanWithDistribution {
    let exchange = from.plan.downcast_ref::<ExchangeExec>();
    match exchange.filter(|exchange| exchange.kind() == ExchangeKind::Gather) {
        Some(exchange) if exchange.sources().len() == 1 => PlanWithDistribution {
            plan: exchange.sources()[0].clone(),
            handle: Handle::FixedArbitrary,
        },
        _ => from,
    }
}

/// Whether left rows come out, or are left out, for what was found of them in all of the right side.
fn tracks_left_matches(join_type: JoinType) -> bool {
    match join_type {
        JoinType::Left
        | JoinType::Full
        | JoinType::LeftSemi
        | JoinType::LeftAnti
        | JoinType::LeftMark => true,
        JoinType::Inner
        | JoinType::Right
        | JoinType::RightSemi
        | JoinType::RightAnti
        | JoinType::RightMark => false,
    }
}
