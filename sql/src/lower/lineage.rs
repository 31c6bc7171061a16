//! Lineage of a runtime filter's keys: column by column, down to the scans.
//!
//! DataFusion pushes a join's filter to scans through nodes that look its columns up by name. Where
//! a row has two columns of one name, it takes the first, and the scan would test another column's
//! values. So this module follows the keys by index. A scan uses a filter only if both results
//! agree.

use std::{collections::HashMap, sync::Arc};

use arrow::datatypes::SchemaRef;
use datafusion::{
    common::{
        JoinType,
        tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion},
    },
    datasource::source::DataSourceExec,
    error::Result,
    physical_expr::{PhysicalExpr, expressions::Column, utils::collect_columns},
    physical_plan::{
        ExecutionPlan,
        aggregates::AggregateExec,
        filter::FilterExec,
        joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec},
        projection::ProjectionExec,
        scalar_subquery::ScalarSubqueryExec,
        sorts::{sort::SortExec, sort_preserving_merge::SortPreservingMergeExec},
        union::{InterleaveExec, UnionExec},
    },
};

use super::{supported::is_elided, windows::window_expressions};
use crate::plan::exec::as_gatework_exec;

type Exprs = Vec<Arc<dyn PhysicalExpr>>;

/// The keys over the output of each scan that has them, by [`scan_id`].
pub(super) type KeysByScan = HashMap<usize, Exprs>;

/// Returns the identity of a scan within a plan.
pub(super) fn scan_id(scan: &Arc<dyn ExecutionPlan>) -> usize {
    let inner = as_gatework_exec(scan.as_ref()).map_or(scan, |exec| exec.inner());
    Arc::as_ptr(inner).cast::<()>().addr()
}

/// Returns the inputs of a custom node that passes their rows through unchanged; `None` for any
/// other node.
pub type PassThroughInputs =
    dyn Fn(&Arc<dyn ExecutionPlan>) -> Option<Vec<&Arc<dyn ExecutionPlan>>>;

/// Follows `keys`, which are over the output of `plan`, to the scans below it. A path ends without
/// a scan at a limit, at a node that computes the keys, or at one that neither this module nor
/// `pass_through_inputs` knows.
pub(super) fn trace(
    plan: &Arc<dyn ExecutionPlan>,
    keys: &Exprs,
    pass_through_inputs: &PassThroughInputs,
    found: &mut KeysByScan,
) -> Result<()> {
    // Below a limit, a filter would let other rows in.
    if plan.fetch().is_some() {
        return Ok(());
    }
    if let Some(inputs) = pass_through_inputs(plan) {
        return inputs
            .into_iter()
            .try_for_each(|input| trace(input, keys, pass_through_inputs, found));
    }
    if plan.is::<DataSourceExec>() {
        found.insert(scan_id(plan), keys.clone());
        return Ok(());
    }
    let children = plan.children();
    if let Some(origins) = join_column_origins(plan.as_ref()) {
        return trace_join(&children, &origins, keys, pass_through_inputs, found);
    }
    if plan.is::<UnionExec>() || plan.is::<InterleaveExec>() {
        return children
            .into_iter()
            .try_for_each(|child| trace(child, keys, pass_through_inputs, found));
    }
    let Some(input) = children.first() else { return Ok(()) };
    match over_input(plan.as_ref(), keys, &input.schema())? {
        Some(keys) => trace(input, &keys, pass_through_inputs, found),
        None => Ok(()),
    }
}

/// Rewrites `keys`, over the output of a node with one input, to that input's columns.
fn over_input(plan: &dyn ExecutionPlan, keys: &Exprs, input: &SchemaRef) -> Result<Option<Exprs>> {
    let column = |index: usize| -> Option<Arc<dyn PhysicalExpr>> {
        let field = input.fields().get(index)?;
        Some(Arc::new(Column::new(field.name(), index)))
    };
    if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
        return replace(keys, &|index| Some(projection.expr().get(index)?.expr.clone()));
    }
    if let Some(aggregate) = plan.downcast_ref::<AggregateExec>() {
        let group = aggregate.group_expr();
        let single = !group.has_grouping_set();
        return replace(keys, &|index| {
            group.expr().get(index).filter(|_| single).map(|(expr, _)| expr.clone())
        });
    }
    if let Some(filter) = plan.downcast_ref::<FilterExec>()
        && let Some(columns) = filter.projection().as_ref()
    {
        return replace(keys, &|index| column(*columns.get(index)?));
    }
    let same = is_elided(plan)
        || window_expressions(plan).is_some()
        || plan.is::<FilterExec>()
        || plan.is::<SortExec>()
        || plan.is::<SortPreservingMergeExec>()
        || plan.is::<ScalarSubqueryExec>();
    if same { replace(keys, &column) } else { Ok(None) }
}

