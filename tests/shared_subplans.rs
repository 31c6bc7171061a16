//! Common table expressions and views with several readers: computed once, with the rows that they
//! have when each copy is computed.

#![allow(clippy::unwrap_used, reason = "tests may")]

use datafusion::prelude::SessionContext;
use futures::future::try_join_all;

use crate::support::{
    Expected, executor, guarded, plan,
    shapes::{SHAPES, session, text},
};

const TABLES: [&str; 3] = [
    "CREATE TABLE sales AS SELECT value AS id, value % 50 AS shop, value % 3 AS year,
        value * 31 % 1009 AS amount FROM generate_series(1, 5000)",
    "CREATE TABLE shops AS SELECT value AS shop, 'shop ' || value AS name,
        CASE WHEN value % 4 = 0 THEN NULL ELSE value % 5 END AS region FROM generate_series(0, 60)",
    "CREATE VIEW totals AS SELECT shop, year, sum(amount) AS total, count(*) AS n FROM sales
        GROUP BY shop, year",
];

/// Queries, each with the number of subplans that are shared.
const QUERIES: &[(&str, usize)] = &[
    (
        "WITH t AS (SELECT shop, year, sum(amount) AS total FROM sales GROUP BY shop, year)
            SELECT a.shop, a.total, b.total AS other FROM t a JOIN t b ON a.shop = b.shop
            WHERE a.year = 1 AND b.year = 2 ORDER BY a.shop",
        1,
    ),
    // The filters of the readers differ, and one restricts a value of the aggregate.
    (
        "SELECT a.shop, a.total - b.total AS more FROM totals a JOIN totals b ON a.shop = b.shop
            WHERE a.year = 1 AND a.total > 15000 AND b.year BETWEEN 0 AND 1 AND b.n < 40
            ORDER BY 1, 2",
        1,
    ),
    // A scalar subquery reads what the main query reads.
    (
        "WITH t AS (SELECT shop, sum(amount) AS total FROM sales GROUP BY shop)
            SELECT count(*) FROM t WHERE total > (SELECT avg(total) FROM t)",
        1,
    ),
    // A correlated subquery does.
    (
        "SELECT shop, year FROM totals a WHERE total > (SELECT avg(total) FROM totals b
            WHERE a.year = b.year) AND EXISTS (SELECT 1 FROM shops WHERE shops.shop = a.shop)
            ORDER BY 1, 2",
        1,
    ),
    // A subplan within another, and beside it.
    (
        "WITH t AS (SELECT shop, sum(amount) AS total FROM sales GROUP BY shop),
            r AS (SELECT region, max(total) AS best, count(*) AS n FROM shops JOIN t ON
                shops.shop = t.shop GROUP BY region)
            SELECT a.region, a.best, b.n, (SELECT sum(total) FROM t) AS of_all
            FROM r a JOIN r b ON a.region = b.region ORDER BY a.region",
        2,
    ),
    // Readers without columns, with a limit, without rows, and twice in one subplan.
    (
        "WITH t AS (SELECT DISTINCT shop, year FROM sales)
            SELECT (SELECT count(*) FROM t) AS n, (SELECT count(*) FROM (SELECT * FROM t LIMIT 7))
                AS few, (SELECT count(*) FROM t WHERE shop < 0) AS no",
        1,
    ),
    (
        "WITH t AS (SELECT shop, row_number() OVER (ORDER BY shop DESC) AS place FROM shops)
            SELECT * FROM t WHERE place < 3 UNION ALL SELECT * FROM t WHERE place > 58
            UNION ALL SELECT 0, count(*) FROM t ORDER BY 1, 2",
        1,
    ),
    ("SELECT max(a.n) FROM totals a LEFT JOIN totals b ON a.shop = b.n AND b.year IS NULL", 1),
    // Names in capitals and with dots.
    (
        "WITH \"T.a\" AS (SELECT year AS \"Y.y\", max(shop) AS \"M\" FROM sales GROUP BY year)
            SELECT l.\"M\", r.\"Y.y\" FROM \"T.a\" l JOIN \"T.a\" r ON l.\"Y.y\" = r.\"Y.y\"
            WHERE l.\"Y.y\" > 0 AND r.\"M\" > 0 ORDER BY 1, 2",
        1,
    ),
    // The reader in a recursion's static part is another one than that outside.
    (
        "WITH RECURSIVE t AS (SELECT max(shop) AS m FROM sales),
            r AS (SELECT m FROM t UNION ALL SELECT m - 10 FROM r WHERE m > 10)
            SELECT m FROM r UNION ALL SELECT a.m FROM t a JOIN t b ON a.m = b.m ORDER BY 1",
        1,
    ),
    // What costs little is computed for each.
    ("SELECT a.shop FROM (SELECT * FROM shops) a JOIN (SELECT * FROM shops) b USING (shop)", 0),
    // Not the same rows.
    (
        "WITH t AS (SELECT shop, max(amount + random() * 0) AS m FROM sales GROUP BY shop)
            SELECT a.shop, a.m FROM t a JOIN t b ON a.shop = b.shop ORDER BY 1",
        0,
    ),
];

