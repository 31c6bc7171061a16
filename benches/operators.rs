//! Operators on adversarial inputs, compared with DataFusion's: the same SQL over the same tables
//! in memory, on two threads. Each name says what makes the input hard. Each figure includes
//! planning, about 1 ms.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Int64Array, RecordBatch, StringViewArray},
    datatypes::SchemaRef,
};
use criterion::{Criterion, criterion_group, criterion_main};
use datafusion::{datasource::MemTable, prelude::*};
use gatework::{Executor, session_with};

#[allow(dead_code, reason = "this bench uses only the allocator of the shared support")]
mod support;

const THREADS: usize = 2;
const ROWS: usize = 1_000_000;
const BATCH_ROWS: usize = 8192;

/// Name of the adversarial input, and the query.
const QUERIES: &[(&str, &str)] = &[
    ("filter/no row passes", "SELECT count(*) FROM t WHERE random < 0"),
    ("filter/every second row passes", "SELECT sum(id) FROM t WHERE random % 2 = 0"),
    (
        "filter/the expensive conjunct comes first",
        "SELECT count(*) FROM t WHERE text LIKE '%9 of%7%' AND few = 3",
    ),
    ("aggregate/no key", "SELECT sum(random), min(random), max(random) FROM t"),
    ("aggregate/few groups", "SELECT few, sum(random), count(*) FROM t GROUP BY few"),
    (
        "aggregate/every row a group",
        "SELECT count(*) FROM (SELECT random, sum(id) FROM t GROUP BY random)",
    ),
    (
        "aggregate/half of the rows in one group",
        "SELECT count(*) FROM (SELECT skewed, sum(id) FROM t GROUP BY skewed)",
    ),
    ("aggregate/long texts", "SELECT count(*) FROM (SELECT text, count(*) FROM t GROUP BY text)"),
    ("aggregate/distinct", "SELECT count(DISTINCT random), count(DISTINCT text) FROM t"),
    ("join/dense keys", "SELECT sum(a.random) FROM t a JOIN t b ON a.id = b.id"),
    ("join/sparse keys", "SELECT sum(a.id) FROM t a JOIN t b ON a.random = b.random"),
    ("join/no match", "SELECT sum(a.id) FROM t a JOIN t b ON a.random = b.id - 1000000000"),
    ("join/long texts", "SELECT sum(a.id) FROM t a JOIN t b ON a.text = b.text"),
    (
        "join/one key has a thousand partners",
        "SELECT sum(a.id) FROM t a JOIN (SELECT * FROM t WHERE id < 10000) b ON a.few = b.id % 10",
    ),
    (
        "join/a residual that nothing passes",
        "SELECT count(*) FROM t a JOIN (SELECT * FROM t WHERE id < 1000) b
            ON a.few = b.few AND a.random + b.random = 1",
    ),
    ("sort/random", "SELECT max(n) FROM (SELECT row_number() OVER (ORDER BY random) AS n FROM t)"),
    ("sort/sorted", "SELECT max(n) FROM (SELECT row_number() OVER (ORDER BY id) AS n FROM t)"),
    (
        "sort/texts with a common prefix",
        "SELECT max(n) FROM (SELECT row_number() OVER (ORDER BY text) AS n FROM t)",
    ),
    ("top-n/random", "SELECT * FROM t ORDER BY random LIMIT 10"),
    ("top-n/every row is better", "SELECT * FROM t ORDER BY id DESC LIMIT 10"),
    (
        "window/a partition a group",
        "SELECT max(s) FROM (SELECT sum(id) OVER (PARTITION BY many ORDER BY id) AS s FROM t)",
    ),
    (
        "window/a total of all rows",
        "SELECT max(x) FROM (SELECT text, id - avg(random) OVER () AS x FROM t)",
    ),
    (
        "window/totals of few groups",
        "SELECT max(x) FROM (SELECT id - avg(random) OVER (PARTITION BY few) AS x FROM t)",
    ),
    (
        "union/two inputs",
        "SELECT count(*), sum(n) FROM (SELECT id AS n FROM t UNION ALL SELECT few FROM t)",
    ),
    ("set/intersect", "SELECT count(*) FROM (SELECT random FROM t INTERSECT SELECT id FROM t)"),
];

fn table() -> (SchemaRef, Vec<RecordBatch>) {
    let mix = |row: usize| ((row as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 2) as i64;
    let batch = |number: usize| {
        let rows = number * BATCH_ROWS..ROWS.min((number + 1) * BATCH_ROWS);
        let numbers = |value: &dyn Fn(usize) -> i64| -> ArrayRef {
            Arc::new(rows.clone().map(value).collect::<Int64Array>())
        };
        let text = |row: usize| format!("row {} of a table of a million rows", mix(row) % 500_000);
        let texts: ArrayRef = Arc::new(StringViewArray::from_iter_values(rows.clone().map(text)));
        RecordBatch::try_from_iter([
            ("id", numbers(&|row| row as i64)),
            ("random", numbers(&mix)),
            ("few", numbers(&|row| mix(row) % 10)),
            ("many", numbers(&|row| mix(row) % 100_000)),
            ("skewed", numbers(&|row| if row % 2 == 0 { 0 } else { mix(row) % 100_000 })),
            ("text", texts),
        ])
        .expect("columns of equal length")
    };
    let batches: Vec<_> = (0..ROWS.div_ceil(BATCH_ROWS)).map(batch).collect();
    (batches[0].schema(), batches)
}

fn operators(criterion: &mut Criterion) {
    let (schema, batches) = table();
    let config = SessionConfig::new().with_target_partitions(THREADS);
    let executor = Executor::builder().threads(THREADS).build().expect("threads");
    let gatework = session_with(&executor, config.clone());
    let datafusion = SessionContext::new_with_config(config);
    for session in [&gatework, &datafusion] {
        let table = MemTable::try_new(schema.clone(), vec![batches.clone()]).expect("a table");
        session.register_table("t", Arc::new(table)).expect("a new name");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).build();
    let runtime = runtime.expect("threads");
    let run = |session: &SessionContext, sql: &str| {
        let session = session.clone();
        let sql = sql.to_owned();
        // On a worker of the runtime, where waking the runtime's own tasks is cheapest.
        let query = runtime.spawn(async move { session.sql(&sql).await?.collect().await });
        runtime.block_on(query).expect("no panic").expect("a result")
    };
    for (name, sql) in QUERIES {
        let mut group = criterion.benchmark_group(*name);
        group.sample_size(10);
        for (engine, session) in [("gatework", &gatework), ("datafusion", &datafusion)] {
            group.bench_function(engine, |bencher| bencher.iter(|| run(session, sql)));
        }
        group.finish();
    }
    // The fixed cost of a query.
    for (name, sql) in
        [("start/no table", "SELECT 1"), ("start/ten rows", "SELECT sum(n) FROM ten")]
    {
        let ten = "CREATE TABLE IF NOT EXISTS ten AS
            SELECT column1 AS n FROM (VALUES (1), (2), (3), (4), (5), (6), (7), (8), (9), (10))";
        let mut group = criterion.benchmark_group(name);
        for (engine, session) in [("gatework", &gatework), ("datafusion", &datafusion)] {
            run(session, ten);
            group.bench_function(engine, |bencher| bencher.iter(|| run(session, sql)));
        }
        group.finish();
    }
}

criterion_group!(benches, operators);
criterion_main!(benches);
