//! A decoder of flat Parquet column chunks into Arrow arrays, with row selections.
//!
//! [`ColumnDecoder`] walks the pages of one chunk. [`pages`] peeks at the pages and splits them
//! into parts, and [`levels`] reads which rows have values. [`values`] decodes the values: it
//! [`gather`]s them from a dictionary, or reads the plain encodings of [`fixed`] and [`strings`].

mod bits;
mod fixed;
mod gather;
mod header;
mod levels;
mod mask;
mod pages;
mod strings;
mod target;
mod values;
mod views;

#[cfg(test)]
mod tests;

pub(super) use header::PageHeader;
pub(super) use target::supports;

use arrow_array::{Array, ArrayRef, new_empty_array};
use arrow_buffer::BooleanBuffer;
use arrow_schema::DataType;
use bytes::Bytes;
use levels::{DefinitionLevels, Presence, ValidityBuilder};
use mask::{Mask, compress};
use pages::{DecodedPage, PageKind, Pages};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ColumnChunkMetaData;
use values::ValueDecoder;

/// Returns the error for data that violate the format.
#[cold]
fn corrupt(message: impl Into<String>) -> ParquetError {
    ParquetError::General(message.into())
}

/// Returns the error for a chunk whose pages end before its row group does.
#[cold]
fn too_few_rows() -> ParquetError {
    corrupt("a column chunk has fewer rows than its row group")
}

/// Returns the error for a chunk whose pages continue after the last row of its row group.
#[cold]
fn too_many_rows() -> ParquetError {
    corrupt("a column chunk has more rows than its row group")
}

/// A decoder of one column chunk, from its first row to its last.
pub(super) struct ColumnDecoder {
    pages: Pages,
    values: Box<dyn ValueDecoder>,
    target: DataType,
    /// Number of the chunk's rows that have been neither read nor skipped.
    rows_left: usize,
    /// Number of skipped rows whose pages have not been touched yet.
    pending: usize,
    /// Number of the current page's rows that remain, the pending ones first.
    page_rows: usize,
    levels: DefinitionLevels,
    /// Maximum number of entries of a dictionary whose codes are returned; `None`: always values.
    max_entries: Option<usize>,
    /// Whether a read has failed; the position is then unknown.
    failed: bool,
}

impl ColumnDecoder {
    /// Creates a decoder of `chunk` into arrays of type `target`, for which [`supports`] must be
    /// true. `data` contains the bytes of the chunk, which begin at file offset `start`.
    pub(super) fn new(
        chunk: &ColumnChunkMetaData,
        rows_in_group: usize,
        data: Bytes,
        start: u64,
        target: DataType,
    ) -> Result<Self> {
        if !supports(chunk, &target) {
            let column = chunk.column_path().string();
            return Err(ParquetError::NYI(format!("decoding column {column} as {target}")));
        }
        let values = target::value_decoder(chunk.column_descr(), &target)
            .ok_or_else(|| ParquetError::NYI(format!("decoding as {target}")))?;
        Ok(Self {
            pages: Pages::new(chunk, rows_in_group, data, start)?,
            values,
            target,
            rows_left: rows_in_group,
            pending: 0,
            page_rows: 0,
            levels: DefinitionLevels::required(),
            max_entries: None,
            failed: false,
        })
    }

    /// Lets reads return dictionaries of `UInt32` codes where pages have such: codes without NULLs,
    /// of entries of the target type. They do not if a dictionary has more than `max_entries`
    /// entries.
    pub(super) fn with_codes(mut self, max_entries: usize) -> Self {
        self.max_entries = Some(max_entries);
        self
    }

    /// Returns the values of those of the next `rows` rows that `selection` (`rows` bits) selects;
    /// of all rows without a selection. After an error, every further read fails.
    pub(super) fn read(
        &mut self,
        rows: usize,
        selection: Option<&BooleanBuffer>,
    ) -> Result<ArrayRef> {
        if let Some(selection) = selection
            && selection.len() != rows
        {
            let len = selection.len();
            return Err(ParquetError::General(format!(
                "a selection of {len} bits for {rows} rows"
            )));
        }
        let mask = selection.map(Mask::new);
        let selected = mask.map_or(rows, |mask| mask.count());
        if selected == 0 {
            self.skip(rows)?;
            return Ok(new_empty_array(&self.target));
        }
        if self.failed {
            return Err(corrupt("an earlier read of the column has failed"));
        }
        self.take(rows)?;
        self.failed = true;
        let array = self.decode(rows, mask.filter(|_| selected < rows), selected)?;
        self.failed = false;
        Ok(array)
    }

    /// Skips rows. Their pages are touched only at the next read; pages whose rows are all skipped
    /// are neither decompressed nor decoded.
    pub(super) fn skip(&mut self, rows: usize) -> Result<()> {
        self.take(rows)?;
        self.pending += rows;
        Ok(())
    }

