//! Queries with their expected rows, in sessions of many shapes.

use arrow::{array::RecordBatch, util::display::array_value_to_string};
use datafusion::prelude::{SessionConfig, SessionContext};
use gatework::{Executor, Settings};
use tempfile::TempDir;

use super::{executor, guarded};

/// Threads, partitions and rows per batch of the sessions.
pub(crate) const SHAPES: [(usize, usize, usize); 6] =
    [(1, 1, 8192), (1, 4, 3), (2, 1, 3), (2, 2, 8192), (4, 1, 8192), (4, 4, 3)];

/// A session of one shape.
pub(crate) fn session(executor: &Executor, partitions: usize, batch_rows: usize) -> SessionContext {
    let config =
        SessionConfig::new().with_target_partitions(partitions).with_batch_size(batch_rows);
    gatework::session_with(executor, Settings::default().into_config(config))
}

/// Rows separated by blanks; values separated by commas.
pub(crate) fn text(batches: &[RecordBatch]) -> String {
    let row = |batch: &RecordBatch, row: usize| {
        let values = batch.columns().iter().map(|column| array_value_to_string(column, row));
        values.collect::<Result<Vec<_>, _>>().unwrap().join(",")
    };
    let rows = batches.iter().flat_map(|batch| (0..batch.num_rows()).map(move |n| row(batch, n)));
    rows.collect::<Vec<_>>().join(" ")
}

/// Runs `setup`, then checks that each query returns these rows in this order, in all shapes.
/// `{dir}` is a folder.
pub(crate) fn in_all_shapes(
    setup: &'static [&'static str],
    queries: &'static [(&'static str, &'static str)],
) {
    guarded(move |case| async move {
        for (threads, partitions, batch_rows) in SHAPES {
            let (executor, folder) = (executor(threads), TempDir::new().unwrap());
            let session = session(&executor, partitions, batch_rows);
            let fill = |sql: &str| sql.replace("{dir}", folder.path().to_str().unwrap());
            for statement in setup {
                case.begin(*statement);
                session.sql(&fill(statement)).await.unwrap().collect().await.unwrap();
            }
            for (query, rows) in queries {
                case.begin(*query);
                let actual = session.sql(&fill(query)).await.unwrap().collect().await.unwrap();
                let shape =
                    format!("{threads} threads, {partitions} partitions, {batch_rows} rows");
                assert_eq!(text(&actual), *rows, "{query}\n({shape})");
            }
        }
    });
}
