//! Decides where bucketed tables need no exchange: rows that meet in a join or in a group are in
//! the same bucket. (Presto's rules of grouped execution; F-9 of `RULES.md`.)

use std::sync::Arc;

use datafusion::{
    physical_expr::{Distribution, PhysicalExpr},
    physical_plan::{ExecutionPlan, ExecutionPlanProperties, Partitioning, joins::HashJoinExec},
};

use crate::plan::{
    add_exchanges::PlanWithDistribution,
    exchange::{ExchangeExec, ExchangeKind, PartitioningHandle as Handle},
    scan::SplitScanExec,
};

/// Whether two expressions over `rows` have the same values.
fn same(
    rows: &PlanWithDistribution,
    one: &Arc<dyn PhysicalExpr>,
    other: &Arc<dyn PhysicalExpr>,
) -> bool {
    let classes = rows.plan.equivalence_properties().eq_group();
    classes.normalize_expr(one.clone()).eq(&classes.normalize_expr(other.clone()))
}

/// Whether rows of bucketed tables with equal `keys` are in one bucket. True if the bucket columns
/// are among the keys.
pub(crate) fn is_partitioned_by(
    rows: &PlanWithDistribution,
    keys: &[Arc<dyn PhysicalExpr>],
) -> bool {
    let Partitioning::Hash(hash_keys, _) = rows.plan.output_partitioning() else { return false };
    let is_key = |by: &Arc<dyn PhysicalExpr>| keys.iter().any(|key| same(rows, by, key));
    rows.handle == Handle::Buckets && hash_keys.iter().all(is_key)
}

/// Whether both sides have the same bucketing over the join keys, so that matching rows are in the
/// same bucket.
pub(crate) fn is_colocated_join(join: &HashJoinExec, children: &[PlanWithDistribution]) -> bool {
    let [left, right] = children else { return false };
    if left.handle != Handle::Buckets || right.handle != Handle::Buckets || join.null_aware {
        return false;
    }
    let (Partitioning::Hash(of_left, count), Partitioning::Hash(of_right, other)) =
        (left.plan.output_partitioning(), right.plan.output_partitioning())
    else {
        return false;
    };
    let joined = |(of_left, of_right): (&Arc<dyn PhysicalExpr>, &Arc<dyn PhysicalExpr>)| {
        let mut pairs = join.on().iter();
        pairs.any(|(left_key, right_key)| {
            same(left, of_left, left_key) && same(right, of_right, right_key)
        })
    };
    count == other && of_left.len() == of_right.len() && of_left.iter().zip(of_right).all(joined)
}

/// Returns the sides of a `CollectLeft` join that is a colocated join, without the gather of its
/// build side. Otherwise puts both sides back into `children`.
pub(crate) fn colocated_sides(
    join: &HashJoinExec,
    children: &mut Vec<PlanWithDistribution>,
) -> Option<Vec<PlanWithDistribution>> {
    let right = children.pop()?;
    let left = children.pop()?;
    let gathered = left.plan.downcast_ref::<ExchangeExec>();
    let gathered = gathered.filter(|exchange| exchange.kind() == ExchangeKind::Gather);
    let bucketed = match gathered.map(ExchangeExec::sources) {
        Some([source]) if in_buckets(source) => {
            PlanWithDistribution { plan: source.clone(), handle: Handle::Buckets }
        }
        _ => PlanWithDistribution { plan: left.plan.clone(), handle: left.handle },
    };
    let sides = [bucketed, right];
    if is_colocated_join(join, &sides) {
        return Some(sides.into());
    }
    let [_, right] = sides;
    children.extend([left, right]);
    None
}

/// Whether `node`, or a node below it in its fragment, relies on the distribution of bucketed
/// tables.
pub(crate) fn uses_buckets(node: &Arc<dyn ExecutionPlan>) -> bool {
    let requirements = node.input_distribution_requirements();
    let children = node.children();
    let by_key = |child_index: usize| {
        let required = requirements.child_distribution(child_index);
        matches!(required, Some(Distribution::KeyPartitioned(keys)) if !keys.is_empty())
    };
    children.iter().enumerate().any(|(child_index, child)| by_key(child_index) && in_buckets(child))
        || children.into_iter().any(uses_buckets)
}

/// Number of buckets of the tables below `node` in its fragment.
pub(crate) fn bucket_count(node: &Arc<dyn ExecutionPlan>) -> Option<usize> {
    match node.downcast_ref::<SplitScanExec>() {
        Some(scan) => scan.buckets().map(|buckets| buckets.count()),
        None => node.children().into_iter().find_map(bucket_count),
    }
}

/// Whether bucketed tables are below `node` in its fragment.
fn in_buckets(node: &Arc<dyn ExecutionPlan>) -> bool {
    let is_exchange = node.downcast_ref::<ExchangeExec>().is_some();
    !is_exchange
        && match node.downcast_ref::<SplitScanExec>() {
            Some(scan) => scan.buckets().is_some(),
            None => node.children().into_iter().any(in_buckets),
        }
}
