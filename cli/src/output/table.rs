//! A result as aligned columns, or as a table of Markdown.
//!
//! The first [`SAMPLE`] rows are buffered and set the column widths. Later rows are printed as they
//! arrive; a longer value among them exceeds its column, so that the result need not wait in
//! memory.

use std::io::Write;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use unicode_width::UnicodeWidthStr;

/// How a table is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// With lines around it.
    Boxed,
    Markdown,
}

/// Number of rows that set the widths.
const SAMPLE: usize = 1000;

/// Writes one result as a table.
pub(super) struct TableWriter<W> {
    schema: SchemaRef,
    style: Style,
    out: W,
    sample: Vec<Vec<String>>,
    /// Set once the header is written.
    widths: Option<Vec<usize>>,
}

impl<W: Write> TableWriter<W> {
    pub(super) fn new(schema: SchemaRef, style: Style, out: W) -> Self {
        Self { schema, style, out, sample: Vec::new(), widths: None }
    }

    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<(), ArrowError> {
        let options = FormatOptions::default().with_null("NULL").with_display_error(true);
        let columns =
            batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options));
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        for row in 0..batch.num_rows() {
            let cells = columns.iter().map(|column| self.cell(&column.value(row).to_string()));
            let cells: Vec<_> = cells.collect();
            match &self.widths {
                Some(widths) => Self::write_row(&mut self.out, &self.schema, widths, &cells)?,
                None => self.sample_row(cells)?,
            }
        }
        Ok(())
    }

    pub(super) fn finish(&mut self) -> Result<(), ArrowError> {
        if self.widths.is_none() {
            self.write_sample()?;
        }
        match self.style {
            Style::Boxed => self.write_rule(),
            Style::Markdown => Ok(()),
        }
    }

    /// A value within one cell.
    fn cell(&self, value: &str) -> String {
        let cell = on_one_line(value);
        match self.style {
            Style::Boxed => cell,
            Style::Markdown => cell.replace('|', "\\|"),
        }
    }

    fn sample_row(&mut self, cells: Vec<String>) -> Result<(), ArrowError> {
        self.sample.push(cells);
        match self.sample.len() == SAMPLE {
            true => self.write_sample(),
            false => Ok(()),
        }
    }

    fn write_sample(&mut self) -> Result<(), ArrowError> {
        let names: Vec<_> =
            self.schema.fields().iter().map(|field| self.cell(field.name())).collect();
        let sample = std::mem::take(&mut self.sample);
        let width = |column: usize| {
            std::iter::once(&names)
                .chain(&sample)
                .map(|cells| cells[column].width())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<_> = (0..names.len()).map(width).collect();
        self.widths = Some(widths.clone());
        if self.style == Style::Boxed {
            self.write_rule()?;
        }
        Self::write_row(&mut self.out, &self.schema, &widths, &names)?;
        self.write_rule()?;
        for cells in &sample {
            Self::write_row(&mut self.out, &self.schema, &widths, cells)?;
        }
        Ok(())
    }

    fn write_rule(&mut self) -> Result<(), ArrowError> {
        let widths = self.widths.iter().flatten();
        let rules = widths.zip(self.schema.fields()).map(|(width, field)| {
            match self.style == Style::Markdown && is_number(field.data_type()) {
                true => format!("{}:", "-".repeat(width + 1)),
                false => "-".repeat(width + 2),
            }
        });
        let (side, between) = match self.style {
            Style::Boxed => ('+', "+"),
            Style::Markdown => ('|', "|"),
        };
        writeln!(self.out, "{side}{}{side}", rules.collect::<Vec<_>>().join(between))?;
        Ok(())
    }

    fn write_row(
        out: &mut W,
        schema: &SchemaRef,
        widths: &[usize],
        cells: &[String],
    ) -> Result<(), ArrowError> {
        for ((cell, &width), field) in cells.iter().zip(widths).zip(schema.fields()) {
            let padding = " ".repeat(width.saturating_sub(cell.width()));
            match is_number(field.data_type()) {
                true => write!(out, "| {padding}{cell} ")?,
                false => write!(out, "| {cell}{padding} ")?,
            }
        }
        writeln!(out, "|")?;
        Ok(())
    }
}

fn is_number(data_type: &DataType) -> bool {
    data_type.is_numeric()
}

/// Escapes a value with control characters, since a line break would break the table.
fn on_one_line(value: &str) -> String {
    match value.contains(char::is_control) {
        true => value.escape_debug().to_string(),
        false => value.to_owned(),
    }
}
