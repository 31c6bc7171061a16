//! Parquet files in many layouts: whichever columns and rows are read, the results are those of
//! plain DataFusion.

#![allow(clippy::unwrap_used, reason = "tests may")]

use datafusion::prelude::SessionConfig;
use gatework::Settings;

use crate::against_datafusion::{Sessions, guarded};

mod damaged;

const ROWS: &str = "SELECT n AS id, \
    arrow_cast(n % 97, 'Int32') AS small, \
    CASE WHEN n % 5 = 0 THEN NULL ELSE n * 31 % 1009 END AS gaps, \
    CAST(n % 10007 AS DECIMAL(12, 2)) / 4 AS price, \
    CAST(n % 53 AS DECIMAL(30, 3)) AS wide, \
    DATE '1995-01-01' + CAST(n / 16 AS INT) AS day, \
    to_timestamp_micros(n * 1000003) AS at, \
    CAST(n AS DOUBLE) / 7 AS ratio, \
    CASE WHEN n % 11 = 0 THEN NULL ELSE n % 3 = 0 END AS flag, \
    CASE n % 4 WHEN 0 THEN 'north' WHEN 1 THEN 'south' WHEN 2 THEN '' ELSE NULL END AS short, \
    concat('row number ', n, ' of a file, and some text ', n * 7919 % 1000) AS long \
    FROM (SELECT value AS n FROM generate_series(0, 19999))";

const KEYS: &str = "SELECT n * 211 % 20000 AS id, arrow_cast(n % 9, 'Int32') AS small, \
    concat('row number ', n * 3, ' of a file, and some text ', n * 3 * 7919 % 1000) AS long \
    FROM (SELECT value AS n FROM generate_series(0, 149))";

const LAYOUTS: [(&str, &str); 8] = [
    ("plain_pages", "'format.dictionary_enabled' false, 'format.compression' 'uncompressed'"),
    ("small_groups", "'format.max_row_group_size' 1500, 'format.data_page_row_count_limit' 100"),
    ("small_pages", "'format.data_page_row_count_limit' 250, 'format.write_batch_size' 50"),
    ("overflow", "'format.dictionary_page_size_limit' 2000, 'format.write_batch_size' 100"),
    ("version_2", "'format.writer_version' '2.0', 'format.compression' 'lz4_raw'"),
    ("blooms", "'format.bloom_filter_on_write' true, 'format.compression' 'zstd(1)'"),
    ("no_statistics", "'format.statistics_enabled' 'none', 'format.compression' 'snappy'"),
    (
        "deltas",
        "'format.dictionary_enabled' false, 'format.encoding::id' 'delta_binary_packed', \
     'format.encoding::long' 'delta_length_byte_array'",
    ),
];

const STATEMENTS: [&str; 15] = [
    "SELECT * FROM {t}",
    "SELECT count(*) FROM {t}",
    "SELECT long, id FROM {t} WHERE small = 13",
    "SELECT id, price, wide, at, ratio FROM {t} WHERE gaps BETWEEN 100 AND 130 AND flag",
    "SELECT id, short, long FROM {t} WHERE day = DATE '1996-02-03'",
    "SELECT sum(price), sum(gaps), count(short), max(long), min(at) FROM {t} WHERE ratio < 900",
    "SELECT id, gaps FROM {t} WHERE gaps IS NULL AND short = 'north'",
    "SELECT id FROM {t} WHERE long LIKE '%text 77%' OR small IN (1, 2) AND price > 2000",
    "SELECT id, long FROM {t} WHERE short IS NULL AND flag IS NOT TRUE AND id % 100 < 3",
    "SELECT id FROM {t} WHERE id > 30000",
    "SELECT long FROM {t} WHERE id >= 0 AND small < 96 AND ratio >= 0 AND wide < 52",
    "SELECT a.id, a.price, a.short FROM {t} a JOIN keys k ON a.id = k.id",
    "SELECT a.id, a.long FROM {t} a JOIN keys k ON a.long = k.long AND a.small = k.small",
    "SELECT a.id, a.at FROM {t} a WHERE a.id IN (SELECT id FROM keys WHERE small = 4)",
    "SELECT a.flag, b.short, count(*) FROM {t} a JOIN {t} b ON a.id = b.id WHERE b.small = 5 \
        GROUP BY a.flag, b.short",
];

