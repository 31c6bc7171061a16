//! TPC-H over bucketed tables: joins and groups by their key run one bucket after the other.

use std::{path::Path, sync::Arc};

use arrow::{
    array::AsArray,
    datatypes::{DataType, Field, Int64Type, Schema},
};
use datafusion::prelude::SessionContext;
use futures::StreamExt;
use gatework::{
    runtime::pipeline::{Chaos, Fault},
    sql::buckets::{BucketedTable, Bucketing},
    stages::{Nodes, PartitioningHandle, SplitLimits, StageOptions, plan_stages},
};
use tempfile::TempDir;

use super::runs::{
    POLICIES, cancel, check_tasks, read, run, says, session_of, start, start_planned,
};
use crate::{
    fixture::TpchFixture,
    query_end::fixture::files_below,
    support::{Case, Expected, QUERIES, Storage, frame, guarded, reference_session},
};

const COUNT: usize = 5;
const TABLES: [(&str, &str); 4] = [
    ("lineitem", "l_orderkey"),
    ("orders", "o_orderkey"),
    ("partsupp", "ps_partkey"),
    ("part", "p_partkey"),
];

/// Cases beyond TPC-H: orders, limits and subtotals over grouped stages.
const OTHERS: [&str; 8] = [
    "SELECT l_orderkey, sum(l_quantity) AS s FROM lineitem GROUP BY l_orderkey ORDER BY s DESC, \
     l_orderkey LIMIT 50",
    "SELECT o_orderkey, count(*) FROM orders JOIN lineitem ON o_orderkey = l_orderkey GROUP BY \
     o_orderkey ORDER BY o_orderkey",
    "SELECT l_orderkey % 3, l_orderkey, sum(l_quantity) FROM lineitem WHERE l_orderkey < 500 \
     GROUP BY ROLLUP(l_orderkey % 3, l_orderkey)",
    "SELECT o_orderkey, count(*) FROM orders JOIN lineitem ON o_orderkey = l_orderkey WHERE \
     o_orderkey < 500 \
     GROUP BY CUBE(o_orderkey)",
    "SELECT count(*) FROM (SELECT o_orderkey FROM orders JOIN lineitem ON o_orderkey = l_orderkey \
     LIMIT 100)",
    "SELECT count(*) FROM (SELECT l_orderkey FROM lineitem WHERE l_quantity > 10 LIMIT 100)",
    "SELECT sum(n) FROM (SELECT l_orderkey, count(*) AS n FROM (SELECT l_orderkey FROM lineitem \
     WHERE l_tax > 0.01 \
     LIMIT 100) GROUP BY l_orderkey)",
    "SELECT l_orderkey, l_linenumber, rank() OVER (PARTITION BY l_orderkey ORDER BY l_quantity, \
     l_linenumber) AS r \
     FROM lineitem ORDER BY r DESC, l_orderkey, l_linenumber LIMIT 70",
];

#[test]
fn others_in_buckets_are_datafusions() {
    guarded(|case| async move {
        let tpch = TpchFixture::new().await;
        let folder = TempDir::new().unwrap();
        write(&case, &tpch, folder.path(), "PARQUET").await;
        let reference = reference_session();
        tpch.data.register(&reference, Storage::Parquet).await;
        for count in [1, 2, 3] {
            let nodes = Nodes::in_process(count, 2).unwrap();
            let session = session_in(&tpch, folder.path(), None).await;
            for groups_at_a_time in [1, 3] {
                let options = StageOptions {
                    concurrent_lifespans_per_task: groups_at_a_time,
                    ..StageOptions::with_nodes(count)
                };
                for sql in OTHERS {
                    case.begin(format!("{sql}, {count} nodes"));
                    let expected = Expected::of(&reference, sql).await.unwrap();
                    let (batches, _) = run(&case, &session, sql, &nodes, &options).await.unwrap();
                    expected.check(&format!("{sql}, {count} nodes"), &batches);
                }
            }
            tpch.assert_clean(nodes.executors(), "others");
        }
    });
}

fn bucketing(key: &str) -> Bucketing {
    Bucketing::new(vec![key.into()], COUNT).unwrap()
}

/// Writes the tables into `folder`, each as a folder with files of several writers.
async fn write(case: &Case, tpch: &TpchFixture, folder: &Path, format: &str) {
    let session = session_of(tpch, Storage::Parquet, None).await;
    let nodes = Nodes::in_process(2, 1).unwrap();
    let options = StageOptions {
        writer_min_bytes: 10_000,
        output_buffer_bytes: 10_000,
        ..StageOptions::with_nodes(2)
    };
    for (table, key) in TABLES {
        case.begin(format!("writing {table} as {format}"));
        let sql = format!(
            "COPY {table} TO '{}/{table}/' STORED AS {format} \
             OPTIONS ('gatework.bucket_by' '{key}', 'gatework.buckets' '{COUNT}')",
            folder.display()
        );
        run(case, &session, &sql, &nodes, &options).await.unwrap();
        assert!(files_below(&folder.join(table)) >= COUNT);
    }
    tpch.assert_clean(nodes.executors(), "writing");
}

