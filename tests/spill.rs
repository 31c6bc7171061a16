//! Queries that exceed memory: right results, and nothing left of them, however they end and
//! whatever fails on the disk.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use datafusion::{
    error::Result,
    execution::{
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
        session_state::SessionStateBuilder,
    },
    prelude::{SessionConfig, SessionContext},
};
use futures::{StreamExt, TryStreamExt};
use gatework::{
    Executor, SessionStateBuilderExt, Settings,
    runtime::pipeline::{Chaos, Fault, QueryContext},
};
use tempfile::TempDir;

use crate::{
    query_end::fixture::{files_below, idle},
    support::{Case, Expected, executor, guarded, plan, reference_session},
};

/// Memory limits in bytes: one far below the size of the groups, and one so small that spill
/// partitions are repartitioned.
const LIMITS: [usize; 2] = [LIMIT, 1 << 20];
const LIMIT: usize = 6 << 20;

/// Aggregates with far more groups than fit.
const GROUPS: &[&str] = &[
    "SELECT value % 399999 AS k, count(*) AS n, sum(value) AS s, avg(value) AS a, min(value * 2) \
     AS m
        FROM generate_series(1, 400000) GROUP BY 1",
    "SELECT k, count(*) AS n, max(t) AS longest, min(t) AS shortest, count(DISTINCT n) AS d
        FROM (SELECT value % 150000 AS k, value % 7 AS n, 'a text of row ' || value AS t
            FROM generate_series(1, 400000)) GROUP BY k",
    "SELECT t, k, sum(k) AS s, stddev(n) AS v, bool_and(n > 100) AS b
        FROM (SELECT CASE WHEN value % 5 = 0 THEN NULL ELSE 'group ' || (value % 200000) END AS t,
                value % 3 AS k, value AS n FROM generate_series(1, 400000)) GROUP BY t, k",
    "SELECT k, n, count(*) AS c FROM (SELECT value % 120000 AS k, value % 3 AS n
        FROM generate_series(1, 300000)) GROUP BY ROLLUP (k, n)",
    "SELECT count(DISTINCT value * 3) AS d FROM generate_series(1, 500000)",
];

/// Sorts of far more rows than fit.
const SORTS: &[&str] = &[
    "SELECT value * 7 % 400009 AS k, value AS v FROM generate_series(1, 400000) ORDER BY k",
    "SELECT 'row ' || (value * 31 % 300007) AS t, CASE WHEN value % 9 = 0 THEN NULL ELSE value % \
     5 END AS k
        FROM generate_series(1, 300000) ORDER BY k DESC NULLS LAST, t",
    "SELECT value % 1000 AS k, value * 3 % 300007 AS v FROM generate_series(1, 300000)
        ORDER BY k, v DESC LIMIT 200000",
];

/// Joins whose left side does not fit; it is the smaller side, and so the build side.
const JOINS: &[&str] = &[
    "SELECT l.k, l.t, r.v FROM
        (SELECT value * 7 % 200003 AS k, 'left ' || value AS t FROM generate_series(1, 200000)) l
        JOIN (SELECT value * 3 % 260000 AS k, value AS v FROM generate_series(1, 300000)) r ON \
        l.k = r.k",
    "SELECT l.k, l.t, r.t AS u, r.v FROM
        (SELECT 'key ' || (value % 150000) AS k, value AS t FROM generate_series(1, 200000)) l
        FULL JOIN (SELECT 'key ' || (value * 3) AS k, value % 9 AS v, 'right ' || value AS t
            FROM generate_series(1, 250000)) r ON l.k = r.k AND l.t > r.v",
    "SELECT count(*) AS n, sum(k) AS s FROM (SELECT value * 5 AS k FROM generate_series(1, \
     400000)) l
        WHERE NOT EXISTS (SELECT 1 FROM (SELECT value * 3 AS k, value % 5 AS v
            FROM generate_series(1, 500000)) r WHERE r.k = l.k AND r.v < l.k % 7)",
    "SELECT k FROM (SELECT CASE WHEN value % 1000 = 0 THEN NULL ELSE value END AS k
            FROM generate_series(1, 300000)) l
        WHERE k NOT IN (SELECT value * 2 + 1 AS k FROM generate_series(1, 400000))",
    "SELECT r.k, count(*) AS n FROM
        (SELECT CASE WHEN value % 2 = 0 THEN 7 ELSE value END AS k, value AS v
            FROM generate_series(1, 250000)) l
        RIGHT JOIN (SELECT CASE WHEN value % 30000 = 0 THEN 7 ELSE value * 2 + 1 END AS k, value \
        AS v
            FROM generate_series(1, 300000)) r
        ON l.k = r.k AND l.v % 5000 = r.v % 5000 GROUP BY r.k",
];

