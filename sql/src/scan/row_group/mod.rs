//! Late materialization of Parquet row groups: columns of the predicate first, other columns only
//! for the rows that passed it.
//!
//! DataFusion's reader decodes every requested column of every row, and its filter drops rows
//! afterwards. This reader decodes the columns of one conjunct of the scan's predicate and
//! evaluates it. All later columns are decoded only for the rows that passed ([`rows`]). Conjuncts
//! that drop many rows at low cost are evaluated first; those that drop almost none are skipped.
//! The threshold of a top-n is a conjunct as well, so that most columns of a wide table are read
//! for few rows.
//! The filter above the scan checks all conjuncts again. So the reader may skip a conjunct at any
//! time, also when its evaluation fails. (Abadi et al., "Materialization Strategies in a
//! Column-Oriented DBMS", 2007; DuckDB's and Velox's adaptive filters.)
//!
//! DataFusion and the parquet crate provide footers, pruning and bytes. DataFusion's reader reads
//! every morsel with a feature that [`open`] does not support.

mod bloom;
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

use std::{
    collections::HashSet,
    sync::{Arc, OnceLock},
};

use arrow::{
    array::{ArrayRef, RecordBatch},
    datatypes::{Field, Schema, SchemaRef},
};
use datafusion::{
    datasource::physical_plan::{FileScanConfig, ParquetSource},
    error::Result,
    physical_expr::{PhysicalExpr, expressions::Column, utils::collect_columns},
};
use gatework_operators::{dictionary::assemble, remap_columns};

use self::conjuncts::Conjunct;
use super::{ScanFilter, ScanThreshold};

/// The columns and expressions of a scan, shared by its tasks.
#[derive(Debug)]
pub(super) struct RowGroupPlan {
    /// Fields of the table's columns that are read.
    columns: Vec<Arc<Field>>,
    conjuncts: Vec<Conjunct>,
    /// The scan's whole predicate, for pruning.
    predicate: Option<Arc<dyn PhysicalExpr>>,
    table: SchemaRef,
    output: ExprInputs,
    /// Projection over `output`.
    projection: Exprs,
    schema: SchemaRef,
    /// Slots whose columns may stay dictionaries.
    dictionaries: OnceLock<Vec<usize>>,
}

/// The columns that are the input of an expression.
#[derive(Debug)]
struct ExprInputs {
    /// Indices into [`RowGroupPlan::columns`].
    slots: Vec<usize>,
    schema: SchemaRef,
}

impl ExprInputs {
    /// Returns a batch of the input columns, all of which must be decoded in `arrays`.
    fn batch(&self, arrays: &[Option<ArrayRef>], rows: usize) -> Result<RecordBatch> {
        let columns = self.slots.iter().filter_map(|slot| arrays[*slot].clone()).collect();
        assemble(&self.schema, columns, rows)
    }
}

type Exprs = Vec<Arc<dyn PhysicalExpr>>;

/// Assigns slots to the table's columns in the order of their first use.
struct ColumnSlots {
    table: SchemaRef,
    columns: Vec<usize>,
}

impl ColumnSlots {
    /// Rewrites `exprs` from the table's columns to inputs of their own. `None` if they use a
    /// column that is not in the file.
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
    /// Creates the plan for the scan that `config` describes; `None` if this reader does not
    /// support it.
    pub(super) fn new(
        config: &FileScanConfig,
        filters: &[Arc<ScanFilter>],
        thresholds: &[ScanThreshold],
    ) -> Result<Option<Self>> {
        let Some(source) = config.file_source.downcast_ref::<ParquetSource>() else {
            return Ok(None);
        };
        let options = source.table_parquet_options();
        // With `pushdown_filters`, no operator checks the predicate above the scan. A limit counts
        // rows before any filter. An adapter decides itself which file column a name refers to.
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
            conjuncts.extend(Conjunct::new(conjunct, (filters, thresholds), &mut slots)?);
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
        let dictionaries = OnceLock::new();
        Ok(Some(Self {
            columns,
            conjuncts,
            predicate,
            table,
            output,
            projection,
            schema,
            dictionaries,
        }))
    }

    /// Lets the output columns `output` stay dictionaries, as far as no other one is computed from
    /// the same column of the file.
    pub(super) fn take_dictionaries(&self, output: &[usize]) {
        let is_taken = |index: usize, expr: &Arc<dyn PhysicalExpr>| {
            expr.is::<Column>() && output.contains(&index)
        };
        let exprs = self.projection.iter().enumerate();
        let (taken, other) = exprs.partition::<Vec<_>, _>(|(index, expr)| is_taken(*index, expr));
        let columns = |exprs: Vec<(usize, &Arc<dyn PhysicalExpr>)>| -> Vec<usize> {
            let columns = exprs.into_iter().flat_map(|(_, expr)| collect_columns(expr));
            columns.map(|column| column.index()).collect()
        };
        let (taken, other) = (columns(taken), columns(other));
        let taken = taken.into_iter().filter(|column| !other.contains(column));
        let _first = self.dictionaries.set(taken.map(|column| self.output.slots[column]).collect());
    }

    /// Returns whether the column in `slot` may stay a dictionary.
    fn takes_dictionary(&self, slot: usize) -> bool {
        self.dictionaries.get().is_some_and(|slots| slots.contains(&slot))
    }

    /// Projects the decoded columns in `arrays`, of `rows` rows, to the scan's output.
    fn project(&self, arrays: &[Option<ArrayRef>], rows: usize) -> Result<RecordBatch> {
        let inputs = self.output.batch(arrays, rows)?;
        let column =
            |expr: &Arc<dyn PhysicalExpr>| expr.evaluate(&inputs)?.into_array_of_size(rows);
        let columns = self.projection.iter().map(column).collect::<Result<Vec<_>>>()?;
        assemble(&self.schema, columns, rows)
    }
}