/// A session over the tables in `folder` that exist.
async fn session_in(
    tpch: &TpchFixture,
    folder: &Path,
    chaos: Option<Arc<Chaos>>,
) -> SessionContext {
    let session = session_of(tpch, Storage::Parquet, chaos).await;
    for (table, key) in TABLES {
        let schema = session.table_provider(table).await.unwrap().schema();
        session.deregister_table(table).unwrap();
        let path = folder.join(table);
        let options = datafusion::prelude::ParquetReadOptions::default().schema(&schema);
        session.register_parquet(table, path.to_str().unwrap(), options).await.unwrap();
        let files = session.deregister_table(table).unwrap().unwrap();
        let table_in_buckets = BucketedTable::try_new(files, bucketing(key)).unwrap();
        session.register_table(table, Arc::new(table_in_buckets)).unwrap();
    }
    session
}

#[test]
fn tpch_in_buckets_is_datafusions() {
    guarded(|case| async move {
        let tpch = TpchFixture::new().await;
        let folder = TempDir::new().unwrap();
        write(&case, &tpch, folder.path(), "PARQUET").await;
        for count in [1, 2, 3, 7] {
            let nodes = Nodes::in_process(count, 1).unwrap();
            let (mut grouped, mut in_buckets) = (0, 0);
            for (policy, groups_at_a_time) in POLICIES.into_iter().zip([1, 3]) {
                for broadcast_bytes in [0, 16 << 20] {
                    let options = StageOptions {
                        policy,
                        max_broadcast_bytes: broadcast_bytes,
                        max_broadcast_rows: broadcast_bytes,
                        concurrent_lifespans_per_task: groups_at_a_time,
                        ..StageOptions::with_nodes(count)
                    };
                    let session = session_in(&tpch, folder.path(), None).await;
                    for (number, sql) in (1..).zip(QUERIES) {
                        let name =
                            format!("q{number}, {count} nodes, {policy:?}, {broadcast_bytes}");
                        case.begin(&name);
                        let (_, query) = frame(&session, sql).await.unwrap();
                        let (state, plan) = query.clone().into_parts();
                        let plan = plan_stages(&state, &plan, &options).await.unwrap();
                        let stream = start_planned(&case, query, &nodes, &options).await;
                        let (batches, tasks) = read(stream.unwrap()).await.unwrap();
                        tpch.expected[number - 1].check(&name, &batches);
                        check_tasks(&name, &plan, &tasks, &options);
                        for fragment in plan.fragments() {
                            grouped += usize::from(fragment.grouped_execution);
                            in_buckets +=
                                usize::from(fragment.partitioning == PartitioningHandle::Buckets);
                        }
                    }
                }
            }
            assert!(
                grouped >= 12 && in_buckets > grouped,
                "{count} nodes: {grouped}, {in_buckets}"
            );
            tpch.assert_clean(nodes.executors(), &format!("{count} nodes"));
        }
    });
}

#[test]
fn tpch_in_buckets_with_tiny_buffers_and_blocks() {
    guarded(|case| async move {
        let tpch = TpchFixture::new().await;
        let folder = TempDir::new().unwrap();
        write(&case, &tpch, folder.path(), "PARQUET").await;
        for seed in 0..4 {
            let chaos = Arc::new(
                Chaos::new(seed).block_every(5).spurious_wakeups_every(7).split_batches(500),
            );
            let session = session_in(&tpch, folder.path(), Some(chaos.clone())).await;
            let count = [2, 3][seed as usize % 2];
            let nodes = Nodes::in_process(count, 1).unwrap();
            let options = StageOptions {
                policy: POLICIES[seed as usize / 2 % 2],
                max_broadcast_bytes: if seed % 3 == 0 { 0 } else { 16 << 20 },
                output_buffer_bytes: 100,
                splits: SplitLimits { max_splits_per_node: 1, max_pending_splits_per_task: 1 },
                concurrent_lifespans_per_task: 1 + seed as usize % 2,
                ..StageOptions::with_nodes(count)
            };
            for (number, sql) in (1..).zip(QUERIES) {
                let name = format!("q{number}, {count} nodes, seed {seed}");
                case.begin(&name);
                let (batches, _) = run(&case, &session, sql, &nodes, &options).await.unwrap();
                tpch.expected[number - 1].check(&name, &batches);
            }
            tpch.assert_clean(nodes.executors(), &format!("seed {seed}"));
            let counts = chaos.counts();
            assert!(counts.blocks() > 1000 && counts.splits > 200, "{counts:?}");
        }
    });
}