/// Windows over a partition that does not fit; their functions need a chunk at a time, or a total.
const WINDOWS: &[&str] = &[
    "SELECT v, t, sum(v) OVER (ORDER BY k) AS s, rank() OVER (ORDER BY k) AS r FROM
        (SELECT value * 7 % 100003 AS k, value AS v, 'text ' || value AS t FROM \
        generate_series(1, 200000))",
    "SELECT k, v, lag(v) OVER w AS l, avg(v) OVER (PARTITION BY k ORDER BY v ROWS BETWEEN 3 \
     PRECEDING AND 2 FOLLOWING) AS a
        FROM (SELECT value % 2 AS k, value * 31 % 200003 AS v FROM generate_series(1, 200000))
        WINDOW w AS (PARTITION BY k ORDER BY v)",
    "SELECT v, t, sum(v) OVER () AS s, count(*) FILTER (WHERE v % 3 = 0) OVER () AS c FROM
        (SELECT value AS v, 'text ' || value AS t FROM generate_series(1, 400000))",
    "SELECT k, v, t, avg(v) OVER w AS a, max(t) OVER w AS m, row_number() OVER w AS n FROM
        (SELECT value % 3 AS k, value AS v, 'text ' || value AS t FROM generate_series(1, 200000))
        WINDOW w AS (PARTITION BY k ORDER BY v ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED \
        FOLLOWING)",
    // Nothing needs the order, so several tasks share the partitions.
    "SELECT count(*) AS n, sum(v - a) AS d, max(t) AS t FROM (SELECT v, t, avg(v) OVER (PARTITION \
     BY k) AS a FROM
        (SELECT value % 5 AS k, value AS v, 'text ' || value AS t FROM generate_series(1, \
        400000)))",
];

/// A window whose functions need one column of the whole partition: the column fits, the rows do
/// not.
const COLUMNS: &str =
    "SELECT v, t, ntile(7) OVER w AS n, percent_rank() OVER w AS p, cume_dist() OVER w AS c,
        lead(v) OVER w AS l, row_number() OVER w AS r, count(*) OVER w AS a FROM
        (SELECT value AS v, repeat('text ', 40) || value AS t FROM generate_series(1, 40000))
        WINDOW w AS (ORDER BY v DESC ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)";

/// Subplans with several readers, whose rows do not fit.
const SHARED: &[&str] = &[
    "WITH t AS (SELECT value % 200000 AS k, count(*) AS n, 'text ' || (value % 200000) AS t
            FROM generate_series(1, 300000) GROUP BY 1, 3)
        SELECT a.k, a.t, b.n FROM t a JOIN t b ON a.k = b.k + 1 WHERE a.n > 1",
    "WITH t AS (SELECT DISTINCT value AS k, 'text ' || value AS t FROM generate_series(1, 200000))
        SELECT (SELECT count(t) FROM t) AS c, (SELECT max(t) FROM t WHERE k % 7 = 0) AS m, k, t
        FROM t WHERE k > 199000",
];

/// All queries that spill.
pub(crate) fn heavy() -> impl Iterator<Item = &'static str> {
    GROUPS.iter().chain(SORTS).chain(JOINS).chain(WINDOWS).chain(SHARED).copied()
}

