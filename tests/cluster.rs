//! Queries on workers of this process, which are reached like workers on other machines.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::{collections::BTreeSet, sync::Arc};

use datafusion::{
    arrow::util::display::array_value_to_string,
    datasource::file_format::file_compression_type::FileCompressionType,
    execution::{SessionStateBuilder, runtime_env::RuntimeEnv},
    prelude::{CsvReadOptions, JsonReadOptions, SessionConfig, SessionContext},
};
use gatework::stages::{
    StageLocation,
    cluster::{
        ClusterOptions, ClusterSession, InProcessCluster, fallbacks, is_distributed,
        local_execution_reason, plan_text, stage_tree,
    },
};

use crate::support::{
    Expected, QUERIES, Storage, Tpch, executor, guarded, plan, reference_session,
};

/// Starts `count` workers, and a session on them with the tables, each of whose files all workers
/// share.
async fn started(count: usize) -> (Arc<Tpch>, InProcessCluster, SessionContext) {
    let workers = (0..count).map(|_| executor(1)).collect();
    let cluster = InProcessCluster::start(workers, Arc::new(RuntimeEnv::default())).unwrap();
    let options = ClusterOptions {
        bytes_per_partition: Some(1),
        connections: cluster.connections(),
        ..ClusterOptions::default()
    };
    let state = SessionStateBuilder::new()
        .with_config(SessionConfig::new().with_target_partitions(2))
        .with_default_features()
        .with_gatework_workers(&executor(2), cluster.workers(), &options)
        .build();
    let session = SessionContext::new_with_state(state);
    let data = Tpch::new(10);
    data.register(&session, Storage::Parquet).await;
    (data, cluster, session)
}

/// TPC-H on fifty workers: right results, work for all workers, and no fallbacks.
#[test]
fn tpch_on_fifty_workers() {
    guarded(|case| async move {
        let (data, _cluster, session) = started(50).await;
        let reference = reference_session();
        data.register(&reference, Storage::Memory).await;
        let mut busy = BTreeSet::new();
        for (number, sql) in (1..).zip(QUERIES) {
            let name = format!("q{number} on fifty workers");
            case.begin(&name);
            let expected = Expected::of(&reference, sql).await.unwrap();
            let planned = plan(&case, &session, sql).await.unwrap();
            assert!(is_distributed(&planned.plan), "{name}");
            assert_eq!(fallbacks(&planned.plan), Vec::<String>::new(), "{name}");
            let batches = planned.collect().await.unwrap();
            for stage in stage_tree(&planned.plan).stages {
                if let StageLocation::Remote(workers) = stage.location {
                    assert!(!workers.is_empty(), "{name}: a stage without workers");
                    busy.extend(workers);
                }
            }
            expected.check(&name, &batches);
        }
        assert_eq!(busy.len(), 50, "{busy:?}");
    });
}

/// Windows with a filter or ignored NULLs, which DataFusion's serialized plans cannot carry, stay
/// in this process.
#[test]
fn what_would_get_lost_stays_here() {
    guarded(|case| async move {
        let (data, _cluster, session) = started(3).await;
        let reference = reference_session();
        data.register(&reference, Storage::Memory).await;
        let per_supplier = "FROM (SELECT l_orderkey, l_linenumber, l_suppkey, sum(l_quantity) AS \
                            q FROM lineitem \
                            GROUP BY 1, 2, 3) WINDOW w AS (PARTITION BY l_suppkey ORDER BY \
                            l_orderkey, l_linenumber)";
        for (function, stays) in [
            ("sum(q) FILTER (WHERE l_linenumber > 3) OVER w", true),
            ("lag(CASE WHEN l_linenumber > 2 THEN q END, 2) IGNORE NULLS OVER w", true),
            ("sum(q) OVER w", false),
        ] {
            case.begin(function);
            let sql = format!("SELECT l_orderkey, l_linenumber, {function} AS x {per_supplier}");
            let expected = Expected::of(&reference, &sql).await.unwrap();
            let planned = plan(&case, &session, &sql).await.unwrap();
            assert_eq!(is_distributed(&planned.plan), !stays, "{function}");
            let why = local_execution_reason(&planned.plan, session.state().config());
            assert_eq!(why.is_some_and(|why| why.contains("cannot carry")), stays, "{function}");
            expected.check(function, &planned.collect().await.unwrap());
        }
    });
}

