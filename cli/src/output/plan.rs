//! The result of an EXPLAIN as lines.

use std::io::Write;

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};

/// Writes rows of a plan's kind and its text.
pub(super) struct PlanWriter<W> {
    out: W,
    /// Whether a plan has been written.
    begun: bool,
}

impl<W: Write> PlanWriter<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, begun: false }
    }

    /// Writes the kind of each plan above its lines.
    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<(), ArrowError> {
        let options = FormatOptions::default();
        let formatter =
            |column: usize| ArrayFormatter::try_new(batch.column(column).as_ref(), &options);
        let (kinds, texts) = (formatter(0)?, formatter(batch.num_columns() - 1)?);
        for row in 0..batch.num_rows() {
            if std::mem::replace(&mut self.begun, true) {
                writeln!(self.out)?;
            }
            writeln!(self.out, "{}", kinds.value(row))?;
            for line in texts.value(row).to_string().trim_end().lines() {
                writeln!(self.out, "  {line}")?;
            }
        }
        Ok(())
    }
}
