//! Nested-loop join: tests every pair of rows, for joins without equal keys, and cross joins.
//!
//! The left side is collected by the tasks of [`NestedLoopBuild`] into chunks of a batch each; no
//! copy of the whole is ever made. The tasks of [`NestedLoopProbe`] take their own batches of the
//! right side past all chunks, a block of pairs at a time, so that a task can yield and be cancelled
//! between blocks. Which left rows met a match is one bit each, shared by all probers; rows that only
//! those bits decide on (unmatched, semi, anti, mark) are given chunk by chunk after the last prober.

mod build;
mod pairs;
mod plan;
mod probe;
mod table;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion_common::JoinType;
use gatework_shared_state::join_bridge;

pub use build::NestedLoopBuild;
pub use probe::NestedLoopProbe;

use crate::join_filter::JoinFilter;

/// A join of every left row with every right row that passes a filter.
#[derive(Debug, Clone)]
pub struct NestedLoopJoin {
    /// Which rows it gives. The left side is the one that is collected.
    pub join_type: JoinType,
    /// Which pairs match; all of them if there is no filter. NULL is no match.
    pub filter: Option<JoinFilter>,
    /// Columns of the left side.
    pub left_columns: usize,
    /// Columns of the right side.
    pub right_columns: usize,
    /// Which columns of "left ++ right" (inner and outer joins), of one side (semi, anti) or of one
    /// side and the mark are the output; all if `None`.
    pub projection: Option<Arc<[usize]>>,
    /// The output after the projection.
    pub schema: SchemaRef,
    /// Rows of an output batch.
    pub batch_size: usize,
}

impl NestedLoopJoin {
    /// The sink of the left pipeline and the operator of the right one, for as many tasks as these
    /// pipelines have.
    ///
    /// # Panics
    /// If there are no tasks or the batch size is 0.
    pub fn operators(
        self,
        build_tasks: usize,
        probe_tasks: usize,
    ) -> (NestedLoopBuild, NestedLoopProbe) {
        assert!(self.batch_size > 0, "a batch has at least one row");
        let plan = Arc::new(plan::NestedLoopJoinPlan::new(self));
        let (producers, consumers) = join_bridge::new("nested-loop join", build_tasks, probe_tasks);
        (NestedLoopBuild::new(producers, plan.batch_size), NestedLoopProbe::new(consumers, plan))
    }
}
