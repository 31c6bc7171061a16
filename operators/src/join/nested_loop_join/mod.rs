//! Nested-loop join: tests every pair of rows, for joins without equal keys, and cross joins.
//!
//! The tasks of [`NestedLoopBuild`] collect the left side, the build side, in chunks of a batch
//! each. No copy of the whole side is made. The tasks of [`NestedLoopProbe`] test their batches of
//! the right side against all chunks, a block of pairs at a time. If the filter bounds a key of one
//! side by values of the other, only pairs within the bounds are tested (`range.rs`). Between
//! blocks a task can yield and be cancelled. Which build rows found a match is one bit each, shared
//! by all probe tasks. Rows that only those bits decide on (unmatched, semi, anti, mark) are output
//! chunk by chunk after the last probe.

mod build;
mod pairs;
mod plan;
mod probe;
mod range;
mod table;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion_common::JoinType;
use gatework_shared_state::join_bridge;

pub use build::NestedLoopBuild;
pub use probe::NestedLoopProbe;

use crate::join::filter::JoinFilter;

/// A join of every left row with every right row that passes a filter.
#[derive(Debug, Clone)]
pub struct NestedLoopJoin {
    /// The join type. The left side is the build side.
    pub join_type: JoinType,
    /// Predicate of matching pairs; all pairs match if there is none. NULL is no match.
    pub filter: Option<JoinFilter>,
    /// Number of columns of the left side.
    pub left_columns: usize,
    /// Number of columns of the right side.
    pub right_columns: usize,
    /// Output columns, as indices into the join's own columns; all if `None`. These are "left ++
    /// right" (inner and outer joins), one side (semi, anti), or one side and the mark.
    pub projection: Option<Arc<[usize]>>,
    /// Schema of the output, after the projection.
    pub schema: SchemaRef,
    /// Maximum rows of an output batch.
    pub batch_size: usize,
}

impl NestedLoopJoin {
    /// Creates the sink of the build pipeline and the operator of the probe pipeline, for these
    /// numbers of tasks.
    ///
    /// # Panics
    /// If there are no tasks or the batch size is 0.
    pub fn operators(
        self,
        build_tasks: usize,
        probe_tasks: usize,
    ) -> (NestedLoopBuild, NestedLoopProbe) {
        assert!(self.batch_size > 0, "the batch size of a nested-loop join must be at least 1");
        let plan = Arc::new(plan::NestedLoopJoinPlan::new(self));
        let (producers, consumers) = join_bridge::new("nested-loop join", build_tasks, probe_tasks);
        (NestedLoopBuild::new(producers, plan.clone()), NestedLoopProbe::new(consumers, plan))
    }
}
