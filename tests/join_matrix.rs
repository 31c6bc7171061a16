//! Joins of every type over sides of every kind, and the runtime filters between them: equal
//! results with 1, 2 and 4 threads. Counters show that scans waited and dropped rows.
//!
//! Sides are Parquet files of several row groups, so that filters can prune. Joins are built as
//! logical plans: join type, NULL equality and residual filter combine freely, and joins are not
//! reordered, so either side can build.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{fs::File, path::Path, sync::Arc};

use crate::against_datafusion::{Sessions, guarded, run};
use arrow::record_batch::RecordBatchReader;
use datafusion::{
    catalog::Session,
    common::{Column, JoinType, NullEquality},
    error::Result,
    execution::{SessionStateBuilder, context::QueryPlanner},
    logical_expr::{LogicalPlan, LogicalPlanBuilder, col, lit},
    physical_plan::{ExecutionPlan, ExecutionPlanProperties, displayable, execute_stream},
    physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner},
    prelude::{DataFrame, SessionConfig, SessionContext},
};
use futures::{FutureExt, StreamExt, future::BoxFuture};
use gatework::{
    Settings,
    runtime::pipeline::Profile,
    verify::{ResultOrder, compare},
};
use parquet::{arrow::ArrowWriter, file::properties::WriterProperties};
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, SupplierGenerator,
};
use tpchgen_arrow::{CustomerArrow, LineItemArrow, NationArrow, OrderArrow, SupplierArrow};

const THREADS: [(usize, usize); 3] = [(1, 8192), (2, 64), (4, 256)];

/// The sides: name, rows, key. Keys are skewed, duplicated, NULL or missing.
const SIDES: [(&str, usize, &str); 5] = [
    (
        "skewed",
        1200,
        "CASE WHEN value % 10 = 0 THEN NULL WHEN value % 2 = 0 THEN 7 ELSE value % 90 END",
    ),
    ("few", 30, "value % 20"),
    ("few_null", 25, "CASE WHEN value % 4 = 0 THEN NULL ELSE value + 3 END"),
    ("only_null", 9, "NULL"),
    ("empty", 0, "value"),
];

fn unordered_joins() -> SessionConfig {
    let mut config = SessionConfig::new();
    config.options_mut().optimizer.join_reordering = false;
    config
}

/// Writes the sides, with keys of type `kind`, and registers them in all sessions: columns k, j (a
/// second key), v.
fn register_sides(sessions: &Sessions, kind: &str) {
    for (name, rows, key) in SIDES {
        let numbers = match rows {
            0 => "generate_series(1, 1) WHERE false".to_owned(),
            rows => format!("generate_series(1, {rows})"),
        };
        sessions.on_reference(&format!(
            "COPY (SELECT arrow_cast(CAST({key} AS BIGINT), '{kind}') AS k, value % 3 AS j, value \
             AS v FROM {numbers})
                TO '{{shared}}/{name}.parquet' STORED AS PARQUET OPTIONS \
                ('format.max_row_group_size' '100')"
        ));
        sessions.everywhere(&format!(
            "CREATE EXTERNAL TABLE {name} (k {}, j BIGINT, v BIGINT) STORED AS PARQUET LOCATION \
             '{{shared}}/{name}.parquet'",
            match kind {
                "Utf8" => "VARCHAR",
                "Float64" => "DOUBLE",
                "Decimal128(10, 2)" => "DECIMAL(10, 2)",
                _ => "BIGINT",
            }
        ));
    }
}

#[derive(Debug, Clone, Copy)]
struct Join {
    kind: JoinType,
    sides: (&'static str, &'static str),
    two_keys: bool,
    residual: bool,
    nulls: NullEquality,
}

async fn scan(context: &SessionContext, table: &str, alias: &str) -> Result<LogicalPlan> {
    let table = context.table(table).await?.into_unoptimized_plan();
    LogicalPlanBuilder::from(table).alias(alias)?.build()
}

