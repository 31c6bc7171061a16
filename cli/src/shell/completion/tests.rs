//! Candidates in each place of a statement.

use super::{Completion, complete};
use crate::shell::catalog::{Catalog, Table};

fn catalog() -> Catalog {
    let table = |name: &str, columns: &[&str]| Table {
        name: name.to_owned(),
        columns: columns.iter().map(|&column| column.to_owned()).collect(),
    };
    Catalog {
        tables: vec![
            table("orders", &["id", "customer", "Order Date"]),
            table("people", &["id", "name"]),
        ],
        functions: vec!["count".to_owned(), "concat".to_owned()],
        settings: vec!["gatework.time_slice".to_owned(), "datafusion.explain.format".to_owned()],
    }
}

/// Completes at `|`.
fn words(line: &str) -> Vec<String> {
    let position = line.find('|').unwrap();
    match complete(&line.replace('|', ""), position, &catalog()) {
        Completion::Words { words, .. } => words,
        Completion::Files => vec!["a file".to_owned()],
    }
}

#[test]
fn keywords_have_the_case_of_the_word() {
    assert_eq!(words("sel|"), ["select"]);
    assert_eq!(words("SEL|"), ["SELECT"]);
    assert_eq!(words("SELECT 1 wher|"), ["where"]);
}

#[test]
fn tables_follow_from() {
    assert_eq!(words("SELECT * FROM |"), ["orders", "people"]);
    assert_eq!(words("select * from o|"), ["orders"]);
    assert_eq!(words("\\d p|"), ["people"]);
    assert_eq!(words("SELECT * FROM 'da|"), ["a file"]);
}

#[test]
fn columns_are_those_of_the_tables() {
    assert_eq!(words("SELECT na|"), ["name", "natural"]);
    assert_eq!(words("SELECT cu| FROM orders"), ["customer", "cube", "current"]);
    assert_eq!(
        words("SELECT c| FROM people"),
        ["concat(", "count(", "case", "cast", "copy", "create", "cross", "cube", "current"]
    );
    assert_eq!(words("SELECT o.| FROM orders o"), ["\"Order Date\"", "customer", "id"]);
    assert_eq!(words("SELECT p.n| FROM people AS p"), ["name"]);
    assert_eq!(words("SELECT people.i|"), ["id"]);
    assert_eq!(words("SELECT x.i|"), Vec::<String>::new());
}

#[test]
fn settings_follow_set() {
    assert_eq!(words("SET gate|"), ["gatework.time_slice"]);
    assert_eq!(words("SET gatework.t|"), ["gatework.time_slice"]);
    assert_eq!(words("SHOW al|"), ["ALL"]);
}

#[test]
fn commands_are_completed() {
    assert_eq!(words("\\ti|"), ["\\timing"]);
    assert_eq!(words(".ti|"), [".timer"]);
    assert_eq!(words("\\i fi|"), ["a file"]);
}