fn with_sessions(body: impl FnOnce(&Sessions) + Send + 'static) {
    guarded(|watch| {
        let shapes = [(1, 100), (2, 8192), (3, 7)];
        let sessions = Sessions::with(watch, &shapes, SessionConfig::new(), Settings::default());
        sessions.table("keys", KEYS);
        body(&sessions);
        sessions.finish();
    });
}

fn external(name: &str, location: &str) -> String {
    format!("CREATE EXTERNAL TABLE {name} STORED AS PARQUET LOCATION '{{shared}}/{location}'")
}

#[test]
fn in_every_layout() {
    with_sessions(|sessions| {
        for (name, options) in LAYOUTS {
            let copy = format!(
                "COPY ({ROWS}) TO '{{shared}}/{name}.parquet' STORED AS PARQUET OPTIONS ({options})"
            );
            sessions.on_reference(&copy.replace("{shared}", sessions.shared().to_str().unwrap()));
            sessions.everywhere(&external(name, &format!("{name}.parquet")));
            for statement in STATEMENTS {
                sessions.equal(&[&statement.replace("{t}", name)]);
            }
        }
    });
}

/// Files of one table whose columns differ in order and type; one lacks `short`.
#[test]
fn files_that_differ() {
    with_sessions(|sessions| {
        let files = [
            format!("SELECT id, gaps, short, long FROM ({ROWS}) WHERE id < 5000"),
            format!("SELECT long, short, gaps, id FROM ({ROWS}) WHERE id BETWEEN 5000 AND 9999"),
            format!(
                "SELECT id, arrow_cast(gaps, 'Int32') AS gaps, short, long FROM ({ROWS}) \
                 WHERE id BETWEEN 10000 AND 14999"
            ),
            format!("SELECT id, gaps, long FROM ({ROWS}) WHERE id >= 15000"),
        ];
        for (number, query) in files.iter().enumerate() {
            let path = format!("{}/mixed/{number}.parquet", sessions.shared().to_str().unwrap());
            sessions.on_reference(&format!("COPY ({query}) TO '{path}' STORED AS PARQUET"));
        }
        sessions.everywhere(
            "CREATE EXTERNAL TABLE mixed (id BIGINT, gaps BIGINT, short VARCHAR, long VARCHAR) \
             STORED AS PARQUET LOCATION '{shared}/mixed/'",
        );
        sessions.equal(&[
            "SELECT * FROM mixed",
            "SELECT id, short FROM mixed WHERE gaps < 20",
            "SELECT id, long FROM mixed WHERE short IS NULL AND gaps > 1000",
            "SELECT m.id, m.short, m.gaps FROM mixed m JOIN keys k ON m.id = k.id",
        ]);
    });
}

/// The statistics of the file's own columns prune row groups and pages: in another order, with an
/// extra first column, with other types, and if the table declares only some columns.
#[test]
fn statistics_of_columns_in_another_order() {
    with_sessions(|sessions| {
        let rows = "SELECT value AS a, value + 100000 AS b, concat('text ', value + 500000) AS c \
                    FROM generate_series(0, 3999)";
        let files = [
            format!("SELECT a, b, c FROM ({rows}) WHERE a < 1000"),
            format!("SELECT b, a, c FROM ({rows}) WHERE a BETWEEN 1000 AND 1999"),
            format!("SELECT -a AS x, c, b, a FROM ({rows}) WHERE a BETWEEN 2000 AND 2999"),
            format!(
                "SELECT c, arrow_cast(b, 'Int32') AS b, arrow_cast(a, 'Int32') AS a \
                 FROM ({rows}) WHERE a >= 3000"
            ),
        ];
        let options = "'format.max_row_group_size' 400, 'format.data_page_row_count_limit' 50, \
                       'format.write_batch_size' 50";
        for (number, query) in files.iter().enumerate() {
            let path = format!("{}/order/{number}.parquet", sessions.shared().to_str().unwrap());
            sessions.on_reference(&format!(
                "COPY ({query}) TO '{path}' STORED AS PARQUET OPTIONS ({options})"
            ));
        }
        sessions.everywhere(
            "CREATE EXTERNAL TABLE ordered (a BIGINT, b BIGINT, c VARCHAR) STORED AS PARQUET \
             LOCATION '{shared}/order/'",
        );
        sessions.everywhere(
            "CREATE EXTERNAL TABLE some (b BIGINT, a BIGINT) STORED AS PARQUET \
             LOCATION '{shared}/order/'",
        );
        for table in ["ordered", "some"] {
            for condition in [
                "a = 1500",
                "a < 1500",
                "b = 102500",
                "a BETWEEN 2200 AND 2300 AND b > 102250",
                "a > 3500 OR b < 100010",
                "a IN (5, 1005, 2005, 3005)",
                "a IS NULL",
            ] {
                sessions.equal(&[&format!(
                    "SELECT count(*), sum(a), sum(b) FROM {table} WHERE {condition}"
                )]);
            }
            sessions.equal(&[
                &format!("SELECT t.a FROM {table} t JOIN keys k ON t.a = k.id WHERE k.small = 4"),
                &format!("SELECT t.b FROM {table} t JOIN keys k ON t.b = k.id + 100000"),
                &format!("SELECT a, b FROM {table} ORDER BY b DESC LIMIT 3"),
            ]);
        }
        sessions.equal(&["SELECT a FROM ordered WHERE c = 'text 502500' OR c = 'text 503999'"]);
    });
}

