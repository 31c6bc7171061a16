//! TPC-H as stages on nodes of this process: DataFusion's rows in every chaos mode, and nothing
//! left of a query that is ended.

use std::{collections::BTreeSet, num::NonZeroUsize, sync::Arc, time::Duration};

use arrow::{
    array::{AsArray, RecordBatch},
    datatypes::UInt64Type,
};
use datafusion::{
    dataframe::DataFrame,
    error::{DataFusionError, Result},
    execution::session_state::SessionStateBuilder,
    prelude::{SessionConfig, SessionContext},
};
use futures::{StreamExt, TryStreamExt};
use gatework::{
    Settings,
    runtime::pipeline::{Chaos, Fault},
    stages::{
        ExecutionPolicy, Nodes, PartitioningHandle, SplitLimits, StageOptions, StageStream,
        SubPlan, TaskState, TaskStats, execute, plan_stages,
    },
};
use tempfile::TempDir;

use crate::{
    fixture::TpchFixture,
    query_end::fixture::files_below,
    support::{Case, QUERIES, Storage, frame, guarded},
};

pub(super) const POLICIES: [ExecutionPolicy; 2] =
    [ExecutionPolicy::AllAtOnce, ExecutionPolicy::Phased];

/// A DataFusion session whose queries run on nodes.
pub(super) async fn session_of(
    tpch: &TpchFixture,
    storage: Storage,
    chaos: Option<Arc<Chaos>>,
) -> SessionContext {
    let instances = NonZeroUsize::new(2);
    let settings = Settings { max_tasks_per_pipeline: instances, chaos, ..Settings::default() };
    let mut config = settings.into_config(SessionConfig::new());
    // The tables are small, so the minimum sizes for splitting and repartitioning are lowered.
    config.options_mut().optimizer.repartition_file_min_size = 0;
    let state = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(tpch.runtime())
        .with_default_features()
        .build();
    let session = SessionContext::new_with_state(state);
    tpch.data.register(&session, storage).await;
    session
}

/// Starts a query on nodes, and reports it to the guard.
pub(super) async fn start(
    case: &Case,
    session: &SessionContext,
    sql: &str,
    nodes: &Nodes,
    options: &StageOptions,
) -> Result<StageStream> {
    let (_, query) = frame(session, sql).await?;
    start_planned(case, query, nodes, options).await
}

pub(super) async fn start_planned(
    case: &Case,
    query: DataFrame,
    nodes: &Nodes,
    options: &StageOptions,
) -> Result<StageStream> {
    let stream = execute(query, nodes, options).await?;
    let watched = stream.watch();
    case.watch_by(move || watched.dump());
    Ok(stream)
}

pub(super) async fn run(
    case: &Case,
    session: &SessionContext,
    sql: &str,
    nodes: &Nodes,
    options: &StageOptions,
) -> Result<(Vec<RecordBatch>, Vec<TaskStats>)> {
    read(start(case, session, sql, nodes, options).await?).await
}

pub(super) async fn read(mut stream: StageStream) -> Result<(Vec<RecordBatch>, Vec<TaskStats>)> {
    let mut batches = Vec::new();
    while let Some(batch) = stream.try_next().await? {
        batches.push(batch);
    }
    Ok((batches, stream.task_stats()))
}

/// Cancels a query, and reads its stream to the resulting error.
pub(super) async fn cancel(stream: &mut StageStream, name: &str) {
    stream.query().cancel();
    let error = loop {
        match stream.next().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error.to_string(),
            None => panic!("{name}: a clean end"),
        }
    };
    assert!(error.contains("cancelled"), "{name}: {error}");
}

/// Whether `error` is that of `fault`.
pub(super) fn says(error: &DataFusionError, fault: Fault) -> bool {
    error.to_string().contains(match fault {
        Fault::Cancel => "cancelled",
        Fault::Error => "chaos: error at step",
        Fault::Panic => "chaos: panic at step",
        Fault::DropTask => "a producer ended without finishing",
    })
}

