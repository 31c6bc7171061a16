//! Depth of text and of plans.

use datafusion::prelude::SessionContext;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::Tokenizer;

use super::{MAX_OPERATORS, check_text, plan_depth, text_depth};

fn depth(sql: &str) -> usize {
    text_depth(&Tokenizer::new(&GenericDialect {}, sql).tokenize().unwrap())
}

#[test]
fn chains_are_deep_and_lists_are_not() {
    for (sql, expected) in [
        ("SELECT 1", 0),
        ("SELECT a + b + c, d + e", 2),
        ("SELECT 1 + (2 * (3 - 4)) + 5", 3),
        ("SELECT a IN (1 + 1, 2 + 2, 3 + 3 + 3)", 2),
        ("VALUES (-1, -2), (-3, -4)", 1),
        ("SELECT CASE WHEN a = 1 THEN b + 1 WHEN a = 2 THEN c END + 1", 1),
        ("SELECT 1 UNION SELECT 2 UNION SELECT 3", 2),
        ("SELECT ')))' , a) + b) + c", 1),
    ] {
        assert_eq!(depth(sql), expected, "{sql}");
    }
}

#[test]
fn what_is_too_deep_is_refused_with_its_depth() {
    let chain = |terms: usize| format!("SELECT {}", vec!["a"; terms].join("+"));
    assert!(check_text(&chain(MAX_OPERATORS + 1)).is_ok());
    let refused = check_text(&chain(MAX_OPERATORS + 2)).unwrap_err().to_string();
    assert!(refused.contains(&format!("{} operators", MAX_OPERATORS + 1)), "{refused}");
}

#[tokio::test]
async fn plans_are_as_deep_as_their_views_and_subqueries() {
    let session = SessionContext::new();
    let depth = async |sql: &str| {
        let state = session.state();
        plan_depth(&state.create_logical_plan(sql).await.unwrap()).unwrap()
    };
    let (flat, level) = depth("SELECT 1 + 2").await;
    assert!(level >= 2);
    let (chained, _) = depth(
        "WITH a AS (SELECT 1 AS x), b AS (SELECT x FROM a), c AS (SELECT x FROM b) SELECT x FROM c",
    )
    .await;
    assert!(chained >= flat + 3, "{flat} {chained}");
    let (nested, _) = depth("SELECT (SELECT (SELECT (SELECT 1)))").await;
    assert!(nested >= flat + 3, "{flat} {nested}");
}
