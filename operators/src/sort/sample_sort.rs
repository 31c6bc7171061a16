//! Row order, computed from the keys.
//!
//! Keys are compared in two parts. Most comparisons are decided by the 16 bytes behind the common
//! prefix, stored as a number; the rest needs a memory access. If 12 bytes are the whole key, the
//! row index is packed into the same number. Large inputs are first distributed over buckets by
//! sampled splitters, as in a sample sort, and each bucket is sorted separately. Cancellation is
//! checked after each bucket and after every 65,536 sorted rows.

use std::cmp::Ordering;

use arrow_row::Rows;
use gatework_runtime::{Result, pipeline::DriverContext};

/// Rows processed between two cancellation checks.
const STEP_ROWS: usize = 1 << 14;
/// Maximum number of rows sorted in one call; larger inputs are first split at the median.
const MAX_SORT_ROWS: usize = 4 * STEP_ROWS;
/// Maximum number of buckets.
const MAX_BUCKETS: usize = 1 << 10;
/// Number of sampled rows per bucket, from which the splitters are chosen.
const SAMPLES_PER_BUCKET: usize = 16;

/// Sorted order of rows.
pub(super) struct SortedIndices {
    /// Length, in bytes, of the keys' common prefix.
    pub(super) common: usize,
    /// True if all keys have the same length and the prefixes contain all bytes behind the common
    /// ones.
    pub(super) prefix_is_key: bool,
    /// Prefix of each row's key, in sorted order; `rows` has the row indices.
    pub(super) prefixes: Vec<u128>,
    pub(super) rows: Vec<u32>,
}

/// Key prefix and row index of a row.
trait SortEntry: Copy + Default {
    /// Rows per bucket.
    const BUCKET_ROWS: usize;

    fn new(prefix: u128, row: u32) -> Self;
    fn prefix(self) -> u128;
    fn row(self) -> u32;
}

impl SortEntry for (u128, u32) {
    /// Comparisons may read keys, so a bucket must fit the cache.
    const BUCKET_ROWS: usize = 1 << 14;

    fn new(prefix: u128, row: u32) -> Self {
        (prefix, row)
    }

    fn prefix(self) -> u128 {
        self.0
    }

    fn row(self) -> u32 {
        self.1
    }
}

/// Prefix and row index in one number, for prefixes whose last four bytes are unused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct PackedEntry(u128);

impl SortEntry for PackedEntry {
    /// Numbers are bisected faster than they are distributed over buckets.
    const BUCKET_ROWS: usize = 1 << 18;

    fn new(prefix: u128, row: u32) -> Self {
        Self(prefix | u128::from(row))
    }

    fn prefix(self) -> u128 {
        self.0 & !u128::from(u32::MAX)
    }

    fn row(self) -> u32 {
        self.0 as u32
    }
}

/// Returns the first 16 bytes of a key, as a number with the same order.
pub(super) fn prefix(key: &[u8]) -> u128 {
    match key.first_chunk::<16>() {
        Some(bytes) => u128::from_be_bytes(*bytes),
        None => {
            let mut bytes = [0; 16];
            bytes[..key.len()].copy_from_slice(key);
            u128::from_be_bytes(bytes)
        }
    }
}

impl SortedIndices {
    /// Computes the order of fewer than 2^32 rows; with a `fetch`, of the first `fetch` only.
    ///
    /// # Errors
    /// If the query was cancelled.
    pub(super) fn of(keys: &Rows, fetch: Option<usize>, task: &DriverContext) -> Result<Self> {
        let (common, suffix_len) = key_shape(keys, task)?;
        match suffix_len {
            Some(..=12) => Self::sort_by(keys, common, true, fetch, task, PackedEntry::cmp),
            Some(13..=16) => {
                let by_prefix = |a: &(u128, u32), b: &(u128, u32)| a.0.cmp(&b.0);
                Self::sort_by(keys, common, true, fetch, task, by_prefix)
            }
            _ => {
                let whole = |row: u32| keys.row(row as usize);
                let by_key = |a: &(u128, u32), b: &(u128, u32)| {
                    a.0.cmp(&b.0).then_with(|| whole(a.1).cmp(&whole(b.1)))
                };
                Self::sort_by(keys, common, false, fetch, task, by_key)
            }
        }
    }

    fn sort_by<P: SortEntry>(
        keys: &Rows,
        common: usize,
        prefix_is_key: bool,
        fetch: Option<usize>,
        task: &DriverContext,
        compare: impl Fn(&P, &P) -> Ordering,
    ) -> Result<Self> {
        let fetch = fetch.filter(|fetch| *fetch < keys.num_rows());
        let splitters = if fetch.is_none() { splitters::<P>(keys, common) } else { Vec::new() };
        let (mut entries, ends) = bucket_by_sample::<P>(keys, common, &splitters, task)?;
        sort_buckets(&mut entries, fetch, &ends, task, &compare)?;
        let (prefixes, rows) =
            entries.into_iter().map(|entry| (entry.prefix(), entry.row())).unzip();
        Ok(Self { common, prefix_is_key, prefixes, rows })
    }
}

