//! Filters on the numbers of rows in window partitions: `rank() OVER (…) <= 10`. They reach below
//! the sort that the window needs, as a [`RankingFilter`].

use std::sync::Arc;

use datafusion::{
    error::Result,
    logical_expr::{Operator, WindowFrameBound},
    physical_expr::{
        PhysicalExpr, PhysicalSortExpr,
        expressions::{BinaryExpr, Column, Literal},
        split_conjunction,
        window::WindowExpr,
    },
    physical_plan::{
        ExecutionPlan,
        filter::FilterExec,
        projection::ProjectionExec,
        sorts::{sort::SortExec, sort_preserving_merge::SortPreservingMergeExec},
    },
    scalar::ScalarValue,
};
use gatework_operators::{
    ranking_filter::{MAX_RANKING_ROWS, RankedBy, Ranking, RankingFilter, can_partition_by},
    window::WindowFunction,
};

use super::{
    Lowering, pipeline_builder::PipelineBuilder, supported::is_elided,
    window_functions::with_function, windows::window_expressions,
};
use crate::plan::exec::{GateworkExec, as_gatework_exec};

/// A ranking that applies to the input of a sort.
pub(super) struct RankedSort {
    /// Address of the sort's node.
    sort: *const (),
    ranking: Ranking,
}

impl Lowering {
    /// Lowers the input of a filter, with the ranking filter that it implies.
    pub(super) fn filter_input(
        &mut self,
        exec: &GateworkExec,
        filter: &FilterExec,
        ordered: bool,
    ) -> Result<PipelineBuilder> {
        let child = &exec.children()[0];
        self.ranked_sort = ranked_sort(filter.predicate(), child);
        let pipeline = self.child(child, ordered);
        self.ranked_sort = None;
        pipeline
    }

    /// Lowers the input of `sort`, in any order, with the ranking filter of a window above it.
    pub(super) fn sort_input(
        &mut self,
        sort: &GateworkExec,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let ranked = self.ranked_sort.take_if(|ranked| ranked.sort == address(sort.inner()));
        let input = &sort.children()[0];
        let pipeline = self.child(input, false)?;
        let Some(RankedSort { ranking, .. }) = ranked else { return Ok(pipeline) };
        let schema = input.schema();
        let partition_by = ranking.partition_by.iter().map(|key| self.key(key, &schema));
        let order_key = |key: &PhysicalSortExpr| -> Result<_> {
            Ok(PhysicalSortExpr { expr: self.key(&key.expr, &schema)?, options: key.options })
        };
        let ranking = Ranking {
            partition_by: partition_by.collect::<Result<_>>()?,
            order_by: ranking.order_by.iter().map(order_key).collect::<Result<_>>()?,
            ..ranking
        };
        Ok(pipeline.push_operator(RankingFilter::new(ranking)?, tag))
    }
}

fn address(plan: &Arc<dyn ExecutionPlan>) -> *const () {
    Arc::as_ptr(plan).cast()
}

/// Returns the ranking that a filter of `predicate` over `input` means for the sort below its
/// windows.
fn ranked_sort(
    predicate: &Arc<dyn PhysicalExpr>,
    input: &Arc<dyn ExecutionPlan>,
) -> Option<RankedSort> {
    split_conjunction(predicate).into_iter().find_map(|conjunct| {
        let (column, rows) = upper_bound(conjunct)?;
        ranking_of(column, rows, input)
    })
}

/// Returns a column and the greatest integer for which `conjunct` may be true.
fn upper_bound(conjunct: &Arc<dyn PhysicalExpr>) -> Option<(usize, usize)> {
    let comparison = conjunct.downcast_ref::<BinaryExpr>()?;
    let (column, operator, literal) = match comparison.left().downcast_ref::<Column>() {
        Some(column) => (column, *comparison.op(), comparison.right()),
        None => {
            let column = comparison.right().downcast_ref::<Column>()?;
            (column, comparison.op().swap()?, comparison.left())
        }
    };
    let value = literal.downcast_ref::<Literal>()?.value();
    if !value.data_type().is_integer() {
        return None;
    }
    let ScalarValue::Int64(Some(value)) = value.cast_to(&arrow::datatypes::DataType::Int64).ok()?
    else {
        return None;
    };
    let greatest = match operator {
        Operator::LtEq | Operator::Eq => value,
        Operator::Lt => value.checked_sub(1)?,
        _ => return None,
    };
    Some((column.index(), usize::try_from(greatest).ok()?))
}

