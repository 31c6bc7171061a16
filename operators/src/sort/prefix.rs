//! The part of each key by which rows are compared first: a number of at most 16 bytes.
//!
//! Bytes that all keys have in common are left out. If all keys have the same length, these may be
//! anywhere: the upper bytes of each integer, decimal or date are often the same in all rows, and
//! 16 bytes are then the whole key.

use arrow_row::Rows;
use gatework_runtime::{Result, pipeline::DriverContext};

use super::sample_sort::for_each_key;

/// Maximum number of bytes of a prefix.
const MAX_BYTES: usize = size_of::<u128>();

/// Adjacent bytes of a key, at most eight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    start: usize,
    len: usize,
}

/// Which bytes of a key are its prefix.
#[derive(Debug, PartialEq, Eq)]
enum PrefixBytes {
    /// Those from an offset on. Keys may end before.
    From(usize),
    /// Those of these segments, which all keys have.
    Segments(Box<[Segment]>),
}

/// Which bytes of the keys of a run are their prefixes, and what the keys have in common.
///
/// Prefixes of two runs for which this is equal compare as their keys do, unless they are equal and
/// [not the whole keys](Self::is_key).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct KeyPrefix {
    /// The common beginning of all keys; of keys of one length, a key with zeros in place of the
    /// bytes that differ, up to `end` if it is not the whole key.
    common: Box<[u8]>,
    bytes: PrefixBytes,
    len: usize,
    /// Offset in the key of the first byte that may differ and is not in the prefix.
    end: usize,
    is_key: bool,
}

impl KeyPrefix {
    /// Returns the prefix of keys that may have nothing in common: their first bytes.
    pub(super) fn leading() -> Self {
        Self::from_offset(&[])
    }

    fn from_offset(common: &[u8]) -> Self {
        Self {
            common: common.into(),
            bytes: PrefixBytes::From(common.len()),
            len: MAX_BYTES,
            end: common.len() + MAX_BYTES,
            is_key: false,
        }
    }

    /// Returns the prefix of keys like `key` that differ in the bytes for which `differ` is not
    /// zero.
    fn of_one_length(key: &[u8], differ: &[u8]) -> Self {
        let (mut segments, mut len): (Vec<Segment>, _) = (Vec::new(), 0);
        let positions = || (0..key.len()).filter(|at| differ[*at] != 0);
        for at in positions().take(MAX_BYTES) {
            len += 1;
            match segments.last_mut() {
                Some(last) if last.start + last.len == at && last.len < 8 => last.len += 1,
                _ => segments.push(Segment { start: at, len: 1 }),
            }
        }
        let end = segments.last().map_or(0, |last| last.start + last.len);
        let is_key = positions().nth(MAX_BYTES).is_none();
        let same = key.iter().zip(differ).take(if is_key { key.len() } else { end });
        let common = same.map(|(byte, differ)| if *differ == 0 { *byte } else { 0 }).collect();
        let bytes = PrefixBytes::Segments(segments.into());
        Self { common, bytes, len, end, is_key }
    }

    /// Returns the prefix of `keys`.
    ///
    /// # Errors
    /// If the query was cancelled.
    pub(super) fn of_keys(keys: &Rows, task: &DriverContext) -> Result<Self> {
        let mut first: Option<&[u8]> = None;
        let mut differ: Vec<u8> = Vec::new();
        // The common beginning of all keys, once two have different lengths.
        let mut beginning: Option<&[u8]> = None;
        for_each_key(keys, task, |_, key| {
            let first = *first.get_or_insert_with(|| {
                differ.resize(key.len(), 0);
                key
            });
            if beginning.is_none() && key.len() == first.len() {
                let bytes = differ.iter_mut().zip(first.iter().zip(key));
                return bytes.for_each(|(differ, (one, other))| *differ |= one ^ other);
            }
            let common = beginning.get_or_insert_with(|| {
                &first[..differ.iter().take_while(|differ| **differ == 0).count()]
            });
            let same = common.iter().zip(key).take_while(|(one, other)| one == other).count();
            *common = &common[..same];
        })?;
        Ok(match (beginning, first) {
            (Some(common), _) => Self::from_offset(common),
            (None, Some(key)) => Self::of_one_length(key, &differ),
            (None, None) => Self::leading(),
        })
    }

