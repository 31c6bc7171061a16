//! Error sentences of queries.

use datafusion::prelude::SessionContext;

use super::{Error, one_line};

async fn explain(sql: &str) -> String {
    let session = SessionContext::new();
    session.sql("CREATE TABLE t (id INT, name TEXT) AS VALUES (1, 'x')").await.unwrap();
    let result = match session.sql(sql).await {
        Ok(frame) => frame.collect().await.map(|_| ()),
        Err(error) => Err(error),
    };
    Error::query(&result.unwrap_err(), &session).sentence().unwrap()
}

#[tokio::test]
async fn errors_of_queries_are_one_sentence_that_helps() {
    for (sql, sentence) in [
        ("SELEC 1", "error: the SQL cannot be parsed: Expected: an SQL statement, found: SELEC"),
        (
            "SELECT * FROM u",
            "error: there is no table 'u'; known tables: t; add one with --table u=PATH",
        ),
        ("SELECT nam FROM t", "error: there is no column nam. Did you mean 't.name'?"),
        ("SELECT id / 0 FROM t", "error: the query divides by zero; guard the divisor"),
        (
            "SELECT CAST(repeat('9', 38) AS DECIMAL(38, 0)) * (id + 9) FROM t",
            "error: a number grows too large for its type",
        ),
        ("SELECT CAST(name AS INT) FROM t", "error: a value cannot be converted"),
        ("SELECT nofunction(id) FROM t", "error: there is no function 'nofunction'"),
    ] {
        let said = explain(sql).await;
        assert!(said.starts_with(sentence), "{sql}: {said}");
        assert!(!said.contains('\n'));
    }
}

#[test]
fn lines_and_backtraces_are_folded_away() {
    assert_eq!(one_line("a\n  b\n\nbacktrace: 0: main"), "a b");
}
