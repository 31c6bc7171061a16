//! Cache of recent groups, found without encoding their keys.
//!
//! Keys with strings are encoded as rows of bytes before the table lookup. With few groups,
//! encoding takes longer than all other work. A string of at most 12 bytes, as a view, and a value
//! of at most 8 bytes are one 128-bit integer each. A row whose integers are in this small
//! direct-mapped table belongs to the cached group. All other rows are encoded and looked up. With
//! many groups most rows would miss, so the cache is disabled then.

use arrow::{
    array::{Array, ArrayRef, AsArray},
    datatypes::DataType,
};

use crate::keys::{is_narrow, pack_to_u128};

const SLOTS: usize = 1024;
/// Marks a string of more than 12 bytes, which has no inline view.
const NOT_INLINE: u128 = u128::MAX;
/// Marks a NULL. Views of short strings have zeros beyond their length, so none equals it.
const NULL: u128 = (1 << 127) | 1;
/// Number of rows after which the cache's effectiveness is checked.
const SAMPLE_ROWS: usize = 1 << 15;
/// The cache is ineffective if at least one row in this many misses.
const MISSES_ONE_IN: usize = 4;

#[derive(Debug)]
pub(super) struct GroupCache {
    columns: usize,
    /// The integers of the row in each slot.
    values: Vec<u128>,
    /// The group of each slot plus one; 0 for an empty slot.
    groups: Vec<u32>,
    /// Per column, the integers of the current batch.
    batch: Vec<Vec<u128>>,
    rows: usize,
    misses: usize,
}

impl GroupCache {
    /// Creates a cache for keys of these types; `None` if a type has no such integers.
    pub(super) fn new(types: &[DataType]) -> Option<Self> {
        let fits = |kind: &DataType| match kind {
            DataType::Utf8View | DataType::BinaryView | DataType::Utf8 => true,
            kind => is_narrow(kind),
        };
        types.iter().all(fits).then(|| Self {
            columns: types.len(),
            values: vec![0; SLOTS * types.len()],
            groups: vec![0; SLOTS],
            batch: vec![Vec::new(); types.len()],
            rows: 0,
            misses: 0,
        })
    }

    /// Removes all groups. Called when the table of groups is emptied.
    pub(super) fn clear(&mut self) {
        self.groups.fill(0);
    }

    /// Returns whether most lookups hit; true until enough rows were sampled.
    pub(super) fn is_effective(&self) -> bool {
        self.rows < SAMPLE_ROWS || self.misses < self.rows / MISSES_ONE_IN
    }

    /// Replaces `groups` by the cached group of each row of `columns`, and `misses` by the rows
    /// that are not in the cache.
    pub(super) fn lookup(
        &mut self,
        columns: &[ArrayRef],
        groups: &mut Vec<usize>,
        misses: &mut Vec<u32>,
    ) {
        for (column, values) in columns.iter().zip(&mut self.batch) {
            integers(column, values);
        }
        groups.clear();
        misses.clear();
        let rows = columns.first().map_or(0, Array::len);
        for row in 0..rows {
            let slot = self.slot(row);
            let known = &self.values[slot * self.columns..(slot + 1) * self.columns];
            let equal = known.iter().zip(&self.batch).all(|(known, values)| *known == values[row]);
            let group = self.groups[slot];
            if equal && group > 0 {
                groups.push(group as usize - 1);
            } else {
                groups.push(0);
                misses.push(row as u32);
            }
        }
        self.rows += rows;
        self.misses += misses.len();
    }

    /// Records that row `row` of the current batch is in `group`.
    pub(super) fn insert(&mut self, row: u32, group: usize) {
        let row = row as usize;
        if self.batch.iter().any(|values| values[row] == NOT_INLINE) {
            return;
        }
        let slot = self.slot(row);
        let known = &mut self.values[slot * self.columns..(slot + 1) * self.columns];
        for (known, values) in known.iter_mut().zip(&self.batch) {
            *known = values[row];
        }
        self.groups[slot] = group as u32 + 1;
    }

