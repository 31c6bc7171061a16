//! Group keys that arrive as dictionaries: each entry is looked up once, each row by its code.
//!
//! Key columns with the same codes, such as columns of one join's build side, are one part of the
//! key; all plain columns are another one. A part numbers its distinct values. A row's number is
//! read at its code from the numbers of the entries, which are found out as they are needed. With
//! several parts, the numbers of a row together are looked up: in an array of groups if the numbers
//! are small, else in a hash table of integers. The texts of a group are read when the groups are
//! taken out, once per group.
//!
//! Where most entries belong to one row only, or the plain columns have many values, this costs
//! more than it saves. The rows are then looked up by the values themselves.
//!
//! The first batch decides the parts. A later one may have other columns as dictionaries, such as
//! those of a row group in which another column is plain. Its rows find their groups, but not by
//! codes. After many such rows the keys are [outdated](DictionaryKeys::is_outdated), and the groups
//! move to parts that fit.

use std::{iter::zip, ops::Range, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, UInt32Array},
    compute::take,
    datatypes::{DataType, UInt32Type},
};
use datafusion_common::Result;

use crate::{
    dictionary::{self, EntriesId},
    keys::{GroupValues, KeyEncoder, KeyNulls},
};

/// Maximum number of parts: 256 bits of numbers.
const MAX_PARTS: usize = 8;
/// Maximum number of bits of the index of groups by numbers: 256 KiB.
const MAX_INDEX_BITS: u32 = 16;
/// Maximum number of values of the plain columns.
const MAX_PLAIN_VALUES: usize = if cfg!(test) { 20 } else { 1 << 12 };
/// Rows between two decisions whether the codes help, by the groups of these rows.
const MIN_ROWS: usize = if cfg!(test) { 50 } else { 1 << 13 };
/// Minimum number of rows between two decisions by the number of lookups.
const CHECK_ROWS: usize = if cfg!(test) { 100 } else { 1 << 15 };
/// Dictionary entries that are as expensive to forget as a row is to look up.
const ENTRIES_PER_ROW: usize = 16;

/// Number of an entry that is not known yet.
const UNKNOWN: u32 = u32::MAX;

/// Groups of keys of which at least one column arrives as a dictionary.
pub(super) struct DictionaryKeys {
    parts: Vec<KeyPart>,
    /// Groups by the numbers of the parts; `None` with one part, whose numbers are the groups.
    combinations: Option<Combinations>,
    /// Rows since the last decision by the number of lookups, and that number.
    rows: usize,
    lookups: usize,
    window: Window,
    is_effective: bool,
    /// For each key column whether the first batch had codes.
    coded: Vec<bool>,
    /// Rows that did not fit the parts, minus those that fitted after them.
    misfit_rows: usize,
}

/// Rows since the last decision by their groups.
#[derive(Default)]
struct Window {
    rows: usize,
    /// Number of groups before, and whether most rows of the window before had a new one.
    groups: usize,
    was_mostly_new: bool,
}

impl DictionaryKeys {
    /// Returns the number of entries of the largest dictionary among `keys`, which are keys of
    /// `encoder`; `None` if no column is a dictionary.
    pub(super) fn num_entries(encoder: &KeyEncoder, keys: &[ArrayRef]) -> Option<usize> {
        let codes =
            zip(keys, encoder.types()).filter_map(|(key, kind)| dictionary::codes(key, kind));
        codes.map(|(_, entries)| entries.len()).max()
    }

    /// Returns for each of `keys`, which are keys of `encoder`, whether it is a dictionary.
    pub(super) fn coded_columns(encoder: &KeyEncoder, keys: &[ArrayRef]) -> Vec<bool> {
        let columns = zip(keys, encoder.types());
        columns.map(|(key, kind)| dictionary::codes(key, kind).is_some()).collect()
    }

