//! The residual filter of a join: a predicate over pairs of rows.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanBufferBuilder, RecordBatch, RecordBatchOptions, UInt32Array},
    buffer::BooleanBuffer,
    datatypes::SchemaRef,
};
use datafusion_common::JoinSide;
use datafusion_physical_expr::PhysicalExpr;
use gatework_runtime::{Result, pipeline::DriverContext};

use crate::{
    ResultExt,
    batch_bytes::SLICE_BYTES,
    chunked::{Gather, Side, longest_row, pairs_within},
    filter::evaluate_predicate,
};

/// A predicate over columns of both sides; NULL counts as "no match".
#[derive(Debug, Clone)]
pub struct JoinFilter {
    /// The predicate, over the columns of `schema`.
    pub expression: Arc<dyn PhysicalExpr>,
    /// Source of each column of `schema`: the side, and the column index on that side.
    pub columns: Vec<(JoinSide, usize)>,
    /// The columns over which the predicate is evaluated.
    pub schema: SchemaRef,
}

impl JoinFilter {
    /// Returns one bit per pair `(left_rows[i], right_rows[i])`: whether the predicate is true.
    /// Pairs of long values are tested in slices; `task` checks for cancellation between two
    /// slices.
    ///
    /// # Errors
    /// If the predicate fails, or the query was cancelled.
    ///
    /// # Panics
    /// If a row index is out of range.
    pub(crate) fn evaluate(
        &self,
        left: &dyn Gather,
        right: &dyn Gather,
        left_rows: &UInt32Array,
        right_rows: &UInt32Array,
        task: &DriverContext,
    ) -> Result<BooleanBuffer> {
        let columns = [self.columns_of(true), self.columns_of(false)];
        let longest = longest_row(left, &columns[0]) + longest_row(right, &columns[1]);
        let pairs = left_rows.len();
        let mut bits: Option<BooleanBufferBuilder> = None;
        let mut tested = 0;
        loop {
            let sides: [Side<'_>; 2] = [
                (left, &columns[0], &left_rows.values()[tested..]),
                (right, &columns[1], &right_rows.values()[tested..]),
            ];
            let count = pairs_within(SLICE_BYTES, longest, sides);
            let rows = [left_rows.slice(tested, count), right_rows.slice(tested, count)];
            let answer = self.evaluate_slice(left, right, &rows)?;
            tested += count;
            if tested == count && tested == pairs {
                return Ok(answer);
            }
            let bits = bits.get_or_insert_with(|| BooleanBufferBuilder::new(pairs));
            bits.append_buffer(&answer);
            if tested == pairs {
                return Ok(bits.finish());
            }
            task.check_cancelled()?;
        }
    }

    fn columns_of(&self, left: bool) -> Vec<usize> {
        let of_side = self.columns.iter().filter(|(side, _)| (*side == JoinSide::Left) == left);
        of_side.map(|(_, column)| *column).collect()
    }

    fn evaluate_slice(
        &self,
        left: &dyn Gather,
        right: &dyn Gather,
        [left_rows, right_rows]: &[UInt32Array; 2],
    ) -> Result<BooleanBuffer> {
        let gather = |(side, column): &(JoinSide, usize)| match side {
            JoinSide::Left => left.gather(*column, left_rows),
            _ => right.gather(*column, right_rows),
        };
        let columns: Vec<ArrayRef> = self.columns.iter().map(gather).collect::<Result<_>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(left_rows.len()));
        let pairs = RecordBatch::try_new_with_options(self.schema.clone(), columns, &options);
        evaluate_predicate(self.expression.as_ref(), &pairs.query_err()?)
    }
}