/// Statistics leave NaN out. NaN is greater than all numbers, or less if its sign is negative. The
/// expected rows are those of a table in memory, since DataFusion loses them, too.
#[test]
fn floats_that_are_no_numbers() {
    with_sessions(|sessions| {
        let nan = "arrow_cast('NaN', 'Float64')";
        let rows = format!(
            "SELECT n AS id, CASE WHEN n = 1234 THEN {nan} WHEN n = 3456 THEN -{nan} \
             ELSE n / 2.0 END AS x, \
             arrow_cast(CASE WHEN n = 2222 THEN {nan} ELSE 1.5 END, 'Float32') AS same \
             FROM (SELECT value AS n FROM generate_series(0, 3999))"
        );
        sessions.table("exact", &rows);
        sessions.table("seeds", &format!("SELECT {nan} AS x UNION ALL SELECT 7.5"));
        let pages = "'format.max_row_group_size' 1000, 'format.data_page_row_count_limit' 100, \
                     'format.write_batch_size' 100";
        let blooms = format!("{pages}, 'format.bloom_filter_on_write' true");
        for (name, options) in [("floats", pages), ("floats_with_blooms", blooms.as_str())] {
            let path = format!("{}/{name}.parquet", sessions.shared().to_str().unwrap());
            sessions.on_reference(&format!(
                "COPY ({rows}) TO '{path}' STORED AS PARQUET OPTIONS ({options})"
            ));
            sessions.everywhere(&external(name, &format!("{name}.parquet")));
            let of_rows = |condition| format!("SELECT id, x, same FROM {{t}} WHERE {condition}");
            let conditions = [
                "x > 5000",
                "x >= 5000 AND id > 100",
                "x < -5",
                "x = arrow_cast('NaN', 'Float64')",
                "x <> 3",
                "x BETWEEN 600 AND 610",
                "NOT (x <= 1999.5)",
                "x = 12 OR x > 8000",
                "same > 2",
                "same <> 1.5",
                "same = 1.5 AND id > 3990",
                "id IN (SELECT id FROM exact WHERE x > 1999)",
                "x IN (SELECT x FROM seeds)",
            ];
            let whole = [
                "SELECT min(x) AS a, max(x) AS b, min(same) AS c, max(same) AS d FROM {t}",
                "SELECT max(x) AS a FROM {t} WHERE id < 2000",
                "SELECT same, count(*) AS a FROM {t} GROUP BY same",
                // By the file's bounds, `same` is constant.
                "SELECT same + 1 AS a FROM {t}",
            ];
            for sql in conditions.map(of_rows).into_iter().chain(whole.map(str::to_owned)) {
                let frame = |context: &datafusion::prelude::SessionContext, table| {
                    sessions.block_on(context.sql(&sql.replace("{t}", table)))
                };
                let expected = frame(&sessions.reference, "exact").unwrap();
                let frames = sessions.tested.iter().map(|tested| frame(&tested.context, name));
                sessions.compare(&format!("{name}: {sql}"), expected, frames.collect(), None);
            }
        }
    });
}

