//! Selection of the build side of hash joins.
//!
//! DataFusion builds the side with fewer rows by its own statistics. These know little of filters
//! and nothing of the selectivity of joins and semi joins. So the larger side is built where it
//! matters most. Query 21 of TPC-H builds a table of half of lineitem to find the few rows of one
//! nation's suppliers. This rule decides again, with gatework's own [estimates](super::estimates).
//! Where the row count of a table is unknown, the plan does not change.

use std::sync::Arc;

use datafusion::{
    common::{
        config::ConfigOptions,
        tree_node::{Transformed, TransformedResult, TreeNode},
    },
    error::Result,
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::{
        ExecutionPlan,
        joins::{HashJoinExec, PartitionMode},
    },
};

use super::estimates::Estimate;

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