/// Compressed text and JSON arrays, of which DataFusion's serialized scans say nothing, are read in
/// this process.
#[test]
fn formats_that_would_get_lost_stay_here() {
    guarded(|case| async move {
        let (data, _cluster, session) = started(3).await;
        let reference = reference_session();
        data.register(&reference, Storage::Memory).await;
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let orders = "SELECT o_orderkey, o_custkey FROM orders";
        for (name, options) in [
            ("plain.csv", ""),
            ("zipped.csv.gz", "STORED AS CSV OPTIONS ('format.compression' 'gzip')"),
            ("lines.json", ""),
        ] {
            let sql = format!("COPY ({orders}) TO '{}' {options}", path(name));
            reference.sql(&sql).await.unwrap().collect().await.unwrap();
        }
        let lines = std::fs::read_to_string(path("lines.json")).unwrap();
        let array = format!("[{}]", lines.trim_end().replace('\n', ","));
        std::fs::write(path("array.json"), array).unwrap();
        let gzip = CsvReadOptions::new()
            .file_compression_type(FileCompressionType::GZIP)
            .file_extension(".csv.gz");
        session.register_csv("plain", path("plain.csv"), CsvReadOptions::new()).await.unwrap();
        session.register_csv("zipped", path("zipped.csv.gz"), gzip).await.unwrap();
        let json = JsonReadOptions::default();
        session.register_json("lines", path("lines.json"), json.clone()).await.unwrap();
        let array = json.newline_delimited(false);
        session.register_json("an_array", path("array.json"), array).await.unwrap();
        let count = |table: &str| {
            format!("SELECT o_custkey, count(*) AS n FROM {table} GROUP BY o_custkey")
        };
        let expected = Expected::of(&reference, &count("orders")).await.unwrap();
        for (table, stays) in
            [("plain", false), ("zipped", true), ("lines", false), ("an_array", true)]
        {
            case.begin(table);
            let planned = plan(&case, &session, &count(table)).await.unwrap();
            assert_eq!(is_distributed(&planned.plan), !stays, "{table}");
            let why = local_execution_reason(&planned.plan, session.state().config());
            assert_eq!(why.is_some_and(|why| why.contains("cannot carry")), stays, "{table}");
            expected.check(table, &planned.collect().await.unwrap());
        }
    });
}

/// Every worker ran tasks, sent and received rows: the profile shows it per operator and task.
#[test]
fn a_profile_of_all_workers() {
    guarded(|case| async move {
        let (_data, _cluster, session) = started(3).await;
        case.begin("profile");
        let sql = "EXPLAIN ANALYZE VERBOSE SELECT l_orderkey, sum(l_quantity) AS q FROM lineitem \
                   GROUP BY l_orderkey ORDER BY q DESC LIMIT 3";
        let batches = session.sql(sql).await.unwrap().collect().await.unwrap();
        let profile = array_value_to_string(batches[0].column(1), 1).unwrap();
        let of = |operator: &str| {
            let line = profile.lines().find(|line| line.contains(operator));
            line.unwrap_or_else(|| panic!("{operator} is not in {profile}"))
        };
        for (operator, name) in [
            ("=> NetworkShuffleExec", "output_rows"),
            ("=> NetworkShuffleExec", "bytes_transferred"),
            ("RepartitionExec:", "output_rows"),
            ("mode=Partial", "output_rows"),
            ("mode=FinalPartitioned", "elapsed_compute"),
        ] {
            let found = of(operator).split_once(&format!("{name}={{"));
            let values = found.unwrap_or_else(|| panic!("no {name} in {}", of(operator))).1;
            let values: Vec<_> = values.split('}').next().unwrap().split(", ").collect();
            assert_eq!(values.len(), 3, "{name} of {operator}: {values:?}");
            for (task, value) in values.iter().enumerate() {
                let amount = value.strip_prefix(&format!("{task}:")).unwrap();
                assert!(
                    !amount.starts_with("0 ") && amount != "0",
                    "{name} of {operator}: {values:?}"
                );
            }
        }
    });
}

