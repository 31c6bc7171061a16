//! The order of rows, told from their keys.
//!
//! A key in two parts: most comparisons end with the first 16 bytes behind those that all keys begin with, which are a
//! number at hand; the rest is far away. If 12 bytes say it all, the row's number goes into the same number. Of many rows,
//! these are divided among parts by samples first, as in a sample sort, and each part is sorted by itself, after which it
//! is asked whether the query goes on. So it is after every 65,536 rows that are sorted.

use std::cmp::Ordering;

use arrow_row::Rows;
use gatework_runtime::{Result, pipeline::DriverContext};

/// So many rows are looked at at a time.
const STEP_ROWS: usize = 1 << 14;
/// So many rows are sorted at a time; of more the middle is found first.
const MAX_SORT_ROWS: usize = 4 * STEP_ROWS;
/// Parts that rows are divided among, at most.
const MAX_BUCKETS: usize = 1 << 10;
/// Rows that are looked at, for each part, to tell where it begins.
const SAMPLES_PER_BUCKET: usize = 16;

/// The order of rows.
pub(super) struct SortedIndices {
    /// How many bytes all keys begin with.
    pub(super) common: usize,
    /// All keys are as long, and the prefixes behind what is common say the rest.
    pub(super) prefix_is_key: bool,
    /// In order: what each row is compared by first, and its number.
    pub(super) prefixes: Vec<u128>,
    pub(super) rows: Vec<u32>,
}

/// What a row is compared by first, and its number.
trait SortEntry: Copy + Default {
    /// Rows of a part that rows are divided among.
    const BUCKET_ROWS: usize;

    fn new(prefix: u128, row: u32) -> Self;
    fn prefix(self) -> u128;
    fn row(self) -> u32;
}

impl SortEntry for (u128, u32) {
    /// Comparisons may look at keys, so a part is to stay in the cache.
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

/// Both in one, where the last four bytes of prefixes are nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct PackedEntry(u128);

impl SortEntry for PackedEntry {
    /// Numbers are halved faster than they are told apart.
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

/// The first 16 bytes of a key, as a number that compares like them.
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
    /// The order of the rows of these keys, fewer than 2^32; of the first `fetch` only, if there is one.
    ///
    /// # Errors
    /// If the query is over.
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

/// Does this for each key.
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

/// How many bytes all keys begin with, and how many are left, if those are as many of each. (Of a decimal most bytes are
/// the same, and the others would not be among the first 16.)
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

/// Where the second part begins, and all that follow it, by samples.
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

/// The places of all rows, those of the first part first, and where each part ends.
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
    // Until its rows have come, a part ends where it begins.
    let mut ends: Vec<usize> = begins.collect();
    let mut entries = vec![P::default(); rows];
    for_each_key(keys, task, |row, key| {
        let end = &mut ends[usize::from(buckets[row as usize])];
        entries[*end] = P::new(prefix(&key[common..]), row);
        *end += 1;
    })?;
    Ok((entries, ends))
}

/// Sorts each part; with a `fetch`, there is one, of which only as many are left.
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
