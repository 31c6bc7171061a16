//! The reference as an oracle: it must reject wrong results, and accept other rows of a tie under a
//! limit.

use arrow::array::RecordBatch;
use datafusion::prelude::SessionContext;

use super::super::queries::Query;
use super::Reference;

async fn rows(sql: &str) -> Vec<RecordBatch> {
    SessionContext::new().sql(sql).await.unwrap().collect().await.unwrap()
}

async fn reference(sql: &str) -> Reference {
    let query = Query { number: 1, sql: sql.to_owned() };
    Reference::run(&query, SessionContext::new()).await.unwrap()
}

const TABLE: &str = "CREATE TABLE t AS VALUES (1, 'a'), (2, 'b'), (2, 'c'), (3, 'd')";

#[tokio::test]
async fn wrong_results_are_seen() {
    let reference = reference(&format!(
        "{TABLE}; SELECT * FROM t ORDER BY column1; SELECT count(*) AS n FROM t"
    ))
    .await;
    assert_eq!(reference.expected.len(), 2, "CREATE TABLE returns nothing");
    reference.check(0, &rows("VALUES (1, 'a'), (2, 'c'), (2, 'b'), (3, 'd')").await).await.unwrap();
    reference.check(1, &rows("SELECT CAST(4 AS BIGINT) AS n").await).await.unwrap();
    for wrong in [
        "VALUES (1, 'a'), (2, 'c'), (2, 'c'), (3, 'd')",
        "VALUES (2, 'b'), (1, 'a'), (2, 'c'), (3, 'd')",
    ] {
        assert!(reference.check(0, &rows(wrong).await).await.is_err(), "{wrong}");
    }
    assert!(reference.check(1, &rows("SELECT CAST(5 AS BIGINT) AS n").await).await.is_err());
    assert!(reference.check(2, &[]).await.is_err());
}

#[tokio::test]
async fn under_a_limit_another_choice_is_right_even_if_its_view_is_gone() {
    let sql =
        "CREATE VIEW v AS SELECT * FROM t; SELECT * FROM v ORDER BY column1 LIMIT 2; DROP VIEW v";
    let reference = reference(&format!("{TABLE}; {sql}")).await;
    for choice in ["VALUES (1, 'a'), (2, 'b')", "VALUES (1, 'a'), (2, 'c')"] {
        reference.check(0, &rows(choice).await).await.unwrap();
    }
    for wrong in ["VALUES (1, 'a'), (2, 'd')", "VALUES (1, 'a'), (3, 'd')", "VALUES (1, 'a')"] {
        assert!(reference.check(0, &rows(wrong).await).await.is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn a_reference_that_fails_says_why() {
    let query = Query { number: 1, sql: "SELECT * FROM nothing".to_owned() };
    let error = Reference::run(&query, SessionContext::new()).await.err().unwrap();
    assert!(error.sentence().unwrap().contains("there is no table 'nothing'"));
}
