//! Results on standard output, in the requested format, as they arrive.

mod plan;
mod table;
mod vertical;

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, BufWriter, Stdout, Write};
use std::rc::Rc;

use arrow::array::RecordBatch;
use arrow::csv;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use arrow::json::{self, writer::LineDelimited};

use crate::args::Format;
use crate::error::{Error, one_line};
use plan::PlanWriter;
use table::{Style, TableWriter};
use vertical::VerticalWriter;

/// Where output goes.
pub(crate) trait Destination: Write {
    /// Ends the output.
    fn end(&mut self) -> io::Result<()> {
        self.flush()
    }
}

impl Destination for BufWriter<Stdout> {}
impl Destination for BufWriter<File> {}

/// Buffered output that records that its reader has closed it, whatever the layers above make of
/// the error.
#[derive(Clone)]
pub(crate) struct LineWriter {
    out: Rc<RefCell<dyn Destination>>,
    closed: Rc<Cell<bool>>,
}

impl LineWriter {
    /// Writes to standard output.
    pub(crate) fn stdout() -> Self {
        Self::to(BufWriter::new(io::stdout()))
    }

    /// Writes to `out`.
    pub(crate) fn to(out: impl Destination + 'static) -> Self {
        Self { out: Rc::new(RefCell::new(out)), closed: Rc::default() }
    }

    /// Writes a line and flushes it.
    pub(crate) fn line(&self, line: &str) -> Result<(), Error> {
        let mut writer = self.clone();
        let written = writeln!(writer, "{line}");
        written.map_err(|error| self.error(&error))?;
        self.flush()
    }

    /// Flushes the buffer.
    pub(crate) fn flush(&self) -> Result<(), Error> {
        let flushed = self.clone().flush_all();
        flushed.map_err(|error| self.error(&error))
    }

    /// Ends the output: for a pager, after the user has left it.
    pub(crate) fn end(&self) -> Result<(), Error> {
        let ended = self.out.borrow_mut().end();
        let ended = self.clone().detect_closed(ended);
        ended.map_err(|error| self.error(&error))
    }

    fn flush_all(&mut self) -> io::Result<()> {
        let result = self.out.borrow_mut().flush();
        self.detect_closed(result)
    }

    fn detect_closed<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            self.closed.set(true);
        }
        result
    }

    fn error(&self, error: &dyn std::fmt::Display) -> Error {
        match self.closed.get() {
            true => Error::OutputClosed,
            false => Error::failed(format!(
                "the result cannot be written: {}",
                one_line(&error.to_string())
            )),
        }
    }
}

impl Write for LineWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = self.out.borrow_mut().write(bytes);
        self.detect_closed(result)
    }

    /// Does nothing: format writers flush after each batch. [`LineWriter::flush`] flushes instead.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The output of one result.
pub(crate) struct Output {
    writer: Writer,
    out: LineWriter,
}

enum Writer {
    Table(TableWriter<LineWriter>),
    Csv(Box<csv::Writer<LineWriter>>),
    Json(json::Writer<LineWriter, LineDelimited>),
    Vertical(VerticalWriter<LineWriter>),
    Plan(PlanWriter<LineWriter>),
    Arrow(StreamWriter<LineWriter>),
}

impl Output {
    /// Starts a result.
    pub(crate) fn new(format: Format, schema: SchemaRef, out: LineWriter) -> Result<Self, Error> {
        let to = out.clone();
        let writer = match format {
            Format::Table => Ok(Writer::Table(TableWriter::new(schema, Style::Boxed, to))),
            Format::Markdown => Ok(Writer::Table(TableWriter::new(schema, Style::Markdown, to))),
            Format::Vertical => Ok(Writer::Vertical(VerticalWriter::new(schema, to))),
            Format::Csv | Format::Tsv => {
                let delimiter = if format == Format::Tsv { b'\t' } else { b',' };
                let mut writer = csv::WriterBuilder::new().with_delimiter(delimiter).build(to);
                // Writes the header, also of a result without rows; CSV writers add it to the first
                // batch.
                writer
                    .write(&RecordBatch::new_empty(schema))
                    .map(|()| Writer::Csv(Box::new(writer)))
            }
            // Writes NULLs explicitly, so that every line has the same keys.
            Format::Json => Ok(Writer::Json(
                json::WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(to),
            )),
            Format::Arrow => StreamWriter::try_new(to, &schema).map(Writer::Arrow),
        };
        let writer = writer.map_err(|error| out.error(&error))?;
        Ok(Self { writer, out })
    }

    /// Starts the result of an EXPLAIN, which is printed as lines.
    pub(crate) fn of_plan(out: LineWriter) -> Self {
        Self { writer: Writer::Plan(PlanWriter::new(out.clone())), out }
    }

    /// Writes the next rows.
    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<(), Error> {
        let result: Result<(), ArrowError> = match &mut self.writer {
            Writer::Table(writer) => writer.write(batch),
            Writer::Csv(writer) => writer.write(batch),
            Writer::Json(writer) => writer.write(batch),
            Writer::Vertical(writer) => writer.write(batch),
            Writer::Plan(writer) => writer.write(batch),
            Writer::Arrow(writer) => writer.write(batch),
        };
        result.map_err(|error| self.out.error(&error))
    }

    /// Ends the result.
    pub(crate) fn finish(&mut self) -> Result<(), Error> {
        let result = match &mut self.writer {
            Writer::Table(writer) => writer.finish(),
            Writer::Csv(_) | Writer::Vertical(_) | Writer::Plan(_) => Ok(()),
            Writer::Json(writer) => writer.finish(),
            Writer::Arrow(writer) => writer.finish(),
        };
        result.map_err(|error| self.out.error(&error))
    }
}

#[cfg(test)]
mod tests;