    /// Returns groups for keys of `encoder`, of which `keys` are some; `None` if no column is a
    /// dictionary, or the key has too many parts.
    pub(super) fn new(encoder: &KeyEncoder, keys: &[ArrayRef]) -> Result<Option<Self>> {
        let types = encoder.types();
        // Columns of one join have as many entries; constant columns of a file may differ in that.
        let codes = zip(keys, types).map(|(key, kind)| {
            let (codes, entries) = dictionary::codes(key, kind)?;
            Some((codes, entries.len()))
        });
        let codes: Vec<_> = codes.collect();
        if codes.iter().all(Option::is_none) {
            return Ok(None);
        }
        let mut columns_of_parts: Vec<Vec<usize>> = Vec::new();
        for column in 0..keys.len() {
            let same = |part: &&mut Vec<usize>| codes[part[0]] == codes[column];
            match columns_of_parts.iter_mut().find(same) {
                Some(part) => part.push(column),
                None => columns_of_parts.push(vec![column]),
            }
        }
        if columns_of_parts.len() > MAX_PARTS {
            return Ok(None);
        }
        let part = |columns: Vec<usize>| {
            let is_plain = codes[columns[0]].is_none();
            KeyPart::new(columns, is_plain, types)
        };
        let parts: Vec<_> = columns_of_parts.into_iter().map(part).collect::<Result<_>>()?;
        let combinations = match parts.len() {
            1 => None,
            count => Some(Combinations::new(count)?),
        };
        Ok(Some(Self {
            parts,
            combinations,
            rows: 0,
            lookups: 0,
            window: Window::default(),
            is_effective: true,
            coded: codes.iter().map(Option::is_some).collect(),
            misfit_rows: 0,
        }))
    }

    /// Returns the number of groups.
    pub(super) fn len(&self) -> usize {
        match &self.combinations {
            Some(combinations) => combinations.groups.len(),
            None => self.parts[0].values.len(),
        }
    }

    /// Returns whether the codes save lookups.
    pub(super) fn is_effective(&self) -> bool {
        self.is_effective
    }

    /// Returns for each key column whether the first batch had codes.
    pub(super) fn coded(&self) -> &[bool] {
        &self.coded
    }

    /// Returns whether most rows do not fit the parts: other columns are dictionaries, or columns
    /// with the same codes no longer have the same. There were then as many such rows as groups, so
    /// that moving the groups costs no more than the rows did.
    pub(super) fn is_outdated(&self) -> bool {
        self.misfit_rows >= MIN_ROWS.max(self.len())
    }

    /// Returns the memory in bytes, including about that of the table that the groups become.
    pub(super) fn bytes(&self) -> usize {
        let values: usize = self.parts.iter().map(|part| part.values.bytes()).sum();
        let known: usize = self.parts.iter().map(KeyPart::known_bytes).sum();
        let table = match &self.combinations {
            // A text of a part is one of each of its groups.
            Some(combinations) => {
                let average = |part: &KeyPart| part.values.bytes() / part.values.len().max(1);
                let group: usize = self.parts.iter().map(average).sum();
                combinations.groups.bytes() + combinations.index_bytes() + group * self.len()
            }
            None => values,
        };
        values + known + table
    }

    /// Enters the keys of a table's groups, under the same numbers.
    pub(super) fn adopt(&mut self, keys: &[ArrayRef], groups: &mut Vec<usize>) -> Result<()> {
        self.find(keys, groups)?;
        (self.lookups, self.window.groups) = (0, self.len());
        Ok(())
    }

    /// Replaces `groups` by the group of each row of `keys`.
    fn find(&mut self, keys: &[ArrayRef], groups: &mut Vec<usize>) -> Result<()> {
        groups.clear();
        for part in &mut self.parts {
            self.lookups += part.number(keys, groups)?;
        }
        match &mut self.combinations {
            Some(combinations) => combinations.assign(&self.parts, groups),
            None => {
                groups.clear();
                groups.extend(self.parts[0].numbers.iter().map(|number| *number as usize));
                Ok(())
            }
        }
    }

    /// Replaces `groups` by the group of each row of `keys`.
    pub(super) fn assign(&mut self, keys: &[ArrayRef], groups: &mut Vec<usize>) -> Result<()> {
        let (lookups, known_groups) = (self.lookups, self.len());
        self.find(keys, groups)?;
        let rows = keys.first().map_or(0, |key| key.len());
        if self.parts.iter().all(|part| part.fits) {
            self.rows += rows;
            self.window.rows += rows;
            self.misfit_rows = self.misfit_rows.saturating_sub(rows);
        } else {
            // These rows do not tell whether the codes help the rows that fit.
            self.lookups = lookups;
            self.window.groups += self.len() - known_groups;
            self.misfit_rows += rows;
        }
        self.check();
        Ok(())
    }

