//! Columns that reach an operator as dictionaries, although their fields have the type of the
//! values.
//!
//! The sink and the operators of a pipeline say which of their input columns they take as
//! dictionaries ([`Operator::take_dictionaries`]). A join then emits its build columns as row
//! numbers of the table, and a scan a column as codes of its dictionary page. The codes are never
//! NULL: NULL is an entry. Batches without a dictionary have plain values in the same column.
//! (Presto's dictionary blocks.)
//!
//! [`Operator::take_dictionaries`]: gatework_runtime::pipeline::Operator::take_dictionaries

use std::sync::{Arc, OnceLock, Weak};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions},
    buffer::BooleanBuffer,
    compute::take,
    datatypes::{DataType, Field, Schema, SchemaRef, UInt32Type},
};
use datafusion_common::Result as DataFusionResult;
use datafusion_physical_expr::PhysicalExpr;
use gatework_runtime::{Error, Result};

use crate::{
    batch_bytes::{SLICE_BYTES, value_bytes},
    filter::evaluate_predicate,
};

/// Key of the metadata of a field that has a dictionary instead of its values.
const MARK: &str = "gatework.dictionary";

/// Returns whether a batch has a dictionary instead of the values of `field`.
pub(crate) fn is_marked(field: &Field) -> bool {
    field.metadata().contains_key(MARK)
}

/// Returns the schema of `rows` with plain values; `None` if no column is a dictionary.
pub(crate) fn plain_schema(rows: &RecordBatch) -> Option<SchemaRef> {
    let schema = rows.schema_ref();
    if !schema.fields().iter().any(|field| is_marked(field)) {
        return None;
    }
    let plain = |field: &Arc<Field>| match field.data_type() {
        DataType::Dictionary(_, values) if is_marked(field) => {
            let mut metadata = field.metadata().clone();
            metadata.remove(MARK);
            let field = field.as_ref().clone().with_data_type(values.as_ref().clone());
            Arc::new(field.with_metadata(metadata))
        }
        _ => field.clone(),
    };
    let fields: Vec<_> = schema.fields().iter().map(plain).collect();
    Some(Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone())))
}

/// Returns the codes and the entries of `column`, whose field has type `kind`; `None` if it has
/// plain values.
pub(crate) fn codes<'a>(
    column: &'a ArrayRef,
    kind: &DataType,
) -> Option<(&'a [u32], &'a ArrayRef)> {
    if column.data_type() == kind { None } else { codes_of(column) }
}

/// Returns the codes and the entries of column `index` of `rows`; `None` if it has plain values, or
/// if a dictionary is the type of its values.
pub(crate) fn marked_codes(rows: &RecordBatch, index: usize) -> Option<(&[u32], &ArrayRef)> {
    if is_marked(rows.schema_ref().field(index)) { codes_of(rows.column(index)) } else { None }
}

fn codes_of(column: &ArrayRef) -> Option<(&[u32], &ArrayRef)> {
    let dictionary = column.as_dictionary_opt::<UInt32Type>()?;
    (dictionary.keys().null_count() == 0)
        .then(|| (dictionary.keys().values().as_ref(), dictionary.values()))
}

/// Returns `column`, whose field has type `kind`, with plain values.
///
/// # Errors
/// If Arrow cannot gather the values.
pub fn decode(column: &ArrayRef, kind: &DataType) -> DataFusionResult<ArrayRef> {
    match column.as_dictionary_opt::<UInt32Type>() {
        Some(dictionary) if column.data_type() != kind => {
            Ok(take(dictionary.values(), dictionary.keys(), None)?)
        }
        _ => Ok(column.clone()),
    }
}

/// Returns `rows`, whose fields have the types of `schema`, with plain values in all columns.
///
/// # Errors
/// If Arrow cannot gather a column.
pub fn decode_columns(rows: RecordBatch, schema: &SchemaRef) -> DataFusionResult<RecordBatch> {
    if rows
        .columns()
        .iter()
        .zip(schema.fields())
        .all(|(c, field)| c.data_type() == field.data_type())
    {
        return Ok(rows);
    }
    let columns = rows.columns().iter().zip(schema.fields());
    let columns = columns.map(|(column, field)| decode(column, field.data_type()));
    let columns = columns.collect::<DataFusionResult<_>>()?;
    assemble_taken(schema, columns, rows.num_rows(), |_| false)
}

/// Returns a batch of `columns`, of which some may be dictionaries of values of `schema`'s types.
/// Called by sources, which make dictionaries only of columns that their pipeline takes so.
///
/// # Errors
/// If the columns do not fit the schema.
pub fn assemble(
    schema: &SchemaRef,
    columns: Vec<ArrayRef>,
    rows: usize,
) -> DataFusionResult<RecordBatch> {
    assemble_taken(schema, columns, rows, |_| true)
}