async fn join(context: &SessionContext, join: Join) -> Result<DataFrame> {
    let left = scan(context, join.sides.0, "a").await?;
    let right = scan(context, join.sides.1, "b").await?;
    let keys = |side: &str| {
        let names = if join.two_keys { vec!["k", "j"] } else { vec!["k"] };
        names.into_iter().map(|name| Column::new(Some(side), name)).collect::<Vec<_>>()
    };
    let residual = join.residual.then(|| (col("a.v") % lit(7)).lt(col("b.v") % lit(11)));
    let plan = LogicalPlanBuilder::from(left)
        .join_detailed(right, join.kind, (keys("a"), keys("b")), residual, join.nulls)?
        .build()?;
    Ok(DataFrame::new(context.state(), plan))
}

/// All joins of one type over keys of one kind.
fn check_type(kind: JoinType, keys: &'static str) {
    guarded(move |watch| {
        let sessions = Sessions::with(watch, &THREADS, unordered_joins(), Settings::default());
        register_sides(&sessions, keys);
        for (left, _, _) in SIDES {
            for (right, _, _) in SIDES {
                for variant in 0..8 {
                    // Two keys are tested on some of the sides only.
                    let two_keys = variant & 4 != 0;
                    if two_keys && (left == "only_null" || right == "only_null") {
                        continue;
                    }
                    let nulls = match variant & 2 {
                        0 => NullEquality::NullEqualsNothing,
                        _ => NullEquality::NullEqualsNull,
                    };
                    let case = Join {
                        kind,
                        sides: (left, right),
                        two_keys,
                        residual: variant & 1 != 0,
                        nulls,
                    };
                    check_join(&sessions, case);
                }
            }
        }
        sessions.finish();
    });
}

fn check_join(sessions: &Sessions, case: Join) {
    let what = format!("{case:?}");
    let expected = match sessions.block_on(join(&sessions.reference, case)) {
        Ok(expected) => expected,
        Err(error) => return sessions.fail(format!("{what}: {error}")),
    };
    let frames =
        sessions.tested.iter().map(|tested| sessions.block_on(join(&tested.context, case)));
    sessions.compare(&what, expected, frames.collect(), Some(&[]));
}

#[test]
fn inner_joins() {
    check_type(JoinType::Inner, "Int64");
}

#[test]
fn left_joins() {
    check_type(JoinType::Left, "Int64");
}

#[test]
fn right_joins() {
    check_type(JoinType::Right, "Utf8");
}

#[test]
fn full_joins() {
    check_type(JoinType::Full, "Decimal128(10, 2)");
}

#[test]
fn left_semi_joins() {
    check_type(JoinType::LeftSemi, "Utf8");
}

#[test]
fn right_semi_joins() {
    check_type(JoinType::RightSemi, "Float64");
}

#[test]
fn left_anti_joins() {
    check_type(JoinType::LeftAnti, "Float64");
}

#[test]
fn right_anti_joins() {
    check_type(JoinType::RightAnti, "Int64");
}

#[test]
fn left_mark_joins() {
    check_type(JoinType::LeftMark, "Decimal128(10, 2)");
}

#[test]
fn right_mark_joins() {
    check_type(JoinType::RightMark, "Int64");
}

/// The sum of the counters named `name` over a query's operators.
fn total(profile: &Profile, name: &str) -> u64 {
    profile.operators.iter().filter_map(|operator| operator.counters.get(name)).sum()
}

const WAITS: &str = "runtime_filter_waits";
const DROPPED: &str = "runtime_filter_pruned_rows";

