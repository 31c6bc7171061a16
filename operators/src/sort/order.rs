//! The order of rows, told from their keys.
//!
//! A key in two parts: most comparisons end with the first 16 bytes behind those that all keys begin with, which are a
//! number at hand; the rest is far away. If 12 bytes say it all, the row's number goes into the same number. Of many rows,
//! these are divided among parts by samples first, as in a sample sort, and each part is sorted by itself, after which it
//! is asked whether the query goes on. So it is after every 65,536 rows that are sorted.

use std::cmp::Ordering;

use arrow_row::Rows;
use gatework_runtime::{Result, pipeline::TaskContext};

/// So many rows are looked at at a time.
const STEP_ROWS: usize = 1 << 14;
/// So many rows are sorted at a time; of more the middle is found first.
const SORTED_ROWS: usize = 4 * STEP_ROWS;
/// Parts that rows are divided among, at most.
const MOST_PARTS: usize = 1 << 10;
/// Rows that are looked at, for each part, to tell where it begins.
const SAMPLES_PER_PART: usize = 16;

/// The order of rows.
pub(super) struct Order {
    /// How many bytes all keys begin with.
    pub(super) common: usize,
    /// All keys are as long, and the prefixes behind what is common say the rest.
    pub(super) exact: bool,
    /// In order: what each row is compared by first, and its number.
    pub(super) prefixes: Vec<u128>,
    pub(super) rows: Vec<u32>,
}

/// What a row is compared by first, and its number.
trait Place: Copy + Default {
    /// Rows of a part that rows are divided among.
    const PART_ROWS: usize;

    fn new(prefix: u128, row: u32) -> Self;
    fn prefix(self) -> u128;
    fn row(self) -> u32;
}

impl Place for (u128, u32) {
    /// Comparisons may look at keys, so a part is to stay in the cache.
    const PART_ROWS: usize = 1 << 14;

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
struct Packed(u128);

impl Place for Packed {
    /// Numbers are halved faster than they are told apart.
    const PART_ROWS: usize = 1 << 18;

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

impl Order {
    /// The order of the rows of these keys, fewer than 2^32; of the first `fetch` only, if there is one.
    ///
    /// # Errors
    /// If the query is over.
    pub(super) fn of(keys: &Rows, fetch: Option<usize>, task: &TaskContext) -> Result<Self> {
        let (common, left) = shape(keys, task)?;
        match left {
            Some(..=12) => Self::by(keys, common, true, fetch, task, Packed::cmp),
            Some(13..=16) => {
                let by_prefix = |a: &(u128, u32), b: &(u128, u32)| a.0.cmp(&b.0);
                Self::by(keys, common, true, fetch, task, by_prefix)
            }
            _ => {
                let whole = |row: u32| keys.row(row as usize);
                let by_key = |a: &(u128, u32), b: &(u128, u32)| {
                    a.0.cmp(&b.0).then_with(|| whole(a.1).cmp(&whole(b.1)))
                };
                Self::by(keys, common, false, fetch, task, by_key)
            }
        }
    }

