//! Where gatework computes in another way than DataFusion: window kernels, joins on ranges, top-n
//! thresholds in scans, distinct counts, dictionaries. All results equal DataFusion's.

#![allow(clippy::unwrap_used, reason = "tests")]

use arrow::util::pretty::pretty_format_batches;
use datafusion::prelude::SessionConfig;
use gatework::Settings;

use crate::against_datafusion::{Sessions, Watch, guarded};

const EXISTS: [&str; 2] = ["EXISTS", "NOT EXISTS"];
const SHAPES: [(usize, usize); 3] = [(1, 8192), (2, 3), (4, 64)];

/// Rows with ties, NULLs and values of many types.
const VALUES: &str = "SELECT value AS id,
    CASE WHEN value % 11 = 0 THEN NULL ELSE value % 6 END AS p,
    CASE WHEN value % 13 = 0 THEN NULL ELSE value * 37 % 40 END AS o,
    CASE WHEN value % 5 = 0 THEN NULL ELSE value * 7919 % 1000 - 500 END AS i,
    CAST(value * 31 % 997 AS DECIMAL(10, 2)) / 4 AS d,
    CASE WHEN value % 7 = 0 THEN NULL ELSE value % 64 / 4.0 END AS f,
    CASE WHEN value % 9 = 0 THEN NULL
        ELSE concat('text ', value * 17 % 90, ' of some length') END AS t,
    CAST(CAST(19723 + value * 3 % 50 AS INT) AS DATE) AS day,
    value % 3 = 0 AS b
    FROM generate_series(1, 400)";

fn windows_with(settings: Settings) {
    guarded(move |watch| {
        let sessions = Sessions::with(watch, &SHAPES, SessionConfig::new(), settings);
        sessions.table("w", VALUES);
        let functions = "row_number() OVER w, ntile(4) OVER w, ntile(1000) OVER w,
            lag(i) OVER w, lag(t, 2, 'none') OVER w, lag(i, -2) OVER w, lead(d) OVER w,
            lead(day, 3, CAST('2000-01-01' AS DATE)) OVER w, lag(f, 500, 0.5) OVER w";
        let framed = "first_value(t) OVER w, last_value(i) OVER w, nth_value(t, 2) OVER w,
            nth_value(i, -2) OVER w, count(*) OVER w, count(i) OVER w, sum(i) OVER w,
            sum(d) OVER w, sum(f) OVER w, avg(d) OVER w, avg(i) OVER w, min(t) OVER w,
            max(d) OVER w, min(day) OVER w, max(i) OVER w, min(f) OVER w";
        let ranks = "rank() OVER w, dense_rank() OVER w, percent_rank() OVER w, cume_dist() OVER w";
        let rows = [
            "UNBOUNDED PRECEDING AND CURRENT ROW",
            "UNBOUNDED PRECEDING AND 2 FOLLOWING",
            "UNBOUNDED PRECEDING AND 2 PRECEDING",
            "UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING",
            "3 PRECEDING AND CURRENT ROW",
            "2 PRECEDING AND 4 FOLLOWING",
            "5 PRECEDING AND 2 PRECEDING",
            "1 FOLLOWING AND 3 FOLLOWING",
            "1000 PRECEDING AND 1000 FOLLOWING",
            "CURRENT ROW AND UNBOUNDED FOLLOWING",
        ];
        let ranges = [
            "RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW",
            "RANGE BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING",
            "RANGE BETWEEN CURRENT ROW AND CURRENT ROW",
            "GROUPS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW",
            "RANGE BETWEEN 3 PRECEDING AND 5 FOLLOWING",
        ];
        let aggregates = "count(*) OVER w, count(t) OVER w, sum(i) OVER w, sum(d) OVER w,
            avg(d) OVER w, min(t) OVER w, max(day) OVER w";
        for partition in ["", "PARTITION BY p", "PARTITION BY p, b", "PARTITION BY id"] {
            let query = |columns: &str, window: &str| {
                let sql = format!("SELECT id, {columns} FROM w WINDOW w AS ({partition} {window})");
                sessions.equal(&[&sql]);
            };
            query(functions, "ORDER BY o, id");
            query(ranks, "ORDER BY o");
            query(ranks, "ORDER BY t DESC NULLS LAST, o");
            for frame in rows {
                query(framed, &format!("ORDER BY o DESC, id ROWS BETWEEN {frame}"));
            }
            for frame in ranges {
                query(aggregates, &format!("ORDER BY o {frame}"));
            }
        }
        // Without a kernel: other arguments, filters, NULLs left out.
        sessions.equal(&[
            "SELECT id, sum(i) FILTER (WHERE b) OVER (PARTITION BY p ORDER BY id) FROM w",
            "SELECT id, lag(i) IGNORE NULLS OVER (PARTITION BY p ORDER BY id) FROM w",
            "SELECT id, first_value(i) IGNORE NULLS OVER (PARTITION BY p ORDER BY id) FROM w",
            "SELECT id, stddev(f) OVER (PARTITION BY p ORDER BY id) FROM w",
            "SELECT id, sum(f / 3) OVER (ORDER BY o), avg(f / 3) OVER (ORDER BY o) FROM w",
            // Drawn once, a running sum never decreases.
            "SELECT count(*) FROM (SELECT s, lag(s) OVER (ORDER BY id) AS before FROM
                (SELECT id, sum(random()) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) AS s
                FROM w) AS q) AS r WHERE s < before",
        ]);
        sessions.finish();
    });
}