/// A session of its own, whose temporary files go to `folder`.
struct SpillFixture {
    executor: Executor,
    session: SessionContext,
    shared: Arc<RuntimeEnv>,
    folder: Option<PathBuf>,
}

impl SpillFixture {
    fn new(threads: usize, limit: usize, folder: &Path, disk_bytes: u64) -> Self {
        let mode = DiskManagerMode::Directories(vec![folder.to_owned()]);
        Self { folder: Some(folder.to_owned()), ..Self::with(threads, limit, mode, disk_bytes) }
    }

    fn with(threads: usize, limit: usize, mode: DiskManagerMode, disk_bytes: u64) -> Self {
        let disk =
            DiskManagerBuilder::default().with_mode(mode).with_max_temp_directory_size(disk_bytes);
        let shared = RuntimeEnvBuilder::new().with_memory_limit(limit, 1.0);
        let shared = shared.with_disk_manager_builder(disk).build_arc().unwrap();
        let executor = executor(threads);
        let state = SessionStateBuilder::new()
            .with_config(SessionConfig::new())
            .with_runtime_env(shared.clone())
            .with_default_features()
            .with_gatework(&executor)
            .build();
        Self { executor, session: SessionContext::new_with_state(state), shared, folder: None }
    }

    /// Returns the bytes that `sql` spilled, after comparing its rows with `expected`. Asserts that
    /// nothing is left of the query however it ended.
    async fn spilled(&self, case: &Case, sql: &str, expected: &Expected) -> Result<u64> {
        let planned = plan(case, &self.session, sql).await?;
        let stream = planned.stream()?;
        let query = gatework::query(&planned.plan).unwrap();
        let batches: Result<Vec<_>> = stream.try_collect().await;
        idle(&query).await;
        self.assert_clean();
        expected.check(sql, &batches?);
        let profile = gatework::profile(&planned.plan).unwrap();
        let of =
            |name: &str| profile.operators.iter().filter_map(move |o| o.counters.get(name)).sum();
        Ok(of("spilled_bytes"))
    }

    /// Reads the result of `sql` under `chaos`. Asserts that nothing is left of the query.
    async fn read_with(&self, chaos: &Arc<Chaos>, case: &Case, sql: &str) -> Result<()> {
        let settings = Settings { chaos: Some(chaos.clone()), ..Settings::default() };
        let mut state = self.session.state();
        *state.config_mut() = settings.into_config(SessionConfig::new());
        let planned = plan(case, &SessionContext::new_with_state(state), sql).await?;
        let stream = planned.stream()?;
        let query = gatework::query(&planned.plan).unwrap();
        let read: Result<Vec<_>> = stream.try_collect().await;
        idle(&query).await;
        self.assert_clean();
        read.map(drop)
    }

    /// Waits until there are bytes on disk, or `query` has ended.
    async fn spills_or_ends(&self, query: &QueryContext) {
        while self.shared.disk_manager.used_disk_space() == 0 && query.live_tasks() > 0 {
            tokio::task::yield_now().await;
        }
    }

    /// Asserts that nothing is left of any idle query.
    fn assert_clean(&self) {
        assert_eq!(self.shared.memory_pool.reserved(), 0, "reserved bytes");
        assert_eq!(self.shared.disk_manager.used_disk_space(), 0, "bytes on disk");
        let files = self.folder.as_deref().filter(|folder| folder.exists()).map(files_below);
        assert!(files.is_none_or(|files| files == 0), "{files:?} temporary files");
    }
}

#[test]
fn queries_that_do_not_fit() {
    guarded(|case| async move {
        for (threads, limit) in [1, 2, 3].into_iter().flat_map(|n| LIMITS.map(|limit| (n, limit))) {
            let folder = TempDir::new().unwrap();
            let fixture = SpillFixture::new(threads, limit, folder.path(), 1 << 30);
            for sql in heavy() {
                case.begin(sql);
                let expected = Expected::of(&reference_session(), sql).await.unwrap();
                let spilled = fixture.spilled(&case, sql, &expected).await.unwrap();
                assert!(spilled > 0, "{threads} threads spilled nothing: {sql}");
            }
        }
    });
}

