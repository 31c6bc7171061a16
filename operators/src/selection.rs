//! Selections: one bit per row of a batch, set for the selected rows.

use arrow::buffer::{BooleanBuffer, Buffer};

/// Returns the set bits of `selection` for which `keep`, with one bit per set bit, is set.
///
/// ```
/// use arrow::buffer::BooleanBuffer;
/// use gatework_operators::selection::refine;
/// let selection = BooleanBuffer::from(vec![true, false, true, true]);
/// let keep = BooleanBuffer::from(vec![false, true, true]);
/// let left = BooleanBuffer::from(vec![false, false, true, true]);
/// assert_eq!(refine(&selection, &keep), left);
/// ```
pub fn refine(selection: &BooleanBuffer, keep: &BooleanBuffer) -> BooleanBuffer {
    let rows = selection.len();
    let keeps = words_of(keep);
    let mut offset = 0;
    let refined: Vec<u64> = words_of(selection)
        .into_iter()
        .map(|word| {
            let count = word.count_ones() as usize;
            let bits = bits_at(&keeps, offset, count);
            offset += count;
            deposit(bits, word)
        })
        .collect();
    BooleanBuffer::new(Buffer::from_vec(refined), 0, rows)
}

fn words_of(bits: &BooleanBuffer) -> Vec<u64> {
    bits.bit_chunks().iter_padded().collect()
}

/// Returns `count` bits, up to 64, from bit `offset` on; the upper bits are 0.
fn bits_at(words: &[u64], offset: usize, count: usize) -> u64 {
    if count == 0 {
        return 0;
    }
    let word = |index: usize| words.get(index).copied().unwrap_or(0);
    let shift = offset % 64;
    let low = word(offset / 64) >> shift;
    let high = if shift == 0 { 0 } else { word(offset / 64 + 1) << (64 - shift) };
    (low | high) & (u64::MAX >> (64 - count))
}

/// Moves bit *n* of `bits` to the position of the *n*th set bit of `mask`.
fn deposit(mut bits: u64, mask: u64) -> u64 {
    if mask == u64::MAX {
        return bits;
    }
    let (mut deposited, mut remaining) = (0, mask);
    while bits != 0 {
        deposited |= remaining & remaining.wrapping_neg() & 0_u64.wrapping_sub(bits & 1);
        remaining &= remaining.wrapping_sub(1);
        bits >>= 1;
    }
    deposited
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refines_selections() {
        let mut rng = gatework_runtime::scheduler::SplitMix64::new(3);
        for rows in [0, 1, 63, 64, 65, 1000, 4096] {
            for density in [1, 2, 50] {
                let mut bits = |rows: usize| -> BooleanBuffer {
                    (0..rows).map(|_| rng.next_below(density) == 0).collect()
                };
                let selection = bits(rows + 3).slice(3, rows);
                let keep = bits(selection.count_set_bits() + 5);
                let keep = keep.slice(5, keep.len() - 5);
                let mut kept = keep.iter();
                let expected: BooleanBuffer =
                    selection.iter().map(|bit| bit && kept.next() == Some(true)).collect();
                assert_eq!(refine(&selection, &keep), expected, "{rows} rows, 1 in {density}");
            }
        }
    }
}