    /// Decides whether the codes help.
    fn check(&mut self) {
        let is_large = |part: &KeyPart| part.is_plain && part.values.len() > MAX_PLAIN_VALUES;
        let is_large = self.parts.iter().any(is_large);
        self.is_effective = !is_large || self.misfit_rows > 0;
        if is_large && self.misfit_rows > 0 {
            // Rows of other parts made it so.
            self.misfit_rows = self.misfit_rows.max(MIN_ROWS).max(self.len());
        }
        if self.window.rows >= MIN_ROWS {
            let new = self.len() - self.window.groups;
            let mostly_new = self.combinations.is_some() && 8 * new > 7 * self.window.rows;
            let was_mostly_new = self.window.was_mostly_new;
            self.is_effective &= !(mostly_new && was_mostly_new);
            let groups = self.len();
            self.window = Window { groups, was_mostly_new: mostly_new, ..Window::default() };
        }
        // Each entry is looked up once, and many of them at first.
        let entries = self.parts.iter().map(KeyPart::num_entries).max().unwrap_or(0);
        if self.rows >= CHECK_ROWS.max(2 * entries) {
            self.is_effective &= 2 * self.lookups <= self.rows;
            (self.rows, self.lookups) = (0, 0);
        }
    }

    /// Returns the key columns of the groups of `range`, texts as views.
    pub(super) fn columns(&self, range: Range<usize>) -> Result<Vec<ArrayRef>> {
        let combinations = self.combinations.as_ref();
        let numbers = combinations.map(|it| it.numbers(range.clone())).transpose()?;
        let count = self.parts.iter().map(|part| part.columns.len()).sum();
        let mut columns: Vec<Option<ArrayRef>> = vec![None; count];
        for (index, part) in self.parts.iter().enumerate() {
            let keys = part.values.keys();
            let decoded = match &numbers {
                Some(numbers) => {
                    let numbers = numbers[index].as_primitive::<UInt32Type>();
                    part.encoder.decode_plain_indices(keys, numbers.values())?
                }
                None => part.encoder.decode_plain_range(keys, range.clone())?,
            };
            for (column, values) in zip(&part.columns, decoded) {
                columns[*column] = Some(values);
            }
        }
        Ok(columns.into_iter().flatten().collect())
    }
}

/// Key columns whose distinct values are numbered together.
struct KeyPart {
    /// Positions of the columns in the key.
    columns: Vec<usize>,
    is_plain: bool,
    /// Whether the current rows had the codes of this part, or none if it is plain.
    fits: bool,
    encoder: KeyEncoder,
    values: GroupValues,
    /// Number of each entry of the current dictionary.
    dictionary: Option<KnownEntries>,
    /// Number of each current row.
    numbers: Vec<u32>,
}

/// Numbers of the entries of a dictionary.
struct KnownEntries {
    /// The entries, by column.
    entries: Vec<EntriesId>,
    numbers: Vec<u32>,
}

impl KnownEntries {
    /// Replaces `numbers` by those of `codes`. Returns whether all are known.
    fn read(&self, codes: &[u32], numbers: &mut Vec<u32>) -> bool {
        let mut all_known = true;
        numbers.clear();
        numbers.extend(codes.iter().map(|code| {
            let number = self.numbers[*code as usize];
            all_known &= number != UNKNOWN;
            number
        }));
        all_known
    }

    /// Returns those of `codes` whose numbers are not known, each once.
    fn take_unknown(&mut self, codes: &[u32]) -> Vec<u32> {
        let mut unknown = Vec::new();
        for code in codes {
            let number = &mut self.numbers[*code as usize];
            if *number == UNKNOWN {
                // Any other number.
                *number = 0;
                unknown.push(*code);
            }
        }
        unknown
    }
}