#[test]
fn columns_of_a_window_that_does_not_fit() {
    guarded(|case| async move {
        let folder = TempDir::new().unwrap();
        for threads in [1, 2] {
            let fixture = SpillFixture::new(threads, LIMIT, folder.path(), 1 << 30);
            case.begin(COLUMNS);
            let expected = Expected::of(&reference_session(), COLUMNS).await.unwrap();
            assert!(fixture.spilled(&case, COLUMNS, &expected).await.unwrap() > 0);
        }
        // Two partitions do not fit at once: the second waits until the first has been emitted.
        let twice = COLUMNS.replace("ORDER BY v DESC", "PARTITION BY v % 2 ORDER BY v DESC");
        let twice = twice.replace("40000))", "80000))");
        case.begin(&twice);
        let expected = Expected::of(&reference_session(), &twice).await.unwrap();
        let fixture = SpillFixture::new(1, LIMIT, folder.path(), 1 << 30);
        assert!(fixture.spilled(&case, &twice, &expected).await.unwrap() > 0);
        // The same with more threads and no required order: one task processes the partitions.
        let unordered =
            format!("SELECT count(*) AS n, sum(n) AS s, sum(p) AS p, max(t) AS t FROM ({twice})");
        case.begin(&unordered);
        let expected = Expected::of(&reference_session(), &unordered).await.unwrap();
        let fixture = SpillFixture::new(3, LIMIT, folder.path(), 1 << 30);
        assert!(fixture.spilled(&case, &unordered, &expected).await.unwrap() > 0);
        // If the columns do not fit, the error names the consumer and the size.
        let fixture = SpillFixture::new(2, 1 << 20, folder.path(), 1 << 30);
        let expected = Expected::of(&reference_session(), COLUMNS).await.unwrap();
        let error = fixture.spilled(&case, COLUMNS, &expected).await.unwrap_err().to_string();
        assert!(error.contains("window sink"), "{error}");
    });
}

/// Orders that a join keeps, unless it may spill.
const ORDERS: &[&str] = &[
    "SELECT r.v, l.t FROM (SELECT value * 3 AS k, 'left ' || value AS t FROM generate_series(1, \
     100000)) l
        JOIN (SELECT value AS v FROM generate_series(1, 200000)) r ON l.k = r.v ORDER BY r.v \
        LIMIT 7",
    "SELECT r.v FROM (SELECT value * 3 AS k FROM generate_series(1, 100000)) l
        JOIN (SELECT value AS v FROM generate_series(1, 200000)) r ON l.k = r.v ORDER BY r.v",
];

#[test]
fn orders_that_a_join_would_keep() {
    guarded(|case| async move {
        for limit in [1 << 20, 1 << 30] {
            let folder = TempDir::new().unwrap();
            let fixture = SpillFixture::new(2, limit, folder.path(), 1 << 30);
            for sql in ORDERS {
                case.begin(*sql);
                let expected = Expected::of(&reference_session(), sql).await.unwrap();
                let spilled = fixture.spilled(&case, sql, &expected).await.unwrap();
                assert_eq!(spilled > 0, limit == 1 << 20, "{sql}");
            }
        }
    });
}

#[test]
fn a_full_disk_and_a_folder_that_is_gone() {
    guarded(|case| async move {
        let folder = TempDir::new().unwrap();
        let full = SpillFixture::new(2, LIMIT, folder.path(), 200_000);
        let small = "SELECT value % 3 AS k, count(*) AS n FROM generate_series(1, 1000) GROUP BY 1";
        let fits = Expected::of(&reference_session(), small).await.unwrap();
        for sql in heavy() {
            case.begin(sql);
            let expected = Expected::of(&reference_session(), sql).await.unwrap();
            let error = full.spilled(&case, sql, &expected).await.unwrap_err().to_string();
            assert!(error.contains("max_temp_directory_size") || error.contains("disk"), "{error}");
            // Other queries are not affected.
            assert_eq!(full.spilled(&case, small, &fits).await.unwrap(), 0);
        }
        let gone = SpillFixture::new(2, LIMIT, folder.path(), 1 << 30);
        folder.close().unwrap();
        let expected = Expected::of(&reference_session(), GROUPS[0]).await.unwrap();
        let error = gone.spilled(&case, GROUPS[0], &expected).await.unwrap_err().to_string();
        assert!(error.contains("No such file"), "{error}");
        assert_eq!(gone.spilled(&case, small, &fits).await.unwrap(), 0);
    });
}