/// Runs `sql` on every tested session, and returns the profile of each.
fn profiles(sessions: &Sessions, sql: &str) -> Vec<(String, Profile)> {
    let run_profiled = |context: &SessionContext| {
        sessions.block_on(async {
            let frame = context.sql(sql).await?;
            let task = Arc::new(frame.task_ctx());
            let plan = frame.create_physical_plan().await?;
            let mut rows = execute_stream(plan.clone(), task)?;
            while let Some(batch) = rows.next().await {
                batch?;
            }
            // The profile exists as long as the stream.
            let shown = displayable(plan.as_ref()).indent(true).to_string();
            Ok((shown, gatework::profile(&plan).unwrap()))
        })
    };
    sessions
        .tested
        .iter()
        .map(|tested| {
            let ran: Result<(String, Profile)> = run_profiled(&tested.context);
            ran.unwrap_or_else(|error| panic!("{sql}: {error}"))
        })
        .collect()
}

/// Joins with a scan that can wait for a filter of another join. Results are equal for all types,
/// and over all of them some scans wait and some rows are dropped.
#[test]
fn chains_of_joins_wait_for_filters() {
    guarded(|watch| {
        let sessions = Sessions::with(watch, &THREADS, unordered_joins(), Settings::default());
        register_sides(&sessions, "Int64");
        let (mut waits, mut dropped) = (0, 0);
        for outer in ["JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"] {
            for inner in ["JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"] {
                for (a, b, c) in [
                    ("few", "skewed", "skewed"),
                    ("few_null", "skewed", "few"),
                    ("few_null", "few_null", "skewed"),
                    ("empty", "skewed", "few"),
                    ("only_null", "few", "skewed"),
                ] {
                    let inner = format!(
                        "SELECT b.k, b.v AS bv, c.v AS cv FROM {b} b {inner} {c} c ON b.k = c.k \
                         AND b.v < c.v + 900"
                    );
                    for sql in [
                        format!(
                            "SELECT a.v, x.bv, x.cv FROM {a} a {outer} ({inner}) x ON a.k = x.k"
                        ),
                        format!(
                            "SELECT a.v, x.n FROM {a} a {outer} (SELECT k, count(*) AS n FROM \
                             ({inner}) GROUP BY k) x
                                ON a.k = x.k"
                        ),
                    ] {
                        sessions.equal(&[&sql]);
                        for (_, profile) in profiles(&sessions, &sql) {
                            waits += total(&profile, WAITS);
                            dropped += total(&profile, DROPPED);
                        }
                    }
                }
            }
        }
        if waits == 0 || dropped == 0 {
            sessions.fail(format!("{waits} waits for filters, {dropped} rows dropped by them"));
        }
        sessions.finish();
    });
}

/// Writes one TPC-H table as Parquet with small row groups.
fn write(folder: &Path, name: &str, rows: impl RecordBatchReader) {
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(20_000)).build();
    let file = File::create(folder.join(name).with_extension("parquet")).unwrap();
    let mut writer = ArrowWriter::try_new(file, rows.schema(), Some(properties)).unwrap();
    for batch in rows {
        writer.write(&batch.unwrap()).unwrap();
    }
    writer.close().unwrap();
}

