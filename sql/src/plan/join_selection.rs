//! Selection of the build side of hash joins.
//!
//! DataFusion builds the side with fewer rows by its own statistics. These know little of filters
//! (one row in five, for every predicate) and nothing of the selectivity of joins and semi joins.
//! So the larger side is built where it matters most. Query 21 of TPC-H builds a table of half of
//! lineitem to find the few rows of one nation's suppliers. This rule decides again, with estimates
//! of its own:
//!
//! * A predicate keeps a fraction of the rows that depends on what it compares.
//! * A join follows a foreign key. Each row of the larger table matches one row of the smaller, and
//!   survives with the same probability. (Containment: Swami and Schiefer, "On the Estimation of
//!   Join Result Sizes", 1994.)
//!
//! Estimates only choose sides; results do not depend on them. Where the row count of a table is
//! unknown, the plan does not change.

use std::sync::Arc;

use datafusion::{
    common::{
        JoinType,
        config::ConfigOptions,
        tree_node::{Transformed, TransformedResult, TreeNode},
    },
    error::Result,
    logical_expr::Operator,
    physical_expr::{
        PhysicalExpr,
        expressions::{BinaryExpr, InListExpr, IsNullExpr, LikeExpr, Literal, NotExpr},
        split_conjunction,
    },
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::{
        ExecutionPlan,
        aggregates::AggregateExec,
        filter::FilterExec,
        joins::{HashJoinExec, PartitionMode},
        statistics::{StatisticsArgs, StatisticsContext},
    },
};

use crate::plan::shared_subplans::SharedRowsExec;

/// Minimum ratio of build rows to probe rows for a swap. It is above 1 because DataFusion's choice
/// also considers row widths.
const MIN_SWAP_RATIO: f64 = 1.5;

/// A rule that swaps the sides of hash joins; see the module.
#[derive(Debug)]
pub struct BuildSideSelection {
    /// Whether all partitions run in one process, where a collected side is collected once.
    single_process: bool,
}

impl BuildSideSelection {
    /// Name of the rule among those of a session.
    pub const NAME: &str = "gatework_build_side_selection";

    /// Creates the rule for plans that run on one executor.
    pub(crate) fn single_process() -> Self {
        Self { single_process: true }
    }

    /// Creates the rule for plans whose partitions may run on several machines. A broadcast build
    /// side is not swapped: DataFusion chose it by known sizes, not by an estimate.
    pub fn distributed() -> Self {
        Self { single_process: false }
    }
}

