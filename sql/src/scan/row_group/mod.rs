//! Parquet row groups, column by column: predicates first, the other columns only for the rows that
//! are left.
//!
//! DataFusion's reader decodes every wanted column of every row, and its filter drops rows after
//! that. Here the columns of one conjunct of the scan's predicate are decoded, the conjunct is
//! evaluated, and what follows is decoded for the rows that passed ([`rows`]). Conjuncts that drop
//! much for little go first; those that drop next to nothing are left to the filter above the scan,
//! which checks them all again anyway. So a conjunct may be skipped here at any time, also because it
//! fails. (Abadi et al., "Materialization Strategies in a Column-Oriented DBMS", 2007; and DuckDB's
//! and Velox's adaptive filters.)
//!
//! Footers, pruning and bytes come from DataFusion and the parquet crate; a piece with anything that
//! [`open`] does not know is read by DataFusion's reader instead.

mod conjuncts;
mod nan;
mod open;
mod pages;
mod prune;
mod rows;

pub(super) use conjuncts::LocalConjuncts;
pub(super) use nan::without_nan;
pub(super) use open::{OpenedRowGroup, open};
pub(super) use rows::RowGroupReader;

use std::{collections::HashSet, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch, RecordBatchOptions},
    datatypes::{Field, Schema, SchemaRef},
};
use datafusion::{
    datasource::physical_plan::{FileScanConfig, ParquetSource},
    error::Result,
    physical_expr::{PhysicalExpr, expressions::Column, utils::collect_columns},
};
use gatework_operators::remap_columns;

use self::conjuncts::Conjunct;
use super::ScanFilter;

/// What all tasks of a scan know of its columns.
#[derive(Debug)]
pub(super) struct RowGroupPlan {
    /// The table's columns that are read, each with its field.
    columns: Vec<Arc<Field>>,
    conjuncts: Vec<Conjunct>,
    /// For pruning: all of the scan's predicate.
    predicate: Option<Arc<dyn PhysicalExpr>>,
    table: SchemaRef,
    output: ExprInputs,
    /// Over `output`.
    projection: Exprs,
    schema: SchemaRef,
}

/// Some of the columns that are read, as an expression sees them.
#[derive(Debug)]
struct ExprInputs {
    /// Places in [`RowGroupPlan::columns`].
    slots: Vec<usize>,
    schema: SchemaRef,
}

impl ExprInputs {
    /// The columns of `arrays` that are meant here; those must be there.
    fn batch(&self, arrays: &[Option<ArrayRef>], rows: usize) -> Result<RecordBatch> {
        let columns = self.slots.iter().filter_map(|slot| arrays[*slot].clone()).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)?)
    }
}

type Exprs = Vec<Arc<dyn PhysicalExpr>>;

/// Gives the table's columns places as they are asked for.
struct ColumnSlots {
    table: SchemaRef,
    columns: Vec<usize>,
}

impl ColumnSlots {
    /// `exprs`, which are over the table's columns, over inputs of their own; `None` if they name
    /// what is no column of the file.
    fn inputs(&mut self, exprs: &[Arc<dyn PhysicalExpr>]) -> Result<Option<(ExprInputs, Exprs)>> {
        let mut columns: Vec<usize> =
            exprs.iter().flat_map(collect_columns).map(|column| column.index()).collect();
        columns.sort_unstable();
        columns.dedup();
        if columns.iter().any(|column| *column >= self.table.fields().len()) {
            return Ok(None);
        }
        let slots = columns.iter().map(|column| self.slot(*column)).collect();
        let nullable = |column: &usize| self.table.field(*column).clone().with_nullable(true);
        let fields: Vec<Field> = columns.iter().map(nullable).collect();
        let schema = Arc::new(Schema::new(fields));
        let over_inputs = |expr: &Arc<dyn PhysicalExpr>| remap_columns(expr.clone(), &columns);
        let exprs = exprs.iter().map(over_inputs).collect::<Result<Vec<_>>>()?;
        Ok(Some((ExprInputs { slots, schema }, exprs)))
    }

    fn slot(&mut self, column: usize) -> usize {
        match self.columns.iter().position(|known| *known == column) {
            Some(slot) => slot,
            None => {
                self.columns.push(column);
                self.columns.len() - 1
            }
        }
    }
}

impl RowGroupPlan {
    /// A plan for the scan that `config` describes; `None` if it is not one for this reader.
    pub(super) fn new(
        config: &FileScanConfig,
        filters: &[Arc<ScanFilter>],
    ) -> Result<Option<Self>> {
        let Some(source) = config.file_source.downcast_ref::<ParquetSource>() else {
            return Ok(None);
        };
        let options = source.table_parquet_options();
        // With `pushdown_filters` nobody checks the predicate above the scan. A limit is one on the rows
        // before any filter. An adapter decides itself which column of a file is meant.
        if options.global.pushdown_filters
            || config.limit.is_some()
            || config.expr_adapter_factory.is_some()
            || options.crypto.file_decryption.is_some()
            || options.crypto.factory_id.is_some()
        {
            return Ok(None);
        }
        let table = config.file_source.table_schema().file_schema().clone();
        let names: HashSet<&String> = table.fields().iter().map(|field| field.name()).collect();
        if names.len() < table.fields().len() {
            return Ok(None);
        }
        let mut slots = ColumnSlots { table: table.clone(), columns: Vec::new() };
        let predicate = config.file_source.filter();
        let mut conjuncts = Vec::new();
        for conjunct in predicate.iter().flat_map(datafusion::physical_expr::split_conjunction) {
            conjuncts.extend(Conjunct::new(conjunct, filters, &mut slots)?);
        }
        let schema = config.projected_schema()?;
        let all = || {
            let column = |(index, field): (usize, &Arc<Field>)| -> Arc<dyn PhysicalExpr> {
                Arc::new(Column::new(field.name(), index))
            };
            table.fields().iter().enumerate().map(column).collect::<Vec<_>>()
        };
        let wanted: Exprs = match config.file_source.projection() {
            Some(projection) => projection.iter().map(|output| output.expr.clone()).collect(),
            None if config.file_source.table_schema().table_partition_cols().is_empty() => all(),
            None => return Ok(None),
        };
        let Some((output, projection)) = slots.inputs(&wanted)? else { return Ok(None) };
        let columns = slots.columns.iter().map(|column| table.fields()[*column].clone()).collect();
        Ok(Some(Self { columns, conjuncts, predicate, table, output, projection, schema }))
    }

    /// The scan's columns, of `rows` rows whose columns are in `arrays`.
    fn project(&self, arrays: &[Option<ArrayRef>], rows: usize) -> Result<RecordBatch> {
        let inputs = self.output.batch(arrays, rows)?;
        let column =
            |expr: &Arc<dyn PhysicalExpr>| expr.evaluate(&inputs)?.into_array_of_size(rows);
        let columns = self.projection.iter().map(column).collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)?)
    }
}
