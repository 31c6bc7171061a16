//! What a word may become: a keyword, a table, a column, a function, a setting or a file.

use std::collections::BTreeSet;

use super::catalog::{Catalog, Table};
use crate::sql;

/// Candidates for the word before the cursor.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Completion {
    /// The cursor is within a string, which may name a file.
    Files,
    /// Words that replace the text from `start` to the cursor.
    Words { start: usize, words: Vec<String> },
}

/// Keywords of statements that DataFusion runs, without rare ones.
const KEYWORDS: &[&str] = &[
    "ALL",
    "ALTER",
    "ANALYZE",
    "AND",
    "ANTI",
    "ANY",
    "AS",
    "ASC",
    "BETWEEN",
    "BY",
    "CASE",
    "CAST",
    "COPY",
    "CREATE",
    "CROSS",
    "CUBE",
    "CURRENT",
    "DELETE",
    "DESC",
    "DESCRIBE",
    "DISTINCT",
    "DROP",
    "ELSE",
    "END",
    "EXCEPT",
    "EXISTS",
    "EXPLAIN",
    "EXTERNAL",
    "EXTRACT",
    "FALSE",
    "FETCH",
    "FILTER",
    "FOLLOWING",
    "FROM",
    "FULL",
    "FUNCTIONS",
    "GROUP",
    "GROUPING",
    "HAVING",
    "ILIKE",
    "IN",
    "INNER",
    "INSERT",
    "INTERSECT",
    "INTERVAL",
    "INTO",
    "IS",
    "JOIN",
    "LATERAL",
    "LEFT",
    "LIKE",
    "LIMIT",
    "LOCATION",
    "NATURAL",
    "NOT",
    "NULL",
    "NULLS",
    "OFFSET",
    "ON",
    "OPTIONS",
    "OR",
    "ORDER",
    "OUTER",
    "OVER",
    "PARTITION",
    "PARTITIONED",
    "PRECEDING",
    "QUALIFY",
    "RANGE",
    "RECURSIVE",
    "REPLACE",
    "RESET",
    "RIGHT",
    "ROLLUP",
    "ROWS",
    "SELECT",
    "SEMI",
    "SET",
    "SETS",
    "SHOW",
    "SIMILAR",
    "STORED",
    "TABLE",
    "TABLES",
    "TEMPORARY",
    "THEN",
    "TO",
    "TRUE",
    "TRY_CAST",
    "UNBOUNDED",
    "UNION",
    "UNNEST",
    "UPDATE",
    "USING",
    "VALUES",
    "VIEW",
    "WHEN",
    "WHERE",
    "WINDOW",
    "WITH",
];

/// Completes the word before `position`.
pub(super) fn complete(line: &str, position: usize, catalog: &Catalog) -> Completion {
    let before = &line[..position];
    let names_file = ["\\i ", "\\o ", ".read ", ".output "];
    if within_string(before) || names_file.iter().any(|command| before.starts_with(command)) {
        return Completion::Files;
    }
    let is_part = |c: char| c.is_alphanumeric() || "_.\\".contains(c);
    let start = before.trim_end_matches(is_part).len();
    let word = &before[start..];
    let words = match word {
        _ if word.starts_with('\\') || (word.starts_with('.') && start == 0) => {
            matching(word, sql::command_names().map(str::to_owned))
        }
        _ => match (last_word(&before[..start]).as_str(), word.rsplit_once('.')) {
            ("SET" | "SHOW" | "RESET", _) => settings(word, catalog),
            (_, Some((qualifier, name))) => {
                let start = position - name.len();
                let words = matching(name, columns_of(line, qualifier, catalog));
                return Completion::Words { start, words };
            }
            ("FROM" | "JOIN" | "INTO" | "TABLE" | "VIEW" | "DESCRIBE" | "UPDATE", None) => {
                matching(word, tables(catalog))
            }
            ("\\D" | ".SCHEMA", None) => matching(word, tables(catalog)),
            _ => anything(line, word, catalog),
        },
    };
    Completion::Words { start, words }
}

