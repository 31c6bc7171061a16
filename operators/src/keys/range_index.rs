//! Groups of keys whose columns have small ranges, found at a place that is computed from the
//! values: without a hash and without a comparison. The ranges follow the data. (DuckDB's perfect
//! hash aggregate, with ranges that it takes from statistics.)

use super::fixed::{KeyWord, PackedField};

/// Places that an index always may have: 64 KiB.
const MIN_PLACES: u64 = 1 << 14;
/// Maximum number of places per group: an index then takes about the memory of a hash table.
const MAX_PLACES_PER_GROUP: u64 = 32;
/// Maximum number of places of an index: 2 MiB. Larger ones do not stay in a core's own cache.
const MAX_PLACES: u64 = 1 << 19;

/// Maximum number of columns of a key with an index.
pub(super) const MAX_COLUMNS: usize = 4;

/// The values of one key column that have places.
#[derive(Debug, Clone, Copy)]
struct ColumnRange {
    field: PackedField,
    /// The first value, in the order of [`PackedField::order`].
    first: u64,
    /// Number of values. NULL has one more place, before them.
    count: u64,
}

/// Group of each key whose values lie in the columns' ranges.
#[derive(Debug)]
pub(super) struct RangeIndex {
    columns: Vec<ColumnRange>,
    /// The group plus one at the place of its key; 0 at places of other keys.
    groups: Vec<u32>,
    /// Place of each key of a batch; scratch memory.
    places: Vec<u32>,
}

impl RangeIndex {
    /// Creates an index of keys with these fields, without places.
    pub(super) fn new(fields: &[PackedField]) -> Self {
        let column = |field: &PackedField| ColumnRange { field: *field, first: 0, count: 0 };
        let columns = fields.iter().map(column).collect();
        Self { columns, groups: Vec::new(), places: Vec::new() }
    }

    /// Returns the memory of the index, in bytes.
    pub(super) fn bytes(&self) -> usize {
        4 * (self.groups.capacity() + self.places.capacity())
    }

    /// Gives places to `known`, the keys of the groups, and to `keys`. Returns false if the index
    /// would be too large; it must not be used any more.
    pub(super) fn cover<W: KeyWord>(&mut self, known: &[W], keys: &[W]) -> bool {
        if !self.groups.is_empty() && self.find_places(keys) {
            return true;
        }
        let uncovered = if self.groups.is_empty() { known } else { &[] };
        for column in &mut self.columns {
            let old = *column;
            column.include(uncovered.iter().chain(keys));
            // Larger than necessary where it grows, so that the index is made again rarely.
            column.widen(&old);
        }
        let places = MAX_PLACES_PER_GROUP * (known.len() + keys.len()) as u64;
        let max_places = MAX_PLACES.min(MIN_PLACES + places);
        let count = self
            .columns
            .iter()
            .try_fold(1_u64, |product, column| product.checked_mul(column.count.checked_add(1)?));
        let Some(count) = count.filter(|count| *count <= max_places) else { return false };
        self.groups = vec![0; count as usize];
        self.find_places(known);
        for (group, place) in (1..).zip(&self.places) {
            self.groups[*place as usize] = group;
        }
        self.find_places(keys)
    }

    /// Replaces the places by those of `keys`. Returns false if a key has none.
    fn find_places<W: KeyWord>(&mut self, keys: &[W]) -> bool {
        self.places.clear();
        self.places.resize(keys.len(), 0);
        let mut inside = true;
        for ColumnRange { field, first, count } in &self.columns {
            let stride = *count as u32 + 1;
            for (place, key) in self.places.iter_mut().zip(keys) {
                let offset = field.order(*key).wrapping_sub(*first);
                let valid = u64::from(!field.is_null(*key));
                inside &= offset < *count || valid == 0;
                let number = offset.wrapping_add(1).wrapping_mul(valid) as u32;
                *place = place.wrapping_mul(stride).wrapping_add(number);
            }
        }
        inside
    }

    /// Replaces `groups` by the groups of `keys`, which are [covered](Self::cover). Adds new keys
    /// and their hashes to those of the groups.
    pub(super) fn assign<W: KeyWord>(
        &mut self,
        keys: &[W],
        (known, hashes): (&mut Vec<W>, &mut Vec<u64>),
        groups: &mut Vec<usize>,
    ) {
        let group_of = |(key, place): (&W, &u32)| {
            let group = &mut self.groups[*place as usize];
            if *group == 0 {
                known.push(*key);
                hashes.push(key.hash());
                *group = known.len() as u32;
            }
            *group as usize - 1
        };
        groups.clear();
        groups.extend(keys.iter().zip(&self.places).map(group_of));
    }
}

impl ColumnRange {
    fn last(&self) -> u64 {
        self.first + (self.count - 1)
    }

    /// Extends the range to the values of `keys`.
    fn include<'a, W: KeyWord + 'a>(&mut self, keys: impl Iterator<Item = &'a W>) {
        let (mut first, mut last) =
            if self.count == 0 { (u64::MAX, 0) } else { (self.first, self.last()) };
        for key in keys {
            // A NULL has no value.
            let (value, is_null) = (self.field.order(*key), self.field.is_null(*key));
            first = first.min(if is_null { u64::MAX } else { value });
            last = last.max(if is_null { 0 } else { value });
        }
        if first <= last {
            // The largest range has no place for its last value, and is too large anyway.
            (self.first, self.count) = (first, (last - first).saturating_add(1));
        }
    }

    /// Extends the range by as many values as `old` has, at each end at which it differs.
    fn widen(&mut self, old: &Self) {
        if old.count == 0 {
            return;
        }
        let less = if self.first < old.first { old.count.min(self.first) } else { 0 };
        let more = if self.last() > old.last() { old.count } else { 0 };
        self.first -= less;
        let count = self.count.saturating_add(less).saturating_add(more);
        self.count = count.min(u64::MAX - self.first);
    }
}
