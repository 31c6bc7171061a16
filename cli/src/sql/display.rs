//! How results are printed, and where.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use arrow::datatypes::SchemaRef;

use super::pager::Pager;
use crate::args::Format;
use crate::error::Error;
use crate::output::LineWriter;
use crate::progress;

/// Format, destination and additions of results; commands of the shell change them.
pub(super) struct Display {
    pub(super) format: Format,
    /// Whether the time of each statement is printed.
    pub(super) timing: bool,
    /// Whether the profile of each query is printed.
    pub(super) profile: bool,
    /// Whether results that exceed the screen go to a pager.
    pub(super) paging: bool,
    /// Whether row counts are printed.
    row_counts: bool,
    /// The format before [`Format::Vertical`].
    former: Format,
    stdout: LineWriter,
    /// The file that results go to instead of standard output.
    file: Option<LineWriter>,
}

impl Display {
    /// Prints results in `format` to standard output, and nothing else.
    pub(super) fn new(format: Format) -> Self {
        Self {
            format,
            timing: false,
            profile: false,
            paging: false,
            row_counts: false,
            former: Format::Table,
            stdout: LineWriter::stdout(),
            file: None,
        }
    }

    pub(super) fn be_interactive(&mut self) {
        self.paging = true;
        self.row_counts = true;
    }

    /// Prints one line per value, or returns to the format before that.
    pub(super) fn set_vertical(&mut self, on: bool) {
        match (on, self.format == Format::Vertical) {
            (true, false) => self.former = std::mem::replace(&mut self.format, Format::Vertical),
            (false, true) => self.format = self.former,
            _ => {}
        }
    }

    /// Whether results go to a pager if they exceed the screen.
    pub(super) fn is_paged(&self) -> bool {
        self.paging && self.file.is_none() && io::stdout().is_terminal()
    }

    /// Standard output.
    pub(super) fn stdout(&self) -> &LineWriter {
        &self.stdout
    }

    /// Sends further results to a file, which is replaced, or back to standard output.
    pub(super) fn redirect(&mut self, path: Option<&Path>) -> Result<(), Error> {
        if let Some(file) = self.file.take() {
            file.end()?;
        }
        let Some(path) = path else { return Ok(()) };
        let failed =
            |error| Error::failed(format!("'{}' cannot be written: {error}", path.display()));
        let file = File::create(path).map_err(failed)?;
        self.file = Some(LineWriter::to(BufWriter::new(file)));
        Ok(())
    }

    /// Where the next result goes.
    pub(super) fn out(&self, schema: &SchemaRef) -> Result<LineWriter, Error> {
        if let Some(file) = &self.file {
            return Ok(file.clone());
        }
        let terminal = io::stdout().is_terminal();
        if self.format == Format::Arrow && terminal {
            return Err(Error::failed(
                "a terminal cannot show the arrow format; send it to a file with > or \\o",
            ));
        }
        let pager =
            (self.is_paged() && !schema.fields().is_empty()).then(Pager::of_terminal).flatten();
        Ok(pager.map_or_else(|| self.stdout.clone(), LineWriter::to))
    }

    /// Reports the end of a result that has gone to `out`.
    pub(super) fn rows(&self, out: &LineWriter, rows: u64, elapsed: Duration) -> Result<(), Error> {
        let count = match (self.row_counts, self.timing) {
            (false, false) => return Ok(()),
            (_, false) => progress::rows(rows),
            (_, true) => format!("{} in {}", progress::rows(rows), seconds(elapsed)),
        };
        self.add(out, &count)
    }

    /// Writes what is no part of the result behind a result that has gone to `out`: to the terminal
    /// in a shell, and to standard error where other programs may read the output.
    pub(super) fn add(&self, out: &LineWriter, text: &str) -> Result<(), Error> {
        let readable = matches!(self.format, Format::Table | Format::Vertical | Format::Markdown);
        match (&self.file, readable && self.row_counts) {
            (Some(_), true) => self.stdout.line(text),
            (None, true) => out.line(text),
            (_, false) => {
                out.end()?;
                note(text)
            }
        }
    }

    /// Reports the end of a statement without a result.
    pub(super) fn done(&self, elapsed: Duration) -> Result<(), Error> {
        match (self.timing, self.row_counts) {
            (false, _) => Ok(()),
            (true, true) => self.stdout.line(&format!("done in {}", seconds(elapsed))),
            (true, false) => note(&format!("done in {}", seconds(elapsed))),
        }
    }

    /// Confirms a switch.
    pub(super) fn report(&self, what: &str, on: bool) -> Result<(), Error> {
        match self.row_counts {
            true => self.stdout.line(&format!("{what}: {}", if on { "on" } else { "off" })),
            false => Ok(()),
        }
    }

    /// Writes what is buffered.
    pub(super) fn flush(&self) -> Result<(), Error> {
        if let Some(file) = &self.file {
            file.flush()?;
        }
        self.stdout.flush()
    }
}

/// Writes a line to standard error; it is lost if that is closed.
fn note(line: &str) -> Result<(), Error> {
    let _closed = writeln!(io::stderr(), "{line}");
    Ok(())
}

fn seconds(elapsed: Duration) -> String {
    format!("{:.3} s", elapsed.as_secs_f64())
}
