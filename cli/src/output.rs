//! Results on standard output, in the requested format, as they arrive.

mod table;

use std::cell::{Cell, RefCell};
use std::io::{self, BufWriter, Write};
use std::rc::Rc;

use arrow::array::RecordBatch;
use arrow::csv;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use arrow::json::{self, writer::LineDelimited};

use crate::args::Format;
use crate::error::{Error, one_line};
use table::TableWriter;

/// Buffered output that records that its reader has closed it, whatever the layers above make of
/// the error.
#[derive(Clone)]
pub(crate) struct LineWriter {
    out: Rc<RefCell<dyn Write>>,
    closed: Rc<Cell<bool>>,
}

impl LineWriter {
    /// Writes to standard output.
    pub(crate) fn stdout() -> Self {
        Self::new(BufWriter::new(io::stdout()))
    }

    fn new(out: impl Write + 'static) -> Self {
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
    Arrow(StreamWriter<LineWriter>),
}

impl Output {
    /// Starts a result.
    pub(crate) fn new(format: Format, schema: SchemaRef, out: LineWriter) -> Result<Self, Error> {
        let to = out.clone();
        let writer = match format {
            Format::Table => Ok(Writer::Table(TableWriter::new(schema, to))),
            Format::Csv => {
                let mut writer = csv::Writer::new(to);
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

    /// Writes the next rows.
    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<(), Error> {
        let result: Result<(), ArrowError> = match &mut self.writer {
            Writer::Table(writer) => writer.write(batch),
            Writer::Csv(writer) => writer.write(batch),
            Writer::Json(writer) => writer.write(batch),
            Writer::Arrow(writer) => writer.write(batch),
        };
        result.map_err(|error| self.out.error(&error))
    }

    /// Ends the result.
    pub(crate) fn finish(&mut self) -> Result<(), Error> {
        let result = match &mut self.writer {
            Writer::Table(writer) => writer.finish(),
            Writer::Csv(_) => Ok(()),
            Writer::Json(writer) => writer.finish(),
            Writer::Arrow(writer) => writer.finish(),
        };
        result.map_err(|error| self.out.error(&error))
    }
}

#[cfg(test)]
mod tests;