async fn tables(session: &SessionContext) {
    for sql in TABLES {
        session.sql(sql).await.unwrap().collect().await.unwrap();
    }
}

async fn explain(session: &SessionContext, sql: &str) -> String {
    text(&session.sql(&format!("EXPLAIN {sql}")).await.unwrap().collect().await.unwrap())
}

#[test]
fn readers_get_the_rows_of_a_copy() {
    guarded(|case| async move {
        for (threads, partitions, batch_rows) in SHAPES {
            let executor = executor(threads);
            let session = session(&executor, partitions, batch_rows);
            let reference = SessionContext::new();
            tables(&session).await;
            tables(&reference).await;
            for (sql, shared) in QUERIES {
                case.begin(format!("{sql}\n({threads} threads, {partitions} partitions)"));
                let plan_text = explain(&session, sql).await;
                let found = plan_text.matches("computed once for").count();
                // The definition is shown at its first reader in each plan.
                assert!(found >= *shared && (found > 0) == (*shared > 0), "{sql}\n{plan_text}");
                let expected = Expected::of(&reference, sql).await.unwrap();
                let planned = plan(&case, &session, sql).await.unwrap();
                // A plan runs again, and twice at once.
                expected.check(sql, &planned.collect().await.unwrap());
                if sql.contains("RECURSIVE") {
                    // DataFusion's node has one work table for all executions.
                    continue;
                }
                let both = try_join_all([planned.collect(), planned.collect()]).await.unwrap();
                both.iter().for_each(|rows| expected.check(sql, rows));
            }
        }
    });
}

#[test]
fn a_setting_turns_it_off() {
    guarded(|case| async move {
        let (executor, sql) = (executor(2), QUERIES[0].0);
        let session = session(&executor, 2, 8192);
        tables(&session).await;
        for (value, shared) in [("false", false), ("true", true)] {
            case.begin(value);
            let set = format!("SET gatework.share_subplans = {value}");
            session.sql(&set).await.unwrap().collect().await.unwrap();
            assert_eq!(explain(&session, sql).await.contains("SharedRowsExec"), shared);
        }
    });
}

/// The definition reads the columns that a reader needs, and the rows that one may want.
#[test]
fn the_readers_columns_and_filters_reach_the_definition() {
    guarded(|case| async move {
        let executor = executor(2);
        let session = session(&executor, 2, 8192);
        tables(&session).await;
        case.begin("explain");
        let plan_text = explain(
            &session,
            "SELECT a.shop FROM totals a JOIN totals b ON a.shop = b.shop
                WHERE a.year = 1 AND b.year = 2 AND b.total > 5",
        )
        .await;
        assert!(plan_text.contains("FilterExec: year@1 = 1 OR year@1 = 2"), "{plan_text}");
        assert!(!plan_text.contains("count("), "{plan_text}");
        // A filter that can fail is evaluated for the rows of its reader only.
        let plan_text = explain(
            &session,
            "SELECT a.shop FROM totals a JOIN totals b ON a.shop = b.shop
                WHERE a.year = 1 AND 6 / a.year > 4 AND b.year = 0",
        )
        .await;
        let physical = plan_text.split("physical_plan").last().unwrap();
        assert_eq!(physical.matches("6 / ").count(), 1, "{plan_text}");
    });
}

/// A parent that runs on DataFusion executes a reader by itself.
#[test]
fn a_reader_below_a_fallback_node_runs() {
    guarded(|case| async move {
        let executor = executor(2);
        let (session, reference) = (session(&executor, 2, 8192), SessionContext::new());
        tables(&session).await;
        tables(&reference).await;
        let sql = "WITH t AS (SELECT year, array_agg(shop ORDER BY shop) AS shops FROM sales
                WHERE id < 50 GROUP BY year)
            SELECT year, unnest(shops) AS s FROM t UNION ALL SELECT year, 0 FROM t ORDER BY 1, 2";
        case.begin(sql);
        let expected = Expected::of(&reference, sql).await.unwrap();
        let planned = plan(&case, &session, sql).await.unwrap();
        expected.check(sql, &planned.collect().await.unwrap());
        expected.check(sql, &planned.collect().await.unwrap());
    });
}
