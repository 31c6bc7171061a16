//! One result in a comparable layout: exact columns as sortable bytes, floats as numbers, order
//! keys separately.
//!
//! A [`Layout`] is created once per comparison, so that the bytes of both sides come from the same
//! row converter and can be compared. The Arrow layouts of one logical type are cast to one layout
//! in this module only.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Field, Float64Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, Rows, SortField};
use arrow::util::display::{ArrayFormatter, FormatOptions};

use super::Tolerance;
use super::difference::{Difference, MismatchExample};
use super::order::{ResultOrder, SortKey};

/// The layout of the tables of one comparison.
pub(super) struct Layout<'a> {
    /// Output columns in canonical types.
    schema: SchemaRef,
    order: &'a ResultOrder,
    /// Output columns that are compared exactly, and those that are compared as floats.
    exact: Vec<usize>,
    floats: Vec<usize>,
    exact_converter: Option<RowConverter>,
    /// One converter per order key, created when the type of an expression key is first known.
    key_converters: Vec<Option<RowConverter>>,
}

/// One side of a comparison.
pub(super) struct Table {
    batch: RecordBatch,
    exact: Option<Rows>,
    pub(super) floats: Vec<Vec<Option<f64>>>,
    keys: Vec<Key>,
}

/// The values of one order key.
enum Key {
    Exact(Rows),
    Float(Vec<Option<f64>>),
}

impl<'a> Layout<'a> {
    /// Creates a layout for results of this schema and order.
    pub(super) fn new(schema: &Schema, order: &'a ResultOrder) -> Result<Self, Difference> {
        let schema = canonical_schema(schema);
        let (floats, exact): (Vec<_>, Vec<_>) = (0..schema.fields().len())
            .partition(|&column| is_float(schema.field(column).data_type()));
        let sort_fields: Vec<_> = exact
            .iter()
            .map(|&column| SortField::new(schema.field(column).data_type().clone()))
            .collect();
        let exact_converter = match sort_fields.is_empty() {
            true => None,
            false => Some(RowConverter::new(sort_fields).map_err(incomparable)?),
        };
        let mut key_converters = Vec::new();
        for data_type in order.key_types(&schema)? {
            key_converters.push(match is_float(&data_type) {
                true => None,
                false => {
                    let field = SortField::new(canonical_type(&data_type));
                    Some(RowConverter::new(vec![field]).map_err(incomparable)?)
                }
            });
        }
        Ok(Self { schema, order, exact, floats, exact_converter, key_converters })
    }

    /// Converts one result to this layout; `side` names it in errors.
    pub(super) fn table(&self, side: &str, batches: &[RecordBatch]) -> Result<Table, Difference> {
        let batches = batches
            .iter()
            .map(|batch| self.canonical_batch(side, batch))
            .collect::<Result<Vec<_>, _>>()?;
        let batch = concat_batches(&self.schema, &batches).map_err(incomparable)?;
        let exact = match &self.exact_converter {
            Some(converter) => {
                let columns: Vec<_> =
                    self.exact.iter().map(|&column| Arc::clone(batch.column(column))).collect();
                Some(converter.convert_columns(&columns).map_err(incomparable)?)
            }
            None => None,
        };
        let floats =
            self.floats.iter().map(|&c| float_values(batch.column(c))).collect::<Result<_, _>>()?;
        let keys = self.keys(&batch)?;
        Ok(Table { batch, exact, floats, keys })
    }

    fn canonical_batch(&self, side: &str, batch: &RecordBatch) -> Result<RecordBatch, Difference> {
        let schema = canonical_schema(batch.schema_ref());
        schema_difference(side, &schema, &self.schema).map_or(Ok(()), Err)?;
        cast_batch(batch, &self.schema).map_err(incomparable)
    }

    fn keys(&self, batch: &RecordBatch) -> Result<Vec<Key>, Difference> {
        let mut keys = Vec::new();
        for (key, converter) in self.order.keys.iter().zip(&self.key_converters) {
            let column = match key {
                SortKey::Column(column) => Arc::clone(batch.column(*column)),
                SortKey::Expression(expression) => {
                    expression.evaluate(batch).map_err(incomparable)?
                }
            };
            keys.push(match converter {
                Some(converter) => {
                    let column =
                        cast(&column, &canonical_type(column.data_type())).map_err(incomparable)?;
                    Key::Exact(converter.convert_columns(&[column]).map_err(incomparable)?)
                }
                None => Key::Float(float_values(&column)?),
            });
        }
        Ok(keys)
    }
}

impl Table {
    pub(super) fn num_rows(&self) -> usize {
        self.batch.num_rows()
    }

    /// Returns the exact columns of a row as bytes that are equal if and only if the values are.
    pub(super) fn exact(&self, row: usize) -> &[u8] {
        self.exact.as_ref().map_or(&[], |rows| rows.row(row).data())
    }

    /// Returns whether two rows are equal within the tolerance.
    pub(super) fn same_row(
        &self,
        row: usize,
        other: &Self,
        other_row: usize,
        tolerance: Tolerance,
    ) -> bool {
        self.exact(row) == other.exact(other_row)
            && self.near_floats(row, other, other_row, tolerance)
    }

    /// Returns whether the float columns of two rows are equal within the tolerance.
    pub(super) fn near_floats(
        &self,
        row: usize,
        other: &Self,
        other_row: usize,
        tolerance: Tolerance,
    ) -> bool {
        self.floats.iter().zip(&other.floats).all(|(a, b)| tolerance.near(a[row], b[other_row]))
    }

