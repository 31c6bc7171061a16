//! What a nested-loop join gives for which rows, worked out once.

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
    OrFail,
    batch_bytes::MAX_BATCH_BYTES,
    chunked::{Gather, Side, longest_row, pairs_within},
    join_filter::JoinFilter,
};

/// Where an output column comes from.
#[derive(Debug, Clone, Copy)]
enum Place {
    Left(usize),
    Right(usize),
    Mark,
}

#[derive(Debug)]
pub(super) struct Plan {
    pub(super) filter: Option<JoinFilter>,
    pub(super) batch_size: usize,
    join_type: JoinType,
    places: Vec<Place>,
    /// The columns that pairs take of each side.
    gathered: [Vec<usize>; 2],
    schema: SchemaRef,
}

impl Plan {
    pub(super) fn new(join: NestedLoopJoin) -> Self {
        let left = (0..join.left_columns).map(Place::Left);
        let right = (0..join.right_columns).map(Place::Right);
        let whole: Vec<Place> = match join.join_type {
            JoinType::LeftSemi | JoinType::LeftAnti => left.collect(),
            JoinType::RightSemi | JoinType::RightAnti => right.collect(),
            JoinType::LeftMark => left.chain([Place::Mark]).collect(),
            JoinType::RightMark => right.chain([Place::Mark]).collect(),
            JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => {
                left.chain(right).collect()
            }
        };
        let places = match &join.projection {
            Some(columns) => columns.iter().map(|column| whole[*column]).collect(),
            None => whole,
        };
        let left = places.iter().filter_map(|place| match place {
            Place::Left(column) => Some(*column),
            _ => None,
        });
        let right = places.iter().filter_map(|place| match place {
            Place::Right(column) => Some(*column),
            _ => None,
        });
        Self {
            gathered: [left.collect(), right.collect()],
            filter: join.filter,
            batch_size: join.batch_size,
            join_type: join.join_type,
            places,
            schema: join.schema,
        }
    }

    /// Whether matching pairs are output, not only which rows have a match.
    pub(super) fn gives_pairs(&self) -> bool {
        use JoinType::{Full, Inner, Left, Right};
        matches!(self.join_type, Inner | Left | Right | Full)
    }

    /// Whether left rows are output by what is known of them in the end.
    pub(super) fn gives_left(&self) -> bool {
        use JoinType::{Full, Left, LeftAnti, LeftMark, LeftSemi};
        matches!(self.join_type, Left | Full | LeftSemi | LeftAnti | LeftMark)
    }

    /// Whether right rows are output by what is known of them after all of the left side.
    pub(super) fn gives_right(&self) -> bool {
        use JoinType::{Full, Right, RightAnti, RightMark, RightSemi};
        matches!(self.join_type, Right | Full | RightSemi | RightAnti | RightMark)
    }

    /// Whether there is no output at all if the left side is empty.
    pub(super) fn needs_left(&self) -> bool {
        !self.gives_right() || self.join_type == JoinType::RightSemi
    }

    /// No rows: what an operator answers that only wants to be called again.
    pub(super) fn nothing(&self) -> Batch {
        Batch::new(RecordBatch::new_empty(self.schema.clone()))
    }

    /// How many of these pairs, from the first on, a batch may hold.
    pub(super) fn pairs_within(
        &self,
        left: &RecordBatch,
        right: &RecordBatch,
        left_rows: &[u32],
        right_rows: &[u32],
    ) -> usize {
        let [left_columns, right_columns] = &self.gathered;
        let longest = longest_row(left, left_columns) + longest_row(right, right_columns);
        let sides: [Side<'_>; 2] =
            [(left, left_columns, left_rows), (right, right_columns, right_rows)];
        pairs_within(MAX_BATCH_BYTES, longest, sides)
    }

    /// The pairs of `left_rows[i]` and `right_rows[i]`.
    pub(super) fn pairs(
        &self,
        left: &RecordBatch,
        right: &RecordBatch,
        left_rows: &UInt32Array,
        right_rows: &UInt32Array,
    ) -> Result<Batch> {
        let column = |place: &Place| match place {
            Place::Left(column) => left.gather(*column, left_rows),
            Place::Right(column) => right.gather(*column, right_rows),
            Place::Mark => internal_err!("a join with a mark gives no pairs").or_fail(),
        };
        let columns = self.places.iter().map(column).collect::<Result<Vec<_>>>()?;
        Ok(Batch::new(self.assemble(columns, left_rows.len())?))
    }

    /// The rows of one side that its `matched` bits let through.
    pub(super) fn one_side(
        &self,
        side: JoinSide,
        rows: &RecordBatch,
        matched: BooleanBuffer,
    ) -> Result<Batch> {
        let count = rows.num_rows();
        let column = |(at, place): (usize, &Place)| -> ArrayRef {
            match (place, side) {
                (Place::Left(column), JoinSide::Left) | (Place::Right(column), JoinSide::Right) => {
                    rows.column(*column).clone()
                }
                (Place::Mark, _) => Arc::new(BooleanArray::new(matched.clone(), None)),
                _ => new_null_array(self.schema.field(at).data_type(), count),
            }
        };
        let columns = self.places.iter().enumerate().map(column).collect();
        let data = self.assemble(columns, count)?;
        Ok(match self.join_type {
            JoinType::LeftSemi | JoinType::RightSemi => Batch::with_selection(data, matched),
            JoinType::LeftMark | JoinType::RightMark => Batch::new(data),
            _ => Batch::with_selection(data, !&matched),
        })
    }

    fn assemble(&self, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(self.schema.clone(), columns, &options).or_fail()
    }
}
