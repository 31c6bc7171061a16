//! Borrowed bit masks, read word by word, and the compression of one mask by another.

use arrow_buffer::{BooleanBuffer, BooleanBufferBuilder};

/// A borrowed sequence of bits, the lowest of each byte first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mask<'a> {
    bytes: &'a [u8],
    offset: usize,
    len: usize,
}

impl<'a> Mask<'a> {
    /// Borrows the bits of `buffer`.
    pub(crate) fn new(buffer: &'a BooleanBuffer) -> Self {
        Self { bytes: buffer.values(), offset: buffer.offset(), len: buffer.len() }
    }

    /// Returns the number of bits.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns at most `len` bits, starting at `at`.
    pub(crate) fn slice(&self, at: usize, len: usize) -> Self {
        let at = at.min(self.len);
        Self { bytes: self.bytes, offset: self.offset + at, len: len.min(self.len - at) }
    }

    /// Returns the 64 bits that start at `at`; bits past the end are zero.
    #[inline]
    pub(crate) fn word(&self, at: usize) -> u64 {
        let Some(remaining) = self.len.checked_sub(at) else { return 0 };
        let bit = self.offset + at;
        let (byte, shift) = (bit / 8, bit % 8);
        let bytes = self.bytes.get(byte..).unwrap_or_default();
        let (mut word, next) = match bytes.first_chunk::<8>() {
            Some(chunk) => (u64::from_le_bytes(*chunk), bytes.get(8)),
            None => {
                let mut chunk = [0; 8];
                chunk[..bytes.len()].copy_from_slice(bytes);
                (u64::from_le_bytes(chunk), None)
            }
        };
        if shift != 0 {
            // A word that straddles nine bytes takes its highest bits from the ninth.
            let high = next.map_or(0, |byte| u64::from(*byte) << (64 - shift));
            word = word >> shift | high;
        }
        if remaining < 64 { word & ((1 << remaining) - 1) } else { word }
    }

    /// Returns the number of set bits.
    pub(crate) fn count(&self) -> usize {
        let mut count = 0;
        let mut at = 0;
        while at < self.len {
            count += self.word(at).count_ones() as usize;
            at += 64;
        }
        count
    }

    /// Returns the first set bit at or after `at`.
    pub(crate) fn next_set(&self, mut at: usize) -> Option<usize> {
        while at < self.len {
            let word = self.word(at);
            if word != 0 {
                return Some(at + word.trailing_zeros() as usize);
            }
            at += 64;
        }
        None
    }
}

/// Returns the bits of `source` at the set bits of `mask`, which has the same length.
pub(crate) fn compress(source: Mask<'_>, mask: Mask<'_>) -> BooleanBuffer {
    let mut kept = BooleanBufferBuilder::new(mask.len);
    let mut at = 0;
    while at < mask.len {
        let (word, keep) = (source.word(at), mask.word(at));
        if keep == u64::MAX {
            kept.append_packed_range(0..64, &word.to_le_bytes());
        } else if keep != 0 {
            let count = keep.count_ones() as usize;
            kept.append_packed_range(0..count, &compress_word(word, keep).to_le_bytes());
        }
        at += 64;
    }
    kept.build()
}

/// Moves the bits of `word` at the set bits of `mask` together at the low end. (Hacker's Delight,
/// 7-4; equivalent to `pext`, which some processors lack.)
fn compress_word(mut word: u64, mut mask: u64) -> u64 {
    word &= mask;
    let mut zeros_below = !mask << 1;
    for step in 0..6 {
        // A prefix exclusive or: which bits have an odd number of zeros below them.
        let mut odd = zeros_below ^ (zeros_below << 1);
        for shift in [2, 4, 8, 16, 32] {
            odd ^= odd << shift;
        }
        let moved = odd & mask;
        mask = (mask ^ moved) | (moved >> (1 << step));
        let bits = word & moved;
        word = (word ^ bits) | (bits >> (1 << step));
        zeros_below &= !odd;
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the next word of a linear congruential sequence.
    fn step(seed: &mut u64) -> u64 {
        *seed =
            seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *seed ^ (*seed >> 29)
    }

    #[test]
    fn compresses_like_a_filter() {
        let mut seed = 7;
        for len in [0, 1, 63, 64, 65, 200, 1000] {
            let source: Vec<bool> = (0..len + 3).map(|_| step(&mut seed) & 1 == 1).collect();
            let mask: Vec<bool> = (0..len + 5).map(|_| step(&mut seed) & 3 != 1).collect();
            let expected: Vec<bool> =
                (0..len).filter(|i| mask[i + 5]).map(|i| source[i + 3]).collect();
            let source = BooleanBuffer::from(source).slice(3, len);
            let mask = BooleanBuffer::from(mask).slice(5, len);
            let kept = compress(Mask::new(&source), Mask::new(&mask));
            assert_eq!(kept.iter().collect::<Vec<_>>(), expected);
            assert_eq!(Mask::new(&mask).count(), mask.count_set_bits());
            assert_eq!(Mask::new(&mask).next_set(0), mask.set_indices().next());
        }
    }
}