#[test]
fn windows() {
    windows_with(Settings::default());
}

/// Partitions that are evaluated in chunks as they arrive, or buffered.
#[test]
fn windows_of_large_partitions() {
    windows_with(Settings { exchange_buffer_bytes: 1, ..Settings::default() });
}

#[test]
fn joins_on_ranges() {
    guarded(move |watch| {
        let sessions = Sessions::with(watch, &SHAPES, SessionConfig::new(), Settings::default());
        sessions.table(
            "a",
            "SELECT id, p, o, i, d, t, day, CASE WHEN id % 50 = 0 THEN 'NaN'::DOUBLE
                WHEN id % 51 = 0 THEN -0.0 ELSE f END AS f
                FROM (SELECT value AS id, value % 6 AS p, value * 37 % 40 AS o,
                    CASE WHEN value % 5 = 0 THEN NULL ELSE value * 7919 % 1000 - 500 END AS i,
                    CAST(value * 31 % 997 AS DECIMAL(10, 2)) / 4 AS d, value % 64 / 4.0 - 3 AS f,
                    concat('text ', value * 17 % 90) AS t,
                    CAST(CAST(19723 + value * 3 % 50 AS INT) AS DATE) AS day
                    FROM generate_series(1, 150)) AS v",
        );
        let reference = &sessions.reference;
        let columns = "id, p, i - 20 AS low, i + 20 AS high, d, t, day, f";
        sessions.table_from("b", reference, &format!("SELECT {columns} FROM a"));
        sessions.table_from("none", reference, "SELECT * FROM b WHERE id < 0");
        let conditions = [
            "a.i BETWEEN b.low AND b.high",
            "b.low BETWEEN a.i - 5 AND a.i + 5",
            "a.i > b.low AND a.i < b.high AND a.p <> b.p",
            "a.i >= b.high",
            "b.high < a.i AND a.o % 2 = b.p % 2",
            "a.d BETWEEN b.d - 1 AND b.d + 1.25",
            "a.f BETWEEN b.f AND b.f + 0.5",
            "a.f >= b.f AND a.f <= b.f",
            "a.t > b.t AND a.day < b.day",
            "a.day BETWEEN b.day AND b.day + INTERVAL '1 day'",
            "a.i + a.o BETWEEN b.low AND b.high",
            "a.i < b.low OR a.i > b.high",
            "[a.i, NULL, a.o] > [b.low, b.p, 3]",
        ];
        for condition in conditions {
            for kind in ["JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"] {
                let columns = "a.id AS a, b.id AS b";
                sessions.equal(&[
                    &format!("SELECT {columns} FROM a {kind} b ON {condition}"),
                    &format!("SELECT {columns} FROM a {kind} none AS b ON {condition}"),
                ]);
            }
            // DataFusion does not find outer columns in lists.
            let exists = if condition.starts_with('[') { [].as_slice() } else { &EXISTS };
            for exists in exists {
                sessions.equal(&[
                    &format!("SELECT id FROM a WHERE {exists} (SELECT * FROM b WHERE {condition})"),
                    &format!("SELECT id FROM b WHERE {exists} (SELECT * FROM a WHERE {condition})"),
                ]);
            }
        }
        sessions.finish();
    });
}

