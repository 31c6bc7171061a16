//! The order that is read from plans, and the comparisons of results with it.

use datafusion::prelude::SessionContext;

use super::{ResultOrder, SortKey, without_limit};
use crate::verify::{Comparison, compare};

async fn context() -> SessionContext {
    let context = SessionContext::new();
    let table =
        "CREATE TABLE t AS VALUES (1, 'a', 1.5), (2, 'b', 2.5), (2, 'c', 0.5), (3, 'd', 0.5)";
    context.sql(table).await.unwrap().collect().await.unwrap();
    context
}

/// Returns the keys as text (`1`: a column, else an expression), and the number of hidden keys.
/// Also returns whether rows are cut off at the start and at the end.
async fn order_of(sql: &str) -> (Vec<String>, usize, bool, bool) {
    let context = context().await;
    let plan = context.sql(sql).await.unwrap().into_unoptimized_plan();
    let seen = ResultOrder::of(&plan);
    let optimized = ResultOrder::of(&context.state().optimize(&plan).unwrap());
    assert_eq!(seen.hidden_keys().len(), optimized.hidden_keys().len(), "{sql}");
    let keys =
        |order: &ResultOrder| order.keys().iter().map(SortKey::to_string).collect::<Vec<_>>();
    assert_eq!(keys(&seen).len(), keys(&optimized).len(), "{sql}");
    (keys(&seen), seen.hidden_keys().len(), seen.cut_start, seen.cut_end)
}

#[tokio::test]
async fn keys_are_followed_to_the_output() {
    for (sql, keys, hidden, cut_start, cut_end) in [
        ("SELECT * FROM t", vec![], 0, false, false),
        ("SELECT * FROM t LIMIT 2", vec![], 0, false, true),
        ("SELECT * FROM t ORDER BY column2", vec!["2"], 0, false, false),
        (
            "SELECT column3 AS x, column1 AS y FROM t ORDER BY y DESC, x LIMIT 3",
            vec!["2", "1"],
            0,
            false,
            true,
        ),
        ("SELECT column3 AS x FROM t ORDER BY column3 OFFSET 1", vec!["1"], 0, true, false),
        ("SELECT column1 FROM t ORDER BY column3", vec![], 1, false, false),
        (
            "SELECT column1 FROM t ORDER BY column1, column3, column1 + 1",
            vec!["1"],
            2,
            false,
            false,
        ),
        (
            "SELECT column1, sum(column3) FROM t GROUP BY column1 ORDER BY sum(column3)",
            vec!["2"],
            0,
            false,
            false,
        ),
        // SQL promises nothing about the order of a subquery that does not choose rows by it.
        (
            "SELECT y FROM (SELECT column1 AS y FROM t ORDER BY column1) AS s",
            vec![],
            0,
            false,
            false,
        ),
        (
            "SELECT z FROM (SELECT column1 AS z FROM t ORDER BY z LIMIT 2) AS s LIMIT 1",
            vec!["1"],
            0,
            false,
            true,
        ),
        ("SELECT * FROM (SELECT * FROM t LIMIT 2) ORDER BY column1", vec!["1"], 0, false, false),
    ] {
        let keys: Vec<_> = keys.into_iter().map(str::to_owned).collect();
        assert_eq!(order_of(sql).await, (keys, hidden, cut_start, cut_end), "{sql}");
    }
    let (keys, hidden, ..) = order_of("SELECT column1 AS a FROM t ORDER BY column1 % 2, a").await;
    assert_eq!((keys.len(), hidden), (2, 0));
}

#[tokio::test]
async fn expressions_over_the_output_are_compared() {
    let context = context().await;
    let frame =
        context.sql("SELECT column1 AS a, column2 AS b FROM t ORDER BY a % 2").await.unwrap();
    let order = ResultOrder::of(frame.logical_plan());
    let expected = frame.collect().await.unwrap();
    assert!(compare(&expected, &expected, &order).is_ok());
    let tie = context
        .sql("SELECT column1 AS a, column2 AS b FROM t ORDER BY a % 2, b DESC")
        .await
        .unwrap();
    assert!(compare(&tie.collect().await.unwrap(), &expected, &order).is_ok());
    let wrong = context.sql("SELECT column1 AS a, column2 AS b FROM t ORDER BY a").await.unwrap();
    let difference = compare(&wrong.collect().await.unwrap(), &expected, &order).unwrap_err();
    assert!(
        difference.to_string().starts_with("the order differs in key a % Int64(2)"),
        "{difference}"
    );
}

#[tokio::test]
async fn the_limit_at_the_top_is_removed() {
    let context = context().await;
    for (sql, rows) in [
        ("SELECT * FROM t LIMIT 2", 4),
        ("SELECT * FROM t ORDER BY column1 LIMIT 2 OFFSET 1", 4),
        ("SELECT y + 1 FROM (SELECT column1 AS y FROM t ORDER BY column1 LIMIT 3) AS s LIMIT 1", 4),
        ("SELECT * FROM (SELECT * FROM t LIMIT 3) ORDER BY column1 LIMIT 1", 3),
    ] {
        let plan = context.sql(sql).await.unwrap().into_unoptimized_plan();
        for plan in [context.state().optimize(&plan).unwrap(), plan] {
            // The inner limit of the last case is part of the question and stays.
            let unlimited = without_limit(&plan).unwrap();
            let batches =
                context.execute_logical_plan(unlimited).await.unwrap().collect().await.unwrap();
            assert_eq!(batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), rows, "{sql}");
        }
    }
    let plan =
        context.sql("SELECT * FROM t ORDER BY column1").await.unwrap().into_unoptimized_plan();
    assert!(without_limit(&plan).is_none());
}

#[tokio::test]
async fn a_hidden_key_leaves_the_rest_comparable() {
    let context = context().await;
    let run = async |sql: &str| context.sql(sql).await.unwrap().collect().await.unwrap();
    let frame = context
        .sql("SELECT column1, column2 FROM t ORDER BY column1, column3 LIMIT 2")
        .await
        .unwrap();
    let order = ResultOrder::of(frame.logical_plan());
    assert_eq!(order.hidden_keys().len(), 1);
    let unlimited = run("SELECT column1, column2 FROM t ORDER BY column1, column3").await;
    let expected = frame.collect().await.unwrap();
    let decide =
        |actual: &[_]| Comparison::new(&order).unlimited(&unlimited).check(actual, &expected);
    assert!(
        decide(&run("SELECT column1, column2 FROM t ORDER BY column1, column3 LIMIT 2").await)
            .is_ok()
    );
    assert!(
        decide(&run("SELECT column1, column2 FROM t ORDER BY column1 DESC LIMIT 2").await).is_err()
    );
}
