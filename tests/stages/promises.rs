//! Guarantees of a query on nodes beyond its rows: orders, limits of resource groups, bounded
//! memory.

use std::sync::Arc;

use arrow::array::{AsArray, Int64Array, RecordBatch};
use datafusion::{
    datasource::MemTable,
    execution::{
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        memory_pool::{GreedyMemoryPool, MemoryPool},
        runtime_env::RuntimeEnvBuilder,
        session_state::SessionStateBuilder,
    },
    prelude::{SessionConfig, SessionContext},
};
use gatework::{
    Executor, Settings,
    runtime::scheduler::GroupLimits,
    stages::{ExecutionPolicy, Nodes, StageOptions, execute},
};
use tempfile::TempDir;

use super::runs::{read, run};
use crate::support::{
    Expected, QUERIES, Storage, Tpch, executor, guarded, reference_session, rows,
    tpch::write_parquet,
};

fn columns(names: [&str; 2], columns: [Vec<i64>; 2]) -> RecordBatch {
    let columns = columns.map(|values| Arc::new(Int64Array::from(values)) as _);
    RecordBatch::try_from_iter(names.into_iter().zip(columns)).unwrap()
}

/// An order that DataFusion takes from a table without a sort.
#[test]
fn a_promised_order_is_kept() {
    guarded(|case| async move {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("sorted.parquet");
        let count = 20_000;
        let table = columns(["k", "v"], [(0..count).collect(), (0..count).rev().collect()]);
        write_parquet(&path, &table.schema(), &[table], 1000);
        for nodes in [1, 2, 3] {
            let session = SessionContext::new();
            let external = format!(
                "CREATE EXTERNAL TABLE t (k BIGINT NOT NULL, v BIGINT NOT NULL) STORED AS PARQUET \
                 WITH ORDER (k) LOCATION '{}'",
                path.display()
            );
            session.sql(&external).await.unwrap();
            for sql in [
                "SELECT k FROM t ORDER BY k",
                "SELECT k, count(*) FROM (SELECT k FROM t ORDER BY k LIMIT 5000) GROUP BY k ORDER \
                 BY k",
                "SELECT f.k FROM (SELECT k, v FROM t ORDER BY k LIMIT 3000) f LEFT JOIN t d ON \
                 f.v = d.k \
                 AND d.k % 3 = 0 ORDER BY f.k",
            ] {
                let name = format!("{sql}, {nodes} nodes");
                case.begin(&name);
                let nodes = Nodes::in_process(nodes, 2).unwrap();
                let options = StageOptions::with_nodes(nodes.count());
                let (batches, _) = run(&case, &session, sql, &nodes, &options).await.unwrap();
                let mut last = -1;
                for batch in &batches {
                    for key in
                        batch.column(0).as_primitive::<arrow::datatypes::Int64Type>().values()
                    {
                        assert!(*key > last, "{name}: {key} behind {last}");
                        last = *key;
                    }
                }
                assert!(rows(&batches) >= 3000, "{name}");
            }
        }
    });
}

/// Two columns of one name, of which a join's filter means the second.
#[test]
fn a_filter_finds_its_column() {
    guarded(|case| async move {
        let session = SessionContext::new();
        let count = 30_000;
        let of = |from: i64, values: Vec<i64>| ((0..count).map(|n| n + from).collect(), values);
        for (name, names, (ids, refs)) in [
            ("a", ["id", "b_ref"], of(1_000_000, (0..count).collect())),
            ("b", ["id", "ref"], of(0, (0..count).collect())),
            ("c", ["id", "x"], of(0, (0..count).collect())),
        ] {
            let batch = columns(names, [ids, refs]);
            let parts = vec![vec![batch.slice(0, 15_000)], vec![batch.slice(15_000, 15_000)]];
            let table = MemTable::try_new(batch.schema(), parts).unwrap();
            session.register_table(name, Arc::new(table)).unwrap();
        }
        let sql =
            "SELECT a.id FROM a JOIN b ON a.b_ref = b.ref JOIN c ON b.id = c.id AND c.x % 100 = 0";
        case.begin(sql);
        for nodes in [1, 2, 4] {
            let nodes = Nodes::in_process(nodes, 1).unwrap();
            let options = StageOptions {
                max_broadcast_bytes: 0,
                max_broadcast_rows: 0,
                ..StageOptions::with_nodes(nodes.count())
            };
            let (batches, _) = run(&case, &session, sql, &nodes, &options).await.unwrap();
            assert_eq!(rows(&batches), 300, "{} nodes", nodes.count());
        }
    });
}

/// An admitted query counts once, however many tasks it has, and its own limit does not block them.
#[test]
fn a_group_of_one_query_at_a_time_runs_stages() {
    guarded(|case| async move {
        let data = Tpch::new(10);
        let nodes = Nodes::in_process(2, 1).unwrap();
        for node in nodes.executors() {
            let limits = GroupLimits { max_running: 1.try_into().ok(), ..GroupLimits::default() };
            node.group("reports").set_limits(limits);
        }
        let settings = Settings { resource_group: Some("reports".into()), ..Settings::default() };
        let session = SessionContext::new_with_config(settings.into_config(SessionConfig::new()));
        data.register(&session, Storage::Memory).await;
        let options = StageOptions::with_nodes(2);
        case.begin("one after the other");
        let mut streams = Vec::new();
        for _ in 0..2 {
            let query = session.sql("SELECT l_orderkey, count(*) FROM lineitem GROUP BY 1").await;
            streams.push(execute(query.unwrap(), &nodes, &options).await.unwrap());
        }
        let mut found = Vec::new();
        for stream in streams {
            found.push(rows(&read(stream).await.unwrap().0));
        }
        assert!(found[0] > 1000 && found[0] == found[1], "{found:?}");
    });
}