/// Returns the ranking of the sort below the windows below `plan`, if column `column` of `plan`
/// is a number of one of them up to which, with `rows`, rows are kept.
fn ranking_of(
    mut column: usize,
    rows: usize,
    mut plan: &Arc<dyn ExecutionPlan>,
) -> Option<RankedSort> {
    let mut numbered: Option<RankedBy> = None;
    let mut keys: Option<&Arc<dyn WindowExpr>> = None;
    loop {
        let exec = as_gatework_exec(plan.as_ref())?;
        let node = exec.inner();
        if let Some(expressions) = window_expressions(node.as_ref()) {
            let of_input = node.schema().fields().len() - expressions.len();
            if let Some(number) = column.checked_sub(of_input).filter(|_| numbered.is_none()) {
                numbered = Some(ranked_by(expressions.get(number)?)?);
            }
            if !expressions.iter().all(|it| is_like(it, keys) && looks_back_only(it)) {
                return None;
            }
            keys = keys.or(expressions.first());
        } else if let Some(projection) = node.downcast_ref::<ProjectionExec>() {
            if keys.is_some() {
                return None;
            }
            column = projection.expr().get(column)?.expr.downcast_ref::<Column>()?.index();
        } else if node.is::<SortExec>() {
            let (by, keys) = (numbered?, keys?);
            return ranking(keys, by, rows, node);
        } else if !is_elided(node.as_ref()) && !node.is::<SortPreservingMergeExec>() {
            return None;
        }
        if node.fetch().is_some() {
            return None;
        }
        plan = exec.children().first()?;
    }
}

fn ranking(
    window: &Arc<dyn WindowExpr>,
    by: RankedBy,
    rows: usize,
    sort: &Arc<dyn ExecutionPlan>,
) -> Option<RankedSort> {
    let is_possible = sort.fetch().is_none()
        && (1..=MAX_RANKING_ROWS).contains(&rows)
        && !window.order_by().is_empty();
    let schema = sort.schema();
    let can_partition = |key: &Arc<dyn PhysicalExpr>| {
        key.data_type(&schema).is_ok_and(|kind| can_partition_by(&kind))
    };
    if !is_possible || !window.partition_by().iter().all(can_partition) {
        return None;
    }
    let (partition_by, order_by) = (window.partition_by().to_vec(), window.order_by().to_vec());
    let ranking = Ranking { partition_by, order_by, rows, by };
    Some(RankedSort { sort: address(sort), ranking })
}

fn ranked_by(expression: &Arc<dyn WindowExpr>) -> Option<RankedBy> {
    match with_function(expression.clone()).function? {
        WindowFunction::RowNumber | WindowFunction::Rank => Some(RankedBy::Rows),
        WindowFunction::DenseRank => Some(RankedBy::Keys),
        _ => None,
    }
}

/// Returns whether `expression` has the partition and the order of `other`.
fn is_like(expression: &Arc<dyn WindowExpr>, other: Option<&Arc<dyn WindowExpr>>) -> bool {
    other.is_none_or(|other| {
        expression.partition_by() == other.partition_by()
            && expression.order_by() == other.order_by()
    })
}

/// Returns whether the value of `expression` does not depend on rows behind the peers of its row.
fn looks_back_only(expression: &Arc<dyn WindowExpr>) -> bool {
    use WindowFunction as F;
    let Some(function) = with_function(expression.clone()).function else { return false };
    match function {
        F::RowNumber | F::Rank | F::DenseRank => true,
        F::Lag { offset, .. } => offset >= 0,
        F::Count | F::Sum | F::Avg | F::Min | F::Max | F::First | F::Last | F::Nth(_) => {
            let end = &expression.get_window_frame().end_bound;
            matches!(end, WindowFrameBound::CurrentRow | WindowFrameBound::Preceding(_))
        }
        F::PercentRank | F::CumeDist | F::Ntile(_) => false,
    }
}