impl KeyPart {
    fn new(columns: Vec<usize>, is_plain: bool, types: &[DataType]) -> Result<Self> {
        let nullable: Vec<_> =
            columns.iter().map(|column| (types[*column].clone(), true)).collect();
        let encoder = KeyEncoder::new(&nullable, KeyNulls::Equal)?;
        let values = GroupValues::new(&encoder);
        let (dictionary, numbers) = (None, Vec::new());
        Ok(Self { columns, is_plain, fits: true, encoder, values, dictionary, numbers })
    }

    fn known_bytes(&self) -> usize {
        4 * (self.num_entries() + self.numbers.capacity())
    }

    /// Returns the number of entries of the current dictionary.
    fn num_entries(&self) -> usize {
        self.dictionary.as_ref().map_or(0, |known| known.numbers.len())
    }

    /// Numbers the rows of `keys`, and returns the number of lookups. `groups` is scratch memory.
    fn number(&mut self, keys: &[ArrayRef], groups: &mut Vec<usize>) -> Result<usize> {
        let columns = self.columns.iter().map(|column| &keys[*column]);
        let codes: Vec<_> = zip(columns.clone(), self.encoder.types())
            .map(|(key, kind)| dictionary::codes(key, kind))
            .collect();
        let is_plain = codes.iter().all(Option::is_none);
        let encoded: Option<Vec<_>> = codes.into_iter().collect();
        let encoded = encoded.filter(|encoded| encoded.iter().all(|it| it.0 == encoded[0].0));
        self.fits = if self.is_plain { is_plain } else { encoded.is_some() };
        let Some(encoded) = encoded else {
            let plain =
                zip(columns, self.encoder.types()).map(|(key, kind)| dictionary::decode(key, kind));
            let plain = plain.collect::<Result<Vec<_>>>()?;
            let before = self.values.len();
            self.look_up(&plain, groups)?;
            self.numbers.clear();
            self.numbers.extend(groups.iter().map(|group| *group as u32));
            return Ok(if self.is_plain { self.values.len() - before } else { groups.len() });
        };
        let (codes, mut lookups) = (encoded[0].0, 0);
        let entries = || encoded.iter().map(|(_, entries)| *entries);
        let is_known = |known: &KnownEntries| {
            zip(&known.entries, entries()).all(|(known, entries)| known.is(entries))
        };
        let mut known = match self.dictionary.take_if(|known| is_known(known)) {
            Some(known) => known,
            None => {
                let count = entries().map(|entries| entries.len()).min().unwrap_or(0);
                lookups += count / ENTRIES_PER_ROW;
                KnownEntries {
                    entries: entries().map(EntriesId::of).collect(),
                    numbers: vec![UNKNOWN; count],
                }
            }
        };
        if !known.read(codes, &mut self.numbers) {
            let new = known.take_unknown(codes);
            lookups += new.len();
            let new = UInt32Array::from(new);
            let plain = entries().map(|entries| take(entries, &new, None));
            let plain = plain.collect::<Result<Vec<_>, _>>()?;
            self.look_up(&plain, groups)?;
            for (code, group) in zip(new.values(), groups.iter()) {
                known.numbers[*code as usize] = *group as u32;
            }
            known.read(codes, &mut self.numbers);
        }
        self.dictionary = Some(known);
        Ok(lookups)
    }

    /// Replaces `groups` by the number of each of `values`.
    fn look_up(&mut self, values: &[ArrayRef], groups: &mut Vec<usize>) -> Result<()> {
        let keys = self.encoder.encode(values)?;
        self.values.assign(&keys, groups);
        Ok(())
    }
}

/// Groups by the numbers of several parts.
struct Combinations {
    /// Bits of each part's number in the index.
    bits: Vec<u32>,
    /// The group plus one at its parts' numbers; empty if the numbers have too many bits.
    index: Vec<u32>,
    /// Encoder of the numbers.
    encoder: KeyEncoder,
    groups: GroupValues,
}

impl Combinations {
    fn new(parts: usize) -> Result<Self> {
        let encoder = KeyEncoder::new(&vec![(DataType::UInt32, false); parts], KeyNulls::Equal)?;
        let groups = GroupValues::new(&encoder);
        Ok(Self { bits: vec![0; parts], index: vec![0], encoder, groups })
    }