    /// Checks that the chunk ends with the last row, which must have been read or skipped. An extra
    /// page, or one of another chunk, shifts this column against the others.
    pub(super) fn finish(&mut self) -> Result<()> {
        if self.rows_left > 0 {
            return Err(ParquetError::General(format!("{} rows were not read", self.rows_left)));
        }
        loop {
            let passed = self.pending.min(self.page_rows);
            self.pending -= passed;
            self.page_rows -= passed;
            if self.page_rows > 0 {
                return Err(too_many_rows());
            }
            match self.pages.peek()? {
                None if self.pending == 0 => return Ok(()),
                None => return Err(too_few_rows()),
                Some(PageKind::Data(rows)) if rows > self.pending => return Err(too_many_rows()),
                Some(PageKind::Data(rows)) => self.pending -= rows,
                Some(PageKind::Dictionary) => {}
            }
            self.pages.skip()?;
        }
    }

    /// Subtracts `rows` from `rows_left`.
    fn take(&mut self, rows: usize) -> Result<()> {
        self.rows_left = self.rows_left.checked_sub(rows).ok_or_else(|| {
            ParquetError::General(format!("{rows} rows requested, {} left", self.rows_left))
        })?;
        Ok(())
    }

    /// Decodes the next rows, page by page.
    fn decode(&mut self, rows: usize, mask: Option<Mask<'_>>, selected: usize) -> Result<ArrayRef> {
        let mut nulls = ValidityBuilder::default();
        self.values.begin(selected, self.max_entries);
        let mut at = 0;
        while at < rows {
            if let Some(mask) = mask {
                // The rows before the next selected row may fill whole pages.
                let next = mask.next_set(at).unwrap_or(rows);
                self.pending += next - at;
                at = next;
                if at == rows {
                    break;
                }
            }
            self.skip_pending()?;
            let taken = self.page_rows.min(rows - at);
            self.decode_rows(taken, mask.map(|mask| mask.slice(at, taken)), &mut nulls)?;
            self.page_rows -= taken;
            at += taken;
        }
        let array = self.values.finish(nulls.finish())?;
        if array.len() != selected {
            return Err(corrupt("a column has fewer values than rows"));
        }
        Ok(array)
    }

    /// Skips the pending rows, up to a page that contains the row after them.
    fn skip_pending(&mut self) -> Result<()> {
        loop {
            let passed = self.pending.min(self.page_rows);
            if passed > 0 {
                // The position of the values in an exhausted page is not needed.
                if passed < self.page_rows {
                    let values = self.levels.skip(passed)?;
                    self.values.skip(values)?;
                }
                self.pending -= passed;
                self.page_rows -= passed;
            }
            if self.page_rows > 0 {
                return Ok(());
            }
            match self.pages.peek()? {
                None => return Err(too_few_rows()),
                Some(PageKind::Data(rows)) if rows <= self.pending => {
                    self.pages.skip()?;
                    self.pending -= rows;
                }
                Some(next) => {
                    self.values.close();
                    self.levels = DefinitionLevels::required();
                    self.open(next)?;
                }
            }
        }
    }

    /// Opens the next page, whose kind is `next`.
    fn open(&mut self, next: PageKind) -> Result<()> {
        match (next, self.pages.open()?) {
            (PageKind::Dictionary, DecodedPage::Dictionary(data, count)) => {
                self.values.dictionary(data, count)
            }
            (PageKind::Data(rows), DecodedPage::Data(page)) => {
                self.values.open(page.encoding, page.values)?;
                self.levels = page.levels;
                self.page_rows = rows;
                Ok(())
            }
            _ => Err(corrupt("the kind of a page contradicts its header")),
        }
    }

    /// Decodes the next rows of the current page, which has at least that many rows.
    fn decode_rows(
        &mut self,
        rows: usize,
        mask: Option<Mask<'_>>,
        nulls: &mut ValidityBuilder,
    ) -> Result<()> {
        match (self.levels.read(rows)?, mask) {
            (Presence::All, mask) => {
                self.values.read(rows, mask)?;
                nulls.append_present(mask.map_or(rows, |mask| mask.count()));
            }
            (Presence::Some(present, count), None) => {
                self.values.read(count, None)?;
                self.values.spread(&present, count);
                nulls.append(&present);
            }
            (Presence::Some(present, count), Some(mask)) => {
                // The mask of the values, and which of the selected rows have one.
                let values = compress(mask, Mask::new(&present));
                let present = compress(Mask::new(&present), mask);
                let selected = Mask::new(&values).count();
                if selected == 0 {
                    self.values.skip(count)?;
                } else {
                    self.values.read(count, Some(Mask::new(&values)))?;
                }
                self.values.spread(&present, selected);
                nulls.append(&present);
            }
        }
        Ok(())
    }
}