#[test]
fn the_first_rows_of_files() {
    guarded(move |watch| {
        let sessions = Sessions::with(watch, &SHAPES, SessionConfig::new(), Settings::default());
        sessions.table("rows", VALUES);
        for (file, order) in [("sorted", "id"), ("mixed", "i"), ("texts", "t")] {
            sessions.on_reference(&format!(
                "COPY (SELECT * FROM rows ORDER BY {order}) TO '{{shared}}/{file}/{file}.parquet'
                    STORED AS PARQUET OPTIONS ('format.max_row_group_size' '50')"
            ));
        }
        // Several files of the same rows.
        sessions.on_reference(
            "COPY (SELECT * FROM rows WHERE id > 100 ORDER BY d) TO '{shared}/mixed/more.parquet'
                STORED AS PARQUET OPTIONS ('format.max_row_group_size' '30')",
        );
        for file in ["sorted", "mixed", "texts"] {
            sessions.everywhere(&format!(
                "CREATE EXTERNAL TABLE {file} STORED AS PARQUET LOCATION '{{shared}}/{file}/'"
            ));
            for key in ["id", "i", "d", "f", "t", "day", "b", "i + o", "-f", "p"] {
                for direction in ["", "DESC", "NULLS FIRST", "DESC NULLS LAST"] {
                    for limit in [1, 7, 120] {
                        sessions.equal(&[
                            &format!(
                                "SELECT * FROM {file} ORDER BY {key} {direction}, o DESC, id \
                                 LIMIT {limit}"
                            ),
                            &format!(
                                "SELECT id, t FROM {file} WHERE t LIKE '%1%' AND o > 5 ORDER BY \
                                 {key} {direction}, id LIMIT {limit} OFFSET 3"
                            ),
                        ]);
                    }
                }
            }
            sessions.equal(&[
                &format!("SELECT * FROM {file} ORDER BY id LIMIT 0"),
                &format!("SELECT * FROM {file} ORDER BY o, o + i, id LIMIT 5"),
                &format!("SELECT i, p, o, id FROM {file} ORDER BY p, p + i, o, id LIMIT 5"),
                &format!(
                    "SELECT * FROM (SELECT * FROM {file} ORDER BY d, id LIMIT 50) AS q
                        ORDER BY t, id LIMIT 5"
                ),
                &format!(
                    "SELECT a.id, b.t FROM {file} a JOIN {file} b ON a.o = b.o
                        ORDER BY a.d, a.id, b.id LIMIT 9"
                ),
                &format!(
                    "SELECT * FROM (SELECT id, o FROM {file} ORDER BY o, id LIMIT 5) AS q
                        UNION ALL SELECT * FROM (SELECT id, p FROM {file} ORDER BY p DESC, id
                        LIMIT 5) AS r"
                ),
            ]);
        }
        sessions.finish();
    });
}

/// Scans whose order, or whose first rows, another operator relies on.
#[test]
fn the_first_rows_of_ordered_files() {
    guarded(move |watch| {
        let sessions = Sessions::with(watch, &SHAPES, SessionConfig::new(), Settings::default());
        sessions.table("rows", VALUES);
        sessions.on_reference(
            "COPY (SELECT * FROM rows ORDER BY id) TO '{shared}/sorted/sorted.parquet'
                STORED AS PARQUET OPTIONS ('format.max_row_group_size' '50')",
        );
        sessions.everywhere(
            "CREATE EXTERNAL TABLE ordered STORED AS PARQUET WITH ORDER (id)
                LOCATION '{shared}/sorted/sorted.parquet'",
        );
        sessions.equal(&[
            "SELECT p, array_agg(i ORDER BY id) FROM ordered GROUP BY p ORDER BY p DESC LIMIT 3",
        ]);
        // Below a limit, no row may be left out. (DataFusion's rows are not those of the limit.)
        let first = "SELECT * FROM ordered WHERE id <= 160";
        for (limited, whole, order) in [
            ("SELECT * FROM ordered ORDER BY id LIMIT 160", first, "d DESC, id LIMIT 5"),
            (
                "SELECT * FROM ordered WHERE id % 2 = 0 ORDER BY id LIMIT 80",
                "SELECT * FROM ordered WHERE id <= 160 AND id % 2 = 0",
                "i, id LIMIT 5",
            ),
            (
                "SELECT * FROM ordered ORDER BY id OFFSET 150",
                "SELECT * FROM ordered WHERE id > 150",
                "i, id LIMIT 5",
            ),
        ] {
            for tested in &sessions.tested {
                let rows = |from: &str| {
                    let sql = format!("SELECT * FROM ({from}) AS q ORDER BY {order}");
                    let rows = async { tested.context.sql(&sql).await?.collect().await };
                    pretty_format_batches(&sessions.block_on(rows).unwrap()).unwrap().to_string()
                };
                assert_eq!(rows(limited), rows(whole), "{limited}: {}", tested.name);
            }
        }
        sessions.finish();
    });
}

