//! Joins in another order than the written one have the same rows and columns.

#![allow(clippy::unwrap_used, reason = "tests may")]

use datafusion::prelude::SessionContext;

use crate::support::{
    Expected, executor, guarded, plan,
    shapes::{SHAPES, session, text},
};

/// Tables of very different sizes: `t0` the largest, `t7` the smallest.
const TABLES: usize = 8;

async fn tables(session: &SessionContext) {
    for table in 0..TABLES {
        let (rows, values) = (1200 >> table, 600 >> table);
        let sql = format!(
            "CREATE TABLE t{table} AS SELECT value AS id, value * 7 % {rows} AS a,
                CASE WHEN value % 11 = 0 THEN NULL ELSE value * 3 % {values} END AS b,
                'text ' || (value % 5) AS c FROM generate_series(1, {rows})",
        );
        session.sql(&sql).await.unwrap().collect().await.unwrap();
    }
}

/// Numbers that look random, the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize % limit
    }
}

/// A query that joins some tables in some order, by keys, and by a predicate between two of them.
fn query(seed: u64) -> String {
    let mut numbers = Numbers(seed);
    let count = 3 + numbers.below(5);
    let mut sql = format!("t{} AS r0", numbers.below(TABLES));
    for right in 1..count {
        let left = numbers.below(right);
        let table = numbers.below(TABLES);
        let key = |numbers: &mut Numbers| ["id", "a", "id", "b"][numbers.below(4)];
        let kind = if numbers.below(9) == 0 { "LEFT JOIN" } else { "JOIN" };
        let (l, r) = (key(&mut numbers), key(&mut numbers));
        sql += &format!("\n  {kind} t{table} AS r{right} ON r{left}.{l} = r{right}.{r}");
        if numbers.below(4) == 0 {
            sql += &format!(" AND r{}.a <= r{right}.id + 900", numbers.below(right));
        }
        if numbers.below(6) == 0 {
            sql += &format!(" AND r{left}.c = r{right}.c");
        }
    }
    let filtered = numbers.below(count);
    let sums = (0..count).map(|table| format!("sum(r{table}.a + coalesce(r{table}.b, 0))"));
    format!(
        "SELECT count(*), {} FROM {sql}\n  WHERE r{filtered}.id % 3 = 1 AND r{}.c <> 'text 4'",
        sums.collect::<Vec<_>>().join(", "),
        numbers.below(count),
    )
}

async fn explain(session: &SessionContext, sql: &str) -> String {
    text(&session.sql(&format!("EXPLAIN {sql}")).await.unwrap().collect().await.unwrap())
}

async fn set(session: &SessionContext, reorder: bool) {
    let sql = format!("SET gatework.reorder_joins = {reorder}");
    session.sql(&sql).await.unwrap().collect().await.unwrap();
}

#[test]
fn random_joins_have_their_rows() {
    guarded(|case| async move {
        let executor = executor(2);
        let (session, reference) = (session(&executor, 2, 8192), SessionContext::new());
        tables(&session).await;
        tables(&reference).await;
        let mut reordered = 0;
        for seed in 0..120 {
            let sql = query(seed);
            case.begin(&sql);
            set(&session, false).await;
            let written = explain(&session, &sql).await;
            set(&session, true).await;
            reordered += usize::from(explain(&session, &sql).await != written);
            let expected = Expected::of(&reference, &sql).await.unwrap();
            let planned = plan(&case, &session, &sql).await.unwrap();
            expected.check(&sql, &planned.collect().await.unwrap());
        }
        assert!(reordered > 30, "only {reordered} of 120 queries were joined in another order");
    });
}

/// Two large tables of few keys are written first, and a third one leaves one row of each.
const WRITTEN: &str = "SELECT l.c, r.*, m.id AS \"Id\", l.id + r.id AS total FROM t0 l
    JOIN t1 r ON l.c = r.c JOIN t7 m ON m.id = l.id AND m.id = r.id AND l.a < r.a + m.a * 9
    WHERE m.c = 'text 3'";

#[test]
fn the_written_order_is_not_the_order_of_the_joins() {
    guarded(|case| async move {
        for (threads, partitions, batch_rows) in SHAPES {
            let executor = executor(threads);
            let session = session(&executor, partitions, batch_rows);
            let reference = SessionContext::new();
            tables(&session).await;
            tables(&reference).await;
            case.begin(format!("{threads} threads, {partitions} partitions"));
            let expected = Expected::of(&reference, WRITTEN).await.unwrap();
            for reorder in [false, true] {
                set(&session, reorder).await;
                let planned = plan(&case, &session, WRITTEN).await.unwrap();
                let rows = planned.collect().await.unwrap();
                expected.check(WRITTEN, &rows);
                // The columns have their names and order.
                assert_eq!(planned.plan.schema().field(4).name(), "c");
                assert_eq!(planned.plan.schema().field(5).name(), "Id");
                // From `l.id = m.id` and `m.id = r.id` follows a key of all three.
                let plan_text = explain(&session, WRITTEN).await;
                let by_text_alone = "on=[(c@3, c@2)]";
                assert_eq!(plan_text.contains(by_text_alone), !reorder, "{plan_text}");
            }
        }
    });
}
