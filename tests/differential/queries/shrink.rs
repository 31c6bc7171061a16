//! Shrinks a failing case: drops clauses, then rows, as long as it fails in the same way.

use std::time::{Duration, Instant};

use super::{
    storage::Storage,
    tables::Table,
    tree::{Query, smaller},
};

/// A query and its tables.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) tables: Vec<Table>,
    pub(crate) query: Query,
}

/// Maximum time of shrinking a case.
const LIMIT: Duration = Duration::from_secs(25);

/// Returns the smallest case found that `fails`.
pub(crate) fn shrink(mut case: Case, fails: impl Fn(&Case) -> bool) -> Case {
    let end = Instant::now() + LIMIT;
    let still_fails = |case: &Case| Instant::now() < end && fails(case);
    loop {
        let length = case.query.to_string().len();
        let queries = smaller(&case.query).into_iter();
        let queries = queries.map(|query| Case { query, ..case.clone() });
        let found = queries
            .chain(smaller_tables(&case))
            .find(|smaller| is_smaller(smaller, &case, length) && still_fails(smaller));
        match found {
            Some(smaller) => case = smaller,
            None => return case,
        }
    }
}

fn is_smaller(new: &Case, old: &Case, length: usize) -> bool {
    let rows = |case: &Case| {
        let weights = case.tables.iter().map(|table| match table.storage {
            Storage::Memory { partitions, sorted, .. } => {
                10 * table.rows.num_rows() + partitions + usize::from(sorted)
            }
            Storage::Parquet { files, sorted, .. } => {
                10 * table.rows.num_rows() + 5 + files + usize::from(sorted)
            }
        });
        weights.sum::<usize>()
    };
    new.query.to_string().len() < length || rows(new) < rows(old)
}

/// Variants of the case with fewer rows in one table, or with simpler storage.
fn smaller_tables(case: &Case) -> impl Iterator<Item = Case> {
    let sql = case.query.to_string();
    case.tables.iter().enumerate().flat_map(move |(place, table)| {
        let mut changed = Vec::new();
        let mut keep = |table: Table| {
            let mut case = case.clone();
            case.tables[place] = table;
            changed.push(case);
        };
        let count = table.rows.num_rows();
        let is_used = sql.contains(&table.name);
        if !is_used && count > 0 {
            keep(Table { rows: table.rows.slice(0, 0), ..table.clone() });
        }
        for size in [count / 2, count / 4, 1].into_iter().filter(|&size| is_used && size > 0) {
            for first in (0..count).step_by(size) {
                keep(without(table, first, size.min(count - first)));
            }
        }
        let simple = Storage::Memory { partitions: 1, sorted: false, seed: 1 };
        keep(Table { storage: simple, ..table.clone() });
        changed
    })
}

fn without(table: &Table, first: usize, size: usize) -> Table {
    let (before, after) = (table.rows.slice(0, first), first + size);
    let behind = table.rows.slice(after, table.rows.num_rows() - after);
    let schema = table.rows.schema();
    let rows = arrow::compute::concat_batches(&schema, [&before, &behind]).unwrap();
    Table { rows, ..table.clone() }
}