const JOINED: &str =
    "SELECT l_orderkey, o_custkey FROM lineitem JOIN orders ON l_orderkey = o_orderkey";

/// A fault at any step of any group ends the query and all its groups, or has no effect if the
/// group is not needed.
#[test]
fn a_group_that_ends_badly_ends_all() {
    guarded(|case| async move {
        let tpch = TpchFixture::new().await;
        let folder = TempDir::new().unwrap();
        write(&case, &tpch, folder.path(), "PARQUET").await;
        let nodes = Nodes::in_process(2, 1).unwrap();
        for (number, groups_at_a_time) in [(4, 1), (12, 3), (18, 2)] {
            let options = StageOptions {
                concurrent_lifespans_per_task: groups_at_a_time,
                ..StageOptions::with_nodes(2)
            };
            let sql = QUERIES[number - 1];
            let chaos = Arc::new(Chaos::new(0));
            let session = session_in(&tpch, folder.path(), Some(chaos.clone())).await;
            run(&case, &session, sql, &nodes, &options).await.unwrap();
            let steps = chaos.counts().steps;
            let mut hits = 0;
            for fault in [Fault::Error, Fault::Panic, Fault::Cancel] {
                for step in (0..15).map(|part| part * steps / 15) {
                    let name = format!("q{number}, {fault:?} at step {step} of {steps}");
                    case.begin(&name);
                    let chaos = Arc::new(Chaos::new(step).fault_at(fault, step));
                    let session = session_in(&tpch, folder.path(), Some(chaos.clone())).await;
                    let result = run(&case, &session, sql, &nodes, &options).await;
                    let hit = chaos.counts().fault;
                    hits += usize::from(hit);
                    match result {
                        Err(error) => assert!(hit && says(&error, fault), "{name}: {error}"),
                        Ok((batches, _)) => tpch.expected[number - 1].check(&name, &batches),
                    }
                    tpch.assert_clean(nodes.executors(), &name);
                }
            }
            assert!(hits > 20, "q{number}: {hits} faults");
        }
    });
}

#[test]
fn groups_end_with_their_reader() {
    guarded(|case| async move {
        let tpch = TpchFixture::new().await;
        let folder = TempDir::new().unwrap();
        write(&case, &tpch, folder.path(), "PARQUET").await;
        let nodes = Nodes::in_process(2, 1).unwrap();
        let session = session_in(&tpch, folder.path(), None).await;
        for policy in POLICIES {
            let options =
                StageOptions { policy, output_buffer_bytes: 100, ..StageOptions::with_nodes(2) };
            for batches in [0, 1, 9] {
                let name = format!("after {batches} batches, {policy:?}");
                case.begin(&name);
                let mut stream = start(&case, &session, JOINED, &nodes, &options).await.unwrap();
                for _ in 0..batches {
                    stream.next().await.unwrap().unwrap();
                }
                drop(stream);
                tpch.assert_clean(nodes.executors(), &name);

                let mut stream = start(&case, &session, JOINED, &nodes, &options).await.unwrap();
                for _ in 0..batches {
                    stream.next().await.unwrap().unwrap();
                }
                cancel(&mut stream, &name).await;
                tpch.assert_clean(nodes.executors(), &name);
            }
            let name = format!("a limit, {policy:?}");
            case.begin(&name);
            let limited = format!("{JOINED} LIMIT 10");
            let (batches, tasks) = run(&case, &session, &limited, &nodes, &options).await.unwrap();
            assert_eq!(crate::support::rows(&batches), 10, "{name}");
            let joined = tasks.iter().filter(|task| task.id.stage == 1);
            let written: u64 = joined.map(|task| task.rows_written).sum();
            assert!(written < 60_000, "{name}: {written} rows were joined for 10");
            tpch.assert_clean(nodes.executors(), &name);
        }
    });
}

