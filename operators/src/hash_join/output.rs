//! Output rows of a join, gathered by row numbers.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, UInt32Array, new_null_array},
    datatypes::SchemaRef,
};
use gatework_runtime::Result;

use super::config::OutputColumn;
use crate::{OrFail, chunked::Gather};

/// One side's rows of an output batch.
pub(crate) enum Rows<'a> {
    /// The rows with these numbers.
    At(&'a dyn Gather, &'a UInt32Array),
    /// All rows, as they are.
    All(&'a RecordBatch),
    /// NULL in every column.
    Null,
}

impl Rows<'_> {
    fn column(
        &self,
        column: usize,
        schema: &SchemaRef,
        place: usize,
        rows: usize,
    ) -> Result<ArrayRef> {
        match self {
            Self::At(data, numbers) => data.gather(column, numbers),
            Self::All(data) => Ok(data.column(column).clone()),
            Self::Null => Ok(new_null_array(schema.field(place).data_type(), rows)),
        }
    }
}

/// A batch of `rows` rows of `schema`, whose columns come from `columns`.
pub(crate) fn assemble(
    schema: &SchemaRef,
    columns: &[OutputColumn],
    left: &Rows<'_>,
    right: &Rows<'_>,
    mark: Option<&BooleanArray>,
    rows: usize,
) -> Result<RecordBatch> {
    let arrays = columns
        .iter()
        .enumerate()
        .map(|(place, column)| match column {
            OutputColumn::Left(column) => left.column(*column, schema, place, rows),
            OutputColumn::Right(column) => right.column(*column, schema, place, rows),
            OutputColumn::Mark => Ok(match mark {
                Some(mark) => Arc::new(mark.clone()),
                None => new_null_array(schema.field(place).data_type(), rows),
            }),
        })
        .collect::<Result<Vec<ArrayRef>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(schema.clone(), arrays, &options).or_fail()
}