impl PhysicalOptimizerRule for BuildSideSelection {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let distributed = config.execution.target_partitions > 1 && !self.single_process;
        plan.transform_up(|node| {
            let Some(join) = node.downcast_ref::<HashJoinExec>() else {
                return Ok(Transformed::no(node));
            };
            let sides = Estimate::of(join.left()).zip(Estimate::of(join.right()));
            let larger = sides.is_some_and(|(left, right)| left.rows > MIN_SWAP_RATIO * right.rows);
            let is_broadcast = distributed && *join.partition_mode() == PartitionMode::CollectLeft;
            if !larger || is_broadcast || join.null_aware || !join.join_type().supports_swap() {
                return Ok(Transformed::no(node));
            }
            Ok(Transformed::yes(join.swap_inputs(*join.partition_mode())?))
        })
        .data()
    }

    fn name(&self) -> &str {
        Self::NAME
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Estimated number of rows of a node.
#[derive(Debug, Clone, Copy)]
struct Estimate {
    rows: f64,
    /// Estimated number of rows if no predicate dropped any.
    unfiltered_rows: f64,
}

impl Estimate {
    fn of(node: &Arc<dyn ExecutionPlan>) -> Option<Self> {
        if let Some(join) = node.downcast_ref::<HashJoinExec>() {
            return Self::of_join(join);
        }
        if let Some(reader) = node.downcast_ref::<SharedRowsExec>() {
            return Self::of(reader.subplan().definition());
        }
        let children = node.children();
        let estimate = match children.as_slice() {
            [] => {
                let arguments = StatisticsArgs::new();
                let statistics =
                    StatisticsContext::new().compute(node.as_ref(), &arguments).ok()?;
                let rows = *statistics.num_rows.get_value()? as f64;
                Self { rows, unfiltered_rows: rows }
            }
            [child] => Self::of(child)?,
            _ => return None,
        };
        let kept = match node.downcast_ref::<FilterExec>() {
            Some(filter) => selectivity(filter.predicate()),
            None => 1.0,
        };
        let mut rows = estimate.rows * kept;
        let mut unfiltered_rows = estimate.unfiltered_rows;
        if let Some(aggregate) = node.downcast_ref::<AggregateExec>() {
            if aggregate.group_expr().is_true_no_grouping() {
                (rows, unfiltered_rows) = (1.0, 1.0);
            } else {
                (rows, unfiltered_rows) = (rows / ROWS_PER_GROUP, unfiltered_rows / ROWS_PER_GROUP);
            }
        }
        if let Some(fetch) = node.fetch() {
            rows = rows.min(fetch as f64);
        }
        Some(Self { rows, unfiltered_rows })
    }

    fn of_join(join: &HashJoinExec) -> Option<Self> {
        let (left, right) = (Self::of(join.left())?, Self::of(join.right())?);
        let kept = |side: Self| side.rows / side.unfiltered_rows.max(1.0);
        let (larger, smaller) = if left.unfiltered_rows >= right.unfiltered_rows {
            (left, right)
        } else {
            (right, left)
        };
        let rows = match join.join_type() {
            JoinType::Inner => larger.rows * kept(smaller),
            JoinType::Left => left.rows.max(larger.rows * kept(smaller)),
            JoinType::Right => right.rows.max(larger.rows * kept(smaller)),
            JoinType::Full => left.rows + right.rows,
            JoinType::LeftSemi => left.rows * kept(right),
            JoinType::RightSemi => right.rows * kept(left),
            JoinType::LeftAnti => left.rows * (1.0 - kept(right)).max(0.1),
            JoinType::RightAnti => right.rows * (1.0 - kept(left)).max(0.1),
            JoinType::LeftMark => left.rows,
            JoinType::RightMark => right.rows,
        };
        let unfiltered_rows = match join.join_type() {
            JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => left.unfiltered_rows,
            JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => {
                right.unfiltered_rows
            }
            _ => larger.unfiltered_rows,
        };
        Some(Self { rows, unfiltered_rows })
    }
}

/// Estimated number of rows per group.
const ROWS_PER_GROUP: f64 = 4.0;

/// Estimates the fraction of rows that `predicate` keeps.
fn selectivity(predicate: &Arc<dyn PhysicalExpr>) -> f64 {
    split_conjunction(predicate).into_iter().map(conjunct_selectivity).product()
}

fn conjunct_selectivity(conjunct: &Arc<dyn PhysicalExpr>) -> f64 {
    if let Some(binary) = conjunct.downcast_ref::<BinaryExpr>() {
        let with_value = binary.left().is::<Literal>() || binary.right().is::<Literal>();
        return match binary.op() {
            Operator::Or => (selectivity(binary.left()) + selectivity(binary.right())).min(1.0),
            Operator::Eq if with_value => 0.05,
            Operator::Eq => 0.1,
            Operator::NotEq => 0.9,
            // A comparison bounds a range on one side; two of them make a range.
            _ => 0.5,
        };
    }
    if let Some(list) = conjunct.downcast_ref::<InListExpr>() {
        let kept = (0.05 * list.list().len() as f64).min(0.5);
        return if list.negated() { 1.0 - kept } else { kept };
    }
    if let Some(like) = conjunct.downcast_ref::<LikeExpr>() {
        return if like.negated() { 0.9 } else { 0.1 };
    }
    if let Some(not) = conjunct.downcast_ref::<NotExpr>() {
        return 1.0 - selectivity(not.arg());
    }
    if conjunct.is::<IsNullExpr>() { 0.1 } else { 0.5 }
}
