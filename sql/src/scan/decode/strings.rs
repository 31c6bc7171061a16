//! Strings and binary values, read as views into their pages.
//!
//! A dictionary is turned into views once, so that reading its indices is a gather of `u128`s.
//! Views of plain pages refer to the page if a large share of it is selected. Otherwise the
//! selected values are copied, so that a few values do not keep a page in memory.

use super::corrupt;
use super::mask::Mask;
use super::values::ValueEncoding;
use super::views::{
    MAX_INLINE_LEN, invalid_utf8_error, is_utf8, next_value, to_offsets, to_views, truncated_error,
    view,
};
use arrow_array::ArrayRef;
use arrow_array::types::{BinaryType, Utf8Type};
use arrow_buffer::{Buffer, NullBuffer};
use bytes::Bytes;
use parquet::errors::Result;

/// Views share their page if at least one in `SHARE_FROM` of the page's values is selected.
const SHARE_FROM: usize = 4;

/// A page is checked for UTF-8 as a whole if at least one in `CHECK_WHOLE_FROM` values is selected.
/// This takes much less time than a check of each value.
const CHECK_WHOLE_FROM: usize = 32;

/// Maximum size of a buffer in bytes; other implementations may read offsets as signed integers.
const MAX_BUFFER_BYTES: usize = i32::MAX as usize;

/// The layout of the output arrays.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// Views of strings.
    StringView,
    /// Views of binary values.
    BinaryView,
    /// Strings with 32-bit offsets.
    String,
    /// Binary values with 32-bit offsets.
    Binary,
}

/// How values are checked for UTF-8.
#[derive(Clone, Copy)]
pub(crate) enum Utf8 {
    /// Not at all, or later.
    Any,
    /// The page as a whole is UTF-8; each value must begin and end at a character boundary.
    Whole,
    /// Each value is checked separately.
    Each,
}

/// A buffer that the output of a read refers to by its index among the output's buffers.
#[derive(Default)]
struct SharedBuffer {
    buffer: Buffer,
    /// The index, set once this read has used the buffer.
    buffer_index: Option<usize>,
}

/// Decoder of strings and binary values.
pub(crate) struct Strings {
    output: Output,
    page: Bytes,
    offset: usize,
    /// Whether the current page as a whole is UTF-8, once checked.
    page_is_utf8: Option<bool>,
    shared_page: SharedBuffer,
    /// The dictionary page, whose views have buffer index 0; `None` if all its values are inline.
    dictionary: Option<SharedBuffer>,
    /// The buffers of this read's output.
    buffers: Vec<Buffer>,
    /// Copied values, and the buffer index reserved for them; the buffer is added when this read is
    /// finished.
    copied: Vec<u8>,
    copied_index: Option<usize>,
}

impl Strings {
    /// Creates a decoder of arrays with the layout `output`.
    pub(crate) fn new(output: Output) -> Self {
        Self {
            output,
            page: Bytes::new(),
            offset: 0,
            page_is_utf8: None,
            shared_page: SharedBuffer::default(),
            dictionary: None,
            buffers: Vec::new(),
            copied: Vec::new(),
            copied_index: None,
        }
    }

    /// Returns how to check the page's values; `dense` says whether a large share of them is
    /// selected.
    fn utf8(&mut self, dense: bool) -> Utf8 {
        if self.output != Output::StringView {
            return Utf8::Any; // Offset arrays check their values when they are made.
        }
        if dense && self.page_is_utf8.is_none() {
            self.page_is_utf8 = Some(std::str::from_utf8(&self.page).is_ok());
        }
        if self.page_is_utf8 == Some(true) { Utf8::Whole } else { Utf8::Each }
    }

    /// Appends views into the page.
    fn share(
        &mut self,
        count: usize,
        mask: Option<Mask<'_>>,
        utf8: Utf8,
        out: &mut Vec<u128>,
    ) -> Result<()> {
        let buffer_index = self.shared_page.buffer_index.unwrap_or(self.buffers.len());
        let (page, mut at, mut longest) = (&self.page[..], self.offset, 0);
        match mask {
            None => {
                for _ in 0..count {
                    let (start, len) = next_value(page, &mut at).ok_or_else(truncated_error)?;
                    if !is_utf8(page, start, len, utf8) {
                        return Err(invalid_utf8_error());
                    }
                    longest = longest.max(len);
                    out.push(view(page, start, len, buffer_index, start));
                }
            }
            Some(mask) => for_each_selected(count, mask, page, &mut at, utf8, |start, len| {
                longest = longest.max(len);
                out.push(view(page, start, len, buffer_index, start));
            })?,
        }
        self.offset = at;
        if longest > MAX_INLINE_LEN && self.shared_page.buffer_index.is_none() {
            self.buffers.push(self.shared_page.buffer.clone());
            self.shared_page.buffer_index = Some(buffer_index);
        }
        Ok(())
    }

    /// Copies the selected values and appends views of the copies.
    fn copy(
        &mut self,
        count: usize,
        mask: Mask<'_>,
        utf8: Utf8,
        out: &mut Vec<u128>,
    ) -> Result<()> {
        let page = self.page.clone();
        let mut at = self.offset;
        for_each_selected(count, mask, &page, &mut at, utf8, |start, len| {
            let (buffer_index, offset) = if len > MAX_INLINE_LEN {
                self.append_copy(&page[start..start + len])
            } else {
                (0, 0)
            };
            out.push(view(&page, start, len, buffer_index, offset));
        })?;
        self.offset = at;
        Ok(())
    }

