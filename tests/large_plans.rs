//! Plans of many files, joins and branches: eight times as many take about eight times as many
//! steps, not 64.
//!
//! Steps are runs of tasks, not seconds. Columns are not tested, because they have no steps of
//! their own; DataFusion's planning time grows with the square of their number.

#![allow(clippy::unwrap_used, reason = "tests")]

use datafusion::prelude::SessionContext;
use futures::TryStreamExt;

use crate::support::{Case, executor, guarded, leaf::session, plan};

/// Runs `sql`, and returns how often its tasks ran on a worker.
async fn steps(case: &Case, session: &SessionContext, sql: &str) -> u64 {
    let planned = plan(case, session, sql).await.unwrap();
    let mut stream = planned.stream().unwrap();
    while stream.try_next().await.unwrap().is_some() {}
    let profile = gatework::profile(&planned.plan).unwrap();
    profile.tasks.iter().map(|task| task.runs).sum()
}

/// Maximum growth of the steps for eight times the size: more than linear, and less than quadratic.
/// The number of waits depends on chance, and may be zero for small sizes.
const MAX_GROWTH: u64 = 24;

/// Fails if the steps of `sql` for `large` things are far more than eight times those for an eighth
/// of them.
fn check(
    what: &'static str,
    large: usize,
    setup: fn(usize) -> Vec<String>,
    sql: fn(usize) -> String,
) {
    guarded(move |case| async move {
        for threads in [1, 2] {
            let mut counts = [0; 2];
            for (count, size) in counts.iter_mut().zip([large / 8, large]) {
                case.begin(format!("{size} {what}, {threads} threads"));
                let executor = executor(threads);
                let session = session(&executor, 2);
                for statement in setup(size) {
                    session.sql(&statement).await.unwrap().collect().await.unwrap();
                }
                *count = steps(&case, &session, &sql(size)).await;
            }
            let [few, all] = counts;
            assert!(
                all <= MAX_GROWTH * few.max(large as u64),
                "{few} steps, then {all}, for {large} {what}"
            );
        }
    });
}

fn list(count: usize, separator: &str, item: impl Fn(usize) -> String) -> String {
    (0..count).map(item).collect::<Vec<_>>().join(separator)
}

#[test]
fn joins() {
    let setup = |_| vec!["CREATE TABLE t AS SELECT value AS x FROM generate_series(1, 100)".into()];
    let sql = |count| {
        let joins = list(count, " ", |join| format!("JOIN t t{join} ON t{join}.x = t.x"));
        format!("SELECT count(*) FROM t {joins}")
    };
    check("joins", 60, setup, sql);
}

#[test]
fn branches() {
    let setup = |_| vec!["CREATE TABLE t AS SELECT value AS x FROM generate_series(1, 100)".into()];
    let sql = |count| {
        let branches = list(count, " UNION ALL ", |branch| format!("SELECT x + {branch} FROM t"));
        format!("SELECT count(*) FROM ({branches})")
    };
    check("branches", 300, setup, sql);
}

#[test]
fn files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    guarded(move |case| async move {
        let executor = executor(2);
        let session = session(&executor, 2);
        let mut counts = Vec::new();
        for size in [250, 2000] {
            let table = path.join(format!("t{size}"));
            let first = table.join("0.parquet");
            let copy = format!(
                "COPY (SELECT value AS x FROM generate_series(1, 3)) TO '{}' STORED AS PARQUET",
                first.display()
            );
            session.sql(&copy).await.unwrap().collect().await.unwrap();
            for file in 1..size {
                std::fs::copy(&first, table.join(format!("{file}.parquet"))).unwrap();
            }
            let name = format!("t{size}");
            let options = datafusion::prelude::ParquetReadOptions::default();
            session.register_parquet(&name, table.to_str().unwrap(), options).await.unwrap();
            let sql = format!("SELECT sum(x + 1) FROM {name}");
            case.begin(sql.clone());
            counts.push(steps(&case, &session, &sql).await);
        }
        // Opening a file, and reading its footer and its row group, may each wait once.
        assert!(counts[1] <= MAX_GROWTH * counts[0].max(2000), "{counts:?} steps");
    });
    drop(folder);
}