/// A bloom filter skips row groups whose bounds contain a value that they do not have. Zeros of
/// both signs are found, although their filters' hashes differ.
#[test]
fn bloom_filters_skip_row_groups() {
    with_sessions(|sessions| {
        let rows = "SELECT n AS id, n * 7919 % 4001 AS key, concat('k', n * 7919 % 4001) AS text, \
            CASE WHEN n % 2 = 0 THEN 0.0 ELSE -0.0 END AS zero \
            FROM (SELECT value AS n FROM generate_series(0, 3999))";
        let path = format!("{}/blooms.parquet", sessions.shared().to_str().unwrap());
        sessions.on_reference(&format!(
            "COPY ({rows}) TO '{path}' STORED AS PARQUET OPTIONS \
             ('format.max_row_group_size' 100, 'format.bloom_filter_on_write' true)"
        ));
        sessions.everywhere(&external("blooms", "blooms.parquet"));
        sessions.table("wanted", "SELECT 'k77' AS text UNION ALL SELECT 'k4001'");
        let statements = [
            "SELECT id, key FROM blooms WHERE text = 'k1234'",
            "SELECT id, text FROM blooms WHERE key = 1234",
            "SELECT id FROM blooms WHERE text IN ('k9', 'k12', 'none')",
        ];
        sessions.equal(&statements);
        sessions.equal(&[
            "SELECT count(*) FROM blooms WHERE zero = 0.0",
            "SELECT id FROM blooms WHERE text = 'k1x'",
            "SELECT id FROM blooms WHERE text = 'k0' OR key = 3",
            "SELECT b.id FROM blooms b JOIN wanted w ON b.text = w.text",
        ]);
        for tested in &sessions.tested {
            for sql in statements {
                let text = sessions.block_on(async {
                    let analyzed = tested.context.sql(&format!("EXPLAIN ANALYZE {sql}")).await;
                    analyzed.unwrap().to_string().await.unwrap()
                });
                // As in "row_groups_pruned_bloom_filter=40 total → 1 matched".
                let figures = text.split("row_groups_pruned_bloom_filter=").nth(1).unwrap();
                let figures = figures.split(|c: char| !c.is_ascii_digit());
                let figures = figures.filter(|word| !word.is_empty()).map(str::parse::<usize>);
                let figures: Vec<_> = figures.take(2).map(Result::unwrap).collect();
                assert!(figures[1] < figures[0], "{}, {sql}:\n{text}", tested.name);
            }
        }
    });
}

/// The first rows of an ordered file are the same, whichever operator reads them and whatever is
/// joined with them.
#[test]
fn limits_of_ordered_files() {
    with_sessions(|sessions| {
        let folder = sessions.shared().to_str().unwrap().to_owned();
        for (number, rows) in ["id < 9000", "id >= 9000"].into_iter().enumerate() {
            let query = format!("SELECT * FROM ({ROWS}) WHERE {rows} ORDER BY id");
            let options = "'format.max_row_group_size' 1000";
            for path in [format!("{folder}/two/{number}"), format!("{folder}/one{number}")] {
                sessions.on_reference(&format!(
                    "COPY ({query}) TO '{path}.parquet' STORED AS PARQUET OPTIONS ({options})"
                ));
            }
        }
        for (name, location) in [("one", "one0.parquet"), ("two", "two/")] {
            sessions.everywhere(&format!(
                "CREATE EXTERNAL TABLE {name} STORED AS PARQUET WITH ORDER (id) \
                 LOCATION '{{shared}}/{location}'"
            ));
            let first = format!("(SELECT id, small, price FROM {name} ORDER BY id LIMIT 400)");
            sessions.equal(&[
                &format!("SELECT sum(price), max(id), count(*) FROM {first}"),
                &format!("SELECT f.id FROM {first} f JOIN keys k ON f.id = k.id"),
                &format!("SELECT k.id FROM keys k JOIN {first} f ON f.small = k.small"),
            ]);
        }
    });
}

/// If no filter above the scan checks the predicate, the scan must.
#[test]
fn with_pushed_filters() {
    guarded(|watch| {
        let config = SessionConfig::new()
            .set_bool("datafusion.execution.parquet.pushdown_filters", true)
            .set_bool("datafusion.execution.parquet.reorder_filters", true);
        let sessions = Sessions::with(watch, &[(2, 1000)], config, Settings::default());
        sessions.table("keys", KEYS);
        let path = format!("{}/t.parquet", sessions.shared().to_str().unwrap());
        sessions.on_reference(&format!("COPY ({ROWS}) TO '{path}' STORED AS PARQUET"));
        sessions.everywhere(&external("pushed", "t.parquet"));
        for statement in STATEMENTS {
            sessions.equal(&[&statement.replace("{t}", "pushed")]);
        }
        sessions.finish();
    });
}
