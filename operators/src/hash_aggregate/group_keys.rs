//! Groups of an aggregate's keys, found by their values in a table, or by the codes of columns that
//! arrive as dictionaries.

use std::{ops::Range, sync::Arc};

use arrow::array::{Array, ArrayRef};
use gatework_runtime::{Error, Result, pipeline::QueryContext};

use super::dictionary_keys::DictionaryKeys;
use crate::{
    ResultExt, dictionary,
    keys::{GroupValues, KeyEncoder},
};

#[cfg(test)]
mod tests;

/// Entries of a dictionary that are looked up at the first row. Larger ones wait until half as many
/// rows have come, and have shared their groups.
const MAX_EAGER_ENTRIES: usize = if cfg!(test) { 30 } else { 1 << 14 };
/// Entries of a dictionary that is not used: their numbers take 8 MiB a task.
const MAX_ENTRIES: usize = 1 << 21;
/// Maximum number of groups that move from the table to dictionaries.
const MAX_MOVED_GROUPS: usize = if cfg!(test) { 50 } else { 1 << 16 };

/// Maximum number of sets of key columns whose codes are tried in vain. After these, all codes are
/// given up.
const MAX_INEFFECTIVE_CODES: usize = 4;

/// Maximum number of groups that are moved or merged at a time.
pub(super) const SLICE_GROUPS: usize = 1 << 13;

/// The groups of keys, numbered in the order of their first rows.
pub(super) struct GroupKeys {
    encoder: KeyEncoder,
    /// The groups by values.
    pub(super) table: GroupValues,
    /// Groups of keys that arrive as dictionaries, which are not in the table yet. There are then
    /// no other groups.
    dictionary: Option<DictionaryKeys>,
    /// Sets of key columns, by flags, whose codes did not help.
    ineffective_codes: Vec<Vec<bool>>,
    /// Rows with codes before the groups may move from the table to dictionaries.
    rows_before_codes: usize,
    /// Rows of the groups.
    pub(super) rows: usize,
    query: Arc<QueryContext>,
}

impl GroupKeys {
    /// Returns no groups, for keys of `encoder`.
    pub(super) fn new(encoder: KeyEncoder, query: Arc<QueryContext>) -> Self {
        Self {
            table: GroupValues::new(&encoder),
            encoder,
            dictionary: None,
            ineffective_codes: Vec::new(),
            rows_before_codes: 0,
            rows: 0,
            query,
        }
    }

    /// Returns the number of groups.
    pub(super) fn len(&self) -> usize {
        self.table.len() + self.dictionary.as_ref().map_or(0, DictionaryKeys::len)
    }

    /// Returns whether rows find their groups without a hash table.
    pub(super) fn is_indexed(&self) -> bool {
        self.dictionary.is_some() || self.table.has_index()
    }