/// A session with a small memory pool, with or without a disk to spill to.
async fn small(
    data: &Tpch,
    pool: &Arc<dyn MemoryPool>,
    folder: Option<&TempDir>,
) -> SessionContext {
    let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool.clone());
    let runtime = match folder {
        Some(folder) => runtime.with_temp_file_path(folder.path()),
        None => {
            let none = DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled);
            runtime.with_disk_manager_builder(none)
        }
    };
    let state = SessionStateBuilder::new()
        .with_config(SessionConfig::new())
        .with_runtime_env(runtime.build_arc().unwrap())
        .with_default_features()
        .build();
    let session = SessionContext::new_with_state(state);
    data.register(&session, Storage::Parquet).await;
    session
}

/// Nodes share the session's memory, and reclaim it from each other.
#[test]
fn little_memory_is_enough() {
    guarded(|case| async move {
        let (data, folder) = (Tpch::new(20), TempDir::new().unwrap());
        let reference = reference_session();
        data.register(&reference, Storage::Parquet).await;
        let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(3 << 20));
        let session = small(&data, &pool, Some(&folder)).await;
        let diskless = small(&data, &pool, None).await;
        let nodes = Nodes::in_process(2, 1).unwrap();
        let mut refused = 0;
        for policy in [ExecutionPolicy::AllAtOnce, ExecutionPolicy::Phased] {
            let options = StageOptions {
                policy,
                output_buffer_bytes: 100_000,
                ..StageOptions::with_nodes(2)
            };
            for number in [3, 9, 10, 13, 18, 21] {
                let (sql, name) = (QUERIES[number - 1], format!("q{number}, {policy:?}"));
                case.begin(&name);
                let expected = Expected::of(&reference, sql).await.unwrap();
                let found = run(&case, &session, sql, &nodes, &options).await;
                expected.check(&name, &found.unwrap().0);
                // Without spilling, the query fails, which shows that memory was short.
                if let Err(error) = run(&case, &diskless, sql, &nodes, &options).await {
                    let error = error.to_string();
                    assert!(error.contains("not enough memory for"), "{name}: {error}");
                    refused += 1;
                }
                assert_eq!(pool.reserved(), 0, "{name}");
            }
        }
        assert!(refused > 2, "{refused} queries had too little memory");
        assert_eq!(crate::query_end::fixture::files_below(folder.path()), 0);
    });
}

/// Nodes with threads of their own, on a shared executor, and on threads lent by the caller.
#[test]
fn nodes_of_all_kinds() {
    guarded(|case| async move {
        let data = Tpch::new(10);
        let session = SessionContext::new();
        data.register(&session, Storage::Parquet).await;
        let reference = reference_session();
        data.register(&reference, Storage::Parquet).await;
        let lent = || {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            Executor::builder().on_rayon_pool(Arc::new(pool)).build().unwrap()
        };
        let pinned = || Executor::builder().threads(1).pin_to_cores(true).build().unwrap();
        let kinds = [
            ("shares", Nodes::sharing_executor(&executor(1), 3).unwrap()),
            ("lent", Nodes::new(vec![lent(), lent()]).unwrap()),
            ("pinned", Nodes::new(vec![pinned(), pinned()]).unwrap()),
        ];
        for (kind, nodes) in &kinds {
            let options = StageOptions {
                output_buffer_bytes: 100,
                max_broadcast_bytes: 0,
                max_broadcast_rows: 0,
                ..StageOptions::with_nodes(nodes.count())
            };
            for number in [3, 5, 13, 18] {
                let (sql, name) = (QUERIES[number - 1], format!("q{number}, {kind}"));
                case.begin(&name);
                let expected = Expected::of(&reference, sql).await.unwrap();
                let (batches, _) = run(&case, &session, sql, nodes, &options).await.unwrap();
                expected.check(&name, &batches);
            }
        }
    });
}

/// After the shutdown of a node the query fails, and does not wait for tasks that never started.
#[test]
fn a_node_that_is_gone_fails_the_query() {
    guarded(|case| async move {
        let data = Tpch::new(5);
        for gone in 0..2 {
            case.begin(format!("node {gone} is shut down"));
            let nodes = Nodes::in_process(2, 1).unwrap();
            let session = SessionContext::new();
            data.register(&session, Storage::Memory).await;
            nodes.executors()[gone].shutdown();
            let options = StageOptions::with_nodes(2);
            let sql = "SELECT l_orderkey, count(*) FROM lineitem GROUP BY l_orderkey";
            let error = run(&case, &session, sql, &nodes, &options).await.unwrap_err().to_string();
            assert!(error.contains("shut down"), "{error}");
        }
    });
}
