//! A decoder of flat Parquet column chunks into Arrow arrays, with row selections.
//!
//! [`ColumnDecoder`] walks the pages of one chunk: [`pages`] looks at them and takes them apart,
//! [`levels`] tells which rows have values, and [`values`] decodes these, by [`gather`]ing them
//! from a dictionary or from the plain encodings of [`fixed`] and [`strings`].

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

/// The error for data that are not as the format wants them.
#[cold]
fn corrupt(message: impl Into<String>) -> ParquetError {
    ParquetError::General(message.into())
}

/// The error for a chunk whose pages end before its row group does.
#[cold]
fn too_few_rows() -> ParquetError {
    corrupt("a column chunk has fewer rows than its row group")
}

/// The error for a chunk whose pages go on after the last row of its row group.
#[cold]
fn too_many_rows() -> ParquetError {
    corrupt("a column chunk has more rows than its row group")
}

/// A decoder of one column chunk, from its first row to its last.
pub(super) struct ColumnDecoder {
    pages: Pages,
    values: Box<dyn ValueDecoder>,
    target: DataType,
    /// The rows of the chunk that were neither read nor skipped.
    rows_left: usize,
    /// Rows skipped whose pages have not been touched yet.
    pending: usize,
    /// The rows of the current page from the next one on; the pending ones come first.
    page_rows: usize,
    levels: DefinitionLevels,
    /// Whether a read has failed, which leaves the position unknown.
    failed: bool,
}

impl ColumnDecoder {
    /// A decoder of `chunk` into arrays of type `target`, which it must [`supports`]. `data` are
    /// the bytes of the chunk, which begin at file offset `start`.
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
            failed: false,
        })
    }

    /// The values of the next `rows` rows, of those that `selection` (as long) selects; of all if
    /// there is none. After an error, every further read is one.
    pub(super) fn read(
        &mut self,
        rows: usize,
        selection: Option<&BooleanBuffer>,
    ) -> Result<ArrayRef> {
        if let Some(selection) = selection
            && selection.len() != rows
        {
            let len = selection.len();
            return Err(ParquetError::General(format!("a selection of {len} among {rows} rows")));
        }
        let mask = selection.map(Mask::new);
        let selected = mask.map_or(rows, |mask| mask.count());
        if selected == 0 {
            self.skip(rows)?;
            return Ok(new_empty_array(&self.target));
        }
        if self.failed {
            return Err(corrupt("the column could not be read before"));
        }
        self.take(rows)?;
        self.failed = true;
        let array = self.decode(rows, mask.filter(|_| selected < rows), selected)?;
        self.failed = false;
        Ok(array)
    }

    /// Passes over rows. Their pages are touched at the next read only; those that lie wholly
    /// within are then neither decompressed nor decoded.
    pub(super) fn skip(&mut self, rows: usize) -> Result<()> {
        self.take(rows)?;
        self.pending += rows;
        Ok(())
    }

    /// Checks that the chunk ends with the last row, which must have been read or skipped: a page
    /// too many, or one of another chunk, has shifted this column against the others.
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

    /// Takes rows from those left.
    fn take(&mut self, rows: usize) -> Result<()> {
        self.rows_left = self.rows_left.checked_sub(rows).ok_or_else(|| {
            ParquetError::General(format!("{rows} rows wanted, {} left", self.rows_left))
        })?;
        Ok(())
    }

    /// Decodes the next rows, page by page.
    fn decode(&mut self, rows: usize, mask: Option<Mask<'_>>, selected: usize) -> Result<ArrayRef> {
        let mut nulls = ValidityBuilder::default();
        self.values.begin(selected);
        let mut at = 0;
        while at < rows {
            if let Some(mask) = mask {
                // What lies before the next selected row may be whole pages.
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

    /// Passes over the pending rows, to a page that has the row after them.
    fn skip_pending(&mut self) -> Result<()> {
        loop {
            let passed = self.pending.min(self.page_rows);
            if passed > 0 {
                // Nobody needs to know where the values of an exhausted page end.
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

    /// Opens the next page, which is `next`.
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
            _ => Err(corrupt("a page is not what its header says")),
        }
    }

    /// Decodes the next rows of the current page, which has as many.
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