    /// Returns the memory in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.table.bytes() + self.dictionary.as_ref().map_or(0, DictionaryKeys::bytes)
    }

    /// Returns `keys` with plain values.
    pub(super) fn decode(&self, keys: &[ArrayRef]) -> Result<Vec<ArrayRef>> {
        let keys = keys.iter().zip(self.encoder.types());
        keys.map(|(key, kind)| dictionary::decode(key, kind)).collect::<Result<_, _>>().query_err()
    }

    /// Replaces `groups` by the group of each row of `keys`, if these are dictionaries and that
    /// helps. Returns whether it did.
    pub(super) fn assign_codes(
        &mut self,
        keys: &[ArrayRef],
        groups: &mut Vec<usize>,
    ) -> Result<bool> {
        if let Some(dictionary) = &self.dictionary {
            if !dictionary.is_effective() {
                self.ineffective_codes.push(dictionary.coded().to_vec());
                // The groups move again only after as many rows.
                self.rows_before_codes = dictionary.len();
                self.settle(groups)?;
            } else if dictionary.is_outdated() {
                self.settle(groups)?;
            }
        }
        if self.dictionary.is_none() {
            self.start_dictionary(keys, groups)?;
        }
        let Some(dictionary) = &mut self.dictionary else { return Ok(false) };
        dictionary.assign(keys, groups).query_err()?;
        self.rows += keys.first().map_or(0, |key| key.len());
        Ok(true)
    }

    /// Moves the groups of the table, under the same numbers, to those of `keys`' dictionaries, if
    /// there are any that may help. `groups` is scratch memory.
    fn start_dictionary(&mut self, keys: &[ArrayRef], groups: &mut Vec<usize>) -> Result<()> {
        if self.ineffective_codes.len() >= MAX_INEFFECTIVE_CODES {
            return Ok(());
        }
        let encoder = &self.encoder;
        let Some(entries) = DictionaryKeys::num_entries(encoder, keys) else { return Ok(()) };
        if self.ineffective_codes.contains(&DictionaryKeys::coded_columns(encoder, keys)) {
            return Ok(());
        }
        if self.rows_before_codes > 0 {
            let rows = keys.first().map_or(0, |key| key.len());
            self.rows_before_codes = self.rows_before_codes.saturating_sub(rows);
            return Ok(());
        }
        let count = self.table.len();
        let waits =
            entries > MAX_EAGER_ENTRIES && (2 * self.rows < entries || 2 * count > self.rows);
        if waits || entries > MAX_ENTRIES || count > MAX_MOVED_GROUPS {
            return Ok(());
        }
        self.dictionary = DictionaryKeys::new(encoder, keys).query_err()?;
        if let (Some(dictionary), true) = (&mut self.dictionary, count > 0) {
            let known = encoder.decode_plain_range(self.table.keys(), 0..count).query_err()?;
            dictionary.adopt(&known, groups).query_err()?;
            self.table.clear();
        }
        Ok(())
    }

    /// Moves groups of keys that arrived as dictionaries into the table, under the same numbers.
    /// `groups` is scratch memory.
    pub(super) fn settle(&mut self, groups: &mut Vec<usize>) -> Result<()> {
        let Some(dictionary) = self.dictionary.take() else { return Ok(()) };
        let count = dictionary.len();
        for first in (0..count).step_by(SLICE_GROUPS) {
            let range = first..count.min(first + SLICE_GROUPS);
            self.query.check_cancelled()?;
            self.reserve(range.len())?;
            let keys = dictionary.columns(range.clone()).query_err()?;
            self.assign(&keys, groups)?;
            if !groups.iter().copied().eq(range) {
                return Err(Error::Internal("a dictionary changed the numbers of groups".into()));
            }
        }
        Ok(())
    }

    /// Reserves capacity for `more` groups.
    pub(super) fn reserve(&mut self, more: usize) -> Result<()> {
        let query = &self.query;
        self.table.reserve(more, || query.check_cancelled())
    }

    /// Replaces `groups` by the group of each row of `keys`, which have plain values. There are no
    /// groups by codes.
    pub(super) fn assign(&mut self, keys: &[ArrayRef], groups: &mut Vec<usize>) -> Result<()> {
        let keys = self.encoder.encode(keys).query_err()?;
        self.table.assign(&keys, groups);
        Ok(())
    }

    /// Returns the key columns of the groups of `range`, plain, texts as views.
    pub(super) fn columns(&self, range: Range<usize>) -> Result<Vec<ArrayRef>> {
        let columns = match &self.dictionary {
            Some(dictionary) => dictionary.columns(range),
            None => self.encoder.decode_plain_range(self.table.keys(), range),
        };
        columns.query_err()
    }

    /// Frees the memory of the table, which is empty.
    pub(super) fn release(&mut self) {
        self.table = GroupValues::new(&self.encoder);
    }

    /// Returns the table, which has all groups. No groups are left.
    pub(super) fn take_table(&mut self) -> GroupValues {
        (self.rows, self.rows_before_codes) = (0, 0);
        std::mem::replace(&mut self.table, GroupValues::new(&self.encoder))
    }
}
