//! A scan that emits those columns as dictionaries that its pipeline takes so: some batches with
//! codes of their own per column, some with the same codes for all, some plain.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use arrow::{
    array::{ArrayRef, DictionaryArray, RecordBatch, UInt32Array},
    compute::{concat, take},
};
use gatework_runtime::{
    Result,
    pipeline::{Batch, DriverContext, LocalSource, OperatorContext, Source, SourceResult},
    scheduler::SplitMix64,
};

use super::{rows, scan};
use crate::{dictionary::assemble, memory_scan::MemoryScan};

/// Creates a scan of `table` in morsels of `rows` rows.
pub(crate) fn dictionary_scan(table: &RecordBatch, rows: usize) -> Arc<dyn Source> {
    let (inner, table) = (scan(table, rows), table.clone());
    Arc::new(DictionaryScan { inner, table, taken: OnceLock::new() })
}

#[derive(Debug)]
struct DictionaryScan {
    inner: Arc<MemoryScan>,
    table: RecordBatch,
    taken: OnceLock<Vec<usize>>,
}

impl Source for DictionaryScan {
    fn name(&self) -> &str {
        "dictionary scan"
    }

    fn take_dictionaries(&self, output: &[usize]) {
        self.taken.set(output.to_vec()).unwrap();
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSource>> {
        let mut sets = self.taken.get().cloned().map_or(Vec::new(), |taken| {
            let each = taken.iter().map(|column| Dictionary::new(&self.table, &[*column], false));
            vec![each.collect(), vec![Dictionary::new(&self.table, &taken, true)], Vec::new()]
        });
        sets.retain(|set: &Vec<Dictionary>| set.iter().all(|it| !it.columns.is_empty()));
        let mut rng = SplitMix64::new(self.table.num_rows() as u64 + context.task_index() as u64);
        let preferred = rng.next_below(sets.len().max(1));
        let inner = self.inner.local(context)?;
        Ok(Box::new(LocalDictionaryScan { inner, sets, preferred, rng }))
    }
}

/// Columns with the same codes.
struct Dictionary {
    columns: Vec<usize>,
    entries: Vec<ArrayRef>,
    /// Code of each row, by its values as text.
    codes: HashMap<String, u32>,
}

impl Dictionary {
    /// `repeats`: entries may be equal to others.
    fn new(table: &RecordBatch, columns: &[usize], repeats: bool) -> Self {
        let values = table.project(columns).unwrap();
        let mut codes = HashMap::new();
        let mut first_rows = Vec::new();
        for (row, text) in (0..).zip(rows(std::slice::from_ref(&values))) {
            codes.entry(text).or_insert_with(|| {
                first_rows.push(row);
                first_rows.len() as u32 - 1
            });
        }
        let first_rows = UInt32Array::from(first_rows);
        let entries = values.columns().iter().map(|column| {
            let entries = take(column, &first_rows, None).unwrap();
            if repeats { concat(&[&entries, &entries]).unwrap() } else { entries }
        });
        Self { columns: columns.to_vec(), entries: entries.collect(), codes }
    }
}

struct LocalDictionaryScan {
    inner: Box<dyn LocalSource>,
    sets: Vec<Vec<Dictionary>>,
    preferred: usize,
    rng: SplitMix64,
}

impl LocalDictionaryScan {
    fn encode(&mut self, batch: Batch) -> Batch {
        if self.sets.is_empty() {
            return batch;
        }
        // Mostly the same dictionaries.
        let set = match self.rng.next_below(8) {
            0 => self.rng.next_below(self.sets.len()),
            _ => self.preferred,
        };
        let (sequence, count) = (batch.sequence(), batch.num_physical_rows());
        let (data, selection) = batch.into_parts();
        let mut columns = data.columns().to_vec();
        for dictionary in &self.sets[set] {
            let texts = rows(&[data.project(&dictionary.columns).unwrap()]);
            let distinct = dictionary.codes.len() as u32;
            let is_double = dictionary.entries[0].len() > dictionary.codes.len();
            let mut code = |text: &String| {
                let second = is_double && self.rng.next_below(2) == 1;
                dictionary.codes[text] + if second { distinct } else { 0 }
            };
            let codes: UInt32Array = texts.iter().map(|text| Some(code(text))).collect();
            for (column, entries) in dictionary.columns.iter().zip(&dictionary.entries) {
                let encoded = DictionaryArray::try_new(codes.clone(), entries.clone()).unwrap();
                columns[*column] = Arc::new(encoded);
            }
        }
        let data = assemble(&data.schema(), columns, count).unwrap();
        let batch = match selection {
            Some(selection) => Batch::with_selection(data, selection),
            None => Batch::new(data),
        };
        batch.with_sequence(sequence)
    }
}

impl LocalSource for LocalDictionaryScan {
    fn next(&mut self, task: &DriverContext) -> Result<SourceResult> {
        Ok(match self.inner.next(task)? {
            SourceResult::Batch(batch) => SourceResult::Batch(self.encode(batch)),
            other => other,
        })
    }
}
