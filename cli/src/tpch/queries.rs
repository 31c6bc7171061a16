//! The queries to run: those of the specification, or the files of a folder.

use std::fs;
use std::path::Path;

use crate::error::Error;

/// The queries of the specification with its validation parameters.
const SPECIFICATION: [&str; 22] = [
    include_str!("../../queries/q1.sql"),
    include_str!("../../queries/q2.sql"),
    include_str!("../../queries/q3.sql"),
    include_str!("../../queries/q4.sql"),
    include_str!("../../queries/q5.sql"),
    include_str!("../../queries/q6.sql"),
    include_str!("../../queries/q7.sql"),
    include_str!("../../queries/q8.sql"),
    include_str!("../../queries/q9.sql"),
    include_str!("../../queries/q10.sql"),
    include_str!("../../queries/q11.sql"),
    include_str!("../../queries/q12.sql"),
    include_str!("../../queries/q13.sql"),
    include_str!("../../queries/q14.sql"),
    include_str!("../../queries/q15.sql"),
    include_str!("../../queries/q16.sql"),
    include_str!("../../queries/q17.sql"),
    include_str!("../../queries/q18.sql"),
    include_str!("../../queries/q19.sql"),
    include_str!("../../queries/q20.sql"),
    include_str!("../../queries/q21.sql"),
    include_str!("../../queries/q22.sql"),
];

/// A query to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) number: u32,
    /// One or several statements.
    pub(super) sql: String,
}

/// Loads the queries with these numbers, in this order. Without numbers, loads all of them by
/// number.
pub(super) fn load(folder: Option<&Path>, numbers: &[u32]) -> Result<Vec<Query>, Error> {
    let known = match folder {
        Some(folder) => in_folder(folder)?,
        None => (1..)
            .zip(SPECIFICATION)
            .map(|(number, sql)| Query { number, sql: sql.to_owned() })
            .collect(),
    };
    if numbers.is_empty() {
        return Ok(known);
    }
    let find = |&number: &u32| {
        let found = known.iter().find(|query| query.number == number).cloned();
        found.ok_or_else(|| match folder {
            Some(folder) => Error::failed(format!(
                "there is no query {number}: '{}' has no q{number}.sql",
                folder.display()
            )),
            None => Error::failed(format!(
                "there is no query {number}; TPC-H has 1 to {}",
                SPECIFICATION.len()
            )),
        })
    };
    numbers.iter().map(find).collect()
}

fn in_folder(folder: &Path) -> Result<Vec<Query>, Error> {
    let unreadable = |path: &Path, error: std::io::Error| {
        Error::failed(format!("'{}' cannot be read: {error}", path.display()))
    };
    let mut queries = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| unreadable(folder, error))? {
        let path = entry.map_err(|error| unreadable(folder, error))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let number =
            name.strip_prefix('q').and_then(|name| name.strip_suffix(".sql")).map(str::parse);
        if let Some(Ok(number)) = number {
            let sql = fs::read_to_string(&path).map_err(|error| unreadable(&path, error))?;
            queries.push(Query { number, sql });
        }
    }
    queries.sort_by_key(|query| query.number);
    match queries.is_empty() {
        true => Err(Error::failed(format!(
            "'{}' has no queries; name them q1.sql, q2.sql, …",
            folder.display()
        ))),
        false => Ok(queries),
    }
}

#[cfg(test)]
mod tests;
