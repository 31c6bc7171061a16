//! Joins of tables whose columns have the same names.
//!
//! DataFusion's pushdown rules look columns up by name and take the first match. A filter must
//! apply to the intended column, or to none.

use crate::support::shapes::in_all_shapes;

#[test]
fn runtime_filters_through_joins() {
    in_all_shapes(
        &[
            "CREATE TABLE t0 AS SELECT arrow_cast(column1, 'Int64') AS id,
                arrow_cast(column2, 'Utf8View') AS c1 FROM (VALUES (0, 'x'))",
            "CREATE TABLE t1 AS SELECT arrow_cast(column1, 'Int64') AS id,
                arrow_cast(column2, 'Dictionary(Int32, Utf8)') AS c1 FROM (VALUES (6, 'x'), (9, \
                'b'))",
            "COPY t0 TO '{dir}/f0.parquet'",
            "COPY t1 TO '{dir}/f1.parquet'",
            "CREATE EXTERNAL TABLE f0 STORED AS PARQUET LOCATION '{dir}/f0.parquet'",
            "CREATE EXTERNAL TABLE f1 STORED AS PARQUET LOCATION '{dir}/f1.parquet'",
        ],
        &[
            (
                "SELECT r1.id, r3.id, r4.id FROM t1 r1 CROSS JOIN t0 r3
                    JOIN t0 r4 ON r3.id = r4.id AND r1.c1 = r4.c1",
                "6,0,0",
            ),
            (
                "SELECT r1.id, r3.id, r4.id FROM f1 r1 CROSS JOIN f0 r3
                    JOIN f0 r4 ON r3.id = r4.id AND r1.c1 = r4.c1",
                "6,0,0",
            ),
        ],
    );
}

#[test]
fn runtime_filters_through_semi_joins_of_other_types() {
    in_all_shapes(
        &[
            "CREATE TABLE t0 AS SELECT arrow_cast(column1, 'Int64') AS id,
                arrow_cast(column2, 'Utf8View') AS c1 FROM (VALUES (247, 't1'), (248, 't19'))",
            "CREATE TABLE t2 AS SELECT arrow_cast(column1, 'Int64') AS id,
                arrow_cast(column2, 'LargeUtf8') AS c1 FROM (VALUES (9, 't7'), (8, 't1'))",
        ],
        &[
            (
                "SELECT r2.id FROM t2 r1 RIGHT SEMI JOIN t0 r2 ON r1.c1 = r2.c1
                    JOIN t2 r3 ON r2.c1 = r3.c1",
                "247",
            ),
            (
                "SELECT r1.id FROM t0 r1 LEFT SEMI JOIN t2 r2 ON r1.c1 = r2.c1
                    JOIN t2 r3 ON r1.c1 = r3.c1",
                "247",
            ),
        ],
    );
}

/// Above a right join, `nullif(r2.c1, r1.c1)` is no condition on `r2` alone.
#[test]
fn conditions_of_both_sides() {
    in_all_shapes(
        &[
            "COPY (SELECT arrow_cast(column1, 'Int64') AS id, arrow_cast(column2, 'UInt32') AS c0,
                column3 AS c1 FROM (VALUES (0, 0, ''), (1, 1, 't1'), (2, 1, 'u'), (3, 0, 'a text'),
                (4, 1, ''), (5, 0, 't1'), (6, 1, 't1'))) TO '{dir}/t/a.parquet' STORED AS PARQUET",
            "COPY (SELECT arrow_cast(column1, 'Int64') AS id, arrow_cast(column2, 'UInt32') AS c0,
                column3 AS c1 FROM (VALUES (7, 0, 'x'), (8, 1, 'a text'), (9, 0, 'a text')))
                TO '{dir}/t/b.parquet' STORED AS PARQUET",
            "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '{dir}/t/'",
            "CREATE TABLE m AS SELECT * FROM t",
            "COPY (SELECT * FROM (VALUES (0, 0, 'a'), (1, 0, NULL), (2, 9, NULL)) AS v(id, c0, c1))
                TO '{dir}/n.parquet' STORED AS PARQUET",
            "CREATE EXTERNAL TABLE n STORED AS PARQUET LOCATION '{dir}/n.parquet'",
        ],
        &[
            (
                "SELECT r2.id, concat('<', r1.c1, '>') FROM t r1 RIGHT JOIN t r2 ON r1.id = r2.c0
                    WHERE nullif(r2.c1, r1.c1) IN (NULL::varchar, 't1')",
                "5,<>",
            ),
            (
                "SELECT r2.id, concat('<', r1.c1, '>') FROM m r1 RIGHT JOIN m r2 ON r1.id = r2.c0
                    WHERE nullif(r2.c1, r1.c1) IN (NULL::varchar, 't1') AND r2.id < 6",
                "5,<>",
            ),
            (
                "SELECT count(*), count(r1.c1) FROM t r1 RIGHT JOIN t r2 ON r1.id = r2.c0 + 20
                    WHERE r1.c1 IS NULL AND r2.c1 = 't1'",
                "3,0",
            ),
            (
                "SELECT count(*) FROM t r1 RIGHT JOIN t r2 ON r1.id = r2.c0
                    WHERE r1.c1 = '' AND r2.c1 = ''",
                "1",
            ),
            (
                "SELECT r2.id, r1.c1, r2.c1 FROM n r1 RIGHT JOIN n r2 ON r1.id = r2.c0
                    WHERE r1.c1 IS NULL AND r2.c1 IS NULL",
                "2,,",
            ),
        ],
    );
}

/// `r1.c1 <= r2.c1` is no condition on `r1` alone.
#[test]
fn conditions_above_outer_joins() {
    in_all_shapes(
        &[
            "CREATE TABLE t1 AS SELECT arrow_cast(column1, 'Int64') AS id,
                arrow_cast(column2, 'UInt16') AS c0, arrow_cast(column3, 'Utf8') AS c1
                FROM (VALUES (249, 2, 't249'))",
            "CREATE TABLE t2 AS SELECT arrow_cast(column1, 'Int64') AS id,
                arrow_cast(column2, 'UInt16') AS c0,
                arrow_cast(column3, 'Dictionary(Int32, Utf8)') AS c1,
                arrow_cast(column4, 'Int64') AS c2 FROM (VALUES (0, 0, '%_x', 1))",
        ],
        &[(
            "SELECT r1.id AS x0 FROM t2 r1 LEFT JOIN t1 r2 ON r1.c2 = r2.c0
                WHERE ((upper(r2.c1) NOT IN ('T%', 't1')) OR (NOT (r1.c1 <= r2.c1)))
                    AND (r1.id = r1.c0)",
            "",
        )],
    );
}