    fn by<P: Place>(
        keys: &Rows,
        common: usize,
        exact: bool,
        fetch: Option<usize>,
        task: &TaskContext,
        compare: impl Fn(&P, &P) -> Ordering,
    ) -> Result<Self> {
        let fetch = fetch.filter(|fetch| *fetch < keys.num_rows());
        let bounds = if fetch.is_none() { bounds::<P>(keys, common) } else { Vec::new() };
        let (mut places, ends) = divided::<P>(keys, common, &bounds, task)?;
        sort_parts(&mut places, fetch, &ends, task, &compare)?;
        let (prefixes, rows) =
            places.into_iter().map(|place| (place.prefix(), place.row())).unzip();
        Ok(Self { common, exact, prefixes, rows })
    }
}

/// Does this for each key.
fn each<'a>(keys: &'a Rows, task: &TaskContext, mut this: impl FnMut(u32, &'a [u8])) -> Result<()> {
    let rows = keys.num_rows();
    for step in (0..rows).step_by(STEP_ROWS) {
        task.check()?;
        for row in step..rows.min(step + STEP_ROWS) {
            this(row as u32, keys.row(row).data());
        }
    }
    Ok(())
}

/// How many bytes all keys begin with, and how many are left, if those are as many of each. (Of a decimal most bytes are
/// the same, and the others would not be among the first 16.)
fn shape(keys: &Rows, task: &TaskContext) -> Result<(usize, Option<usize>)> {
    let mut even = true;
    let mut first: Option<&[u8]> = None;
    let mut common: &[u8] = &[];
    each(keys, task, |_, key| {
        let first = *first.get_or_insert_with(|| {
            common = key;
            key
        });
        even &= key.len() == first.len();
        if !common.is_empty() {
            let same = common.iter().zip(key).take_while(|(one, other)| one == other).count();
            common = &common[..same];
        }
    })?;
    let left = first.map_or(0, |first| first.len() - common.len());
    Ok((common.len(), even.then_some(left)))
}

/// Where the second part begins, and all that follow it, by samples.
fn bounds<P: Place>(keys: &Rows, common: usize) -> Vec<u128> {
    let parts = (keys.num_rows() / P::PART_ROWS).min(MOST_PARTS);
    if parts < 2 {
        return Vec::new();
    }
    let step = keys.num_rows() / (parts * SAMPLES_PER_PART);
    let rows = (0..keys.num_rows()).step_by(step);
    let mut sample: Vec<_> = rows.map(|row| prefix(&keys.row(row).data()[common..])).collect();
    sample.sort_unstable();
    let mut bounds: Vec<_> = (1..parts).map(|part| sample[part * sample.len() / parts]).collect();
    bounds.dedup();
    bounds
}

/// The places of all rows, those of the first part first, and where each part ends.
fn divided<P: Place>(
    keys: &Rows,
    common: usize,
    bounds: &[u128],
    task: &TaskContext,
) -> Result<(Vec<P>, Vec<usize>)> {
    let rows = keys.num_rows();
    if bounds.is_empty() {
        let mut places = Vec::with_capacity(rows);
        each(keys, task, |row, key| places.push(P::new(prefix(&key[common..]), row)))?;
        return Ok((places, vec![rows]));
    }
    let mut parts = Vec::with_capacity(rows);
    let mut counts = vec![0; bounds.len() + 1];
    each(keys, task, |_, key| {
        let prefix = prefix(&key[common..]);
        let part = bounds.partition_point(|bound| *bound <= prefix);
        counts[part] += 1;
        parts.push(part as u16);
    })?;
    let mut begin = 0;
    let begins = counts.iter().map(|count| {
        begin += count;
        begin - count
    });
    // Until its rows have come, a part ends where it begins.
    let mut ends: Vec<usize> = begins.collect();
    let mut places = vec![P::default(); rows];
    each(keys, task, |row, key| {
        let end = &mut ends[usize::from(parts[row as usize])];
        places[*end] = P::new(prefix(&key[common..]), row);
        *end += 1;
    })?;
    Ok((places, ends))
}

/// Sorts each part; with a `fetch`, there is one, of which only as many are left.
fn sort_parts<P: Place>(
    places: &mut Vec<P>,
    fetch: Option<usize>,
    ends: &[usize],
    task: &TaskContext,
    by_key: &impl Fn(&P, &P) -> Ordering,
) -> Result<()> {
    match fetch {
        Some(0) => places.clear(),
        Some(fetch) => {
            places.select_nth_unstable_by(fetch - 1, by_key);
            places.truncate(fetch);
        }
        None => {}
    }
    let mut rest = &mut places[..];
    let mut begin = 0;
    for end in ends {
        let (part, others) = rest.split_at_mut(rest.len().min(end - begin));
        sort(part, task, by_key)?;
        (rest, begin) = (others, *end);
    }
    Ok(())
}

fn sort<P: Place>(
    places: &mut [P],
    task: &TaskContext,
    by_key: &impl Fn(&P, &P) -> Ordering,
) -> Result<()> {
    task.check()?;
    if places.len() <= SORTED_ROWS {
        places.sort_unstable_by(by_key);
        return Ok(());
    }
    if places.is_sorted_by(|one, other| by_key(one, other).is_le()) {
        return Ok(());
    }
    let (before, _, after) = places.select_nth_unstable_by(places.len() / 2, by_key);
    sort(before, task, by_key)?;
    sort(after, task, by_key)
}
