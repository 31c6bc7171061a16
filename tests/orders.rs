//! Order of results where DataFusion omits the sort because the rows are ordered already: keys that
//! are not in the result, unions of constants, tables of several files.
//!
//! Rows are compared one by one with the right ones; plain DataFusion is wrong in some of these
//! cases.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use arrow::{
    array::{Int64Array, RecordBatch},
    compute::SortOptions,
};
use datafusion::{
    datasource::{MemTable, memory::MemorySourceConfig, source::DataSourceExec},
    physical_expr::{LexOrdering, PhysicalSortExpr, expressions::col},
    physical_plan::common::collect,
    prelude::col as column,
};

use crate::support::{
    executor, guarded,
    shapes::{SHAPES, in_all_shapes, session, text},
};

#[test]
fn keys_that_are_not_in_the_result() {
    in_all_shapes(
        &[
            "CREATE TABLE t(grp INT, ts INT, val INT) AS VALUES (1,1,11),(1,2,12),(1,3,13),(2,1,21),
                (2,2,22),(2,3,23),(3,1,31),(3,2,32)",
            "CREATE TABLE u AS SELECT value % 100 AS grp, value AS ts, value*7%1000 AS val
                FROM generate_series(1,20000)",
        ],
        &[
            (
                "SELECT sum(val) OVER (PARTITION BY grp ORDER BY ts) FROM t ORDER BY grp, ts",
                "11 23 36 21 43 66 31 63",
            ),
            (
                "SELECT s FROM (SELECT grp, ts, sum(val) OVER (PARTITION BY grp ORDER BY ts) s \
                 FROM u)
                    WHERE s % 2 = 0 ORDER BY grp, ts LIMIT 3",
                "700 1100 1200",
            ),
            (
                "SELECT sum(s) FROM (SELECT s FROM (SELECT grp, ts, sum(val) OVER (PARTITION BY grp
                    ORDER BY ts) s FROM u) WHERE s % 2 = 0 ORDER BY grp, ts LIMIT 3)",
                "3000",
            ),
            (
                "SELECT v FROM (SELECT row_number() OVER (ORDER BY ts DESC) AS n, val AS v FROM u)
                    ORDER BY n LIMIT 3 OFFSET 2",
                "986 979 972",
            ),
        ],
    );
}

#[test]
fn files_that_are_declared_in_order() {
    in_all_shapes(
        &[
            "COPY (SELECT value AS k, value*10 AS v FROM generate_series(1,50000)) TO \
             '{dir}/o.parquet'
                STORED AS PARQUET OPTIONS ('format.max_row_group_size' '1000')",
            "CREATE EXTERNAL TABLE o(k BIGINT, v BIGINT) STORED AS PARQUET WITH ORDER (k ASC)
                LOCATION '{dir}/o.parquet'",
        ],
        &[
            ("SELECT sum(v) FROM (SELECT v FROM o WHERE v%3=1 ORDER BY k LIMIT 5000)", "374975000"),
            ("SELECT v FROM o WHERE v % 30000 = 0 ORDER BY k LIMIT 3", "30000 60000 90000"),
            ("SELECT v + 1 FROM o ORDER BY k OFFSET 49998", "499991 500001"),
        ],
    );
}

/// A file whose column has another type than the table's has NULL bounds, which are no bounds.
#[test]
fn files_of_other_types_in_the_wrong_sequence() {
    in_all_shapes(
        &[
            "COPY (SELECT column1 FROM (VALUES (1), (2), (3))) TO '{dir}/t/2.parquet' STORED AS \
             PARQUET",
            "COPY (SELECT column1 FROM (VALUES (100), (200))) TO '{dir}/t/1.parquet' STORED AS \
             PARQUET",
            "CREATE EXTERNAL TABLE t(column1 INT) STORED AS PARQUET WITH ORDER (column1 ASC)
                LOCATION '{dir}/t/'",
        ],
        &[
            ("SELECT column1 FROM t ORDER BY column1", "1 2 3 100 200"),
            ("SELECT column1 FROM t ORDER BY column1 LIMIT 2", "1 2"),
            ("SELECT column1 + 1 FROM t ORDER BY column1 LIMIT 4", "2 3 4 101"),
        ],
    );
}

/// NULLs are not part of a file's bounds.
#[test]
fn files_in_order_with_nulls() {
    in_all_shapes(
        &[
            "COPY (SELECT * FROM (VALUES (1), (2), (NULL)) AS t(k)) TO '{dir}/t/1.parquet' STORED \
             AS PARQUET",
            "COPY (SELECT * FROM (VALUES (3), (4)) AS t(k)) TO '{dir}/t/2.parquet' STORED AS \
             PARQUET",
            "CREATE EXTERNAL TABLE t(k BIGINT) STORED AS PARQUET WITH ORDER (k ASC NULLS LAST)
                LOCATION '{dir}/t/'",
        ],
        &[("SELECT k FROM t ORDER BY k NULLS LAST", "1 2 3 4 ")],
    );
}

