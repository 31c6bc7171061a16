//! Views of values in plain byte array pages, and the arrays built from them.

use super::corrupt;
use super::strings::Utf8;
use arrow_array::types::ByteArrayType;
use arrow_array::{ArrayRef, BinaryViewArray, GenericByteArray};
use arrow_buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use parquet::errors::{ParquetError, Result};
use std::sync::Arc;

/// Maximum length in bytes of a value that is stored inline in its view.
pub(crate) const MAX_INLINE_LEN: usize = 12;

/// Returns the start and the length of the value whose length prefix is at `at`, and advances `at`
/// past the value. `None` if the value ends past the end of the page.
#[inline(always)]
pub(crate) fn next_value(page: &[u8], at: &mut usize) -> Option<(usize, usize)> {
    let (prefix, rest) = page.get(*at..)?.split_first_chunk::<4>()?;
    let len = u32::from_le_bytes(*prefix) as usize;
    if len > rest.len() {
        return None;
    }
    let start = *at + 4;
    *at = start + len;
    Some((start, len))
}

/// Returns the error for a value that ends past the end of its page.
#[cold]
pub(crate) fn truncated_error() -> ParquetError {
    corrupt("a string lies past the end of its page")
}

/// Returns the error for a string that is not UTF-8.
#[cold]
pub(crate) fn invalid_utf8_error() -> ParquetError {
    corrupt("a string is not valid UTF-8")
}

/// Returns whether the value is UTF-8, given what is known of the page. The value must come from
/// [`next_value`].
#[inline(always)]
pub(crate) fn is_utf8(page: &[u8], start: usize, len: usize, utf8: Utf8) -> bool {
    match utf8 {
        Utf8::Any => true,
        // The highest byte of the length is less than 0x80 in pages of less than 2 GB. It is thus a
        // character of its own, so that the value begins with another one. The value ends with a
        // whole character unless the next byte is a continuation byte, 0x80 to 0xbf.
        Utf8::Whole => page.get(start + len).is_none_or(|byte| *byte as i8 >= -64) || len == 0,
        Utf8::Each => {
            page.get(start..start + len).is_some_and(|value| std::str::from_utf8(value).is_ok())
        }
    }
}

/// Returns the view of the value at `start`, stored at `offset` in the buffer with index
/// `buffer_index`.
#[inline(always)]
pub(crate) fn view(
    page: &[u8],
    start: usize,
    len: usize,
    buffer_index: usize,
    offset: usize,
) -> u128 {
    let value = page.get(start..).unwrap_or_default();
    if len > MAX_INLINE_LEN {
        let prefix = value.first_chunk::<4>().map_or(0, |prefix| u32::from_le_bytes(*prefix));
        let location = (buffer_index as u32 as u128) << 64 | (offset as u32 as u128) << 96;
        return len as u32 as u128 | (prefix as u128) << 32 | location;
    }
    let bytes = match value.first_chunk::<16>() {
        Some(chunk) => u128::from_le_bytes(*chunk),
        None => {
            let mut chunk = [0; 16];
            chunk[..value.len()].copy_from_slice(value);
            u128::from_le_bytes(chunk)
        }
    };
    len as u128 | (bytes & ((1 << (8 * len)) - 1)) << 32
}

/// Builds an array of views, which are strings or binary values.
///
/// Invariant: each view is 0 or made by [`view`] of a value that [`next_value`] returned. If it is
/// a string, [`is_utf8`] has returned true for it. `buffers` has at each referenced index either
/// the page or the copies of values, at the offsets in the views.
pub(crate) fn to_views(
    views: Vec<u128>,
    buffers: Vec<Buffer>,
    nulls: Option<NullBuffer>,
    strings: bool,
) -> Result<ArrayRef> {
    if nulls.as_ref().is_some_and(|nulls| nulls.len() != views.len()) {
        return Err(corrupt("a column has fewer values than rows"));
    }
    let views = ScalarBuffer::from(views);
    #[expect(unsafe_code, reason = "checking every view again takes as long as making it")]
    // SAFETY: `next_value` has checked that every value lies within its page. `view` takes length
    // and prefix from that value, and the buffer at the view's index is the page or a copy. The
    // view 0 is the empty value. There are as many nulls as views.
    let array = unsafe { BinaryViewArray::new_unchecked(views, buffers, nulls) };
    if !strings {
        return Ok(Arc::new(array));
    }
    #[expect(unsafe_code, reason = "they have been checked, a page at a time")]
    // SAFETY: `is_utf8` has returned true for all strings.
    let strings = unsafe { array.to_string_view_unchecked() };
    Ok(Arc::new(strings))
}

/// Builds an offset array by copying the values of views; checks values that must be UTF-8.
pub(crate) fn to_offsets<T: ByteArrayType<Offset = i32>>(
    views: &[u128],
    buffers: &[Buffer],
    nulls: Option<NullBuffer>,
) -> Result<ArrayRef> {
    let total: u64 = views.iter().map(|view| u64::from(*view as u32)).sum();
    if i32::try_from(total).is_err() {
        return Err(corrupt("more than 2 GB of strings in one array with 32-bit offsets"));
    }
    let mut values = Vec::with_capacity(usize::try_from(total)?);
    let mut offsets = Vec::with_capacity(views.len() + 1);
    offsets.push(0);
    for view in views {
        let len = *view as u32 as usize;
        if len <= MAX_INLINE_LEN {
            values.extend_from_slice(&view.to_le_bytes()[4..4 + len]);
        } else {
            let (buffer_index, at) = ((*view >> 64) as u32 as usize, (*view >> 96) as usize);
            let value = buffers.get(buffer_index).and_then(|buffer| buffer.get(at..at + len));
            values.extend_from_slice(value.ok_or_else(|| corrupt("a view has no buffer"))?);
        }
        offsets.push(values.len() as i32);
    }
    let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
    let array = GenericByteArray::<T>::try_new(offsets, Buffer::from_vec(values), nulls)?;
    Ok(Arc::new(array))
}
