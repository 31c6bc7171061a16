//! Exchanges below nodes with several children: joins above all.

use std::sync::Arc;

use datafusion::{
    common::JoinType,
    error::Result,
    physical_expr::Distribution,
    physical_plan::{
        ExecutionPlan,
        joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec, PartitionMode},
    },
};

use super::{AddExchanges, PlanWithDistribution};
use crate::plan::{
    buckets::{colocated_sides, is_colocated_join},
    exchange::{
        ExchangeExec, ExchangeKind, PartitioningHandle as Handle, PartitioningScheme, with_children,
    },
};

impl AddExchanges<'_> {
    /// Hashes all children by their keys, or gathers all of them.
    pub(super) fn several_children(
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

    /// Whether `plan` is a join without keys that emits no left row without a match.
    fn can_replicate_left(plan: &Arc<dyn ExecutionPlan>) -> bool {
        if plan.downcast_ref::<CrossJoinExec>().is_some() {
            return true;
        }
        let join = plan.downcast_ref::<NestedLoopJoinExec>();
        join.is_some_and(|join| !tracks_left_matches(*join.join_type()))
    }

    /// A join whose tasks each read all left rows and a share of the right rows.
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

    /// A hash join with a collected build side (`CollectLeft`).
    pub(super) fn collect_left_join(
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

    /// `join` with both sides partitioned alike.
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

/// Undoes a gather of one source.
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

/// Whether a join of this type emits or drops left rows by their matches in the whole right side.
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
