//! The residual filter of a join: a predicate over pairs of rows.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch, RecordBatchOptions, UInt32Array},
    buffer::BooleanBuffer,
    compute::take,
    datatypes::SchemaRef,
};
use datafusion_common::JoinSide;
use datafusion_physical_expr::PhysicalExpr;
use gatework_runtime::Result;

use crate::{OrFail, filter::evaluate_predicate};

/// A predicate over columns of both sides; NULL counts as "no match".
#[derive(Debug, Clone)]
pub struct JoinFilter {
    /// The predicate, over the columns of `schema`.
    pub expression: Arc<dyn PhysicalExpr>,
    /// Where each column of `schema` comes from: the side, and the column there.
    pub columns: Vec<(JoinSide, usize)>,
    /// The columns the predicate sees.
    pub schema: SchemaRef,
}

impl JoinFilter {
    /// One bit per pair `(left_rows[i], right_rows[i])`: whether the predicate is true.
    ///
    /// # Errors
    /// If the predicate fails.
    ///
    /// # Panics
    /// If a row number is out of range.
    pub fn evaluate(
        &self,
        left: &RecordBatch,
        right: &RecordBatch,
        left_rows: &UInt32Array,
        right_rows: &UInt32Array,
    ) -> Result<BooleanBuffer> {
        let gather = |(side, column): &(JoinSide, usize)| match side {
            JoinSide::Left => take(left.column(*column), left_rows, None),
            _ => take(right.column(*column), right_rows, None),
        };
        let columns: Vec<ArrayRef> =
            self.columns.iter().map(gather).collect::<Result<_, _>>().or_fail()?;
        let options = RecordBatchOptions::new().with_row_count(Some(left_rows.len()));
        let pairs = RecordBatch::try_new_with_options(self.schema.clone(), columns, &options);
        evaluate_predicate(self.expression.as_ref(), &pairs.or_fail()?)
    }
}