#[test]
fn distinct_values_are_counted() {
    guarded(move |watch| {
        let sessions = Sessions::with(watch, &SHAPES, SessionConfig::new(), Settings::default());
        sessions.table("w", VALUES);
        let columns = ["id", "p", "i", "d", "f", "t", "day", "b"];
        let counts: Vec<_> =
            columns.iter().map(|column| format!("count(DISTINCT {column})")).collect();
        let all = counts.join(", ");
        sessions.equal(&[
            &format!("SELECT {all} FROM w"),
            &format!("SELECT {all}, sum(i), max(t) FROM w WHERE id % 2 = 0"),
            &format!("SELECT {all} FROM w WHERE id < 0"),
            "SELECT count(DISTINCT t) FILTER (WHERE b), count(DISTINCT o) FROM w",
            "SELECT count(DISTINCT arrow_cast(t, 'Dictionary(Int32, Utf8)')), count(*) FROM w",
            "SELECT count(DISTINCT [o, p]), count(DISTINCT o + p), count(DISTINCT 1) FROM w",
            "SELECT p, count(DISTINCT t), count(DISTINCT i), sum(d) FROM w GROUP BY p",
        ]);
        sessions.finish();
    });
}

/// Sessions with `dims`, and with files of rows: all pages have codes (`small`), or only the first
/// ones (`large`), or none (`plain`).
fn with_dictionaries(watch: &Watch) -> Sessions<'_> {
    let sessions = Sessions::with(watch, &SHAPES, SessionConfig::new(), Settings::default());
    sessions.table("rows", VALUES);
    sessions.table_from(
        "dims",
        &sessions.reference,
        "SELECT id % 9 AS k, i, CASE WHEN id % 4 = 0 THEN NULL ELSE concat('dim ', id % 7) END
            AS name, concat('kind of a dimension ', id % 3) AS kind, id % 2 = 0 AS flag
            FROM rows WHERE id <= 14",
    );
    for (file, options) in [
        ("small", "'format.max_row_group_size' '90'"),
        ("large", "'format.dictionary_page_size_limit' '600', 'format.write_batch_size' '20'"),
        ("plain", "'format.dictionary_enabled' 'false'"),
    ] {
        sessions.on_reference(&format!(
            "COPY (SELECT *, CASE WHEN b THEN 0.0 ELSE -0.0 END AS z FROM rows ORDER BY d)
                TO '{{shared}}/{file}/{file}.parquet' STORED AS PARQUET OPTIONS ({options})"
        ));
        sessions.everywhere(&format!(
            "CREATE EXTERNAL TABLE {file} STORED AS PARQUET LOCATION '{{shared}}/{file}/'"
        ));
    }
    sessions
}

const FILES: [&str; 3] = ["small", "large", "plain"];

