//! A result with one line per value, for rows that are wider than the screen.

use std::io::Write;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use unicode_width::UnicodeWidthStr;

/// Writes one result.
pub(super) struct VerticalWriter<W> {
    schema: SchemaRef,
    out: W,
    /// Number of rows written.
    rows: u64,
}

impl<W: Write> VerticalWriter<W> {
    pub(super) fn new(schema: SchemaRef, out: W) -> Self {
        Self { schema, out, rows: 0 }
    }

    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<(), ArrowError> {
        let options = FormatOptions::default().with_null("NULL").with_display_error(true);
        let columns =
            batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options));
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        let names: Vec<_> = self.schema.fields().iter().map(|field| field.name()).collect();
        let width = names.iter().map(|name| name.width()).max().unwrap_or(0);
        for row in 0..batch.num_rows() {
            self.rows += 1;
            writeln!(self.out, "-- row {}", self.rows)?;
            for (name, column) in names.iter().zip(&columns) {
                let padding = " ".repeat(width - name.width());
                writeln!(self.out, "{name}{padding} = {}", column.value(row))?;
            }
        }
        Ok(())
    }
}