/// Text files have no footer: their names tell their bucket.
#[test]
fn buckets_may_be_text() {
    guarded(|case| async move {
        let tpch = TpchFixture::new().await;
        let folder = TempDir::new().unwrap();
        write(&case, &tpch, folder.path(), "CSV").await;
        let session = session_of(&tpch, Storage::Parquet, None).await;
        let schema = session.table_provider("orders").await.unwrap().schema();
        let path = folder.path().join("orders");
        let csv = datafusion::prelude::CsvReadOptions::new().schema(&schema);
        session.register_csv("text", path.to_str().unwrap(), csv).await.unwrap();
        let files = session.deregister_table("text").unwrap().unwrap();
        let text = BucketedTable::try_new(files, bucketing("o_orderkey")).unwrap();
        session.register_table("text", Arc::new(text)).unwrap();
        let nodes = Nodes::in_process(2, 1).unwrap();
        let options = StageOptions::with_nodes(2);
        let copy = format!(
            "COPY orders TO '{}/x/' STORED AS CSV OPTIONS ('gatework.bucket_by' 'o_orderstatus', \
             'gatework.buckets' '3')",
            folder.path().display()
        );
        let refused = run(&case, &session, &copy, &nodes, &options).await.unwrap_err().to_string();
        assert!(refused.contains("write Parquet"), "{refused}");
        let strings = Schema::new(vec![Field::new("o_orderkey", DataType::Utf8, true)]);
        let csv = datafusion::prelude::CsvReadOptions::new().schema(&strings);
        session.register_csv("strings", path.to_str().unwrap(), csv).await.unwrap();
        let files = session.deregister_table("strings").unwrap().unwrap();
        let strings = BucketedTable::try_new(files, bucketing("o_orderkey")).unwrap();
        session.register_table("strings", Arc::new(strings)).unwrap();
        let error = session.sql("SELECT * FROM strings").await.unwrap().collect().await;
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("in buckets by 'i', but the columns of its table are 'b'"),
            "{error}"
        );
        let sql = "SELECT count(*), sum(a.o_custkey - b.o_custkey) FROM text a JOIN text b USING \
                   (o_orderkey)";
        case.begin(sql);
        let (state, plan) = session.sql(sql).await.unwrap().into_parts();
        let plan = plan_stages(&state, &plan, &options).await.unwrap();
        assert!(
            plan.fragments().iter().any(|fragment| fragment.grouped_execution),
            "{}",
            plan.tree(2).text()
        );
        let (batches, _) = run(&case, &session, sql, &nodes, &options).await.unwrap();
        let of = |column: usize| batches[0].column(column).as_primitive::<Int64Type>().value(0);
        assert_eq!((of(0), of(1)), (15_000, 0));
    });
}

/// Tables whose declaration does not match their files.
#[test]
fn declarations_are_checked() {
    guarded(|case| async move {
        let tpch = TpchFixture::new().await;
        let folder = TempDir::new().unwrap();
        write(&case, &tpch, folder.path(), "PARQUET").await;
        let nodes = Nodes::in_process(2, 1).unwrap();
        let options = StageOptions::with_nodes(2);
        let path = folder.path().join("orders");
        for (columns, count, says) in [
            (vec!["o_orderkey"], COUNT + 1, "is declared to have 6 by o_orderkey"),
            (vec!["o_custkey"], COUNT, "by o_custkey, xxh64: declare the table as it was written"),
            (
                vec!["o_orderkey", "o_custkey"],
                COUNT,
                "is in buckets by 'i', but the columns of its table are 'ii'",
            ),
        ] {
            case.begin(says);
            let session = session_of(&tpch, Storage::Parquet, None).await;
            let files = |name: &'static str| {
                let (session, path) = (session.clone(), path.clone());
                async move {
                    let options = datafusion::prelude::ParquetReadOptions::default();
                    session.register_parquet(name, path.to_str().unwrap(), options).await.unwrap();
                    session.deregister_table(name).unwrap().unwrap()
                }
            };
            let columns = columns.into_iter().map(str::to_owned).collect();
            let wrong = Bucketing::new(columns, count).unwrap();
            let wrong = BucketedTable::try_new(files("wrong").await, wrong).unwrap();
            session.register_table("wrong", Arc::new(wrong)).unwrap();
            let sql = "SELECT o_orderkey, o_custkey, count(o_comment) FROM wrong GROUP BY \
                       o_orderkey, o_custkey";
            let error = match run(&case, &session, sql, &nodes, &options).await {
                Err(error) => error.to_string(),
                Ok(_) => panic!("{says}: it was read"),
            };
            assert!(error.contains(says), "{error}");
            tpch.assert_clean(nodes.executors(), says);
        }
        let session = session_of(&tpch, Storage::Parquet, None).await;
        let plain = session.table_provider("orders").await.unwrap();
        let plain = BucketedTable::try_new(plain, bucketing("o_orderkey")).unwrap();
        session.register_table("plain", Arc::new(plain)).unwrap();
        let error =
            session.sql("SELECT count(o_comment) FROM plain").await.unwrap().collect().await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains("states no bucket"), "{error}");
        let plain = session.table_provider("orders").await.unwrap();
        let error = BucketedTable::try_new(plain, bucketing("l_orderkey")).unwrap_err().to_string();
        assert!(error.contains("none of the columns"), "{error}");
    });
}
