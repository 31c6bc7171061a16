//! Runs of the RLE / bit-packing hybrid encoding, and the unpacking of blocks of 32 values.

use super::corrupt;
use bytes::Bytes;
use parquet::errors::Result;

/// The number of values that one call unpacks.
pub(crate) const BLOCK: usize = 32;

/// Maximum width of a value in bits.
const MAX_WIDTH: u32 = 32;

/// Unpacks 32 values; does nothing unless the input has their bytes and 8 more.
type Unpack = fn(&[u8], &mut [u32; BLOCK]);

/// The values at the head of a [`RleBitPackedReader`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Run {
    /// One value, repeated.
    Repeated(u32),
    /// Packed values; the next one has index `index` among those that begin at byte `start`.
    Packed { start: usize, index: usize },
}

/// A sequence of unsigned integers in the RLE / bit-packing hybrid encoding.
pub(crate) struct RleBitPackedReader {
    data: Bytes,
    /// Offset of the next run.
    next: usize,
    width: u32,
    run: Run,
    /// The number of values of `run` that have not been read.
    remaining: usize,
    unpack: Unpack,
}

impl RleBitPackedReader {
    /// Reads runs of values of `width` bits.
    pub(crate) fn new(data: Bytes, width: u32) -> Result<Self> {
        if width > MAX_WIDTH {
            return Err(corrupt(format!("an invalid bit width in the hybrid encoding: {width}")));
        }
        let unpack = UNPACK[width as usize];
        Ok(Self { data, next: 0, width, run: Run::Repeated(0), remaining: 0, unpack })
    }

    /// Reads all single bits in `data`, which has no run headers.
    pub(crate) fn bit_width_one(data: Bytes) -> Self {
        let (next, remaining) = (data.len(), data.len().saturating_mul(8));
        let run = Run::Packed { start: 0, index: 0 };
        Self { data, next, width: 1, run, remaining, unpack: UNPACK[1] }
    }

    /// Returns the run at the head and the number of its remaining values, at least one.
    #[inline]
    pub(crate) fn run(&mut self) -> Result<(Run, usize)> {
        while self.remaining == 0 {
            self.next_run()?;
        }
        Ok((self.run, self.remaining))
    }

    /// Skips `count` values of the run at the head, which has at least `count` remaining.
    #[inline]
    pub(crate) fn advance(&mut self, count: usize) {
        self.remaining = self.remaining.saturating_sub(count);
        if let Run::Packed { index, .. } = &mut self.run {
            *index += count;
        }
    }

    /// Skips `count` values, run by run.
    pub(crate) fn skip(&mut self, mut count: usize) -> Result<()> {
        while count > 0 {
            let (_, remaining) = self.run()?;
            let passed = remaining.min(count);
            self.advance(passed);
            count -= passed;
        }
        Ok(())
    }

    /// Returns the bytes that contain the runs.
    pub(crate) fn data(&self) -> &[u8] {
        &self.data
    }

    /// Unpacks the block that begins at value `index`, a multiple of 8, of the values at `start`.
    /// Bits past the end of the data are zero.
    #[inline]
    pub(crate) fn unpack(&self, start: usize, index: usize, block: &mut [u32; BLOCK]) {
        let width = self.width as usize;
        let bytes = self.data.get(start + index / 8 * width..).unwrap_or_default();
        if bytes.len() >= BLOCK / 8 * width + 8 {
            (self.unpack)(bytes, block);
        } else {
            let mut padded = [0; BLOCK / 8 * MAX_WIDTH as usize + 8];
            padded[..bytes.len()].copy_from_slice(bytes);
            (self.unpack)(&padded, block);
        }
    }

    /// Returns the eight values that begin at `index`, a multiple of 8, of the values at `start`.
    /// `None` if one load does not cover them. Many runs have only eight values.
    #[inline]
    pub(crate) fn unpack_eight(&self, start: usize, index: usize) -> Option<[u32; 8]> {
        let width = self.width as usize;
        let bytes = self.data.get(start + index / 8 * width..)?.first_chunk::<8>()?;
        if width > 8 {
            return None;
        }
        let (word, mask) = (u64::from_le_bytes(*bytes), (1 << width) - 1);
        Some(std::array::from_fn(|value| (word >> (value * width)) as u32 & mask))
    }