/// Asserts that written rows were read, once per reader that needed them, and that each stage has
/// its tasks, on separate nodes.
///
/// Returns the number of dropped rows, for instance of a probe side whose build side is empty on a
/// node.
pub(super) fn check_tasks(
    name: &str,
    plan: &SubPlan,
    tasks: &[TaskStats],
    options: &StageOptions,
) -> u64 {
    let nodes = options.nodes;
    let mut dropped = 0;
    for fragment in plan.fragments() {
        let stage_tasks: Vec<_> =
            tasks.iter().filter(|task| task.id.stage == fragment.id).collect();
        let what = format!("{name}: stage {}: {stage_tasks:#?}", fragment.id);
        let max_tasks = fragment.tasks(nodes);
        assert!(stage_tasks.len() <= max_tasks, "{what}");
        if stage_tasks.is_empty() {
            // The probe side of an empty build side is never started if its phase has not come.
            assert_eq!(options.policy, ExecutionPolicy::Phased, "{what}");
        } else if fragment.tables.is_empty() {
            assert_eq!(stage_tasks.len(), max_tasks, "{what}");
        }
        let used_nodes: BTreeSet<_> = stage_tasks.iter().map(|task| task.node).collect();
        assert_eq!(used_nodes.len(), stage_tasks.len(), "two tasks on one node, {what}");
        for task in stage_tasks {
            assert!(matches!(task.state, TaskState::Finished | TaskState::Cancelled), "{what}");
            assert!(task.fallbacks.is_empty(), "{what}");
            let broadcast = fragment.output.handle == PartitioningHandle::FixedBroadcast;
            if !broadcast {
                assert_eq!(task.rows_written, task.rows_read + task.rows_dropped, "{what}");
            }
            dropped += task.rows_dropped;
        }
    }
    dropped
}

#[test]
fn tpch_on_nodes_is_datafusions() {
    guarded(|case| async move {
        let tpch = TpchFixture::new().await;
        for storage in [Storage::Parquet, Storage::Memory] {
            for count in [1, 2, 4, 7] {
                let nodes = Nodes::in_process(count, 1).unwrap();
                let (mut used, mut left, mut read_rows) = (BTreeSet::new(), 0, 0);
                for policy in POLICIES {
                    // Zero makes every join partitioned.
                    for broadcast_bytes in [0, 16 << 20] {
                        let options = StageOptions {
                            policy,
                            max_broadcast_bytes: broadcast_bytes,
                            max_broadcast_rows: broadcast_bytes,
                            ..StageOptions::with_nodes(count)
                        };
                        let session = session_of(&tpch, storage, None).await;
                        for (number, sql) in (1..).zip(QUERIES) {
                            let name = format!(
                                "q{number}, {storage:?}, {count} nodes, {policy:?}, \
                                 {broadcast_bytes}"
                            );
                            case.begin(&name);
                            let (_, query) = frame(&session, sql).await.unwrap();
                            let (state, plan) = query.clone().into_parts();
                            let plan = plan_stages(&state, &plan, &options).await.unwrap();
                            let stream = start_planned(&case, query, &nodes, &options).await;
                            let (batches, tasks) = read(stream.unwrap()).await.unwrap();
                            tpch.expected[number - 1].check(&name, &batches);
                            left += check_tasks(&name, &plan, &tasks, &options);
                            read_rows += tasks.iter().map(|task| task.rows_read).sum::<u64>();
                            used.extend(tasks.iter().map(|task| task.node));
                        }
                    }
                }
                assert_eq!(used.len(), count, "nodes without any task");
                assert!(left < read_rows / 10, "{left} rows were dropped, {read_rows} read");
                tpch.assert_clean(nodes.executors(), &format!("{count} nodes"));
            }
        }
    });
}