    #[inline]
    fn slot(&self, row: usize) -> usize {
        let mut hash = 0_u64;
        for values in &self.batch {
            let (low, high) = (values[row] as u64, (values[row] >> 64) as u64);
            hash = (hash.rotate_left(23) ^ low ^ high.rotate_left(32))
                .wrapping_mul(0x9E37_79B9_7F4A_7C15);
        }
        (hash >> 54) as usize
    }
}

/// Replaces `values` by one integer per row of `column`.
fn integers(column: &ArrayRef, values: &mut Vec<u128>) {
    values.clear();
    match column.data_type() {
        DataType::Utf8View => of_views(column.as_string_view().views(), values),
        DataType::BinaryView => of_views(column.as_binary_view().views(), values),
        DataType::Utf8 => {
            let strings = column.as_string::<i32>();
            let bytes = strings.value_data();
            values.extend(strings.value_offsets().windows(2).map(|bounds| {
                let bytes = &bytes[bounds[0] as usize..bounds[1] as usize];
                short_view(bytes)
            }));
        }
        _ => pack_to_u128(column, values),
    }
    if let Some(nulls) = column.nulls() {
        for (row, value) in values.iter_mut().enumerate() {
            if nulls.is_null(row) {
                *value = NULL;
            }
        }
    }
}

fn of_views(views: &[u128], values: &mut Vec<u128>) {
    values.extend(views.iter().map(|view| if *view as u32 <= 12 { *view } else { NOT_INLINE }));
}

/// Returns the view of a string of at most 12 bytes, else [`NOT_INLINE`].
fn short_view(bytes: &[u8]) -> u128 {
    if bytes.len() > 12 {
        return NOT_INLINE;
    }
    let mut view = [0; 16];
    view[0] = bytes.len() as u8;
    view[4..4 + bytes.len()].copy_from_slice(bytes);
    u128::from_le_bytes(view)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{Int32Array, StringArray, StringViewArray},
        datatypes::IntervalUnit,
    };

    use super::*;

    #[test]
    fn finds_only_inserted_groups() {
        let texts =
            vec![Some("a"), None, Some(""), Some("longer than twelve"), Some("twelve bytes")];
        let texts: Vec<Option<&str>> = texts.into_iter().cycle().take(60).collect();
        let numbers = Int32Array::from_iter((0..60).map(|n| (n % 3 > 0).then_some(n % 3 - 1)));
        let layouts: [ArrayRef; 2] =
            [Arc::new(StringViewArray::from(texts.clone())), Arc::new(StringArray::from(texts))];
        for texts in layouts {
            let columns = [texts.clone(), Arc::new(numbers.clone()) as ArrayRef];
            let types: Vec<DataType> = columns.iter().map(|c| c.data_type().clone()).collect();
            let mut cache = GroupCache::new(&types).unwrap();
            let (mut groups, mut misses) = (Vec::new(), Vec::new());
            cache.lookup(&columns, &mut groups, &mut misses);
            assert_eq!(misses.len(), 60);
            // Rows n and n + 15 have the same key.
            (0..15).for_each(|row| cache.insert(row, row as usize));
            cache.lookup(&columns, &mut groups, &mut misses);
            for (row, group) in groups.iter().enumerate() {
                let missed = misses.contains(&(row as u32));
                assert!(missed || *group == row % 15, "row {row}: {group}");
                assert!(missed || row % 5 != 3, "row {row} is too long");
            }
            assert!(misses.len() < 30, "{} misses", misses.len());
            cache.clear();
            cache.lookup(&columns, &mut groups, &mut misses);
            assert_eq!(misses.len(), 60);
        }
        // Types without such integers.
        let wide = [DataType::Decimal128(10, 2), DataType::Interval(IntervalUnit::YearMonth)];
        assert!(wide.into_iter().all(|kind| GroupCache::new(&[kind]).is_none()));
    }
}
