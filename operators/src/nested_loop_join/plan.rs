//! The prepared plan of a nested-loop join: which rows are output.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, UInt32Array, new_null_array},
    buffer::BooleanBuffer,
    datatypes::SchemaRef,
};
use datafusion_common::{JoinSide, JoinType, internal_err};
use gatework_runtime::{Result, pipeline::Batch};

use super::NestedLoopJoin;
use crate::{
    ResultExt,
    batch_bytes::MAX_BATCH_BYTES,
    chunked::{Gather, Side, longest_row, pairs_within},
    join_filter::JoinFilter,
};

/// Source of an output column.
#[derive(Debug, Clone, Copy)]
enum OutputColumn {
    Build(usize),
    Probe(usize),
    Mark,
}

#[derive(Debug)]
pub(super) struct NestedLoopJoinPlan {
    pub(super) filter: Option<JoinFilter>,
    pub(super) batch_size: usize,
    join_type: JoinType,
    output: Vec<OutputColumn>,
    /// Columns gathered for pairs: of the build side, and of the probe side.
    gathered: [Vec<usize>; 2],
    schema: SchemaRef,
}

impl NestedLoopJoinPlan {
    pub(super) fn new(join: NestedLoopJoin) -> Self {
        let left = (0..join.left_columns).map(OutputColumn::Build);
        let right = (0..join.right_columns).map(OutputColumn::Probe);
        let whole: Vec<OutputColumn> = match join.join_type {
            JoinType::LeftSemi | JoinType::LeftAnti => left.collect(),
            JoinType::RightSemi | JoinType::RightAnti => right.collect(),
            JoinType::LeftMark => left.chain([OutputColumn::Mark]).collect(),
            JoinType::RightMark => right.chain([OutputColumn::Mark]).collect(),
            JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => {
                left.chain(right).collect()
            }
        };
        let output = match &join.projection {
            Some(columns) => columns.iter().map(|column| whole[*column]).collect(),
            None => whole,
        };
        let build = output.iter().filter_map(|output_column| match output_column {
            OutputColumn::Build(column) => Some(*column),
            _ => None,
        });
        let probe = output.iter().filter_map(|output_column| match output_column {
            OutputColumn::Probe(column) => Some(*column),
            _ => None,
        });
        Self {
            gathered: [build.collect(), probe.collect()],
            filter: join.filter,
            batch_size: join.batch_size,
            join_type: join.join_type,
            output,
            schema: join.schema,
        }
    }

    /// Returns whether matching pairs are output, not only which rows have a match.
    pub(super) fn emits_pairs(&self) -> bool {
        use JoinType::{Full, Inner, Left, Right};
        matches!(self.join_type, Inner | Left | Right | Full)
    }

    /// Returns whether build rows are output after the probe, by whether they found a match.
    pub(super) fn tracks_build_matches(&self) -> bool {
        use JoinType::{Full, Left, LeftAnti, LeftMark, LeftSemi};
        matches!(self.join_type, Left | Full | LeftSemi | LeftAnti | LeftMark)
    }

    /// Returns whether probe rows are output after all build chunks, by whether they found a match.
    pub(super) fn tracks_probe_matches(&self) -> bool {
        use JoinType::{Full, Right, RightAnti, RightMark, RightSemi};
        matches!(self.join_type, Right | Full | RightSemi | RightAnti | RightMark)
    }

    /// Returns whether an empty build side means an empty result.
    pub(super) fn empty_build_is_empty_result(&self) -> bool {
        !self.tracks_probe_matches() || self.join_type == JoinType::RightSemi
    }

    /// Returns a batch without rows, for an operator that only wants to be called again.
    pub(super) fn empty_batch(&self) -> Batch {
        Batch::new(RecordBatch::new_empty(self.schema.clone()))
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
        let column = |output_column: &OutputColumn| match output_column {
            OutputColumn::Build(column) => build.gather(*column, build_rows),
            OutputColumn::Probe(column) => probe.gather(*column, probe_rows),
            OutputColumn::Mark => internal_err!("a mark join emits no pairs").query_err(),
        };
        let columns = self.output.iter().map(column).collect::<Result<Vec<_>>>()?;
        Ok(Batch::new(self.build_output_batch(columns, build_rows.len())?))
    }

    /// Returns the rows of one side that are output according to their `matched` bits.
    pub(super) fn one_side(
        &self,
        side: JoinSide,
        rows: &RecordBatch,
        matched: BooleanBuffer,
    ) -> Result<Batch> {
        let count = rows.num_rows();
        let column = |(index, output_column): (usize, &OutputColumn)| -> ArrayRef {
            match (output_column, side) {
                (OutputColumn::Build(column), JoinSide::Left)
                | (OutputColumn::Probe(column), JoinSide::Right) => rows.column(*column).clone(),
                (OutputColumn::Mark, _) => Arc::new(BooleanArray::new(matched.clone(), None)),
                _ => new_null_array(self.schema.field(index).data_type(), count),
            }
        };
        let columns = self.output.iter().enumerate().map(column).collect();
        let data = self.build_output_batch(columns, count)?;
        Ok(match self.join_type {
            JoinType::LeftSemi | JoinType::RightSemi => Batch::with_selection(data, matched),
            JoinType::LeftMark | JoinType::RightMark => Batch::new(data),
            _ => Batch::with_selection(data, !&matched),
        })
    }

    fn build_output_batch(&self, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(self.schema.clone(), columns, &options).query_err()
    }
}