/// Returns a batch of `columns`, of which those with an index for which `is_taken` is true may be
/// dictionaries of values of `schema`'s types. Called by operators, which pass dictionaries on.
///
/// # Errors
/// If the columns do not fit the schema, or a column is a dictionary that is not taken.
pub(crate) fn assemble_taken(
    schema: &SchemaRef,
    columns: Vec<ArrayRef>,
    rows: usize,
    is_taken: impl Fn(usize) -> bool,
) -> DataFusionResult<RecordBatch> {
    let is_encoded = |(index, (column, field)): (usize, (&ArrayRef, &Arc<Field>))| {
        let dictionary = column.as_dictionary_opt::<UInt32Type>();
        let is_dictionary = dictionary.is_some_and(|dictionary| {
            let kind = field.data_type();
            column.data_type() != kind && dictionary.values().data_type() == kind
        });
        is_dictionary && is_taken(index)
    };
    let schema = match columns.iter().zip(schema.fields()).enumerate().any(is_encoded) {
        true => {
            let fields = columns.iter().zip(schema.fields()).enumerate();
            let fields =
                fields.map(|(index, (column, field))| match is_encoded((index, (column, field))) {
                    true => Arc::new(encoded_field(field, column.data_type())),
                    false => field.clone(),
                });
            let fields: Vec<_> = fields.collect();
            Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
        }
        false => schema.clone(),
    };
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(schema, columns, &options)?)
}

/// Returns `field` with the type `kind` of a dictionary of its values.
fn encoded_field(field: &Field, kind: &DataType) -> Field {
    let mut metadata = field.metadata().clone();
    metadata.insert(MARK.to_owned(), String::new());
    field.clone().with_data_type(kind.clone()).with_metadata(metadata)
}

/// The output columns that an operator's consumer takes as dictionaries.
#[derive(Debug, Default)]
pub(crate) struct TakenColumns {
    columns: OnceLock<Vec<usize>>,
    /// Set if another consumer takes other columns.
    conflict: OnceLock<()>,
}

impl TakenColumns {
    /// Records the columns that a consumer takes. Called by `take_dictionaries`.
    pub(crate) fn record(&self, columns: &[usize]) {
        if self.columns.get_or_init(|| columns.to_vec()) != columns {
            self.conflict.get_or_init(|| ());
        }
    }

    /// Returns whether the consumer takes `column` as a dictionary.
    pub(crate) fn contains(&self, column: usize) -> bool {
        self.columns.get().is_some_and(|columns| columns.contains(&column))
    }

    /// Checks that all consumers take the same columns. Called when a local state is created.
    ///
    /// # Errors
    /// If two consumers take different columns.
    pub(crate) fn check(&self) -> Result<()> {
        match self.conflict.get() {
            Some(()) => Err(Error::Internal(
                "an operator is part of two pipelines that take different columns as dictionaries"
                    .into(),
            )),
            None => Ok(()),
        }
    }
}

/// The identity of a dictionary's entries. It does not keep them in memory.
#[derive(Debug, Clone)]
pub(crate) struct EntriesId(Weak<dyn Array>);

impl EntriesId {
    pub(crate) fn of(entries: &ArrayRef) -> Self {
        Self(Arc::downgrade(entries))
    }

    /// Returns whether `entries` are those with this identity.
    pub(crate) fn is(&self, entries: &ArrayRef) -> bool {
        // While there is a weak reference, no other array has the address.
        std::ptr::addr_eq(self.0.as_ptr(), Arc::as_ptr(entries))
    }
}

/// A predicate over one column, evaluated once per dictionary entry. It must not fail on an entry
/// that no row has, or its failure must not matter.
#[derive(Debug, Default)]
pub struct EntryPredicate {
    entries: Option<EntriesId>,
    /// Rows that were seen with these entries before the predicate was evaluated on them.
    rows: usize,
    /// For which entries the predicate is true; `None` until enough rows were seen, or if it fails.
    passing: Option<BooleanBuffer>,
}

/// Entries on which a predicate is evaluated as soon as there is one row for this number of them.
const ENTRIES_PER_ROW: usize = 2;

impl EntryPredicate {
    /// Returns one bit per row of `data`, which has one column, of `schema`'s type: whether
    /// `predicate` is true. `None` if the column is not a dictionary, or if it costs less to
    /// evaluate the predicate on the rows.
    pub fn evaluate(
        &mut self,
        predicate: &dyn PhysicalExpr,
        schema: &SchemaRef,
        data: &RecordBatch,
    ) -> Option<BooleanBuffer> {
        let ([column], [field]) = (data.columns(), schema.fields().as_ref()) else { return None };
        let (codes, entries) = codes(column, field.data_type())?;
        if !self.entries.as_ref().is_some_and(|known| known.is(entries)) {
            *self = Self { entries: Some(EntriesId::of(entries)), rows: 0, passing: None };
        }
        if self.passing.is_none() {
            let before = self.rows;
            self.rows = before.saturating_add(codes.len());
            let enough = entries.len() / ENTRIES_PER_ROW;
            // Longer texts would delay a cancellation.
            if self.rows < enough || before > enough || value_bytes(entries) > SLICE_BYTES {
                return None;
            }
            let field = field.as_ref().clone().with_nullable(true);
            let schema = Arc::new(Schema::new(vec![field]));
            let entries = RecordBatch::try_new(schema, vec![entries.clone()]).ok()?;
            self.passing = Some(evaluate_predicate(predicate, &entries).ok()?);
        }
        let passing = self.passing.as_ref()?;
        Some(BooleanBuffer::collect_bool(codes.len(), |row| passing.value(codes[row] as usize)))
    }
}

#[cfg(test)]
mod tests;