    fn index_bytes(&self) -> usize {
        4 * self.index.capacity()
    }

    /// Returns the numbers of the groups of `range`, by part.
    fn numbers(&self, range: Range<usize>) -> Result<Vec<ArrayRef>> {
        self.encoder.decode_range(self.groups.keys(), range)
    }

    /// Replaces `groups` by the group of each row of `parts`.
    fn assign(&mut self, parts: &[KeyPart], groups: &mut Vec<usize>) -> Result<()> {
        self.fit(parts)?;
        if self.index.is_empty() {
            let numbers =
                |part: &KeyPart| -> ArrayRef { Arc::new(UInt32Array::from(part.numbers.clone())) };
            let numbers: Vec<_> = parts.iter().map(numbers).collect();
            return self.look_up(&numbers, groups);
        }
        self.find_places(parts, groups);
        if self.read(groups) {
            return Ok(());
        }
        self.find_places(parts, groups);
        let mut new: Vec<u32> = Vec::new();
        for (row, place) in (0..).zip(groups.iter()) {
            if self.index[*place] == 0 {
                // Any other number: each combination is looked up once.
                self.index[*place] = UNKNOWN;
                new.push(row);
            }
        }
        let numbers = |part: &KeyPart| -> ArrayRef {
            let numbers = new.iter().map(|row| part.numbers[*row as usize]);
            Arc::new(UInt32Array::from_iter_values(numbers))
        };
        let numbers: Vec<_> = parts.iter().map(numbers).collect();
        let mut new_groups = Vec::new();
        self.look_up(&numbers, &mut new_groups)?;
        for (row, group) in zip(new, new_groups) {
            self.index[groups[row as usize]] = group as u32 + 1;
        }
        self.read(groups);
        Ok(())
    }

    /// Replaces `groups` by the place of each row of `parts` in the index.
    fn find_places(&self, parts: &[KeyPart], groups: &mut Vec<usize>) {
        groups.clear();
        groups.extend(parts[0].numbers.iter().map(|number| *number as usize));
        for (part, bits) in zip(parts, &self.bits).skip(1) {
            for (place, number) in zip(groups.iter_mut(), &part.numbers) {
                *place = *place << bits | *number as usize;
            }
        }
    }

    /// Replaces places in the index by their groups. Returns whether all are known.
    fn read(&self, groups: &mut [usize]) -> bool {
        let mut all_known = true;
        for place in groups {
            let group = self.index[*place];
            all_known &= group != 0;
            *place = (group as usize).wrapping_sub(1);
        }
        all_known
    }

    fn look_up(&mut self, numbers: &[ArrayRef], groups: &mut Vec<usize>) -> Result<()> {
        let keys = self.encoder.encode(numbers)?;
        self.groups.assign(&keys, groups);
        Ok(())
    }

    /// Makes the index fit the numbers of `parts`.
    fn fit(&mut self, parts: &[KeyPart]) -> Result<()> {
        let needed = |part: &KeyPart| usize::BITS - part.values.len().leading_zeros();
        if self.index.is_empty() || zip(parts, &self.bits).all(|(part, bits)| needed(part) <= *bits)
        {
            return Ok(());
        }
        // A bit more, so that the index is made again rarely.
        self.bits = parts.iter().map(|part| needed(part) + 1).collect();
        let total: u32 = self.bits.iter().sum();
        if total > MAX_INDEX_BITS {
            self.bits = parts.iter().map(needed).collect();
        }
        let total = total.min(self.bits.iter().sum());
        if total > MAX_INDEX_BITS {
            self.index = Vec::new();
            return Ok(());
        }
        self.index = vec![0; 1 << total];
        let numbers = self.numbers(0..self.groups.len())?;
        let numbers: Vec<_> = numbers.iter().map(|it| it.as_primitive::<UInt32Type>()).collect();
        for group in 0..self.groups.len() {
            let place = zip(&numbers, &self.bits)
                .fold(0, |place, (part, bits)| place << bits | part.value(group) as usize);
            self.index[place] = group as u32 + 1;
        }
        Ok(())
    }
}
