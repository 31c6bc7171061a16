//! The prepared plan of a nested-loop join.

use arrow::array::{RecordBatch, UInt32Array};
use datafusion_common::{JoinSide, JoinType};
use gatework_runtime::{Result, pipeline::Batch};

use super::{NestedLoopJoin, range::RangeCondition};
use crate::{
    batch_bytes::MAX_BATCH_BYTES,
    chunked::{Side, longest_row, pairs_within},
    join::{
        filter::JoinFilter,
        layout::{JoinLayout, RowSource},
    },
};

#[derive(Debug)]
pub(super) struct NestedLoopJoinPlan {
    pub(super) filter: Option<JoinFilter>,
    /// A condition of the filter that excludes pairs without testing them.
    pub(super) range: Option<RangeCondition>,
    pub(super) batch_size: usize,
    pub(super) layout: JoinLayout,
    /// Columns gathered for pairs: of the build side, and of the probe side.
    gathered: [Vec<usize>; 2],
}

/// Returns the side that should be sorted by the key of a range condition. The build side is sorted
/// once, a probe batch for itself; but where the first match decides on a build row, that row
/// should have the bounds.
fn sorted_side(kind: JoinType) -> JoinSide {
    match kind {
        JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => JoinSide::Right,
        _ => JoinSide::Left,
    }
}

impl NestedLoopJoinPlan {
    pub(super) fn new(join: NestedLoopJoin) -> Self {
        let sides = [join.left_columns, join.right_columns];
        let layout =
            JoinLayout::new(join.join_type, sides, join.projection.as_deref(), join.schema);
        Self {
            gathered: layout.gathered(),
            // Without a condition, the filter tests all pairs.
            range: join
                .filter
                .as_ref()
                .and_then(|filter| RangeCondition::of(filter, sorted_side(join.join_type)).ok()?),
            filter: join.filter,
            batch_size: join.batch_size,
            layout,
        }
    }

    /// Returns a batch without rows, for an operator that only wants to be called again.
    pub(super) fn empty_batch(&self) -> Batch {
        Batch::new(RecordBatch::new_empty(self.layout.schema().clone()))
    }

    /// Returns how many of these pairs, from the first on, fit into a batch.
    pub(super) fn pairs_within(
        &self,
        build: &RecordBatch,
        probe: &RecordBatch,
        build_rows: &[u32],
        probe_rows: &[u32],
    ) -> usize {
        let [build_columns, probe_columns] = &self.gathered;
        let longest = longest_row(build, build_columns) + longest_row(probe, probe_columns);
        let sides: [Side<'_>; 2] =
            [(build, build_columns, build_rows), (probe, probe_columns, probe_rows)];
        pairs_within(MAX_BATCH_BYTES, longest, sides)
    }

    /// Returns the pairs of `build_rows[i]` and `probe_rows[i]`.
    pub(super) fn pairs_batch(
        &self,
        build: &RecordBatch,
        probe: &RecordBatch,
        build_rows: &UInt32Array,
        probe_rows: &UInt32Array,
    ) -> Result<Batch> {
        let rows = build_rows.len();
        let build = RowSource::Take(build, build_rows);
        let probe = RowSource::Take(probe, probe_rows);
        Ok(Batch::new(self.layout.batch(&build, &probe, None, rows)?))
    }
}