/// Calls `f` for each key.
fn for_each_key<'a>(
    keys: &'a Rows,
    task: &DriverContext,
    mut f: impl FnMut(u32, &'a [u8]),
) -> Result<()> {
    let rows = keys.num_rows();
    for step in (0..rows).step_by(STEP_ROWS) {
        task.check_cancelled()?;
        for row in step..rows.min(step + STEP_ROWS) {
            f(row as u32, keys.row(row).data());
        }
    }
    Ok(())
}

/// Returns the length of the common prefix, and the length of the rest if all keys have the same
/// length. (Most bytes of a decimal are common; the others would not be among the first 16.)
fn key_shape(keys: &Rows, task: &DriverContext) -> Result<(usize, Option<usize>)> {
    let mut equal_length = true;
    let mut first: Option<&[u8]> = None;
    let mut common: &[u8] = &[];
    for_each_key(keys, task, |_, key| {
        let first = *first.get_or_insert_with(|| {
            common = key;
            key
        });
        equal_length &= key.len() == first.len();
        if !common.is_empty() {
            let same = common.iter().zip(key).take_while(|(one, other)| one == other).count();
            common = &common[..same];
        }
    })?;
    let suffix_len = first.map_or(0, |first| first.len() - common.len());
    Ok((common.len(), equal_length.then_some(suffix_len)))
}

/// Returns the first prefix of each bucket but the first, chosen from samples.
fn splitters<P: SortEntry>(keys: &Rows, common: usize) -> Vec<u128> {
    let buckets = (keys.num_rows() / P::BUCKET_ROWS).min(MAX_BUCKETS);
    if buckets < 2 {
        return Vec::new();
    }
    let step = keys.num_rows() / (buckets * SAMPLES_PER_BUCKET);
    let rows = (0..keys.num_rows()).step_by(step);
    let mut sample: Vec<_> = rows.map(|row| prefix(&keys.row(row).data()[common..])).collect();
    sample.sort_unstable();
    let mut splitters: Vec<_> =
        (1..buckets).map(|bucket| sample[bucket * sample.len() / buckets]).collect();
    splitters.dedup();
    splitters
}

/// Distributes the entries of all rows over buckets; returns them with the end of each bucket.
fn bucket_by_sample<P: SortEntry>(
    keys: &Rows,
    common: usize,
    splitters: &[u128],
    task: &DriverContext,
) -> Result<(Vec<P>, Vec<usize>)> {
    let rows = keys.num_rows();
    if splitters.is_empty() {
        let mut entries = Vec::with_capacity(rows);
        for_each_key(keys, task, |row, key| entries.push(P::new(prefix(&key[common..]), row)))?;
        return Ok((entries, vec![rows]));
    }
    let mut buckets = Vec::with_capacity(rows);
    let mut counts = vec![0; splitters.len() + 1];
    for_each_key(keys, task, |_, key| {
        let prefix = prefix(&key[common..]);
        let bucket = splitters.partition_point(|splitter| *splitter <= prefix);
        counts[bucket] += 1;
        buckets.push(bucket as u16);
    })?;
    let mut begin = 0;
    let begins = counts.iter().map(|count| {
        begin += count;
        begin - count
    });
    // A bucket's end starts at its first index, and advances as entries are added.
    let mut ends: Vec<usize> = begins.collect();
    let mut entries = vec![P::default(); rows];
    for_each_key(keys, task, |row, key| {
        let end = &mut ends[usize::from(buckets[row as usize])];
        entries[*end] = P::new(prefix(&key[common..]), row);
        *end += 1;
    })?;
    Ok((entries, ends))
}

/// Sorts each bucket; with a `fetch`, truncates the single bucket to that number of entries.
fn sort_buckets<P: SortEntry>(
    entries: &mut Vec<P>,
    fetch: Option<usize>,
    ends: &[usize],
    task: &DriverContext,
    by_key: &impl Fn(&P, &P) -> Ordering,
) -> Result<()> {
    match fetch {
        Some(0) => entries.clear(),
        Some(fetch) => {
            entries.select_nth_unstable_by(fetch - 1, by_key);
            entries.truncate(fetch);
        }
        None => {}
    }
    let mut remaining = &mut entries[..];
    let mut begin = 0;
    for end in ends {
        let (bucket, rest) = remaining.split_at_mut(remaining.len().min(end - begin));
        sort(bucket, task, by_key)?;
        (remaining, begin) = (rest, *end);
    }
    Ok(())
}

fn sort<P: SortEntry>(
    entries: &mut [P],
    task: &DriverContext,
    by_key: &impl Fn(&P, &P) -> Ordering,
) -> Result<()> {
    task.check_cancelled()?;
    if entries.len() <= MAX_SORT_ROWS {
        entries.sort_unstable_by(by_key);
        return Ok(());
    }
    if entries.is_sorted_by(|one, other| by_key(one, other).is_le()) {
        return Ok(());
    }
    let (before, _, after) = entries.select_nth_unstable_by(entries.len() / 2, by_key);
    sort(before, task, by_key)?;
    sort(after, task, by_key)
}
