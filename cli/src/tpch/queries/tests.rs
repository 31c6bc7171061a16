//! Query selection, and the text of the shipped queries.

use std::fs;

use tempfile::tempdir;

use super::load;
use crate::statements;

#[test]
fn the_queries_of_the_specification_parse_and_are_complete() {
    let queries = load(None, &[]).unwrap();
    assert_eq!(
        queries.iter().map(|query| query.number).collect::<Vec<_>>(),
        (1..=22).collect::<Vec<_>>()
    );
    for query in queries {
        let statements = statements::parse(&query.sql).unwrap();
        assert_eq!(statements.len(), if query.number == 15 { 3 } else { 1 }, "q{}", query.number);
        assert!(!query.sql.contains(':'), "q{} has an unset parameter", query.number);
    }
}

#[test]
fn queries_are_chosen_by_number() {
    let chosen = load(None, &[6, 1]).unwrap();
    assert_eq!(chosen.iter().map(|query| query.number).collect::<Vec<_>>(), [6, 1]);
    let unknown = load(None, &[23]).unwrap_err().sentence().unwrap();
    assert_eq!(unknown, "error: there is no query 23; TPC-H has 1 to 22");
}

#[test]
fn folders_hold_numbered_files() {
    let folder = tempdir().unwrap();
    assert!(
        load(Some(folder.path()), &[]).unwrap_err().sentence().unwrap().contains("has no queries")
    );
    for (name, sql) in
        [("q2.sql", "SELECT 2"), ("q10.sql", "SELECT 10"), ("notes.txt", ""), ("qx.sql", "")]
    {
        fs::write(folder.path().join(name), sql).unwrap();
    }
    let queries = load(Some(folder.path()), &[]).unwrap();
    assert_eq!(
        queries.iter().map(|query| (query.number, query.sql.as_str())).collect::<Vec<_>>(),
        [(2, "SELECT 2"), (10, "SELECT 10")]
    );
    assert!(
        load(Some(folder.path()), &[3]).unwrap_err().sentence().unwrap().contains("has no q3.sql")
    );
    let missing = load(Some(&folder.path().join("gone")), &[]).unwrap_err().sentence().unwrap();
    assert!(missing.contains("cannot be read"), "{missing}");
}