/// Columns of the statement's tables, functions, keywords and tables.
fn anything(line: &str, word: &str, catalog: &Catalog) -> Vec<String> {
    let mut words = matching(word, columns(line, catalog));
    if word.is_empty() {
        return words;
    }
    words.extend(matching(word, catalog.functions.iter().map(|name| format!("{name}("))));
    let lower = word.chars().all(|c| !c.is_uppercase());
    let keywords = KEYWORDS.iter().map(|keyword| match lower {
        true => keyword.to_lowercase(),
        false => (*keyword).to_owned(),
    });
    words.extend(matching(word, keywords));
    words.extend(matching(word, tables(catalog)));
    words
}

fn settings(word: &str, catalog: &Catalog) -> Vec<String> {
    let mut words = matching(word, catalog.settings.iter().cloned());
    words.extend(matching(word, ["ALL", "FUNCTIONS", "TABLES"].map(str::to_owned).into_iter()));
    words
}

/// The words that begin with `begin`, in whatever case, sorted.
fn matching(begin: &str, words: impl Iterator<Item = String>) -> Vec<String> {
    let begin = begin.to_lowercase();
    let matching = words.filter(|word| word.to_lowercase().starts_with(&begin));
    matching.collect::<BTreeSet<_>>().into_iter().collect()
}

fn tables(catalog: &Catalog) -> impl Iterator<Item = String> {
    catalog.tables.iter().map(|table| name(&table.name))
}

/// The columns of the tables that the statement names, or of all if it names none.
fn columns(line: &str, catalog: &Catalog) -> impl Iterator<Item = String> {
    let named: Vec<&Table> = catalog.tables.iter().filter(|table| names(line, table)).collect();
    let tables = if named.is_empty() { catalog.tables.iter().collect() } else { named };
    tables.into_iter().flat_map(|table| &table.columns).map(|column| name(column))
}

/// The columns of the table that `qualifier` names, or that it is an alias of.
fn columns_of(line: &str, qualifier: &str, catalog: &Catalog) -> impl Iterator<Item = String> {
    let is = |table: &Table, name: &str| table.name.eq_ignore_ascii_case(name);
    let of_name = |name: &str| catalog.tables.iter().find(|table| is(table, name));
    let words: Vec<_> = words(line).collect();
    let of_alias = || {
        words.windows(3).find_map(|words| {
            let [first, second, third] = words else { return None };
            let is_alias = |word: &str| word.eq_ignore_ascii_case(qualifier);
            let plain = is_alias(second) || (second.eq_ignore_ascii_case("as") && is_alias(third));
            of_name(first).filter(|_| plain)
        })
    };
    let table = of_name(qualifier).or_else(of_alias);
    table.into_iter().flat_map(|table| &table.columns).map(|column| name(column))
}

fn names(line: &str, table: &Table) -> bool {
    words(line).any(|word| word.eq_ignore_ascii_case(&table.name))
}

/// The words of a statement, with empty ones at its end.
fn words(line: &str) -> impl Iterator<Item = &str> {
    let is_end = |c: char| !c.is_alphanumeric() && c != '_';
    line.split(is_end).filter(|word| !word.is_empty()).chain(["", ""])
}

/// The last whole word, in upper case.
fn last_word(text: &str) -> String {
    let word = text.split_whitespace().next_back().unwrap_or_default();
    word.to_uppercase()
}

/// A name as SQL writes it: in quotes if it has upper case or other characters.
fn name(name: &str) -> String {
    let plain = |c: char| c.is_lowercase() || c.is_ascii_digit() || c == '_';
    let is_plain = name.chars().all(plain) && !name.starts_with(|c: char| c.is_ascii_digit());
    match is_plain {
        true => name.to_owned(),
        false => format!("\"{}\"", name.replace('"', "\"\"")),
    }
}

/// Whether the text ends within a string.
fn within_string(text: &str) -> bool {
    text.matches('\'').count() % 2 == 1
}

#[cfg(test)]
mod tests;