    /// Returns the prefix of `key`. Its order is that of the bytes.
    #[inline]
    pub(super) fn of(&self, key: &[u8]) -> u128 {
        match &self.bytes {
            PrefixBytes::From(offset) => first_bytes(key.get(*offset..).unwrap_or_default()),
            PrefixBytes::Segments(segments) => {
                let add = |prefix: u128, segment: &Segment| {
                    prefix << (8 * segment.len) | u128::from(segment.load(key))
                };
                // A shift by all bits would overflow.
                match MAX_BYTES - self.len {
                    MAX_BYTES => 0,
                    unused => segments.iter().fold(0, add) << (8 * unused),
                }
            }
        }
    }

    /// Returns the number of bytes of a prefix.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Returns the offset in a key behind which keys with equal prefixes may differ.
    pub(super) fn end(&self) -> usize {
        self.end
    }

    /// Returns whether keys with equal prefixes are equal.
    pub(super) fn is_key(&self) -> bool {
        self.is_key
    }
}

impl Segment {
    #[inline]
    fn load(self, key: &[u8]) -> u64 {
        let bytes = &key[self.start..];
        match bytes.first_chunk::<8>() {
            Some(bytes) => u64::from_be_bytes(*bytes) >> (64 - 8 * self.len),
            None => bytes[..self.len].iter().fold(0, |value, byte| value << 8 | u64::from(*byte)),
        }
    }
}

/// Returns the first 16 bytes of a key, as a number with the same order.
pub(crate) fn first_bytes(key: &[u8]) -> u128 {
    match key.first_chunk::<16>() {
        Some(bytes) => u128::from_be_bytes(*bytes),
        None => {
            let mut bytes = [0; 16];
            bytes[..key.len()].copy_from_slice(key);
            u128::from_be_bytes(bytes)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefixes(keys: &[&[u8]]) -> (KeyPrefix, Vec<u128>) {
        let mut differ = vec![0; keys[0].len()];
        for key in keys {
            let bytes = differ.iter_mut().zip(keys[0].iter().zip(*key));
            bytes.for_each(|(differ, (one, other))| *differ |= one ^ other);
        }
        let prefix = KeyPrefix::of_one_length(keys[0], &differ);
        let prefixes = keys.iter().map(|key| prefix.of(key)).collect();
        (prefix, prefixes)
    }

    #[test]
    fn common_bytes_are_left_out_wherever_they_are() {
        let (prefix, numbers) = prefixes(&[b"a1bcdefghijklm2", b"a2bcdefghijklm1"]);
        assert_eq!((prefix.len(), prefix.end(), prefix.is_key()), (2, 15, true));
        assert_eq!(numbers, [0x3132_u128 << 112, 0x3231_u128 << 112]);
        assert_eq!(&*prefix.common, b"a\0bcdefghijklm\0");
    }

    #[test]
    fn only_the_first_bytes_that_differ_are_in_a_prefix() {
        let (one, other) = (*b"abcdefghijklmnopqrstuvwxyz", *b"ABCDEFGHIJKLMNOPQRSTUVWXYZ");
        let (prefix, numbers) = prefixes(&[&one, &other]);
        assert_eq!((prefix.len(), prefix.end(), prefix.is_key()), (16, 16, false));
        assert_eq!(numbers, [first_bytes(&one), first_bytes(&other)]);
        let (prefix, numbers) = prefixes(&[b"same", b"same"]);
        assert_eq!((prefix.len(), prefix.is_key(), numbers), (0, true, vec![0, 0]));
    }

    #[test]
    fn other_keys_have_the_bytes_behind_their_common_beginning() {
        let prefix = KeyPrefix::from_offset(b"ab");
        assert_eq!(prefix.of(b"abc"), u128::from(b'c') << 120);
        assert_eq!(prefix.of(b"ab"), 0);
        assert_eq!((prefix.end(), prefix.is_key()), (18, false));
        assert_ne!(prefix, KeyPrefix::leading());
    }
}
