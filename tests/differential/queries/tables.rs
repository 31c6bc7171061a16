//! Generated tables: their columns, rows and storage.

use std::{fmt::Write as _, sync::Arc};

use arrow::{
    array::{Array, RecordBatch},
    datatypes::{DataType, Field, Schema},
    util::display::{ArrayFormatter, FormatOptions},
};

use super::{random::Random, storage::Storage, types::Class, values, values::Spread};

/// A column, as expressions see it.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) class: Class,
}

/// A table. Its first column, `id`, has distinct ascending numbers.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) columns: Vec<Column>,
    pub(crate) rows: RecordBatch,
    pub(crate) storage: Storage,
}

impl Table {
    fn random(name: String, random: &mut Random) -> Self {
        let count = *random.one(&[0, 1, 3, 10, 10, 30, 30, 100, 250, 3000]);
        let (id, id_type) = (Column { name: "id".to_owned(), class: Class::Int }, DataType::Int64);
        let values = values::column(id.class, &id_type, Spread::UNIQUE, count, random);
        let mut fields = vec![Field::new("id", id_type, false)];
        let (mut columns, mut arrays) = (vec![id], vec![values]);
        for place in 0..random.between(2, 7) {
            // All tables can be joined by numbers and by texts.
            let class = match place {
                0 => Class::Int,
                1 => Class::Text,
                _ => Class::random(random),
            };
            let data_type = class.data_type(random);
            let column = values::column(class, &data_type, Spread::random(random), count, random);
            fields.push(Field::new(format!("c{place}"), data_type, true));
            columns.push(Column { name: format!("c{place}"), class });
            arrays.push(column);
        }
        let rows = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap();
        Self { name, columns, rows, storage: Storage::random(random) }
    }

    /// Creates three tables.
    pub(crate) fn random_set(random: &mut Random) -> Vec<Self> {
        (0..3).map(|place| Self::random(format!("t{place}"), random)).collect()
    }

    /// Returns the SQL that creates the table, with its storage as a comment.
    pub(crate) fn sql(&self) -> String {
        let schema = self.rows.schema();
        let fields = schema.fields().iter().enumerate().map(|(place, field)| {
            format!("arrow_cast(column{}, '{}') AS {}", place + 1, field.data_type(), field.name())
        });
        let mut text =
            format!("-- {}: {} rows, {:?}\n", self.name, self.rows.num_rows(), self.storage);
        let _infallible = write!(
            text,
            "CREATE TABLE {} AS SELECT {} FROM (VALUES ",
            self.name,
            fields.collect::<Vec<_>>().join(", ")
        );
        let rows = (0..self.rows.num_rows().min(50)).map(|row| self.row(row));
        text.push_str(&rows.collect::<Vec<_>>().join(", "));
        text.push_str(");");
        text
    }

    fn row(&self, row: usize) -> String {
        let options = FormatOptions::default();
        let values = self.rows.columns().iter().map(|column| {
            if column.is_null(row) || column.data_type() == &DataType::Null {
                return "NULL".to_owned();
            }
            let formatter = ArrayFormatter::try_new(column.as_ref(), &options).unwrap();
            let mut text = formatter.value(row).to_string();
            if text.len() > 60 {
                let end = (0..=60).rev().find(|&end| text.is_char_boundary(end)).unwrap();
                text.truncate(end);
                text.push('…');
            }
            match column.data_type() {
                data_type if data_type.is_numeric() => text,
                _ => format!("'{}'", text.replace('\'', "''")),
            }
        });
        format!("({})", values.collect::<Vec<_>>().join(", "))
    }
}
