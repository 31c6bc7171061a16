//! Row order, computed from the keys.
//!
//! Rows are sorted by the [prefixes](KeyPrefix) of their keys. Rows that are equal in these are
//! sorted by the 16 bytes behind those, and so on: no comparison reads a common prefix twice. (A
//! multikey quicksort: Bentley and Sedgewick, "Fast Algorithms for Sorting and Searching Strings",
//! 1997, with characters of 16 bytes.) If 12 bytes are the whole key, the row index is packed into
//! the same number. Large inputs are first distributed over buckets by sampled splitters, as in a
//! sample sort, and each bucket is sorted separately. Cancellation is checked after each bucket and
//! after every 65,536 sorted rows.

use std::{cmp::Ordering, ops::Range};

use arrow_row::Rows;
use gatework_runtime::{Result, pipeline::DriverContext};

use super::prefix::{KeyPrefix, first_bytes};

/// Rows processed between two cancellation checks.
const STEP_ROWS: usize = 1 << 14;
/// Maximum number of rows sorted in one call; larger inputs are first split at the median.
const MAX_SORT_ROWS: usize = 4 * STEP_ROWS;
/// Maximum number of buckets.
const MAX_BUCKETS: usize = 1 << 10;
/// Maximum number of rows with equal prefixes that are sorted by comparing their keys.
const MAX_COMPARED_ROWS: usize = if cfg!(test) { 3 } else { 24 };
/// Number of sampled rows per bucket, from which the splitters are chosen.
const SAMPLES_PER_BUCKET: usize = 16;

/// Sorted order of rows.
pub(super) struct SortedIndices {
    pub(super) prefix: KeyPrefix,
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

impl SortedIndices {
    /// Computes the order of fewer than 2^32 rows; with a `fetch`, of the first `fetch` only.
    ///
    /// # Errors
    /// If the query was cancelled.
    pub(super) fn of(keys: &Rows, fetch: Option<usize>, task: &DriverContext) -> Result<Self> {
        let by_prefix = |a: &(u128, u32), b: &(u128, u32)| a.0.cmp(&b.0);
        let prefix = KeyPrefix::of_keys(keys, task)?;
        match (prefix.is_key(), prefix.len()) {
            (true, ..=12) => {
                let sort = |bucket: &mut [_]| sort(bucket, task, &PackedEntry::cmp);
                Self::sort_by(keys, prefix, fetch, task, PackedEntry::cmp, sort)
            }
            (true, _) => {
                let sort = |bucket: &mut [_]| sort(bucket, task, &by_prefix);
                Self::sort_by(keys, prefix, fetch, task, by_prefix, sort)
            }
            (false, _) => {
                let end = prefix.end();
                let whole = |row: u32| keys.row(row as usize);
                let by_key = |a: &(u128, u32), b: &(u128, u32)| {
                    a.0.cmp(&b.0).then_with(|| whole(a.1).cmp(&whole(b.1)))
                };
                let sort = |bucket: &mut [_]| {
                    sort(bucket, task, &by_prefix)?;
                    let mut runs = runs(bucket).into_iter();
                    runs.try_for_each(|run| sort_ties(&mut bucket[run], keys, end, task))
                };
                Self::sort_by(keys, prefix, fetch, task, by_key, sort)
            }
        }
    }

