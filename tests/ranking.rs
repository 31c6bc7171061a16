//! Filters on the numbers of rows in window partitions, which drop rows below the window's sort.

#![allow(clippy::unwrap_used, reason = "tests may")]

use datafusion::prelude::SessionContext;

use crate::support::{
    Expected, executor, guarded, plan,
    shapes::{SHAPES, session, text},
};

const TABLE: &str = "CREATE TABLE visits AS SELECT value AS id, value * 7919 % 40 AS shop,
    CASE WHEN value % 9 = 0 THEN NULL ELSE value * 31 % 1009 END AS amount,
    'visitor with a long name, number ' || (value * 13 % 700) AS name,
    CASE WHEN value % 5 = 0 THEN -0.0 WHEN value % 5 = 1 THEN 0.0 ELSE value % 5 END AS level
    FROM generate_series(1, 6000)";

/// Queries, each with whether a ranking filter is used.
const QUERIES: &[(&str, bool)] = &[
    (
        "SELECT shop, id FROM (SELECT *, row_number() OVER (PARTITION BY shop ORDER BY amount DESC,
            id) AS n FROM visits) WHERE n = 1 ORDER BY shop",
        true,
    ),
    (
        "SELECT * FROM (SELECT shop, amount, id, rank() OVER (PARTITION BY shop ORDER BY amount) AS
            n FROM visits WHERE id % 3 = 1) WHERE n <= 3 AND amount > 2 ORDER BY 1, 2, 3",
        true,
    ),
    (
        "SELECT shop, sum(amount), count(*) FROM (SELECT *, dense_rank() OVER (PARTITION BY shop
            ORDER BY amount DESC NULLS LAST) AS n FROM visits) WHERE 5 > n GROUP BY shop
            ORDER BY shop",
        true,
    ),
    // Ties in the bytes that are compared.
    (
        "SELECT id, n FROM (SELECT id, rank() OVER (PARTITION BY shop ORDER BY name) AS n FROM
            visits) WHERE n < 3 ORDER BY 1",
        true,
    ),
    // No partition, several windows, a projection in between.
    (
        "SELECT id + 1, n, total FROM (SELECT id, rank() OVER w AS n, sum(amount) OVER w AS total,
            lag(id) OVER w AS previous FROM visits WINDOW w AS (ORDER BY amount, id)) WHERE n <= 10
            ORDER BY 1",
        true,
    ),
    // A window that looks ahead, another order, another partitioning, floats, a lower bound.
    (
        "SELECT id, next FROM (SELECT id, rank() OVER w AS n, lead(id) OVER w AS next FROM visits
            WINDOW w AS (PARTITION BY shop ORDER BY amount, id)) WHERE n <= 2 ORDER BY 1",
        false,
    ),
    (
        "SELECT id, part FROM (SELECT id, row_number() OVER w AS n, ntile(4) OVER w AS part FROM
            visits WINDOW w AS (PARTITION BY shop ORDER BY id)) WHERE n <= 2 ORDER BY 1",
        false,
    ),
    (
        "SELECT id, total FROM (SELECT id, row_number() OVER (PARTITION BY shop ORDER BY id) AS n,
            sum(amount) OVER (PARTITION BY shop) AS total FROM visits) WHERE n <= 2 ORDER BY 1",
        false,
    ),
    (
        "SELECT level, id FROM (SELECT level, id, row_number() OVER (PARTITION BY level ORDER BY
            id) AS n FROM visits) WHERE n <= 2 ORDER BY id",
        false,
    ),
    (
        "SELECT count(*) FROM (SELECT rank() OVER (PARTITION BY shop ORDER BY id) AS n FROM visits)
            WHERE n >= 2",
        false,
    ),
    (
        "SELECT count(*) FROM (SELECT rank() OVER (PARTITION BY shop ORDER BY id) AS n FROM visits)
            WHERE n <= 2 OR n = 5",
        false,
    ),
    (
        "SELECT count(*) FROM (SELECT rank() OVER (PARTITION BY shop ORDER BY id) AS n FROM visits)
            WHERE n <= 0",
        false,
    ),
];

async fn rows_of(session: &SessionContext, sql: &str) -> String {
    text(&session.sql(sql).await.unwrap().collect().await.unwrap())
}

#[test]
fn the_first_rows_of_window_partitions_are_those_of_datafusion() {
    guarded(|case| async move {
        let reference = SessionContext::new();
        reference.sql(TABLE).await.unwrap().collect().await.unwrap();
        for (threads, partitions, batch_rows) in SHAPES {
            let executor = executor(threads);
            let session = session(&executor, partitions, batch_rows);
            session.sql(TABLE).await.unwrap().collect().await.unwrap();
            for (sql, _) in QUERIES {
                case.begin(format!("{sql}\n({threads} threads, {partitions} partitions)"));
                let expected = Expected::of(&reference, sql).await.unwrap();
                let planned = plan(&case, &session, sql).await.unwrap();
                expected.check(sql, &planned.collect().await.unwrap());
            }
        }
    });
}

#[test]
fn rows_are_dropped_below_the_sort() {
    guarded(|case| async move {
        let executor = executor(2);
        let session = session(&executor, 2, 512);
        session.sql(TABLE).await.unwrap().collect().await.unwrap();
        for (sql, is_used) in QUERIES {
            case.begin(*sql);
            let analyzed = rows_of(&session, &format!("EXPLAIN ANALYZE {sql}")).await;
            assert_eq!(analyzed.contains("rows_behind_ranking="), *is_used, "{analyzed}");
        }
    });
}