/// TPC-H queries whose scans wait for filters, over files or over tables in memory.
fn scans_wait_and_drop_rows(in_memory: bool) {
    guarded(move |watch| {
        let shapes = [(1, 8192), (2, 8192), (4, 8192)];
        let sessions = Sessions::with(watch, &shapes, SessionConfig::new(), Settings::default());
        let (folder, scale) = (sessions.shared(), 0.1);
        write(folder, "lineitem", LineItemArrow::new(LineItemGenerator::new(scale, 1, 1)));
        write(folder, "orders", OrderArrow::new(OrderGenerator::new(scale, 1, 1)));
        write(folder, "customer", CustomerArrow::new(CustomerGenerator::new(scale, 1, 1)));
        write(folder, "supplier", SupplierArrow::new(SupplierGenerator::new(scale, 1, 1)));
        write(folder, "nation", NationArrow::new(NationGenerator::new(scale, 1, 1)));
        for table in ["lineitem", "orders", "customer", "supplier", "nation"] {
            let name = if in_memory { format!("{table}_file") } else { table.to_owned() };
            sessions.everywhere(&format!(
                "CREATE EXTERNAL TABLE {name} STORED AS PARQUET LOCATION \
                 '{{shared}}/{table}.parquet'"
            ));
            if in_memory {
                sessions.everywhere(&format!("CREATE TABLE {table} AS SELECT * FROM {name}"));
            }
        }
        let mut waits = 0;
        for sql in [include_str!("../cli/queries/q18.sql"), include_str!("../cli/queries/q21.sql")]
        {
            let sql = sql.trim().trim_end_matches(';');
            sessions.equal(&[sql]);
            for (plan, profile) in profiles(&sessions, sql) {
                let dropped = total(&profile, DROPPED);
                waits += total(&profile, WAITS);
                if dropped == 0 {
                    sessions.fail(format!("no rows dropped by filters:\n{plan}\n{profile}"));
                }
            }
        }
        // Builds may finish before a scan that would wait for them starts: always over memory, and
        // over files depending on the threads.
        if waits == 0 && !in_memory {
            sessions.fail("no scan waited for a filter".into());
        }
        sessions.finish();
    });
}

#[test]
fn scans_of_files_wait_and_drop_rows() {
    scans_wait_and_drop_rows(false);
}

#[test]
fn scans_of_memory_wait_and_drop_rows() {
    scans_wait_and_drop_rows(true);
}

fn one_byte() -> Settings {
    Settings { result_buffer_bytes: 1, exchange_buffer_bytes: 1, ..Settings::default() }
}

const NUMBERS: &str = "SELECT value AS id, CASE WHEN value % 9 = 0 THEN NULL ELSE value % 13 END \
                       AS k FROM generate_series(1, 700)";

/// Plans whose waits form a cycle, as SQL.
const CIRCLES: [&str; 6] = [
    "WITH x AS (SELECT k, count(*) AS n FROM t GROUP BY k) SELECT a.k, a.n, b.n FROM x a JOIN x b \
     ON a.n = b.n",
    "WITH x AS (SELECT id, k FROM t UNION ALL SELECT id + 700, k FROM t) SELECT count(*) FROM x a \
     JOIN x b ON a.id = b.id",
    "SELECT a.id, b.n FROM t a JOIN (SELECT k, count(*) AS n FROM t GROUP BY k) b ON a.k = b.k \
     ORDER BY a.id",
    "SELECT id, sum(id) OVER (PARTITION BY k ORDER BY id) AS s FROM (SELECT * FROM t UNION ALL \
     SELECT id + 700, k FROM t) ORDER BY id",
    "SELECT k, sum(s) FROM (SELECT k, id, sum(id) OVER (PARTITION BY k ORDER BY id) AS s FROM t) \
     GROUP BY k ORDER BY k",
    "SELECT * FROM (SELECT id FROM t UNION ALL SELECT k FROM t) u JOIN (SELECT id AS x FROM t \
     UNION SELECT k FROM t) v ON u.id = v.x",
];

#[test]
fn circles_of_waits_end_with_budgets_of_one_byte() {
    guarded(|watch| {
        let shapes = [(1, 3), (2, 64), (4, 8192)];
        let sessions = Sessions::with(watch, &shapes, SessionConfig::new(), one_byte());
        sessions.table("t", NUMBERS);
        sessions.equal(&CIRCLES);
        sessions.finish();
    });
}

/// DataFusion's own planner: plans with the session's number of partitions.
#[derive(Debug)]
struct PlainPlanner;

impl QueryPlanner for PlainPlanner {
    fn create_physical_plan<'a, 'b, 'c, 'f>(
        &'a self,
        plan: &'b LogicalPlan,
        session: &'c dyn Session,
    ) -> BoxFuture<'f, Result<Arc<dyn ExecutionPlan>>>
    where
        'a: 'f,
        'b: 'f,
        'c: 'f,
        Self: 'f,
    {
        async move { DefaultPhysicalPlanner::default().create_physical_plan(plan, session).await }
            .boxed()
    }
}