    /// Sorts the rows, distributed over buckets, by sorting each bucket. `compare` is the order of
    /// two rows, by which the first `fetch` are selected.
    fn sort_by<P: SortEntry>(
        keys: &Rows,
        prefix: KeyPrefix,
        fetch: Option<usize>,
        task: &DriverContext,
        compare: impl Fn(&P, &P) -> Ordering,
        sort: impl Fn(&mut [P]) -> Result<()>,
    ) -> Result<Self> {
        let fetch = fetch.filter(|fetch| *fetch < keys.num_rows());
        let splitters = if fetch.is_none() { splitters::<P>(keys, &prefix) } else { Vec::new() };
        let (mut entries, ends) = bucket_by_sample::<P>(keys, &prefix, &splitters, task)?;
        match fetch {
            Some(0) => entries.clear(),
            Some(fetch) => {
                entries.select_nth_unstable_by(fetch - 1, compare);
                entries.truncate(fetch);
            }
            None => {}
        }
        let mut begin = 0;
        for end in ends {
            let end = end.min(entries.len());
            sort(&mut entries[begin..end])?;
            begin = end;
        }
        let (prefixes, rows) =
            entries.into_iter().map(|entry| (entry.prefix(), entry.row())).unzip();
        Ok(Self { prefix, prefixes, rows })
    }
}

/// Calls `f` for each key.
pub(super) fn for_each_key<'a>(
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

/// Returns the first prefix of each bucket but the first, chosen from samples.
fn splitters<P: SortEntry>(keys: &Rows, prefix: &KeyPrefix) -> Vec<u128> {
    let buckets = (keys.num_rows() / P::BUCKET_ROWS).min(MAX_BUCKETS);
    if buckets < 2 {
        return Vec::new();
    }
    let step = keys.num_rows() / (buckets * SAMPLES_PER_BUCKET);
    let rows = (0..keys.num_rows()).step_by(step);
    let mut sample: Vec<_> = rows.map(|row| prefix.of(keys.row(row).data())).collect();
    sample.sort_unstable();
    let mut splitters: Vec<_> =
        (1..buckets).map(|bucket| sample[bucket * sample.len() / buckets]).collect();
    splitters.dedup();
    splitters
}

/// Distributes the entries of all rows over buckets; returns them with the end of each bucket.
fn bucket_by_sample<P: SortEntry>(
    keys: &Rows,
    prefix: &KeyPrefix,
    splitters: &[u128],
    task: &DriverContext,
) -> Result<(Vec<P>, Vec<usize>)> {
    let rows = keys.num_rows();
    if splitters.is_empty() {
        let mut entries = Vec::with_capacity(rows);
        for_each_key(keys, task, |row, key| entries.push(P::new(prefix.of(key), row)))?;
        return Ok((entries, vec![rows]));
    }
    let mut buckets = Vec::with_capacity(rows);
    let mut counts = vec![0; splitters.len() + 1];
    for_each_key(keys, task, |_, key| {
        let prefix = prefix.of(key);
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
        entries[*end] = P::new(prefix.of(key), row);
        *end += 1;
    })?;
    Ok((entries, ends))
}

/// Returns the ranges of sorted entries in which more than one entry has the same prefix.
fn runs(entries: &[(u128, u32)]) -> Vec<Range<usize>> {
    let mut first = 0;
    let runs = entries.chunk_by(|a, b| a.0 == b.0).map(|run| {
        first += run.len();
        first - run.len()..first
    });
    runs.filter(|run| run.len() > 1).collect()
}

/// Sorts entries with equal prefixes, whose keys are equal up to `offset`. No key is the beginning
/// of another, so the zeros behind a short key in a prefix do not matter.
fn sort_ties(
    ties: &mut [(u128, u32)],
    keys: &Rows,
    offset: usize,
    task: &DriverContext,
) -> Result<()> {
    let key = |row: u32| {
        let row = keys.row(row as usize);
        row.data()
    };
    let from = |row: u32, offset: usize| key(row).get(offset..).unwrap_or_default();
    let by_rest = |ties: &mut [(u128, u32)], offset: usize| {
        ties.sort_unstable_by(|a, b| from(a.1, offset).cmp(from(b.1, offset)));
    };
    task.check_cancelled()?;
    if ties.len() <= MAX_COMPARED_ROWS {
        by_rest(ties, offset);
        return Ok(());
    }
    let prefix_of_all = ties.first().map_or(0, |entry| entry.0);
    // Ranges of entries that are equal in the bytes before an offset. (No recursion: keys may be
    // long.)
    let mut unsorted = vec![(0..ties.len(), offset)];
    while let Some((range, offset)) = unsorted.pop() {
        task.check_cancelled()?;
        let ties = &mut ties[range.clone()];
        if ties.len() <= MAX_COMPARED_ROWS {
            by_rest(ties, offset);
            continue;
        }
        let rest = |row: u32| from(row, offset);
        let mut common = rest(ties[0].1);
        for step in ties.chunks(STEP_ROWS) {
            task.check_cancelled()?;
            for (_, row) in step {
                let same = common.iter().zip(rest(*row)).take_while(|(a, b)| a == b).count();
                common = &common[..same];
            }
        }
        let offset = offset + common.len();
        let mut longest = 0;
        for step in ties.chunks_mut(STEP_ROWS) {
            task.check_cancelled()?;
            for (prefix_of_row, row) in step {
                let rest = from(*row, offset);
                longest = longest.max(rest.len());
                *prefix_of_row = first_bytes(rest);
            }
        }
        sort(ties, task, &|a, b| a.0.cmp(&b.0))?;
        if longest > size_of::<u128>() {
            let further = runs(ties).into_iter();
            let in_all = |run: Range<usize>| range.start + run.start..range.start + run.end;
            unsorted.extend(further.map(|run| (in_all(run), offset + size_of::<u128>())));
        }
    }
    ties.iter_mut().for_each(|entry| entry.0 = prefix_of_all);
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