    /// Returns the value with index `index` of those packed at `start`.
    #[inline]
    pub(crate) fn packed(&self, start: usize, index: usize) -> u32 {
        let bit = index * self.width as usize;
        let bytes = self.data.get(start + bit / 8..).unwrap_or_default();
        let word = match bytes.first_chunk::<8>() {
            Some(chunk) => u64::from_le_bytes(*chunk),
            None => {
                let mut chunk = [0; 8];
                chunk[..bytes.len()].copy_from_slice(bytes);
                u64::from_le_bytes(chunk)
            }
        };
        ((word >> (bit % 8)) & ((1 << self.width) - 1)) as u32
    }

    /// Reads the header of the next run.
    #[inline]
    fn next_run(&mut self) -> Result<()> {
        let header = self.varint()?;
        let count = usize::try_from(header >> 1).unwrap_or(usize::MAX);
        if header & 1 == 1 { self.packed_run(count) } else { self.repeated_run(count) }
    }

    /// Starts a run of `groups` times eight packed values.
    #[inline]
    fn packed_run(&mut self, groups: usize) -> Result<()> {
        let available = self.data.len() - self.next;
        let width = self.width as usize;
        let len = groups.saturating_mul(width);
        self.remaining = groups.saturating_mul(8);
        if len > available {
            // Writers may omit the padding of the last group: the run ends with the data.
            self.remaining = available.saturating_mul(8) / width;
            if self.remaining == 0 {
                return Err(corrupt("a bit-packed run without values"));
            }
        }
        self.run = Run::Packed { start: self.next, index: 0 };
        self.next += len.min(available);
        Ok(())
    }

    /// Starts a run of one value, repeated `count` times.
    #[inline]
    fn repeated_run(&mut self, count: usize) -> Result<()> {
        let bytes = self.width.div_ceil(8) as usize;
        let Some(value) = self.data.get(self.next..self.next + bytes) else {
            return Err(corrupt("a repeated value lies past the end of the page"));
        };
        // Not a byte copy: the width is not a compile-time constant here, and mostly it is one
        // byte.
        let value = value.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
        self.run = Run::Repeated(value);
        self.next += bytes;
        self.remaining = count;
        Ok(())
    }

    /// Reads a variable-length integer.
    #[inline]
    fn varint(&mut self) -> Result<u64> {
        if let Some(byte) = self.data.get(self.next)
            && *byte < 0x80
        {
            self.next += 1;
            return Ok(u64::from(*byte));
        }
        self.long_varint()
    }

    /// Reads a variable-length integer of any length.
    fn long_varint(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let Some(byte) = self.data.get(self.next) else {
                return Err(corrupt("a page has fewer levels or indices than values"));
            };
            self.next += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(corrupt("the header of a run is too long"))
    }
}

/// Calls a macro with the numbers from 0 to 31.
macro_rules! each_of_block {
    ($step:ident) => {
        $step!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
            16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31)
    };
}

/// Unpacks 32 values of `WIDTH` bits. Every value is one unaligned load, a shift and a mask with
/// compile-time constants, so the loop is fully unrolled.
fn unpack<const WIDTH: usize>(input: &[u8], block: &mut [u32; BLOCK]) {
    let Some(input) = input.get(..BLOCK / 8 * WIDTH + 8) else { return };
    macro_rules! step {
        ($($i:literal)*) => {$(
            let bit = $i * WIDTH;
            if let Some(chunk) = input[bit / 8..].first_chunk::<8>() {
                let word = u64::from_le_bytes(*chunk);
                block[$i] = ((word >> (bit % 8)) & ((1 << WIDTH) - 1)) as u32;
            }
        )*};
    }
    each_of_block!(step);
}

/// The unpacking function for every width.
const UNPACK: [Unpack; MAX_WIDTH as usize + 1] = {
    let mut table: [Unpack; MAX_WIDTH as usize + 1] = [unpack::<32>; MAX_WIDTH as usize + 1];
    macro_rules! fill {
        ($($width:literal)*) => {$( table[$width] = unpack::<$width>; )*};
    }
    each_of_block!(fill);
    table
};
