//! Dictionary values looked up by the indices of a hybrid run, straight into the output.

use super::bits::{BLOCK, RleBitPackedReader, Run};
use super::corrupt;
use super::mask::Mask;
use parquet::errors::{ParquetError, Result};

/// Minimum number of selected values for which a block is unpacked whole instead of value by value.
const UNPACK_FROM: u32 = 6;

/// Appends the values of those of the next `count` indices that `mask` selects. `mask` has `count`
/// bits.
pub(crate) fn gather<T: Copy + Default>(
    indices: &mut RleBitPackedReader,
    count: usize,
    mask: Option<Mask<'_>>,
    dictionary: &[T],
    out: &mut Vec<T>,
) -> Result<()> {
    let mut at = 0;
    while at < count {
        let (run, remaining) = indices.run()?;
        let taken = remaining.min(count - at);
        let mask = mask.map(|mask| mask.slice(at, taken));
        match (run, mask) {
            (Run::Repeated(index), mask) => {
                let selected = mask.map_or(taken, |mask| mask.count());
                if selected > 0 {
                    let value = dictionary.get(index as usize).ok_or_else(out_of_range)?;
                    out.resize(out.len() + selected, *value);
                }
            }
            (Run::Packed { start, index }, None) => {
                gather_all(indices, start, index, taken, dictionary, out)?;
            }
            (Run::Packed { start, index }, Some(mask)) => {
                gather_selected(indices, start, index, mask, dictionary, out)?;
            }
        }
        indices.advance(taken);
        at += taken;
    }
    Ok(())
}

/// Appends the values of `count` packed indices.
fn gather_all<T: Copy + Default>(
    indices: &RleBitPackedReader,
    start: usize,
    mut index: usize,
    count: usize,
    dictionary: &[T],
    out: &mut Vec<T>,
) -> Result<()> {
    let end = index + count;
    let mut block = [0; BLOCK];
    while index < end {
        // Blocks begin at a whole byte, so the first one may begin before the requested value.
        let lead = index % 8;
        if lead + (end - index) <= 8
            && let Some(eight) = indices.unpack_eight(start, index - lead)
        {
            return look_up(&eight[lead..lead + (end - index)], dictionary, out);
        }
        indices.unpack(start, index - lead, &mut block);
        let taken = (BLOCK - lead).min(end - index);
        if taken == BLOCK {
            look_up(&block, dictionary, out)?;
        } else {
            look_up(&block[lead..lead + taken], dictionary, out)?;
        }
        index += taken;
    }
    Ok(())
}

/// Appends the values of the packed indices that `mask` selects.
fn gather_selected<T: Copy + Default>(
    indices: &RleBitPackedReader,
    start: usize,
    first: usize,
    mask: Mask<'_>,
    dictionary: &[T],
    out: &mut Vec<T>,
) -> Result<()> {
    let mut block = [0; BLOCK];
    let mut at = 0;
    while let Some(found) = mask.next_set(at) {
        let index = first + found;
        let lead = index % 8;
        let taken = (BLOCK - lead).min(mask.len() - found);
        let mut bits = mask.slice(found, taken).word(0);
        let selected = bits.count_ones();
        at = found + taken;
        if selected < UNPACK_FROM {
            while bits != 0 {
                let value = indices.packed(start, index + bits.trailing_zeros() as usize);
                out.push(*dictionary.get(value as usize).ok_or_else(out_of_range)?);
                bits &= bits - 1;
            }
            continue;
        }
        indices.unpack(start, index - lead, &mut block);
        let candidates = &mut block[lead..lead + taken];
        if (selected as usize) < taken {
            // The selected indices move to the front of the block in place; an index never moves
            // past a later one.
            let mut kept = 0;
            while bits != 0 {
                candidates[kept] = candidates[bits.trailing_zeros() as usize];
                kept += 1;
                bits &= bits - 1;
            }
        }
        look_up(&candidates[..selected as usize], dictionary, out)?;
    }
    Ok(())
}

/// Appends the values at `indices`.
#[inline(always)]
fn look_up<T: Copy + Default>(indices: &[u32], dictionary: &[T], out: &mut Vec<T>) -> Result<()> {
    let mut outside = false;
    out.extend(indices.iter().map(|index| {
        // The error is checked after the loop, whose length is thus constant.
        dictionary.get(*index as usize).copied().unwrap_or_else(|| {
            outside = true;
            T::default()
        })
    }));
    if outside { Err(out_of_range()) } else { Ok(()) }
}

/// Returns the error for an index beyond the dictionary.
#[cold]
fn out_of_range() -> ParquetError {
    corrupt("a dictionary index is out of range")
}