#[test]
fn unions_of_constants() {
    in_all_shapes(
        &["CREATE TABLE t(x INT) AS VALUES (1), (2), (3), (4)"],
        &[
            (
                "(SELECT 2 AS b, x FROM t UNION ALL SELECT 0, x FROM t UNION ALL SELECT 1, x FROM t)
                    ORDER BY x DESC, b LIMIT 4",
                "0,4 1,4 2,4 0,3",
            ),
            (
                "SELECT b, x, rank() OVER (PARTITION BY b ORDER BY x) AS r FROM (SELECT 2 AS b, x \
                 FROM t
                    UNION ALL SELECT 0, x FROM t UNION ALL SELECT 1, x FROM t) ORDER BY x, b \
                    LIMIT 4",
                "0,1,1 1,1,1 2,1,1 0,2,2",
            ),
            (
                "SELECT b, x, row_number() OVER (ORDER BY x, b) AS r FROM (SELECT 2 AS b, x FROM t
                    UNION ALL SELECT 0, x FROM t UNION ALL SELECT 1, x FROM t) ORDER BY r LIMIT 4",
                "0,1,1 1,1,2 2,1,3 0,2,4",
            ),
        ],
    );
}

/// A limit that was pushed below the merge applies to each partition.
#[test]
fn limits_of_unions_of_constants() {
    in_all_shapes(
        &["CREATE TABLE t(x INT) AS VALUES (1), (2), (3), (4), (5), (6), (7), (8), (9), (10), \
             (11)"],
        &[
            (
                "(SELECT 9 AS s FROM t UNION ALL SELECT 5 FROM t) EXCEPT ALL SELECT x FROM t
                    WHERE x < 0 ORDER BY 1 LIMIT 12",
                "5 5 5 5 5 5 5 5 5 5 5 9",
            ),
            (
                "SELECT s FROM (SELECT 9 AS s, x FROM t UNION ALL SELECT 5, x FROM t) WHERE x <> 3
                    ORDER BY s LIMIT 10",
                "5 5 5 5 5 5 5 5 5 5",
            ),
            (
                "SELECT s FROM (SELECT 9 AS s, x FROM t UNION ALL SELECT 5, x FROM t)
                    ORDER BY s LIMIT 11",
                "5 5 5 5 5 5 5 5 5 5 5",
            ),
        ],
    );
}

/// DataFusion declares an aggregate's input as ordered, which holds within the largest grouping
/// set.
#[test]
fn ordered_aggregates_of_grouping_sets() {
    in_all_shapes(
        &[
            "COPY (SELECT * FROM (VALUES (1, 'b'), (2, 'c'), (3, 'a')) AS v(id, x) ORDER BY id)
                TO '{dir}/t.parquet' STORED AS PARQUET",
            "CREATE EXTERNAL TABLE t(id BIGINT, x VARCHAR) STORED AS PARQUET WITH ORDER (id ASC)
                LOCATION '{dir}/t.parquet'",
        ],
        &[
            (
                "SELECT id, array_agg(x ORDER BY x) AS a FROM t GROUP BY ROLLUP(id)
                    ORDER BY id NULLS LAST",
                "1,[b] 2,[c] 3,[a] ,[a, b, c]",
            ),
            (
                "SELECT id, first_value(x ORDER BY x DESC) AS a FROM t GROUP BY CUBE(id)
                    ORDER BY id NULLS LAST",
                "1,b 2,c 3,a ,c",
            ),
        ],
    );
}

/// A table in memory of several partitions, each of which is ordered.
#[test]
fn partitions_in_order() {
    guarded(|case| async move {
        let batch = |values: Vec<i64>| {
            RecordBatch::try_from_iter([("k", Arc::new(Int64Array::from(values)) as _)]).unwrap()
        };
        let data = vec![vec![batch(vec![1, 4]), batch(vec![7])], vec![batch(vec![2, 3, 9])]];
        let schema = data[0][0].schema();
        for (threads, partitions, batch_rows) in SHAPES {
            case.begin("a table in memory");
            let executor = executor(threads);
            let session = session(&executor, partitions, batch_rows);
            let table = MemTable::try_new(schema.clone(), data.clone()).unwrap();
            let order = vec![vec![column("k").sort(true, true)]];
            session.register_table("t", Arc::new(table.with_sort_order(order))).unwrap();
            let query = "SELECT k + 1 FROM t ORDER BY k LIMIT 4";
            let actual = session.sql(query).await.unwrap().collect().await.unwrap();
            assert_eq!(text(&actual), "2 3 4 5");

            // Each of its partitions, as a caller of DataFusion reads them.
            let key = PhysicalSortExpr::new(col("k", &schema).unwrap(), SortOptions::default());
            let order = LexOrdering::new([key]).unwrap();
            let source = MemorySourceConfig::try_new(&data, schema.clone(), None).unwrap();
            let source = source.try_with_sort_information(vec![order]).unwrap();
            let scan = DataSourceExec::from_data_source(source);
            let plan = gatework::sql::wrap_until(scan, &executor, &|_| false).unwrap();
            let context = session.task_ctx();
            let mut all = Vec::new();
            for partition in 0..2 {
                let rows =
                    collect(plan.execute(partition, context.clone()).unwrap()).await.unwrap();
                let keys = text(&rows);
                let keys: Vec<i64> =
                    keys.split_whitespace().map(|key| key.parse().unwrap()).collect();
                assert!(keys.is_sorted(), "partition {partition}: {keys:?}");
                all.extend(keys);
            }
            all.sort_unstable();
            assert_eq!(all, [1, 2, 3, 4, 7, 9]);
        }
    });
}