    /// Copies a value; returns its buffer index and its offset in that buffer.
    fn append_copy(&mut self, value: &[u8]) -> (usize, usize) {
        if self.copied.len() + value.len() > MAX_BUFFER_BYTES {
            self.seal_copied();
        }
        let buffer_index = *self.copied_index.get_or_insert_with(|| {
            self.buffers.push(Buffer::default());
            self.buffers.len() - 1
        });
        let offset = self.copied.len();
        self.copied.extend_from_slice(value);
        (buffer_index, offset)
    }

    /// Stores the buffer of copied values at its index.
    fn seal_copied(&mut self) {
        let copied = std::mem::take(&mut self.copied);
        if let Some(buffer) = self.copied_index.take().and_then(|index| self.buffers.get_mut(index))
        {
            *buffer = Buffer::from_vec(copied);
        }
    }
}

/// Calls `visit` with start and length of every selected value and skips the others; `at` is the
/// offset of the next value.
#[inline]
fn for_each_selected(
    count: usize,
    mask: Mask<'_>,
    page: &[u8],
    at: &mut usize,
    utf8: Utf8,
    mut visit: impl FnMut(usize, usize),
) -> Result<()> {
    let mut row = 0;
    while row < count {
        let mut word = mask.word(row);
        let end = (row + 64).min(count);
        while word != 0 {
            let gap = word.trailing_zeros();
            skip_values(page, at, gap as usize)?;
            let (start, len) = next_value(page, at).ok_or_else(truncated_error)?;
            if !is_utf8(page, start, len, utf8) {
                return Err(invalid_utf8_error());
            }
            visit(start, len);
            row += gap as usize + 1;
            word = word.checked_shr(gap + 1).unwrap_or(0);
        }
        skip_values(page, at, end - row)?;
        row = end;
    }
    Ok(())
}

/// Skips values.
#[inline]
fn skip_values(page: &[u8], at: &mut usize, count: usize) -> Result<()> {
    let mut next = *at;
    for _ in 0..count {
        next_value(page, &mut next).ok_or_else(truncated_error)?;
    }
    *at = next;
    Ok(())
}

impl ValueEncoding for Strings {
    type Native = u128;

    fn dictionary(&mut self, data: Bytes, count: usize) -> Result<Vec<u128>> {
        // Every entry has a length prefix of four bytes.
        if count > data.len() / 4 {
            return Err(corrupt("a dictionary page is cut off"));
        }
        let utf8 = match self.output {
            Output::StringView if std::str::from_utf8(&data).is_ok() => Utf8::Whole,
            Output::StringView => Utf8::Each,
            _ => Utf8::Any,
        };
        let (mut at, mut longest) = (0, 0);
        let mut views = Vec::with_capacity(count);
        for _ in 0..count {
            let (start, len) = next_value(&data, &mut at).ok_or_else(truncated_error)?;
            if !is_utf8(&data, start, len, utf8) {
                return Err(invalid_utf8_error());
            }
            longest = longest.max(len);
            views.push(view(&data, start, len, 0, start));
        }
        let shared = (longest > MAX_INLINE_LEN)
            .then(|| SharedBuffer { buffer: data.into(), buffer_index: None });
        self.dictionary = shared;
        Ok(views)
    }

    fn adopt(&mut self, appended: &mut [u128]) {
        let Some(shared) = &mut self.dictionary else { return };
        let buffer_index = *shared.buffer_index.get_or_insert_with(|| {
            self.buffers.push(shared.buffer.clone());
            self.buffers.len() - 1
        });
        if buffer_index == 0 {
            return; // The views of the dictionary already have index 0.
        }
        for view in appended {
            if *view as u32 as usize > MAX_INLINE_LEN {
                *view |= (buffer_index as u128) << 64;
            }
        }
    }

    fn open(&mut self, data: Bytes) {
        self.shared_page = SharedBuffer { buffer: data.clone().into(), buffer_index: None };
        self.page = data;
        self.offset = 0;
        self.page_is_utf8 = None;
    }

    fn close(&mut self) {
        self.open(Bytes::new());
    }

    fn read(&mut self, count: usize, mask: Option<Mask<'_>>, out: &mut Vec<u128>) -> Result<()> {
        let selected = mask.map_or(count, |mask| mask.count());
        let dense = selected.saturating_mul(SHARE_FROM) >= count;
        let utf8 = self.utf8(selected.saturating_mul(CHECK_WHOLE_FROM) >= count);
        let views = matches!(self.output, Output::StringView | Output::BinaryView);
        match mask {
            // Offset arrays copy the values in any case.
            Some(mask) if views && !dense => self.copy(count, mask, utf8, out),
            mask => self.share(count, mask, utf8, out),
        }
    }

    fn skip(&mut self, count: usize) -> Result<()> {
        skip_values(&self.page, &mut self.offset, count)
    }

    fn finish(&mut self, views: Vec<u128>, nulls: Option<NullBuffer>) -> Result<ArrayRef> {
        self.seal_copied();
        self.shared_page.buffer_index = None;
        if let Some(shared) = &mut self.dictionary {
            shared.buffer_index = None;
        }
        let buffers = std::mem::take(&mut self.buffers);
        match self.output {
            Output::StringView => to_views(views, buffers, nulls, true),
            Output::BinaryView => to_views(views, buffers, nulls, false),
            Output::String => to_offsets::<Utf8Type>(&views, &buffers, nulls),
            Output::Binary => to_offsets::<BinaryType>(&views, &buffers, nulls),
        }
    }
}
