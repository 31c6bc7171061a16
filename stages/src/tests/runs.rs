//! Queries as stages on nodes of this process.

use datafusion::{arrow::util::pretty::pretty_format_batches, prelude::SessionContext};
use futures::TryStreamExt;

use super::session;
use crate::{ExecutionPolicy, Nodes, StageOptions, StageStream, TaskState, TaskStats, execute};

async fn start(
    session: &SessionContext,
    sql: &str,
    nodes: &Nodes,
    options: &StageOptions,
) -> StageStream {
    execute(session.sql(sql).await.unwrap(), nodes, options).await.unwrap()
}

/// The rows in any order, and the statistics of the tasks.
async fn rows_on(
    nodes: &Nodes,
    options: &StageOptions,
    sql: &str,
) -> (Vec<String>, Vec<TaskStats>) {
    let mut stream = start(&session(), sql, nodes, options).await;
    let mut batches = Vec::new();
    while let Some(batch) = stream.try_next().await.unwrap() {
        batches.push(batch);
    }
    (lines(&batches), stream.task_stats())
}

fn lines(batches: &[datafusion::arrow::array::RecordBatch]) -> Vec<String> {
    let text = pretty_format_batches(batches).unwrap().to_string();
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

const QUERIES: [&str; 8] = [
    "SELECT count(*), sum(v) FROM large",
    "SELECT k % 10 AS d, count(*) AS n, sum(v) AS s FROM large GROUP BY d",
    "SELECT large.v, small.v AS w FROM large JOIN small ON large.k = small.k",
    "SELECT a.k, count(*) FROM large a JOIN large b ON a.k = b.k AND a.v < 100 GROUP BY a.k",
    "SELECT v FROM large WHERE v > 39990 UNION ALL SELECT k FROM small",
    "SELECT k FROM small LEFT JOIN (SELECT k AS o FROM large WHERE k < 3) ON k = o",
    "SELECT k, row_number() OVER (PARTITION BY k % 7 ORDER BY k, v) AS r FROM large WHERE k < 50",
    "SELECT v FROM large WHERE v = (SELECT max(v) FROM small)",
];

#[tokio::test]
async fn queries_give_the_rows_of_datafusion() {
    for sql in QUERIES {
        let batches = session().sql(sql).await.unwrap().collect().await.unwrap();
        let expected = lines(&batches);
        for count in [1, 2, 3] {
            let nodes = Nodes::in_process(count, 2).unwrap();
            for policy in [ExecutionPolicy::AllAtOnce, ExecutionPolicy::Phased] {
                for buffer_bytes in [100, 16 << 20] {
                    let options = StageOptions {
                        policy,
                        output_buffer_bytes: buffer_bytes,
                        ..StageOptions::with_nodes(count)
                    };
                    let (rows, tasks) = rows_on(&nodes, &options, sql).await;
                    assert_eq!(rows, expected, "{sql} on {count} nodes, {policy:?}");
                    assert!(!tasks.is_empty());
                    // A task whose reader has ended is cancelled, even if it was about to finish.
                    let well = [TaskState::Finished, TaskState::Cancelled];
                    let ended_well = tasks.iter().all(|task| well.contains(&task.state));
                    assert!(ended_well, "{sql}: {tasks:#?}");
                }
            }
        }
    }
}