/// Without a disk, a consumer has nothing to reclaim, and continues.
#[test]
fn no_disk_at_all() {
    guarded(|case| async move {
        for threads in [1, 2] {
            let fixture = SpillFixture::with(threads, LIMIT, DiskManagerMode::Disabled, 1 << 30);
            for sql in heavy().chain([COLUMNS]) {
                case.begin(sql);
                let expected = Expected::of(&reference_session(), sql).await.unwrap();
                if let Err(error) = fixture.spilled(&case, sql, &expected).await {
                    let error = error.to_string();
                    assert!(
                        error.contains("memory") && !error.contains("spilling is disabled"),
                        "{error}"
                    );
                }
            }
        }
    });
}

#[test]
fn cancelled_while_it_spills() {
    guarded(|case| async move {
        let folder = TempDir::new().unwrap();
        let fixture = SpillFixture::new(2, LIMIT, folder.path(), 1 << 30);
        let (mut cancelled, all) = (0, 3 * heavy().count());
        for sql in heavy() {
            case.begin(sql);
            let unharmed = Arc::new(Chaos::new(4));
            fixture.read_with(&unharmed, &case, sql).await.unwrap();
            let steps = unharmed.counts().steps;
            for quarter in 1..4 {
                let chaos = Chaos::new(4).fault_at(Fault::Cancel, steps * quarter / 4);
                let chaos = Arc::new(chaos);
                let result = fixture.read_with(&chaos, &case, sql).await;
                // The number of steps varies with the schedule.
                if chaos.counts().fault {
                    assert!(result.is_err_and(|error| error.to_string().contains("cancelled")));
                    cancelled += 1;
                }
            }
        }
        assert!(cancelled > all / 2, "{cancelled} of {all} were cancelled");
    });
}

/// A reader that leaves after the first batch, or before it.
#[test]
fn dropped_while_it_spills() {
    guarded(|case| async move {
        let folder = TempDir::new().unwrap();
        let fixture = SpillFixture::new(2, LIMIT, folder.path(), 1 << 30);
        for (round, sql) in heavy().enumerate() {
            case.begin(sql);
            let planned = plan(&case, &fixture.session, sql).await.unwrap();
            let mut stream = planned.stream().unwrap();
            let query = gatework::query(&planned.plan).unwrap();
            match round % 2 {
                0 => drop(stream.next().await),
                _ => fixture.spills_or_ends(&query).await,
            }
            drop(stream);
            // A pending write completes its batch; only then is the query idle.
            idle(&query).await;
            fixture.assert_clean();
        }
    });
}

/// Without its I/O runtime a query fails, and leaves nothing behind.
#[test]
fn the_io_runtime_is_gone() {
    guarded(|case| async move {
        for sql in heavy() {
            case.begin(sql);
            let folder = TempDir::new().unwrap();
            let fixture = SpillFixture::new(2, LIMIT, folder.path(), 1 << 30);
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            gatework::sql::set_io_runtime(&fixture.executor, runtime.handle().clone());
            let planned = plan(&case, &fixture.session, sql).await.unwrap();
            let mut stream = planned.stream().unwrap();
            let query = gatework::query(&planned.plan).unwrap();
            fixture.spills_or_ends(&query).await;
            runtime.shutdown_background();
            while let Some(Ok(batch)) = stream.next().await {
                drop(batch);
            }
            drop(stream);
            idle(&query).await;
            fixture.assert_clean();
        }
    });
}
