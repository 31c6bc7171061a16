//! Codes are used again after the columns that have them changed, and groups keep their numbers.

use std::collections::HashMap;

use arrow::{
    array::{DictionaryArray, StringArray, UInt32Array},
    compute::take,
    datatypes::DataType,
};
use gatework_runtime::pipeline::QueryOptions;

use super::*;
use crate::{keys::KeyNulls, test_support::EXECUTOR};

/// Rows of a batch, and batches of a phase.
const ROWS: u32 = 40;
const BATCHES: usize = 10;

/// The groups of two texts, and the expected number of each pair.
struct Trial {
    keys: GroupKeys,
    /// The group of each row of the last batch.
    groups: Vec<usize>,
    numbers: HashMap<[u32; 2], usize>,
}

/// Returns `count` distinct texts.
fn entries(count: u32) -> ArrayRef {
    Arc::new(StringArray::from_iter_values((0..count).map(|entry| format!("entry {entry}"))))
}

impl Trial {
    fn new() -> Self {
        let types = [(DataType::Utf8, true), (DataType::Utf8, true)];
        let encoder = KeyEncoder::new(&types, KeyNulls::Equal).unwrap();
        let query = QueryContext::new(&EXECUTOR, QueryOptions::default());
        let keys = GroupKeys::new(encoder, query);
        Self { keys, groups: Vec::new(), numbers: HashMap::new() }
    }

    /// Assigns a batch whose columns have the codes of `code`, as dictionaries where `coded`.
    /// Returns whether the table used the codes.
    fn assign(
        &mut self,
        entries: &[ArrayRef; 2],
        coded: [bool; 2],
        code: impl Fn(u32) -> [u32; 2],
    ) -> bool {
        let column = |index: usize| -> ArrayRef {
            let codes = UInt32Array::from_iter_values((0..ROWS).map(|row| code(row)[index]));
            match coded[index] {
                true => Arc::new(DictionaryArray::new(codes, entries[index].clone())),
                false => take(&entries[index], &codes, None).unwrap(),
            }
        };
        let keys = vec![column(0), column(1)];
        let used = self.keys.assign_codes(&keys, &mut self.groups).unwrap();
        if !used {
            let plain = self.keys.decode(&keys).unwrap();
            self.keys.assign(&plain, &mut self.groups).unwrap();
            self.keys.rows += ROWS as usize;
        }
        let expected: Vec<usize> = (0..ROWS)
            .map(|row| {
                let next = self.numbers.len();
                *self.numbers.entry(code(row)).or_insert(next)
            })
            .collect();
        assert_eq!(self.groups, expected);
        assert_eq!(self.keys.len(), self.numbers.len());
        used
    }

    /// Assigns the batches of a phase. Returns whether the table used the codes at its end.
    fn assign_all(
        &mut self,
        entries: impl Fn() -> [ArrayRef; 2],
        coded: [bool; 2],
        code: impl Fn(u32) -> [u32; 2],
    ) -> bool {
        (0..BATCHES).fold(false, |_, _| self.assign(&entries(), coded, &code))
    }
}

#[test]
fn codes_are_used_whichever_columns_have_them() {
    let known = [entries(4), entries(3)];
    let mut trial = Trial::new();
    for coded in [[true, false], [false, true], [true, true], [false, false], [true, true]] {
        let used = trial.assign_all(|| known.clone(), coded, |row| [row % 4, row % 3]);
        assert_eq!(used, coded != [false; 2], "{coded:?}");
    }
    trial.keys.settle(&mut trial.groups).unwrap();
    assert_eq!(trial.keys.table.len(), 12);
}

#[test]
fn codes_of_columns_may_be_the_same_by_chance() {
    let known = [entries(3), entries(3)];
    let mut trial = Trial::new();
    assert!(trial.assign_all(|| known.clone(), [true; 2], |row| [row % 3; 2]));
    assert!(trial.assign_all(|| known.clone(), [true; 2], |row| [row % 3, row / 3 % 3]));
}

#[test]
fn some_batches_with_other_columns_change_nothing() {
    let known = [entries(4), entries(3)];
    let mut trial = Trial::new();
    let code = |row: u32| [row % 4, row % 3];
    for batch in 0..5 * BATCHES {
        assert!(trial.assign(&known, [true, batch % 3 == 1], code), "{batch}");
        let dictionary = trial.keys.dictionary.as_ref().unwrap();
        // The first batch decides.
        assert_eq!(dictionary.coded(), [true, false], "{batch}");
    }
}

#[test]
fn codes_that_do_not_help_are_given_up_for_their_columns() {
    let known = [entries(30), entries(1)];
    let mut trial = Trial::new();
    let code = |row: u32| [row % 30, 0];
    // A new dictionary with each batch.
    assert!(!trial.assign_all(|| [entries(30), entries(1)], [true, false], code));
    assert!(trial.assign_all(|| known.clone(), [true; 2], code));
    assert!(!trial.assign_all(|| known.clone(), [true, false], code));
    assert_eq!(trial.keys.ineffective_codes, [[true, false]]);
}