#[test]
fn columns_of_files_that_stay_dictionaries() {
    guarded(move |watch| {
        let sessions = with_dictionaries(watch);
        let aggregates = "count(*), sum(i), min(d), count(DISTINCT o)";
        for file in FILES {
            for keys in ["t", "t, p", "p, t, b", "day, t", "concat(t, 'x'), t", "id, t"] {
                for condition in [
                    "true",
                    "t LIKE '%1%'",
                    "t <> '' AND i > 0",
                    "t IS NOT NULL AND t NOT LIKE '%7%'",
                    "t IN ('text 1, of some length', 'text 17 of some length') OR t > 'text 8'",
                    "CAST(substr(t, 6, 2) AS INT) > 30 AND t < 'text 7'",
                    "p = 3",
                ] {
                    sessions.equal(&[&format!(
                        "SELECT {keys}, {aggregates} FROM {file} WHERE {condition} GROUP BY {keys}"
                    )]);
                }
            }
            sessions.equal(&[
                &format!("SELECT DISTINCT t FROM {file}"),
                &format!(
                    "SELECT count(DISTINCT t), count(DISTINCT p), count(DISTINCT day),
                        count(DISTINCT f), count(DISTINCT d), sum(d) FROM {file}"
                ),
                &format!("SELECT count(DISTINCT t), max(t) FROM {file} WHERE t LIKE '%2%'"),
                &format!("SELECT t, min(t), max(t), count(t) FROM {file} GROUP BY t"),
                &format!("SELECT count(*) FROM {file} WHERE t LIKE '%3%' AND t <> 'text'"),
                &format!("SELECT id, t FROM {file} WHERE t > 'text 5' ORDER BY t, id LIMIT 7"),
                &format!("SELECT t, p, sum(i) FROM {file} GROUP BY ROLLUP (t, p)"),
                // Arrow tells -0 and 0 apart in dictionaries, and knows no dictionary of Booleans.
                &format!("SELECT t, z, count(*) FROM {file} WHERE z = 0.0 GROUP BY t, z"),
                &format!("SELECT t, z, count(*) FROM {file} WHERE z >= 0.0 GROUP BY t, z"),
                &format!("SELECT t, b, count(*) FROM {file} WHERE b OR b IS NULL GROUP BY t, b"),
                &format!("SELECT t, p, count(*) FROM {file} WHERE p > 1 AND p < 4 GROUP BY t, p"),
            ]);
        }
        sessions.finish();
    });
}

#[test]
fn columns_of_joins_that_stay_dictionaries() {
    guarded(move |watch| {
        let sessions = with_dictionaries(watch);
        for file in FILES {
            for join in ["JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"] {
                for on in ["p = k", "p = k AND f.i < d.i", "p = k AND t > name", "t = name"] {
                    for keys in ["name", "kind, name", "t, name", "b, kind, p", "d.i, kind"] {
                        sessions.equal(&[&format!(
                            "SELECT {keys}, count(*), sum(f.i) FROM {file} f {join} dims d ON {on}
                                GROUP BY {keys}"
                        )]);
                    }
                }
            }
            sessions.equal(&[
                &format!(
                    "SELECT name, flag, count(*) FROM {file} LEFT JOIN dims ON p = k
                        WHERE flag IS NULL OR flag GROUP BY name, flag"
                ),
                &format!(
                    "SELECT name, flag, count(*) FROM {file} LEFT JOIN dims ON p = k
                        WHERE NOT flag OR name LIKE 'dim%' GROUP BY name, flag"
                ),
                &format!(
                    "SELECT a.name, b.kind, f.t, count(*) FROM {file} f JOIN dims a ON f.p = a.k
                        JOIN dims b ON f.o = b.k GROUP BY a.name, b.kind, f.t"
                ),
                &format!(
                    "SELECT kind, u, count(*) FROM (SELECT upper(name) AS u, kind, p
                        FROM {file} JOIN dims ON p = k) AS q WHERE kind <> 'x' GROUP BY kind, u"
                ),
                &format!(
                    "SELECT count(*), sum(f.i), sum(m) FROM {file} f
                        JOIN (SELECT t AS u, min(i) AS m FROM {file} WHERE p < 3 GROUP BY t) g
                        ON t = u"
                ),
                &format!(
                    "SELECT p, count(*), sum(m) FROM {file} f
                        LEFT JOIN (SELECT t AS u, i AS m FROM {file} WHERE p = 1) g
                        ON t = u AND f.i < m GROUP BY p"
                ),
                &format!(
                    "SELECT p, count(*) FROM {file} WHERE t IN
                        (SELECT t FROM {file} WHERE i < 50) GROUP BY p"
                ),
                &format!(
                    "SELECT count(*) FROM {file} WHERE t NOT IN
                        (SELECT t FROM {file} WHERE i < 50 AND t IS NOT NULL)"
                ),
                &format!(
                    "SELECT t, count(*) FROM {file} x WHERE NOT EXISTS
                        (SELECT 1 FROM {file} y WHERE y.t = x.t AND i < 50) GROUP BY t"
                ),
                &format!(
                    "SELECT t, n FROM (SELECT t, count(*) AS n FROM {file} GROUP BY t
                        UNION ALL SELECT name, count(*) FROM dims GROUP BY name) AS q"
                ),
                &format!(
                    "SELECT name, arrow_cast(t, 'Dictionary(UInt32, Utf8)') AS own, count(*)
                        FROM {file} JOIN dims ON p = k GROUP BY name, own"
                ),
            ]);
        }
        sessions.finish();
    });
}