/// Buffers of 100 bytes, queues of one split, at most one split per node, and tasks that block
/// whenever possible.
#[test]
fn tpch_on_nodes_with_tiny_buffers_and_blocks() {
    guarded(|case| async move {
        let tpch = TpchFixture::new().await;
        for seed in 0..8 {
            let storage = if seed % 2 == 0 { Storage::Memory } else { Storage::Parquet };
            let chaos = Arc::new(
                Chaos::new(seed).block_every(5).spurious_wakeups_every(7).split_batches(500),
            );
            let session = session_of(&tpch, storage, Some(chaos.clone())).await;
            let count = [2, 3][seed as usize / 2 % 2];
            let nodes = Nodes::in_process(count, 1).unwrap();
            let options = StageOptions {
                policy: POLICIES[seed as usize / 4 % 2],
                max_broadcast_bytes: if seed % 3 == 0 { 0 } else { 16 << 20 },
                output_buffer_bytes: 100,
                splits: SplitLimits { max_splits_per_node: 1, max_pending_splits_per_task: 1 },
                ..StageOptions::with_nodes(count)
            };
            for (number, sql) in (1..).zip(QUERIES) {
                let name = format!("q{number}, {storage:?}, {count} nodes, seed {seed}");
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

/// An error, a panic or a cancellation of one task at any step ends the query with it, and all
/// other tasks of all stages.
#[test]
fn a_task_that_ends_badly_ends_all() {
    guarded(|case| async move {
        let tpch = TpchFixture::new().await;
        let nodes = Nodes::in_process(3, 1).unwrap();
        for (place, number) in [1, 3, 5, 11, 13, 18, 21].into_iter().enumerate() {
            let options = StageOptions {
                policy: POLICIES[place % 2],
                max_broadcast_bytes: if place % 2 == 0 { 0 } else { 16 << 20 },
                ..StageOptions::with_nodes(3)
            };
            let sql = QUERIES[number - 1];
            let chaos = Arc::new(Chaos::new(0));
            let session = session_of(&tpch, Storage::Memory, Some(chaos.clone())).await;
            run(&case, &session, sql, &nodes, &options).await.unwrap();
            let steps = chaos.counts().steps;
            let mut hits = 0;
            for fault in [Fault::Error, Fault::Panic, Fault::Cancel] {
                for step in (0..20).map(|part| part * steps / 20) {
                    let name = format!("q{number}, {fault:?} at step {step} of {steps}");
                    case.begin(&name);
                    let chaos = Arc::new(Chaos::new(step).fault_at(fault, step));
                    let session = session_of(&tpch, Storage::Memory, Some(chaos.clone())).await;
                    let result = run(&case, &session, sql, &nodes, &options).await;
                    let hit = chaos.counts().fault;
                    hits += usize::from(hit);
                    match result {
                        Err(error) => assert!(hit && says(&error, fault), "{name}: {error}"),
                        // The rows of the faulty step may have had no reader.
                        Ok((batches, _)) => tpch.expected[number - 1].check(&name, &batches),
                    }
                    tpch.assert_clean(nodes.executors(), &name);
                }
            }
            assert!(hits > 30, "q{number}: {hits} faults");
        }
    });
}

/// A query that is dropped, cancelled or times out, before or between its rows.
#[test]
fn all_tasks_end_with_their_reader() {
    guarded(|case| async move {
        let tpch = TpchFixture::new().await;
        let nodes = Nodes::in_process(3, 1).unwrap();
        let session = session_of(&tpch, Storage::Parquet, None).await;
        let sql =
            "SELECT l_orderkey, o_custkey FROM lineitem JOIN orders ON l_orderkey = o_orderkey";
        for policy in POLICIES {
            let options = StageOptions {
                policy,
                output_buffer_bytes: 100,
                max_broadcast_bytes: 0,
                max_broadcast_rows: 0,
                ..StageOptions::with_nodes(3)
            };
            for batches in [0, 1, 5] {
                let name = format!("dropped after {batches} batches, {policy:?}");
                case.begin(&name);
                let mut stream = start(&case, &session, sql, &nodes, &options).await.unwrap();
                for _ in 0..batches {
                    stream.next().await.unwrap().unwrap();
                }
                drop(stream);
                tpch.assert_clean(nodes.executors(), &name);

                let name = format!("cancelled after {batches} batches, {policy:?}");
                case.begin(&name);
                let mut stream = start(&case, &session, sql, &nodes, &options).await.unwrap();
                for _ in 0..batches {
                    stream.next().await.unwrap().unwrap();
                }
                cancel(&mut stream, &name).await;
                // Once the error is returned, nothing of the query is left.
                let live: usize = nodes.executors().iter().map(|node| node.live_tasks()).sum();
                assert_eq!(live, 0, "{name}");
                tpch.assert_clean(nodes.executors(), &name);
            }
            let name = format!("a limit, {policy:?}");
            case.begin(&name);
            let limited = format!("{sql} LIMIT 10");
            let (batches, tasks) = run(&case, &session, &limited, &nodes, &options).await.unwrap();
            assert_eq!(crate::support::rows(&batches), 10, "{name}");
            // The join has 60,175 rows.
            let joined = tasks.iter().filter(|task| task.id.stage == 1);
            let written: u64 = joined.map(|task| task.rows_written).sum();
            assert!(written < 60_000, "{name}: {written} rows were joined for 10");
            tpch.assert_clean(nodes.executors(), &name);
        }
        let settings = Settings { timeout: Some(Duration::from_millis(1)), ..Settings::default() };
        let config = settings.into_config(SessionConfig::new());
        let session = SessionContext::new_with_config(config);
        tpch.data.register(&session, Storage::Parquet).await;
        let crossed = "SELECT count(*) FROM lineitem a, lineitem b WHERE a.l_comment < b.l_comment";
        case.begin("out of time");
        let ended = run(&case, &session, crossed, &nodes, &StageOptions::with_nodes(3)).await;
        let error = ended.unwrap_err().to_string();
        assert!(error.contains("its time limit"), "{error}");
        tpch.assert_clean(nodes.executors(), "out of time");
    });
}

/// The files of several writers, and their rows.
#[test]
fn copies_are_written_by_several() {
    guarded(|case| async move {
        let tpch = TpchFixture::new().await;
        for format in ["PARQUET", "CSV"] {
            for (count, least) in [(1, 1), (3, 2)] {
                let name = format!("{format} on {count} nodes");
                case.begin(&name);
                let session = session_of(&tpch, Storage::Parquet, None).await;
                let nodes = Nodes::in_process(count, 1).unwrap();
                let folder = TempDir::new().unwrap();
                let path = folder.path().display();
                let rows = "SELECT l_orderkey, l_comment, l_shipdate FROM lineitem";
                let options = StageOptions {
                    writer_min_bytes: 10_000,
                    output_buffer_bytes: 10_000,
                    ..StageOptions::with_nodes(count)
                };
                let sql = format!("COPY ({rows}) TO '{path}/' STORED AS {format}");
                let (counts, tasks) = run(&case, &session, &sql, &nodes, &options).await.unwrap();
                assert!(tasks.iter().all(|task| task.fallbacks.is_empty()), "{tasks:#?}");
                let expected = session.sql(rows).await.unwrap().collect().await.unwrap();
                let written = counts[0].column(0).as_primitive::<UInt64Type>().value(0);
                assert_eq!(written as usize, crate::support::rows(&expected), "{name}");
                let files = files_below(folder.path());
                assert!(files >= least, "{name}: {files} files");
                let again = format!(
                    "CREATE EXTERNAL TABLE again (a BIGINT, b VARCHAR, c DATE) STORED AS {format} \
                     LOCATION '{path}/' OPTIONS ('format.has_header' 'true')"
                );
                let again = match format {
                    "CSV" => again,
                    _ => {
                        format!("CREATE EXTERNAL TABLE again STORED AS PARQUET LOCATION '{path}/'")
                    }
                };
                session.sql(&again).await.unwrap();
                let columns = match format {
                    "CSV" => "a, b, c",
                    _ => "l_orderkey, l_comment, l_shipdate",
                };
                for (from, columns) in
                    [("again", columns), ("lineitem", "l_orderkey, l_comment, l_shipdate")]
                {
                    let sum = format!(
                        "CREATE TABLE sum_{from} AS SELECT count(*) AS n, count(DISTINCT h) AS d, \
                         min(h) AS l, \
                         max(h) AS m FROM (SELECT concat_ws('|', {columns}) AS h FROM {from})"
                    );
                    session.sql(&sum).await.unwrap();
                }
                let both = "SELECT * FROM sum_again UNION SELECT * FROM sum_lineitem";
                let both = session.sql(both).await.unwrap().collect().await.unwrap();
                assert_eq!(crate::support::rows(&both), 1, "{name}: {both:?}");
                tpch.assert_clean(nodes.executors(), &name);
            }
        }
    });
}

/// Limits of rows per file, and what DataFusion writes: ordered rows, a single file, compressed
/// text.
#[test]
fn copies_keep_to_their_options() {
    guarded(|case| async move {
        let tpch = TpchFixture::new().await;
        let session = session_of(&tpch, Storage::Parquet, None).await;
        let set = "SET datafusion.execution.soft_max_rows_per_output_file = 10000";
        session.sql(set).await.unwrap();
        let nodes = Nodes::in_process(2, 1).unwrap();
        for (order, name, options, fallbacks, least) in [
            ("", "", "", 0, 4),
            ("ORDER BY l_orderkey DESC", "", "", 1, 4),
            ("", "all.csv", "", 1, 1),
            ("", "", "OPTIONS ('format.compression' 'gzip')", 1, 1),
        ] {
            case.begin(format!("two nodes, {order} {name} {options}"));
            let folder = TempDir::new().unwrap();
            let path = folder.path().display();
            let rows = format!("SELECT l_orderkey FROM lineitem {order}");
            let sql = format!("COPY ({rows}) TO '{path}/{name}' STORED AS CSV {options}");
            let (counts, tasks) =
                run(&case, &session, &sql, &nodes, &StageOptions::with_nodes(2)).await.unwrap();
            let num_fallbacks = tasks.iter().map(|task| task.fallbacks.len()).sum::<usize>();
            assert_eq!(num_fallbacks, fallbacks, "{tasks:#?}");
            assert_eq!(counts[0].column(0).as_primitive::<UInt64Type>().value(0), 60_175);
            assert!(files_below(folder.path()) >= least, "{sql}");
            if !options.is_empty() {
                continue;
            }
            let mut all = 0;
            for file in std::fs::read_dir(folder.path()).unwrap() {
                let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
                let keys: Vec<i64> =
                    text.lines().skip(1).map(|line| line.parse().unwrap()).collect();
                assert!(order.is_empty() || keys.is_sorted_by(|one, next| one >= next));
                assert!(least == 1 || keys.len() < 10_000 + 8192, "{} rows in a file", keys.len());
                all += keys.len();
            }
            assert_eq!(all, 60_175, "{sql}");
            tpch.assert_clean(nodes.executors(), &sql);
        }
    });
}

/// A failed copy leaves no file that looks complete.
#[test]
fn a_copy_that_fails_leaves_nothing() {
    guarded(|case| async move {
        let tpch = TpchFixture::new().await;
        let session = session_of(&tpch, Storage::Parquet, None).await;
        let nodes = Nodes::in_process(2, 1).unwrap();
        let folder = TempDir::new().unwrap();
        let path = folder.path().display();
        // The last order is not the first one read.
        let sql = format!(
            "COPY (SELECT 1 / (l_orderkey - (SELECT max(o_orderkey) FROM orders)) FROM lineitem) \
             TO '{path}/' STORED AS PARQUET"
        );
        case.begin("a division by zero");
        let error = run(&case, &session, &sql, &nodes, &StageOptions::with_nodes(2)).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains("Divide by zero"), "{error}");
        tpch.assert_clean(nodes.executors(), "a division by zero");
        assert_eq!(files_below(folder.path()), 0);
    });
}

/// A copy that is cancelled within its files: when its end is reported, they are removed.
#[test]
fn a_copy_that_is_cancelled_leaves_nothing() {
    guarded(|case| async move {
        let tpch = TpchFixture::new().await;
        let session = session_of(&tpch, Storage::Parquet, None).await;
        // Every chunk is a multipart upload's part.
        let set = "SET datafusion.execution.objectstore_writer_buffer_size = 4096";
        session.sql(set).await.unwrap();
        let nodes = Nodes::in_process(2, 1).unwrap();
        for format in ["CSV", "PARQUET"] {
            case.begin(format);
            let folder = TempDir::new().unwrap();
            let path = folder.path().display();
            let sql = format!(
                "COPY (SELECT a.l_comment, b.l_orderkey FROM lineitem a, lineitem b) TO '{path}/' \
                 STORED AS {format}"
            );
            let options = StageOptions::with_nodes(2);
            let mut stream = start(&case, &session, &sql, &nodes, &options).await.unwrap();
            while files_below(folder.path()) == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            stream.query().cancel();
            let error = stream.next().await.unwrap().unwrap_err().to_string();
            assert!(error.contains("cancelled"), "{error}");
            assert_eq!(files_below(folder.path()), 0, "{format}");
            tpch.assert_clean(nodes.executors(), format);
        }
    });
}