/// Order in which the partitions of a result are read.
#[derive(Debug, Clone, Copy)]
enum Reading {
    /// Each partition is polled when the one before it has ended.
    OneAfterAnother,
    /// All are polled, then read from the last to the first.
    Backwards,
    /// Only the last partition is read.
    OnlyTheLast,
}

/// Plans made for four partitions (exchanges, merges that keep an order, partial and final
/// aggregates) under native operators, with their partitions read in every order.
#[test]
fn plans_of_several_partitions_end_with_budgets_of_one_byte() {
    guarded(|watch| {
        let config = SessionConfig::new().with_target_partitions(4);
        let shapes = [(1, 16), (2, 64), (4, 8192)];
        let sessions = Sessions::with(watch, &shapes, config, one_byte());
        sessions.table("t", NUMBERS);
        let plain = |context: &SessionContext| {
            let planner = Arc::new(PlainPlanner);
            let state = SessionStateBuilder::new_from_existing(context.state());
            SessionContext::new_with_state(state.with_query_planner(planner).build())
        };
        let unordered = [
            "SELECT k, count(*) AS n FROM t GROUP BY k",
            "SELECT a.id, b.id AS bid FROM t a JOIN t b ON a.id = b.k",
            "SELECT id FROM t UNION ALL SELECT k FROM t",
            "SELECT id, rank() OVER (PARTITION BY k ORDER BY id) AS r FROM t",
        ];
        for sql in CIRCLES.iter().chain(&unordered) {
            sessions.doing(sql);
            let expected =
                sessions.block_on(async { run(sessions.reference.sql(sql).await?).await }).unwrap();
            let order = ResultOrder::of(&expected.logical);
            for tested in &sessions.tested {
                let context = plain(&tested.context);
                for reading in [Reading::OneAfterAnother, Reading::Backwards, Reading::OnlyTheLast]
                {
                    let what = format!("{reading:?}, {}: {sql}", tested.name);
                    sessions.doing(&what);
                    let rows = sessions.block_on(read(&context, sql, reading));
                    let outcome = match (rows, reading) {
                        (Err(error), _) => Err(error.to_string()),
                        (Ok(_), Reading::OnlyTheLast) => Ok(()),
                        (Ok(rows), _) => compare(&rows, &expected.rows, &order)
                            .map_err(|difference| difference.to_string()),
                    };
                    if let Err(failure) = outcome {
                        sessions.fail(format!("{what}\n    {failure}"));
                    }
                }
            }
        }
        sessions.finish();
    });
}

/// Reads the partitions of `sql`, without the merge that DataFusion's `collect` would add above
/// them.
async fn read(
    context: &SessionContext,
    sql: &str,
    reading: Reading,
) -> Result<Vec<arrow::array::RecordBatch>> {
    let frame = context.sql(sql).await?;
    let task = Arc::new(frame.task_ctx());
    let plan = frame.create_physical_plan().await?;
    assert!(gatework::fallbacks(&plan).is_empty(), "{:?}", gatework::fallbacks(&plan));
    let partitions = plan.output_partitioning().partition_count();
    let mut rows = Vec::new();
    if let Reading::OneAfterAnother = reading {
        for partition in 0..partitions {
            let mut stream = plan.execute(partition, task.clone())?;
            while let Some(batch) = stream.next().await {
                rows.push(batch?);
            }
        }
        return Ok(rows);
    }
    let streams = (0..partitions).map(|partition| plan.execute(partition, task.clone()));
    let mut streams = streams.collect::<Result<Vec<_>>>()?;
    while let Some(mut stream) = streams.pop() {
        while let Some(batch) = stream.next().await {
            rows.push(batch?);
        }
        if let Reading::OnlyTheLast = reading {
            return Ok(rows);
        }
    }
    Ok(rows)
}
