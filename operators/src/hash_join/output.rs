//! Output batches of a join, gathered by row indices.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, UInt32Array, new_null_array},
    datatypes::SchemaRef,
};
use gatework_runtime::Result;

use super::config::OutputColumn;
use crate::{ResultExt, chunked::Gather};

/// One side's rows of an output batch.
pub(crate) enum RowSource<'a> {
    /// The rows at these indices.
    Take(&'a dyn Gather, &'a UInt32Array),
    /// All rows, unchanged.
    All(&'a RecordBatch),
    /// NULL in every column.
    Nulls,
}

impl RowSource<'_> {
    fn column(
        &self,
        column: usize,
        schema: &SchemaRef,
        index: usize,
        rows: usize,
    ) -> Result<ArrayRef> {
        match self {
            Self::Take(data, indices) => data.gather(column, indices),
            Self::All(data) => Ok(data.column(column).clone()),
            Self::Nulls => Ok(new_null_array(schema.field(index).data_type(), rows)),
        }
    }
}

/// Returns a batch of `rows` rows of `schema`, whose columns come from `columns`.
pub(crate) fn build_output_batch(
    schema: &SchemaRef,
    columns: &[OutputColumn],
    build: &RowSource<'_>,
    probe: &RowSource<'_>,
    mark: Option<&BooleanArray>,
    rows: usize,
) -> Result<RecordBatch> {
    let arrays = columns
        .iter()
        .enumerate()
        .map(|(index, column)| match column {
            OutputColumn::Build(column) => build.column(*column, schema, index, rows),
            OutputColumn::Probe(column) => probe.column(*column, schema, index, rows),
            OutputColumn::Mark => Ok(match mark {
                Some(mark) => Arc::new(mark.clone()),
                None => new_null_array(schema.field(index).data_type(), rows),
            }),
        })
        .collect::<Result<Vec<ArrayRef>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(schema.clone(), arrays, &options).query_err()
}