/// The origin of each output column of a join: its side, left (0) or right (1), and its index
/// there.
type ColumnOrigins = Vec<Option<(usize, usize)>>;

fn join_column_origins(plan: &dyn ExecutionPlan) -> Option<ColumnOrigins> {
    let (join_type, projection): (JoinType, Option<Vec<usize>>) =
        if let Some(join) = plan.downcast_ref::<HashJoinExec>() {
            (*join.join_type(), join.projection.as_ref().map(|columns| columns.to_vec()))
        } else if let Some(join) = plan.downcast_ref::<NestedLoopJoinExec>() {
            (*join.join_type(), join.projection().as_ref().map(|columns| columns.to_vec()))
        } else if plan.is::<CrossJoinExec>() {
            (JoinType::Inner, None)
        } else {
            return None;
        };
    let num_columns = |side: usize| plan.children()[side].schema().fields().len();
    let columns_of =
        move |side: usize| (0..num_columns(side)).map(move |index| Some((side, index)));
    let mut origins: ColumnOrigins = match join_type {
        JoinType::LeftSemi | JoinType::LeftAnti => columns_of(0).collect(),
        JoinType::RightSemi | JoinType::RightAnti => columns_of(1).collect(),
        JoinType::LeftMark => columns_of(0).chain([None]).collect(),
        JoinType::RightMark => columns_of(1).chain([None]).collect(),
        _ => columns_of(0).chain(columns_of(1)).collect(),
    };
    if let Some(projection) = projection {
        origins =
            projection.into_iter().map(|index| origins.get(index).copied().flatten()).collect();
    }
    Some(origins)
}

fn trace_join(
    children: &[&Arc<dyn ExecutionPlan>],
    origins: &ColumnOrigins,
    keys: &Exprs,
    pass_through_inputs: &PassThroughInputs,
    found: &mut KeysByScan,
) -> Result<()> {
    for (side, child) in children.iter().enumerate() {
        let schema = child.schema();
        let column = |index: usize| -> Option<Arc<dyn PhysicalExpr>> {
            let (origin, index) = origins.get(index).copied().flatten()?;
            (origin == side).then(|| Arc::new(Column::new(schema.field(index).name(), index)) as _)
        };
        if let Some(keys) = replace(keys, &column)? {
            trace(child, &keys, pass_through_inputs, found)?;
        }
    }
    Ok(())
}

/// Replaces each column of `keys` by `column`'s result; `None` if it returns `None` for one.
pub(super) fn replace(
    keys: &Exprs,
    column: &dyn Fn(usize) -> Option<Arc<dyn PhysicalExpr>>,
) -> Result<Option<Exprs>> {
    let known = |key: &Arc<dyn PhysicalExpr>| {
        collect_columns(key).iter().all(|named| column(named.index()).is_some())
    };
    if !keys.iter().all(known) {
        return Ok(None);
    }
    let replaced = keys.iter().map(|key| {
        let replaced = key.clone().transform_down(|node| {
            let index = node.downcast_ref::<Column>().map(Column::index);
            Ok(match index.and_then(column) {
                // The result refers to columns of the input already.
                Some(other) => Transformed::new(other, true, TreeNodeRecursion::Jump),
                None => Transformed::no(node),
            })
        });
        replaced.data()
    });
    replaced.collect::<Result<Vec<_>>>().map(Some)
}

/// Returns whether both are the same expressions over columns of equal indices, regardless of their
/// names.
pub(super) fn are_same(one: &Exprs, other: &Exprs) -> Result<bool> {
    let unnamed = |exprs: &Exprs| {
        replace(exprs, &|index| Some(Arc::new(Column::new("", index)) as Arc<dyn PhysicalExpr>))
    };
    Ok(unnamed(one)? == unnamed(other)?)
}