    /// Returns whether two rows have equal values of an order key, floats within the tolerance.
    pub(super) fn same_key(
        &self,
        key: usize,
        row: usize,
        other: &Self,
        other_row: usize,
        tolerance: Tolerance,
    ) -> bool {
        match (&self.keys[key], &other.keys[key]) {
            (Key::Exact(a), Key::Exact(b)) => a.row(row) == b.row(other_row),
            (Key::Float(a), Key::Float(b)) => tolerance.near(a[row], b[other_row]),
            _ => false,
        }
    }

    /// Returns the row as text for a message.
    pub(super) fn example(&self, row: usize) -> MismatchExample {
        let options = FormatOptions::default().with_null("NULL");
        let value = |column: &ArrayRef| {
            ArrayFormatter::try_new(column.as_ref(), &options).map_or_else(
                |error| error.to_string(),
                |formatter| formatter.value(row).to_string(),
            )
        };
        let values: Vec<_> = self.batch.columns().iter().map(value).collect();
        MismatchExample { row, text: format!("({})", values.join(", ")) }
    }
}

/// Orders floats so that equal ones are adjacent: NULL, then numbers, then NaN; `-0.0` is `0.0`.
pub(super) fn float_order(a: Option<f64>, b: Option<f64>) -> Ordering {
    let plain = |value: f64| if value.is_nan() { f64::NAN.abs() } else { value + 0.0 };
    match (a, b) {
        (Some(a), Some(b)) => plain(a).total_cmp(&plain(b)),
        (a, b) => a.is_some().cmp(&b.is_some()),
    }
}

/// Casts the columns of a batch to the types of a schema, by position.
pub(super) fn cast_batch(
    batch: &RecordBatch,
    schema: &SchemaRef,
) -> Result<RecordBatch, ArrowError> {
    let columns = batch.columns().iter().zip(schema.fields());
    let columns = columns
        .map(|(column, field)| cast(column, field.data_type()))
        .collect::<Result<Vec<_>, _>>()?;
    let rows = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &rows)
}

fn is_float(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Float16 | DataType::Float32 | DataType::Float64)
}

fn float_values(column: &ArrayRef) -> Result<Vec<Option<f64>>, Difference> {
    let column = cast(column, &DataType::Float64).map_err(incomparable)?;
    Ok(column.as_primitive::<Float64Type>().iter().collect())
}

fn incomparable(error: impl std::fmt::Display) -> Difference {
    Difference::Incomparable(format!("the results cannot be compared: {error}"))
}

fn canonical_schema(schema: &Schema) -> SchemaRef {
    let field =
        |field: &Arc<Field>| Field::new(field.name(), canonical_type(field.data_type()), true);
    Arc::new(Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>()))
}

/// Returns the one Arrow type that stands for all layouts of a logical type.
fn canonical_type(data_type: &DataType) -> DataType {
    let list = |item: &Field| {
        DataType::LargeList(Arc::new(Field::new_list_field(canonical_type(item.data_type()), true)))
    };
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => DataType::LargeUtf8,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => DataType::LargeBinary,
        DataType::Dictionary(_, value) => canonical_type(value),
        DataType::RunEndEncoded(_, value) => canonical_type(value.data_type()),
        DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale) => {
            DataType::Decimal128(*precision, *scale)
        }
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _) => list(item),
        DataType::Struct(fields) => DataType::Struct(
            fields
                .iter()
                .map(|field| Field::new(field.name(), canonical_type(field.data_type()), true))
                .collect(),
        ),
        DataType::Map(entries, sorted) => canonical_map(entries, *sorted),
        other => other.clone(),
    }
}

/// Returns the canonical type of a map. Arrow requires that entries and keys are never NULL; the
/// names of a map's parts are normalised.
fn canonical_map(entries: &Field, sorted: bool) -> DataType {
    let DataType::Struct(parts) = entries.data_type() else {
        return DataType::Map(Arc::new(entries.clone()), sorted);
    };
    let names = ["keys", "values"].into_iter().zip([false, true]);
    let parts: Vec<_> = parts
        .iter()
        .zip(names)
        .map(|(part, (name, nullable))| {
            Field::new(name, canonical_type(part.data_type()), nullable)
        })
        .collect();
    DataType::Map(Arc::new(Field::new("entries", DataType::Struct(parts.into()), false)), sorted)
}

/// Returns a logical type's name for a person, independent of the layout it was cast to.
fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::LargeUtf8 => "string".to_owned(),
        DataType::LargeBinary => "binary".to_owned(),
        DataType::LargeList(item) => format!("list of {}", type_name(item.data_type())),
        other => other.to_string(),
    }
}

fn schema_difference(side: &str, schema: &Schema, expected: &Schema) -> Option<Difference> {
    let (fields, expected) = (schema.fields(), expected.fields());
    if fields.len() != expected.len() {
        let sentence = format!(
            "the {side} result has {} columns where {} are expected",
            fields.len(),
            expected.len()
        );
        return Some(Difference::Schema(sentence));
    }
    let position = fields.iter().zip(expected).position(|(a, b)| a != b)?;
    let (field, expected) = (&fields[position], &expected[position]);
    Some(Difference::Schema(format!(
        "column {} of the {side} result is {} {} where {} {} is expected",
        position + 1,
        field.name(),
        type_name(field.data_type()),
        expected.name(),
        type_name(expected.data_type()),
    )))
}