/// Tasks without metrics collection answer before they have run, and run nevertheless.
#[test]
fn parts_without_counters() {
    guarded(|case| async move {
        let (data, _cluster, session) = started(3).await;
        session.sql("SET distributed.collect_metrics = false").await.unwrap();
        let reference = reference_session();
        data.register(&reference, Storage::Memory).await;
        for (number, sql) in (1..).zip(QUERIES) {
            let name = format!("q{number} without counters");
            case.begin(&name);
            let expected = Expected::of(&reference, sql).await.unwrap();
            expected
                .check(&name, &plan(&case, &session, sql).await.unwrap().collect().await.unwrap());
        }
    });
}

/// Copies of a worker list share it, and it may change between queries.
#[test]
fn workers_come_and_go() {
    guarded(|case| async move {
        let (_data, cluster, session) = started(4).await;
        let sql = "SELECT sum(l_quantity) FROM lineitem";
        let expected = Expected::of(&session, sql).await.unwrap();
        for numbers in [&[0, 1][..], &[2, 3], &[1, 2, 3]] {
            case.begin(format!("{numbers:?}"));
            let urls: Vec<_> = numbers.iter().map(|n| format!("http://worker-{n}/")).collect();
            cluster.workers().set(urls.iter().map(String::as_str)).unwrap();
            let planned = plan(&case, &session, sql).await.unwrap();
            expected.check("sum", &planned.collect().await.unwrap());
            let stages = stage_tree(&planned.plan).stages;
            let used = stages.into_iter().flat_map(|stage| match stage.location {
                StageLocation::Remote(workers) => workers,
                StageLocation::Local => Vec::new(),
            });
            let (used, listed) = (used.collect::<BTreeSet<_>>(), urls.into_iter().collect());
            assert_eq!(used, listed);
        }
        // A single worker is not used.
        cluster.workers().set(["http://worker-0"]).unwrap();
        let planned = plan(&case, &session, sql).await.unwrap();
        assert!(!is_distributed(&planned.plan));
        let why = local_execution_reason(&planned.plan, session.state().config()).unwrap();
        assert!(why.contains("there is only one worker"), "{why}");
        expected.check("sum", &planned.collect().await.unwrap());
    });
}

/// Limits below joins and aggregates: all workers see the same rows, and the requested number of
/// them.
#[test]
fn limits_are_of_all_workers_together() {
    guarded(|case| async move {
        let (_data, _cluster, session) = started(3).await;
        let limited = "(SELECT l_orderkey AS k, l_linenumber AS n FROM lineitem LIMIT 20000)";
        let filtered = "(SELECT l_orderkey AS k, l_linenumber AS n FROM lineitem WHERE \
                        l_linenumber < 5 LIMIT 20000)";
        // Key and number identify a row of lineitem.
        let join = "JOIN lineitem b ON x.k = b.l_orderkey AND x.n = b.l_linenumber";
        let plain = |rows: &str| rows.replace(" AS k", "").replace(" AS n", "");
        for rows in [limited, filtered] {
            for sql in [
                format!("SELECT count(*) FROM {rows} x {join}"),
                format!(
                    "SELECT count(*) FROM {} x JOIN lineitem b USING (l_orderkey, l_linenumber)",
                    plain(rows)
                ),
                format!(
                    "SELECT count(*) FROM lineitem b LEFT SEMI JOIN {rows} x ON x.k = \
                     b.l_orderkey AND x.n = b.l_linenumber"
                ),
                format!("SELECT count(*) FROM {rows} x LEFT {join}"),
                format!("SELECT count(*) FROM {rows} x"),
                format!(
                    "SELECT sum(c) FROM (SELECT k, n, count(*) AS c FROM {rows} x GROUP BY k, n)"
                ),
                format!("SELECT count(*) FROM {rows} x CROSS JOIN (SELECT 1 FROM region LIMIT 1)"),
            ] {
                case.begin(&sql);
                let planned = plan(&case, &session, &sql).await.unwrap();
                let batches = planned.collect().await.unwrap();
                let count = array_value_to_string(batches[0].column(0), 0).unwrap();
                let text = plan_text(&planned.plan);
                assert_eq!(count, "20000", "{sql}\n{text}");
                // Otherwise each worker would take other rows of the broadcast side.
                assert!(!sql.contains("USING") || text.contains("GlobalLimitExec"), "{text}");
            }
        }
    });
}
